"""The only training loop: it runs any method, see ``method.py``, and knows nothing of what the method learns."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np
import torch
from ignite.engine import Events
from monai.engines import Trainer, Workflow
from monai.engines.utils import IterationEvents
from monai.utils import CommonKeys
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

from ..errors import ExpectedError
from .method import Method, MethodOutput, Progress
from .precision import ConvolutionGuard, resolve_precision, suspect_gradients
from .tracking import complete_tracking

#: steps in a row that float16 may overflow in: they halve the scaler's first 65536 to 1/256, and what overflows at that
#: scale does so whatever the scale
MOST_OVERFLOWS = 24
LOOK = (
    "The last checkpoint is untouched. Look at these images, lower the learning rate or set max_gradient_norm in a new "
    "run"
)


class NonFiniteLossError(ExpectedError, RuntimeError):
    """A loss term or the gradient became infinite or not a number; the weights are as before that step."""


class MethodTrainer(Trainer):
    """Train a method: move the batch, autocast, loss, refuse what is not finite, backward, clip, step, log.

    Before each epoch the random generators are seeded from (seed, epoch, rank), and the loader starts anew with a
    sampler that draws from the same numbers: an epoch is the same whether the run came to it or was resumed at it.

    Args:
        device: where to train.
        max_epochs: epochs of the whole training; with ``epoch_length`` this gives the iterations of a paper.
        train_data_loader: yields dictionaries; a ``batch_sampler`` with ``set_epoch`` is told the epoch.
        method: what to train; several processes wrap it in DistributedDataParallel.
        optimizer: over the method's trainable parameters.
        epoch_length: iterations an epoch; default: the length of the loader.
        precision: auto, float32, bfloat16 or float16, see :func:`~.precision.resolve_precision`. With ``auto`` the
            first batch's gradients are tried before anything is learnt; where they are wrong float32 takes over.
        max_gradient_norm: clip the gradient to this Euclidean norm; None: never.
        max_skipped_steps: steps with a non-finite loss or gradient to skip before giving up.
        seed: of everything that is random in training.
        train_handlers: MONAI and Ignite handlers.

    Raises:
        ValueError: for a precision that is unknown or that the device lacks, a max_gradient_norm of 0 or less, or no
            epoch.

    After each iteration ``state.output`` is a list, as MONAI's handlers expect, of one dictionary: ``loss`` (float),
    ``pred`` (logits) and ``scalars``: every loss term as ``loss/<term>``, unweighted, with its weight
    ``weight/<term>`` beside it, ``loss/total``, ``monitor/<name>`` and ``learning_rate``, of the step that was taken.
    """

    def __init__(
        self,
        device: str | torch.device,
        max_epochs: int,
        train_data_loader: Any,
        method: Method,
        optimizer: torch.optim.Optimizer,
        epoch_length: int | None = None,
        precision: str = "auto",
        max_gradient_norm: float | None = None,
        max_skipped_steps: int = 0,
        seed: int = 0,
        train_handlers: Sequence[Any] | None = None,
    ) -> None:
        if max_epochs < 1:
            raise ValueError(f"max_epochs must be at least 1, got {max_epochs}.")
        if max_gradient_norm is not None and not (isinstance(max_gradient_norm, int | float) and max_gradient_norm > 0):
            raise ValueError(f"max_gradient_norm must be positive, or null for no clipping, got {max_gradient_norm}.")
        device = torch.device(device)
        self.dtype = resolve_precision(precision, device)
        self.guard = ConvolutionGuard()
        self._untried = precision == "auto" and self.dtype is torch.bfloat16
        self.method = method.to(device)
        self.parallel: torch.nn.Module = self.method
        if distributed.is_available() and distributed.is_initialized():
            self.parallel = DistributedDataParallel(self.method, device_ids=[device] if device.type == "cuda" else None)
        self.optimizer = optimizer
        self.max_gradient_norm = max_gradient_norm
        self.max_skipped_steps = max_skipped_steps
        self.skipped_steps = 0
        self.overflows = 0  # in a row, in float16
        self.tracked_run: str | None = None  # MLflow's key of it
        self.resources = ExitStack()  # what handlers hold for the time of a run
        super().__init__(
            device=device,
            max_epochs=max_epochs,
            data_loader=train_data_loader,
            epoch_length=epoch_length,
            decollate=False,
            amp=self.dtype is not torch.float32,
        )
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.dtype is torch.float16)
        self.state.seed = seed
        self.add_event_handler(Events.EPOCH_STARTED, type(self)._begin_epoch)
        self.add_event_handler(Events.EPOCH_COMPLETED, type(self)._share_buffers)
        self._register_handlers(complete_tracking(train_handlers or []))

    def run(self) -> None:
        """Train, or say that a resumed training is already complete and let handlers write what a kill left undone."""
        with self.resources:
            if self.state.epoch >= self.state.max_epochs:
                self.logger.info(
                    f"Training is already complete: {self.state.epoch} of {self.state.max_epochs} epochs. "
                    "To train longer, start a new run with more max_epochs."
                )
                self.fire_event(Events.COMPLETED)
                return
            Workflow.run(self)  # MONAI's Trainer.run would replace the scaler, and with it a resumed state

    def _begin_epoch(self) -> None:
        seed = int(np.random.SeedSequence((self.state.seed, self.state.epoch, self.state.rank)).generate_state(1)[0])
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        sampler = getattr(self.data_loader, "batch_sampler", None)
        if sampler is not None and hasattr(sampler, "set_epoch"):
            sampler.set_epoch(self.state.epoch)
        self.set_data(self.data_loader)  # else an epoch shorter than the loader would go on where the last one stopped

    def _share_buffers(self) -> None:
        """Validate and save the first process's running statistics everywhere; each process has gathered its own."""
        if self.parallel is not self.method:
            for buffer in self.method.buffers():
                distributed.broadcast(buffer, 0)

    def _iteration(self, engine: Any, batchdata: dict[str, Any]) -> dict[str, Any]:
        batch = {
            key: value.to(self.state.device, non_blocking=True) if isinstance(value, torch.Tensor) else value
            for key, value in batchdata.items()
        }
        progress = Progress(self.state.iteration - 1, self.state.max_epochs * self.state.epoch_length)
        self.method.train()
        self.method.before_step(progress)
        if self._untried:
            self._try_precision(batch, progress)
        self.optimizer.zero_grad(set_to_none=True)
        # a forward pass over bad input spoils running statistics before the loss shows it
        buffers = [buffer.clone() for buffer in self.method.buffers()] if self.max_skipped_steps else []
        with self.guard, torch.autocast(self.state.device.type, dtype=self.dtype, enabled=self.amp):
            output: MethodOutput = self.parallel(_without_meta(batch), progress)
            self.fire_event(IterationEvents.FORWARD_COMPLETED)
            total = output.total
        self.fire_event(IterationEvents.LOSS_COMPLETED)
        fault = _non_finite_terms(output)
        if not self._all_ranks_agree(fault is None):
            self._refuse(fault or "another process met a non-finite loss", batch, buffers)
        else:
            self._step(total, batch, buffers)
        self.state.output = [
            {
                CommonKeys.LOSS: total.item(),
                CommonKeys.PRED: output.prediction.detach(),
                "scalars": _scalars(output) | {"learning_rate": float(self.optimizer.param_groups[0]["lr"])},
            }
        ]
        self.fire_event(IterationEvents.MODEL_COMPLETED)
        return self.state.output

    def _try_precision(self, batch: dict[str, Any], progress: Progress) -> None:
        """Take the first batch's gradients more than once; leave half precision where they are not to be trusted."""
        self._untried = False
        started = time.monotonic()

        def loss(method: torch.nn.Module) -> torch.Tensor:
            with torch.autocast(self.state.device.type, dtype=self.dtype):
                output: MethodOutput = method(_without_meta(batch), progress)
                return output.total

        suspect = suspect_gradients(self.method, loss, self.state.device)
        seconds = time.monotonic() - started
        if self._all_ranks_agree(not suspect):
            self.logger.info(
                f"precision auto: gradients in {self.dtype} tried in {seconds:.1f} s, they are right here."
            )
            return
        names = ", ".join(suspect[:5]) or "found by another process"
        self.logger.warning(
            f"precision auto: gradients in {self.dtype} are wrong on this machine (first of {len(suspect)}: {names}): "
            "float32 takes over. `python -m common.training.precision` prints what to report."
        )
        self.dtype, self.amp = torch.float32, False

    def _step(self, total: torch.Tensor, batch: dict[str, Any], buffers: list[torch.Tensor]) -> None:
        self.scaler.scale(total).backward()
        self.fire_event(IterationEvents.BACKWARD_COMPLETED)
        self.scaler.unscale_(self.optimizer)
        parameters = [parameter for parameter in self.method.parameters() if parameter.requires_grad]
        norm = torch.nn.utils.clip_grad_norm_(parameters, self.max_gradient_norm or float("inf"))
        # float16 overflows now and then: there the scaler leaves the step out and lowers its scale
        if not self.scaler.is_enabled() and not torch.isfinite(norm):
            self._refuse(f"the gradient's norm is {norm.item()}", batch, buffers)
            return
        scale = self.scaler.get_scale()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.scaler.get_scale() < scale:  # else a teacher would count a step that was not taken
            self._overflow(scale, batch)
            return
        self.overflows = 0
        self.method.after_step()

    def _overflow(self, scale: float, batch: dict[str, Any]) -> None:
        """Tell that the scaler left a step out, the first time and ever more seldom; give up where it always does."""
        self.overflows += 1
        fault = f"the gradient overflowed in float16 at a scale of {scale:g}, {self.overflows} in a row"
        if self.overflows >= MOST_OVERFLOWS:
            raise NonFiniteLossError(f"{self._told(fault, batch)} {LOOK}, or choose another precision.")
        if self.overflows & (self.overflows - 1) == 0:  # 1, 2, 4, 8, ...
            self.logger.info(f"Iteration {self.state.iteration}: {fault}; step left out.")

    def _refuse(self, fault: str, batch: dict[str, Any], buffers: list[torch.Tensor]) -> None:
        self.skipped_steps += 1
        message = self._told(fault, batch)
        if self.skipped_steps > self.max_skipped_steps:
            raise NonFiniteLossError(f"{message} {LOOK}, or allow max_skipped_steps.")
        for buffer, before in zip(self.method.buffers(), buffers, strict=True):
            buffer.copy_(before)
        self.logger.warning(f"{message} Step left out ({self.skipped_steps} of {self.max_skipped_steps} allowed).")

    def _told(self, fault: str, batch: dict[str, Any]) -> str:
        cases = getattr(batch.get("image"), "meta", {}).get("filename_or_obj", ["(names unknown)"])
        names = ", ".join(str(case) for case in cases) if not isinstance(cases, str) else cases
        return f"Iteration {self.state.iteration}: {fault}; cases in the batch: {names}."

    def _all_ranks_agree(self, fine: bool) -> bool:
        if self.parallel is self.method:
            return fine
        flag = torch.tensor(float(fine), device=self.state.device)
        distributed.all_reduce(flag, op=distributed.ReduceOp.MIN)
        return bool(flag.item())


def _without_meta(batch: dict[str, Any]) -> dict[str, Any]:
    """Plain tensors: every operator on a MetaTensor costs Python time that a training step has no use for."""
    return {key: value.as_tensor() if hasattr(value, "as_tensor") else value for key, value in batch.items()}


def _non_finite_terms(output: MethodOutput) -> str | None:
    bad = [f"{name} = {term.value.item()}" for name, term in output.terms.items() if not torch.isfinite(term.value)]
    return f"loss term {', '.join(bad)} is not finite" if bad else None


def _scalars(output: MethodOutput) -> dict[str, float]:
    scalars = {f"loss/{name}": term.value.item() for name, term in output.terms.items()}
    scalars["loss/total"] = output.total.item()
    scalars |= {f"weight/{name}": float(term.weight) for name, term in output.terms.items()}
    return scalars | {f"monitor/{name}": value.item() for name, value in output.monitors.items()}
