"""Training steps of two kinds, timed in turn; what the benchmarks of training steps share."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from common.training.method import Method, Progress
from common.training.precision import ConvolutionGuard

PROGRESS = Progress(iteration=50, total=100)
Step = Callable[[], None]


def shipped_step(method: Method, batch: dict[str, Any], dtype: torch.dtype) -> Step:
    """A step as the collection's trainer takes it, without the engine.

    Args:
        method: on the batch's device.
        batch: what the method reads.
        dtype: of autocast; float32: none.
    """
    device = batch["image"].device
    method.train()
    optimizer = torch.optim.SGD(
        [value for value in method.parameters() if value.requires_grad], lr=0.01, momentum=0.9, weight_decay=1e-4
    )
    scaler = torch.amp.GradScaler(device.type, enabled=dtype is torch.float16)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        method.before_step(PROGRESS)
        with ConvolutionGuard(), torch.autocast(device.type, dtype=dtype, enabled=dtype is not torch.float32):
            total = method(batch, PROGRESS).total
        scaler.scale(total).backward()
        scaler.step(optimizer)
        scaler.update()
        method.after_step()

    return step


def segmentation_loss(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Half cross entropy, half Dice of two classes, written plainly; target (B, 1, *S)."""
    probability = logits.softmax(1)[:, 1].flatten(1)
    truth = (target[:, 0] == 1).float().flatten(1)
    dice = 1 - (2 * (probability * truth).sum(1) + 1e-5) / (probability.sum(1) + truth.sum(1) + 1e-5)
    return 0.5 * (torch.nn.functional.cross_entropy(logits, target[:, 0]) + dice.mean())


def inside(context: Callable[[], AbstractContextManager[object]], step: Step) -> Step:
    """The step in a context of its own, such as operators that are replaced."""

    def run() -> None:
        with context():
            step()

    return run


@torch.no_grad()
def check_losses(
    shipped: Method, plain: Method, batch: dict[str, Any], context: Callable[[], AbstractContextManager[object]]
) -> None:
    """Print the losses of the first steps, that of ``plain`` inside ``context``, both with the same random numbers.

    Raises:
        RuntimeError: when they differ by more than a thousandth: the steps do not do the same, their times say nothing.
    """
    totals = []
    for method, around in ((shipped, nullcontext), (plain, context)):
        torch.manual_seed(1)
        method.before_step(PROGRESS)
        with around():
            totals.append(float(method(batch, PROGRESS).total))
    print(f"loss of the first step {totals[0]:.6f} as shipped, {totals[1]:.6f} plain")
    if abs(totals[0] - totals[1]) > 1e-3 * abs(totals[1]):
        raise RuntimeError("The two steps do not compute the same loss.")


def compare(shipped: Step, plain: Step, steps: int, device: torch.device) -> None:
    """Print seconds of both kinds of step and their ratio.

    Args:
        shipped: the step as shipped.
        plain: the step written plainly.
        steps: timed steps of each kind, after one that is not timed.
        device: where they run.
    """
    kinds = {"shipped": shipped, "plain": plain}
    times: dict[str, list[float]] = {name: [] for name in kinds}
    for number in range(steps + 1):
        for name, run in kinds.items():
            start = time.perf_counter()
            run()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            if number > 0:
                times[name].append(time.perf_counter() - start)
    print(f"{'step':<10}{'seconds':>10}{'min':>10}{'max':>10}   median of {steps} steps in turn")
    for name, found in times.items():
        print(f"{name:<10}{statistics.median(found):>10.3f}{min(found):>10.3f}{max(found):>10.3f}")
    ratios = [p / s for p, s in zip(times["plain"], times["shipped"], strict=True)]
    print(
        f"plain / shipped, pair by pair: median {statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})"
    )
