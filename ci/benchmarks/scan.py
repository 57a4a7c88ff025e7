"""Time and memory of the selective scan against the published parallel scan in PyTorch, on a CPU.

``python -m ci.benchmarks.scan`` prints a table, forward and backward, batch 1, float32; the last row runs with all
threads beside a process that keeps a core busy. The parallel scan is the package mambapy, which nothing here needs: its
columns stay empty unless Python finds it, as after ``pip install --no-deps --target DIR mambapy`` with
``PYTHONPATH=DIR``. Time is the least of runs in turn, memory what a run needs at its peak beyond its inputs, value and
gradient the largest relative difference of the two.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import fire
import torch

from common.ops.selective_scan import selective_scan

from .memory import peak_extra_memory

NAMES = ("u", "delta", "A", "B", "C", "D")
Scan = Callable[..., torch.Tensor]


def main(
    lengths: tuple[int, ...] = (1024, 4096, 32768),
    busy_length: int = 4096,
    channels: int = 256,
    states: int = 16,
    repeats: int = 3,
) -> None:
    """Print the table.

    Args:
        lengths: of the sequences, one row each, on one thread.
        busy_length: of the sequence that runs beside a busy process; 0: no such row.
        channels: of the sequences.
        states: a channel.
        repeats: timed runs, after one that is not timed.
    """
    there = importlib.util.find_spec("mambapy") is not None
    if not there:
        print("mambapy is not installed: pip install --no-deps --target DIR mambapy, then set PYTHONPATH=DIR")
    print(f"CPU, torch {torch.__version__}, {channels} channels, {states} states, forward and backward, float32")
    header = f"{'length':>7}{'threads':>8}{'busy':>5}{'seconds':>9}{'mambapy':>9}{'ratio':>7}"
    print(header + f"{'MiB':>9}{'mambapy':>9}{'ratio':>7}{'value':>9}{'gradient':>9}")
    torch.set_num_threads(1)
    for length in lengths:
        _row(_inputs(length, channels, states), repeats, there, busy=False)
    if busy_length:
        torch.set_num_threads(os.cpu_count() or 1)
        with _busy_process():
            _row(_inputs(busy_length, channels, states), repeats, there, busy=True)


def _row(inputs: tuple[torch.Tensor, ...], repeats: int, there: bool, busy: bool) -> None:
    scans: list[Scan] = [selective_scan, _parallel_scan] if there else [selective_scan]
    results = [_run(scan, inputs) for scan in scans]
    errors = [_error(*pair) for pair in zip(*results, strict=True)] if there else []
    del results
    turns = [[_time(scan, inputs) for scan in scans] for _ in range(repeats)]
    seconds = [min(times) for times in zip(*turns, strict=True)]
    memory = [peak_extra_memory(partial(_run, scan, inputs)) / 2**20 for scan in scans]
    row = f"{inputs[0].shape[2]:>7}{torch.get_num_threads():>8}{'yes' if busy else 'no':>5}"
    for digits, values in ((3, seconds), (1, memory)):
        row += "".join(f"{value:>9.{digits}f}" for value in values)
        row += f"{values[1] / values[0]:>7.1f}" if there else f"{'-':>9}{'-':>7}"
    print(row + (f"{errors[0]:>9.0e}{max(errors[1:]):>9.0e}" if there else f"{'-':>9}{'-':>9}"), flush=True)


def _inputs(length: int, channels: int, states: int) -> tuple[torch.Tensor, ...]:
    """As a Mamba block has them at the start: steps of 0.001 to 0.1, A of -1 to -N."""
    torch.manual_seed(0)
    u, delta = torch.randn(1, channels, length), torch.empty(1, channels, length).uniform_(0.001, 0.1)
    A = -torch.arange(1.0, states + 1).repeat(channels, 1)
    B, C, D = torch.randn(1, states, length), torch.randn(1, states, length), torch.ones(channels)
    return tuple(x.requires_grad_() for x in (u, delta, A, B, C, D))


def _run(scan: Scan, inputs: tuple[torch.Tensor, ...]) -> list[torch.Tensor]:
    y = scan(*inputs)
    return [y.detach(), *torch.autograd.grad(y, inputs, inputs[0].detach())]  # any gradient of the output's shape


def _time(scan: Scan, inputs: tuple[torch.Tensor, ...]) -> float:
    start = time.perf_counter()
    _run(scan, inputs)
    return time.perf_counter() - start


def _error(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def _parallel_scan(
    u: torch.Tensor, delta: torch.Tensor, A: torch.Tensor, B: torch.Tensor, C: torch.Tensor, D: torch.Tensor
) -> torch.Tensor:
    """The same function with the recurrence by mambapy, which puts time second: (B, L, channels, N)."""
    from mambapy.pscan import pscan

    x, step = u.transpose(1, 2), delta.transpose(1, 2)
    drive = (step * x).unsqueeze(-1) * B.transpose(1, 2).unsqueeze(2)
    states = pscan(torch.exp(step.unsqueeze(-1) * A), drive)
    y = (states @ C.transpose(1, 2).unsqueeze(-1)).squeeze(-1)
    return (y + D * x).transpose(1, 2)


@contextmanager
def _busy_process() -> Iterator[None]:
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        yield
    finally:
        process.kill()
        process.wait()


if __name__ == "__main__":
    fire.Fire(main)
