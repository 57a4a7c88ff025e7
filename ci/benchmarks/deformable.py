"""Time and memory of the deformable convolution against a plain formulation of the same formula.

``python -m ci.benchmarks.deformable`` prints a table, forward and backward. The plain one samples all taps at once by
``grid_sample`` and multiplies them with the weights in one product; it is written here, for the benchmark, and value
and gradients are compared.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable
from functools import partial

import fire
import torch
from torch.nn import functional

from common.ops.deformable import deformable_conv

from .memory import peak_extra_memory

CASES = {"3D": (2, 32, (32, 32, 16)), "2D": (4, 32, (128, 128))}  # images, channels, sizes
Inputs = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
Convolution = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


def main(repeats: int = 3, device: str = "cuda" if torch.cuda.is_available() else "cpu") -> None:
    """Print the table.

    Args:
        repeats: timed runs, after one that is not timed.
        device: where to run.
    """
    target = torch.device(device)
    print(f"{target}, torch {torch.__version__}, {torch.get_num_threads()} threads, forward and backward, float32")
    header = f"{'case':<6}{'seconds':>9}{'plain':>9}{'ratio':>7}{'MB':>9}{'plain':>9}{'ratio':>7}"
    print(header + f"{'value':>9}{'gradient':>9}")
    for name, (batch, channels, shape) in CASES.items():
        torch.manual_seed(0)
        taps = 3 ** len(shape)
        x = torch.randn(batch, channels, *shape, device=target).requires_grad_()
        offset = torch.randn(batch, taps * len(shape), *shape, device=target).requires_grad_()
        weight = torch.randn(channels, channels, *[3] * len(shape), device=target).requires_grad_()
        _row(name, (x, offset, weight), repeats, target)


def _row(name: str, inputs: Inputs, repeats: int, device: torch.device) -> None:
    kinds: tuple[Convolution, ...] = (partial(deformable_conv, padding=1), plain_deformable_conv)
    (value, gradients), (plain_value, plain_gradients) = (_run(kind, inputs) for kind in kinds)
    errors = [_error(value, plain_value), max(map(_error, gradients, plain_gradients))]
    del value, plain_value, gradients, plain_gradients
    seconds: list[list[float]] = [[], []]
    for _ in range(repeats):
        for number, kind in enumerate(kinds):
            start = time.perf_counter()
            _run(kind, inputs)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            seconds[number].append(time.perf_counter() - start)
    ours, plain = (statistics.median(times) for times in seconds)
    small, large = (peak_extra_memory(partial(_run, kind, inputs), device) / 1e6 for kind in kinds)
    sizes = f"{small:>9.1f}{large:>9.1f}{large / small:>7.1f}"
    print(
        f"{name:<6}{ours:>9.3f}{plain:>9.3f}{plain / ours:>7.1f}{sizes}{errors[0]:>9.0e}{errors[1]:>9.0e}", flush=True
    )


def _run(convolve: Convolution, inputs: Inputs) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
    out = convolve(*inputs)
    return out.detach(), torch.autograd.grad(out, inputs, inputs[0].detach())  # any gradient of the output's shape


def _error(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def plain_deformable_conv(x: torch.Tensor, offset: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """All taps of a kernel of 3 sampled at once: (B, channels, taps, *S), then one product with the weights."""
    dims, shape = x.ndim - 2, x.shape[2:]
    axes = torch.meshgrid(*(torch.arange(size, device=x.device) for size in shape), indexing="ij")
    base = torch.stack(axes).flatten(1)  # (dims, N)
    taps = torch.tensor(list(itertools.product((-1, 0, 1), repeat=dims)), device=x.device)
    places = base[None, None] + taps[None, :, :, None] + offset.reshape(len(x), len(taps), dims, -1)
    scale = torch.tensor(shape, device=x.device).reshape(dims, 1)
    grid = ((2 * places + 1) / scale - 1).flip(2).transpose(2, 3)  # (B, taps, N, dims), last axis first
    grid = grid.reshape(len(x), len(taps), -1, *[1] * (dims - 2), dims)
    sampled = functional.grid_sample(x, grid, align_corners=False).flatten(3)  # (B, channels, taps, N)
    return torch.einsum("bctn,oct->bon", sampled, weight.flatten(2)).reshape(len(x), -1, *shape)


if __name__ == "__main__":
    fire.Fire(main)
