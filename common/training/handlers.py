"""Handlers that connect the trainer and evaluators to files, metrics and the screen."""

from __future__ import annotations

import os
import sys
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from ignite import distributed as idist
from ignite.engine import Engine, Events
from ignite.handlers import ProgressBar
from monai.handlers import LrScheduleHandler, ValidationHandler

from ..files import save_atomically
from ..settings import switch
from .begun import differences, run_settings, step_settings, told_settings
from .history import TrainingHistory
from .lock import lock_folders
from .runs import FINAL_FILE, RESUME_FILE, is_first_rank, read_saved, refuse_non_finite, start_run

_BAR = "{desc}[{n_fmt}/{total_fmt}] {percentage:3.0f}%|{bar}| {elapsed}<{remaining}{postfix}"
#: what a checkpoint for resuming holds, and of which type
CHECKPOINT = {
    "method": dict,
    "optimizer": dict,
    "scaler": dict,
    "epoch": int,
    "iteration": int,
    "epoch_length": int,
    "max_epochs": int,
    "seed": int,
    "processes": int,
    "cases_per_batch": list,
    "method_settings": dict,
    "skipped_steps": int,
}
#: what those of earlier versions, or of trainings that nothing tracks, do not hold
SINCE = {"step_settings": dict, "run_settings": dict, "tracked_run": str}
NO_RESUMING = "Fix: start a new run without --resume, or put back a last.ckpt that is whole."


class TrainingRun:
    """The handlers of a training, in the one order in which they work.

    A progress bar with the loss terms; the learning rate's step after each iteration; validation; the history, which
    needs that epoch's metrics; last, what is saved, which needs them too.

    Args:
        ckpt_dir: folder of the weights.
        output_dir: folder of logs and results.
        network: what ships.
        lr_scheduler: steps after each iteration.
        validator: evaluator whose key metric chooses the weights, the larger the better.
        interval: epochs between validations.
        resume: continue the run in these folders.
    """

    def __init__(
        self,
        ckpt_dir: str | os.PathLike[str],
        output_dir: str | os.PathLike[str],
        network: torch.nn.Module,
        lr_scheduler: Any,
        validator: Any,
        interval: int = 1,
        resume: bool = False,
    ) -> None:
        self.validator = validator
        self.handlers: list[Any] = [
            LossProgressBar(),
            LrScheduleHandler(lr_scheduler, print_lr=False, epoch_level=False),
            ValidationHandler(interval, validator),
            TrainingHistory(Path(output_dir) / "history.csv", validator),
            RunCheckpoint(ckpt_dir, output_dir, network, validator, lr_scheduler, resume),
        ]

    def attach(self, engine: Engine) -> None:
        """Attach to a :class:`~common.training.trainer.MethodTrainer`."""
        for handler in self.handlers:
            handler.attach(engine)


class LossProgressBar:
    """A progress bar with the times and the loss terms of the trainer's ``state.output[0]["scalars"]``.

    It is as wide as the terminal: the total comes first, and terms for which there is no room are left out.
    """

    def attach(self, engine: Engine) -> None:
        """Attach to a trainer."""
        if is_first_rank():
            bar = ProgressBar(persist=True, bar_format=_BAR, dynamic_ncols=True)
            bar.attach(engine, output_transform=lambda output: self._terms(output, engine))

    @staticmethod
    def _terms(output: list[dict[str, Any]], engine: Engine) -> dict[str, str]:
        scalars = output[0]["scalars"]
        losses = {key.removeprefix("loss/"): value for key, value in scalars.items() if key.startswith("loss/")}
        epochs, length = engine.state.max_epochs, engine.state.epoch_length
        room = _terminal_width() - len(f"Epoch [{epochs}/{epochs}]: [{length}/{length}] 100%|{'':8}| 0:00:00<0:00:00")
        shown: dict[str, str] = {}
        for name in sorted(losses, key=lambda name: name != "total"):
            room -= len(f", {name}={losses[name]:.3f}")
            if room < 0:
                break
            shown[name] = f"{losses[name]:.3f}"
        return shown


