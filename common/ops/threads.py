"""Threads for operators that stream over small blocks.

PyTorch divides every operation above 32,768 elements among OpenMP threads and waits for the last of them. An operator
of thousands of short operations then waits at thousands of barriers, and where another process holds one of the cores
each barrier costs a time slice of the scheduler: a factor of ten and more. The streaming operators keep their inner
loop on one thread and divide whole images or blocks of an image among threads instead, which meet once.

They use half of the threads only. Python's lock passes between them at every operation; where each core has a thread
and one of them is held up by another process, so are the others.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")


def usable_cores() -> int:
    """Cores that this process may run on, at least 1: fewer than the machine's under ``taskset`` or a batch system."""
    if hasattr(os, "sched_getaffinity"):  # Linux
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class _Here(threading.local):
    allowed = 0  # threads that may be used inside; 0: not inside


class _Process:
    """How many threads are inside :func:`one_thread` now, and PyTorch's number of threads before the first of them."""

    lock = threading.Lock()
    inside = 0
    before = 1


_here = _Here()


@contextmanager
def one_thread() -> Iterator[int]:
    """Run PyTorch's operations on one thread; the number of threads is put back at the end, whatever happens.

    Usable as a decorator: ``@one_thread()``. Costs about a microsecond. A second one inside the first does nothing.

    The number of threads belongs to the process (``torch.set_num_threads``): another Python thread that already works
    keeps its own number, one that runs its first operation meanwhile may keep 1. DataLoader workers are processes and
    see nothing of it. Backward may run in another Python thread than forward: each enters by itself.

    Yields:
        how many threads the caller may use in all, at least 1: PyTorch's number before; 1 in a block of
            :func:`map_blocks`.

    Example:
        >>> before = torch.get_num_threads()
        >>> with one_thread() as threads:
        ...     torch.get_num_threads(), threads == before
        (1, True)
        >>> torch.get_num_threads() == before
        True
    """
    if _here.allowed:
        yield _here.allowed
        return
    with _Process.lock:
        if not _Process.inside:
            _Process.before = torch.get_num_threads()
        # a thread that is new meanwhile reads 1: what counts is what held before the first came in
        before = _Process.before
        _Process.inside += 1
    _here.allowed = before
    try:
        if before > 1:
            torch.set_num_threads(1)
        yield before
    finally:
        _here.allowed = 0
        with _Process.lock:
            _Process.inside -= 1
            if before > 1:
                torch.set_num_threads(before)


def map_blocks(
    work: Callable[[Item], Result], blocks: Sequence[Item], device: torch.device | None = None
) -> list[Result]:
    """``work`` of each block, divided among half as many threads as PyTorch uses, each block on one thread.

    No gradients are recorded and autocast is off inside: it is for the forward and backward of an
    ``autograd.Function``. Blocks must not write to the same places. Results come in the order of the blocks, so a sum
    over them is the same in every run.

    Args:
        work: done to each block; the first exception is raised again here.
        blocks: as even as possible; a few for each thread balance a machine that others use too.
        device: where the tensors are; on a GPU the blocks run in turn, in the caller's stream.

    Returns:
        the results, in the order of the blocks.

    Example:
        >>> map_blocks(lambda part: part.sum().item(), torch.arange(6.0).split(2))
        [1.0, 5.0, 9.0]
    """
    with one_thread() as threads, torch.no_grad():
        workers = min(threads // 2, len(blocks)) if device is None or device.type == "cpu" else 1
        if workers < 2:
            return [work(block) for block in blocks]
        inference = torch.is_inference_mode_enabled()  # a thread of its own would not know

        def inside(block: Item) -> Result:
            with torch.inference_mode(inference), torch.no_grad():
                return work(block)

        with ThreadPoolExecutor(workers, initializer=_stay_on_one_thread) as pool:
            return list(pool.map(inside, blocks))


def image_parts(images: torch.Tensor) -> list[slice]:
    """Blocks of a batch (B, ...) for :func:`map_blocks`: one image each, which stays in a CPU's cache; on a GPU all.

    Example:
        >>> image_parts(torch.zeros(2, 1, 4, 4))
        [slice(0, 1, None), slice(1, 2, None)]
    """
    size = max(len(images), 1) if images.is_cuda else 1
    return [slice(start, start + size) for start in range(0, len(images), size)]


def _stay_on_one_thread() -> None:
    """A worker begins inside :func:`one_thread` and ends there."""
    _here.allowed = 1
    torch.set_num_threads(1)
