"""Time and memory of the window operators of AffinityUMamba against the unfold formulation of the same equations.

``python -m ci.benchmarks.windows`` prints a table, forward, and backward where there is a gradient. The unfold
formulation forms every window as a tensor of window times image; it is written here, for the benchmark, and values and
gradients are compared. Time is the shortest of the runs, which other processes disturbed least; memory is what a run
needs at its peak beyond its inputs. The windows of 7^3 do not fit most machines at full size: the unfold formulation of
the bilateral enhancement runs at half the size an axis, and its time and memory are multiplied by 8.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import fire
import torch
from torch.nn import functional

from common.ops.affinity import local_affinity, local_affinity_loss
from common.ops.bilateral import bilateral_enhancement
from common.ops.gate import affinity_gate
from common.ops.spread import local_spread

from .memory import peak_extra_memory

FASTER, LEANER = 8.0, 15.0  # what the operators are held to
Tensors = tuple[torch.Tensor, ...]


class Case(NamedTuple):
    """An operator, its unfold formulation and their inputs.

    Attributes:
        ours: of the inputs.
        unfolded: the same values.
        inputs: makes the tensors at a size.
        differentiable: whether there is a gradient, by the first input.
        shrink: how many times smaller an axis is for the unfold formulation.
    """

    ours: Callable[..., torch.Tensor]
    unfolded: Callable[..., torch.Tensor]
    inputs: Callable[[int], Tensors]
    differentiable: bool
    shrink: int = 1


class Measured(NamedTuple):
    """What one formulation took."""

    seconds: float
    bytes: float


def main(
    size: int = 96,
    channels: int = 16,
    classes: int = 4,
    repeats: int = 3,
    threads: int = 1,
    device: str = "cuda" if torch.cuda.is_available() else "cpu",
) -> None:
    """Print the table.

    Args:
        size: of the volumes, in voxels along every axis.
        channels: of affinity's vectors and of the gate's features.
        classes: of the other operators.
        repeats: timed runs, after one that is not timed.
        threads: of PyTorch.
        device: where to run.
    """
    torch.set_num_threads(threads)
    target = torch.device(device)
    print(f"{target}, torch {torch.__version__}, {threads} threads, {size}^3, float32")
    print(
        f"{'operator':<12}{'seconds':>9}{'unfold':>9}{'ratio':>8}{'MiB':>9}{'unfold':>9}{'ratio':>8}{'error':>9}  "
        f"{FASTER:g} times faster, 1/{LEANER:g} of the memory"
    )
    for name, case in _cases(channels, classes, target).items():
        error = _error(case, size // (2 * case.shrink))
        ours = _measure(case.ours, case, size, repeats, target)
        unfolded = _measure(case.unfolded, case, size // case.shrink, 1, target)
        faster, leaner = (a * case.shrink**3 / b for a, b in zip(unfolded, ours, strict=True))
        seconds = f"{ours.seconds:>9.3f}{unfolded.seconds * case.shrink**3:>9.3f}{faster:>8.1f}"
        memory = f"{ours.bytes / 2**20:>9.1f}{unfolded.bytes * case.shrink**3 / 2**20:>9.1f}{leaner:>8.1f}"
        verdict = "yes" if faster >= FASTER and leaner >= LEANER else "NO"
        print(f"{name:<12}{seconds}{memory}{error:>9.0e}  {verdict}", flush=True)


def _run(work: Callable[..., torch.Tensor], inputs: Tensors, differentiable: bool) -> Tensors:
    if not differentiable:
        with torch.no_grad():
            return (work(*inputs),)
    first = inputs[0].requires_grad_()
    value = work(first, *inputs[1:])
    (gradient,) = torch.autograd.grad(value, first, torch.ones_like(value))
    return value.detach(), gradient


def _error(case: Case, size: int) -> float:
    """Largest difference of values and gradients, relative to the largest value."""
    inputs = case.inputs(size)
    found, expected = (_run(work, inputs, case.differentiable) for work in (case.ours, case.unfolded))
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(found, expected, strict=True))


def _measure(work: Callable[..., torch.Tensor], case: Case, size: int, repeats: int, device: torch.device) -> Measured:
    inputs, seconds = case.inputs(size), []
    for _ in range(1 + repeats):
        start = time.perf_counter()
        _run(work, inputs, case.differentiable)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - start)
    memory = peak_extra_memory(partial(_run, work, inputs, case.differentiable), device)
    return Measured(min(seconds[1:]), memory)


def _cases(channels: int, classes: int, device: torch.device) -> dict[str, Case]:
    def normal(number: int, size: int, seed: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        return torch.randn((1, number, size, size, size), generator=generator).to(device)

    def labelled(number: int, size: int) -> Tensors:
        probabilities = normal(number, size, 0).softmax(1)
        return probabilities, normal(number, size, 1).argmax(1, keepdim=True)

    def vectors(size: int) -> Tensors:
        probabilities, labels = labelled(channels, size)
        return probabilities, probabilities.argmax(1, keepdim=True), labels

    def affinity(probabilities: torch.Tensor, own: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
        found = local_affinity(probabilities, own, others)
        return torch.cat([found.positive, found.negative, found.support], dim=1)

    return {
        "affinity": Case(affinity, unfolded_affinity, vectors, False),
        "gate": Case(
            affinity_gate, unfolded_gate, lambda size: (normal(channels, size, 0), normal(channels, size, 1)), True
        ),
        "bilateral": Case(
            bilateral_enhancement,
            unfolded_bilateral,
            lambda size: (normal(classes, size, 0), normal(1, size, 1)),
            True,
            2,
        ),
        "loss": Case(local_affinity_loss, unfolded_loss, lambda size: labelled(classes, size), True),
        "spread": Case(local_spread, unfolded_spread, lambda size: (normal(classes, size, 0),), False),
    }


def _windows(values: torch.Tensor, side: int = 3, outside: float = 0.0) -> torch.Tensor:
    """Every window of (B, C, *S): (B, C, *S, window)."""
    padded = functional.pad(values, [side // 2] * 6, value=outside)
    return padded.unfold(2, side, 1).unfold(3, side, 1).unfold(4, side, 1).flatten(-3)


def _inside(values: torch.Tensor, side: int = 3) -> torch.Tensor:
    return _windows(torch.ones_like(values[:, :1]), side)


def unfolded_affinity(probabilities: torch.Tensor, own: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    """Eqs. 3 to 5: positive and negative mean, and how many neighbours the former is of."""
    near, centre = _windows(probabilities), probabilities[..., None]
    cosine = (near * centre).sum(1, keepdim=True) / (
        near.norm(dim=1, keepdim=True) * centre.norm(dim=1, keepdim=True) + 1e-8
    )
    positive = (_windows(others.float(), outside=-1.0) == own[..., None]).float()
    negative = (1 - positive) * _inside(probabilities)
    means = [(cosine * m).sum(-1) / m.sum(-1).clamp_min(1) for m in (positive, negative)]
    return torch.cat([*means, positive.sum(-1)], dim=1)


def unfolded_gate(features: torch.Tensor, guide: torch.Tensor) -> torch.Tensor:
    """Eq. 1, normalised."""
    inside = _inside(guide)
    mean = (_windows(guide).sum(-1) / inside.sum(-1))[..., None]
    band = 0.02 * guide.square().mean((2, 3, 4), keepdim=True).sqrt()[..., None]
    selected = (1 + (_windows(guide) - mean) / band).clamp(0, 1) * inside
    return (selected * _windows(features)).sum(-1) / selected.sum(-1) + features


def unfolded_bilateral(logits: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
    """Eq. 2."""
    sides = (3, 5, 7)
    result = logits
    for side in sides:
        inside, near = _inside(image, side), _windows(image, side)
        size = inside.sum(-1, keepdim=True)
        mean = near.sum(-1, keepdim=True) / size
        sigma = ((near - mean).square() * inside).sum(-1, keepdim=True) / size
        weights = torch.exp(-(near - image[..., None]).square() / (sigma + 1e-6)) * inside
        weights = weights / weights.sum(-1, keepdim=True)
        share = (1 / math.sqrt(side)) / sum(1 / math.sqrt(other) for other in sides)
        result = result + share * (weights * _windows(logits, side)).sum(-1)
    return result


def unfolded_loss(probabilities: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Eq. 7 with the decoder's m_pos soft."""
    near, inside = _windows(labels.float(), outside=-1.0), _inside(probabilities)
    given = sum(probabilities[:, c : c + 1, ..., None] * (near == c) for c in range(probabilities.shape[1]))
    positive = (near == labels[..., None]).float()
    negative = inside - positive
    first = (positive * (1 - given)).sum(-1) / positive.sum(-1).sqrt()
    return (first + (negative * given).sum(-1) / negative.sum(-1).sqrt().clamp_min(1)).mean()


def unfolded_spread(values: torch.Tensor) -> torch.Tensor:
    """Eq. 8 with means."""
    near, inside = _windows(values), _inside(values)
    size = inside.sum(-1)
    mean = near.sum(-1) / size
    difference = (near - mean[..., None]).square().sum(1, keepdim=True) * inside
    return (difference.sum(-1) / size).sqrt()


if __name__ == "__main__":
    fire.Fire(main)