def _terminal_width() -> int:
    """Columns of the terminal that progress bars are drawn on; more than any line takes where there is none."""
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns - 1
    except (OSError, ValueError):  # a file, a pipe, or no stream at all
        return 1000


class RunCheckpoint:
    """Save the weights that ship and, after each epoch, all that resuming needs.

    ``model.pt`` is the state dict of the network alone: at the best value of the validator's key metric, or, if nothing
    was validated, the last; ``model_final.pt`` is that at the end. ``last.ckpt`` has method, optimiser, scheduler,
    scaler, epoch, iteration, the best metric, and what the run was told, see :mod:`~common.training.begun`. As the
    trainer seeds each epoch from its number, a run that is killed at any moment and resumed is the same as one that was
    not. All are written atomically.

    A new run first sets aside, when it starts, what an earlier one left in its folders, see
    :func:`~common.training.runs.start_run`. While it runs no other process trains in these folders, see
    :func:`~common.training.lock.lock_folders`. A run that was killed after its last epoch, before ``model_final.pt``
    was written, writes it when it is resumed.

    Attach it last.

    Args:
        ckpt_dir: folder of the weights.
        output_dir: folder of logs and results.
        network: what ships.
        validator: evaluator whose key metric decides, the larger the better.
        lr_scheduler: its state is kept too.
        resume: load ``last.ckpt`` before training.
        save_interval: epochs between saves of ``last.ckpt``.
    """

    def __init__(
        self,
        ckpt_dir: str | os.PathLike[str],
        output_dir: str | os.PathLike[str],
        network: torch.nn.Module,
        validator: Engine | None = None,
        lr_scheduler: Any = None,
        resume: bool = False,
        save_interval: int = 1,
    ) -> None:
        self.folder = Path(ckpt_dir)
        self.output_dir = Path(output_dir)
        self.network = network
        self.validator = validator
        self.lr_scheduler = lr_scheduler
        self.resume = switch(resume, "resume")
        self.save_interval = save_interval
        self._method_settings: dict[str, Any] = {}
        self._step_settings: dict[str, Any] = {}
        self._run_settings: dict[str, Any] = {}

    def attach(self, engine: Engine) -> None:
        """Attach to a :class:`~common.training.trainer.MethodTrainer` and, when resuming, load its state."""
        self._method_settings = told_settings(vars(engine.method))
        records = getattr(getattr(engine.data_loader, "dataset", None), "data", None)
        self._run_settings = run_settings(self.folder, records)
        schedule = {} if self.lr_scheduler is None else self.lr_scheduler.state_dict()
        # as they are built: what some schedules show of themselves and the optimiser changes as they run
        self._step_settings = deepcopy(step_settings(engine.optimizer.state_dict(), schedule))
        if self.resume:
            self._start(engine)
            self._load(engine)
        if is_first_rank():
            if not self.resume:  # not before it runs: a config that is only looked at must not touch an earlier run
                engine.add_event_handler(Events.STARTED, self._start)
            engine.add_event_handler(Events.EPOCH_COMPLETED, self._epoch)
            engine.add_event_handler(Events.COMPLETED, self._completed)

    def _start(self, engine: Any) -> None:
        if is_first_rank():
            engine.resources.push(lock_folders(self.folder, self.output_dir))
        start_run(self.folder, self.output_dir, self.resume)

    def _epoch(self, engine: Any) -> None:
        validator = self.validator
        if validator is None or validator.state.best_metric_epoch == engine.state.epoch:
            save_atomically(self.network.state_dict(), self.folder / "model.pt")
        if engine.state.epoch % self.save_interval == 0 or engine.state.epoch == engine.state.max_epochs:
            save_atomically(self._state(engine), self.folder / RESUME_FILE)

    def _completed(self, engine: Any) -> None:
        best = self.folder / "model.pt"
        save_atomically(self.network.state_dict(), self.folder / FINAL_FILE)
        if self.validator is not None and self.validator.state.best_metric_epoch == -1:
            # else an earlier run's model.pt would pass for this one's
            save_atomically(self.network.state_dict(), best)
        elif not best.exists():  # written before last.ckpt: someone has removed it since
            engine.logger.warning(f"{best}: the best epoch's weights are gone; {FINAL_FILE} has the last epoch's.")

    def _state(self, engine: Any) -> dict[str, Any]:
        state = {
            "method": engine.method.state_dict(),
            "optimizer": engine.optimizer.state_dict(),
            "scaler": engine.scaler.state_dict(),
            "epoch": engine.state.epoch,
            "iteration": engine.state.iteration,
            "epoch_length": engine.state.epoch_length,
            "max_epochs": engine.state.max_epochs,
            "seed": engine.state.seed,
            "processes": idist.get_world_size(),
            "cases_per_batch": list(getattr(getattr(engine.data_loader, "batch_sampler", None), "sizes", ())),
            "method_settings": self._method_settings,
            "step_settings": self._step_settings,
            "run_settings": self._run_settings,
            "skipped_steps": engine.skipped_steps,
        }
        if engine.tracked_run is not None:
            state["tracked_run"] = engine.tracked_run
        if self.lr_scheduler is not None:
            state["lr_scheduler"] = self.lr_scheduler.state_dict()
        if self.validator is not None:
            validated = self.validator.state
            state["best_metric"] = float(validated.best_metric)
            state["best_metric_epoch"] = validated.best_metric_epoch
        return state

    def _load(self, engine: Any) -> None:
        path = self.folder / RESUME_FILE
        state = self._read(path)
        for key in ("epoch_length", "max_epochs", "seed"):
            if state[key] != getattr(engine.state, key):
                raise ValueError(
                    f"{path}: the run has {key} {state[key]}, the config {getattr(engine.state, key)}: the schedule "
                    f"would not be that of either. Fix: give --{key} {state[key]}, or start a new run."
                )
        if differing := differences(state, self._state(engine)):
            told = "; ".join(f"{name} {was}, the config {now}" for name, was, now in differing)
            raise ValueError(
                f"{path}: the run has {told}, which would be lost or change its course. Fix: give the settings that "
                "the run began with, or start a new run."
            )
        parts = {"method": engine.method, "optimizer": engine.optimizer, "scaler": engine.scaler}
        if self.lr_scheduler is not None:
            parts["lr_scheduler"] = self.lr_scheduler
        for name, part in parts.items():
            _load_part(part, name, state[name], path)
        engine.state.epoch, engine.state.iteration = state["epoch"], state["iteration"]
        engine.skipped_steps = state["skipped_steps"]
        engine.tracked_run = state.get("tracked_run")
        if self.validator is not None:
            self.validator.state.best_metric = state["best_metric"]
            self.validator.state.best_metric_epoch = state["best_metric_epoch"]
        engine.logger.info(f"Resumed {path} after epoch {state['epoch']} of {state['max_epochs']}.")

    def _read(self, path: Path) -> dict[str, Any]:
        """A checkpoint that has all that this run needs."""
        state = read_saved(path, "checkpoint of a run", NO_RESUMING)
        needed: dict[str, Any] = dict(CHECKPOINT)
        if self.lr_scheduler is not None:
            needed["lr_scheduler"] = dict
        if self.validator is not None:
            needed |= {"best_metric": float, "best_metric_epoch": int}
        needed |= {key: kind for key, kind in SINCE.items() if key in state}
        lacking = [key for key, kind in needed.items() if not isinstance(state.get(key), kind)]
        if "optimizer" not in lacking and not isinstance(state["optimizer"].get("param_groups"), list):
            lacking.append("optimizer")
        if lacking:
            raise ValueError(f"{path}: is no whole checkpoint: it lacks {', '.join(lacking)}. {NO_RESUMING}")
        refuse_non_finite(state["method"], path, NO_RESUMING)
        return state


def _load_part(part: Any, name: str, state: dict[str, Any], path: Path) -> None:
    try:
        part.load_state_dict(state)
    except (RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:
        # torch lists every tensor that differs, one a line, after a line that says nothing
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise ValueError(
            f"{path}: its {name} is not the config's: {' '.join(lines[-1:])[:300]} Fix: give the config and settings "
            "that the run began with, or start a new run."
        ) from None
