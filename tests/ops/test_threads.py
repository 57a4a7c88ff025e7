from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from common.ops.energy import pairwise_window_energy
from common.ops.similarity import attentive_similarity_loss
from common.ops.threads import map_blocks, one_thread, usable_cores


@pytest.fixture(autouse=True)
def six_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(6)
    yield
    torch.set_num_threads(before)


def in_a_new_thread(work: Callable[[], object]) -> object:
    found: list[object] = []
    thread = threading.Thread(target=lambda: found.append(work()))
    thread.start()
    thread.join()
    return found[0]


def test_one_thread_inside_and_the_old_number_after() -> None:
    with one_thread() as threads:
        assert (torch.get_num_threads(), threads) == (1, 6)
        with one_thread() as nested:
            assert nested == 6
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == 6


def test_the_old_number_comes_back_after_an_error() -> None:
    with pytest.raises(KeyError), one_thread():
        raise KeyError
    assert torch.get_num_threads() == 6
    with one_thread() as threads:
        assert threads == 6


def test_a_thread_that_comes_in_meanwhile_leaves_the_old_number() -> None:
    def enter() -> tuple[int, int]:
        with one_thread():
            inside = torch.get_num_threads()
        return inside, torch.get_num_threads()

    with one_thread():
        assert in_a_new_thread(enter) == (1, 6)
        assert torch.get_num_threads() == 1  # its end is not ours
    assert torch.get_num_threads() == 6 == in_a_new_thread(torch.get_num_threads)


def test_blocks_run_on_other_threads_with_one_thread_each() -> None:
    here, barrier = threading.get_ident(), threading.Barrier(3, timeout=10)

    def work(block: int) -> tuple[int, bool, int, bool]:
        barrier.wait()  # passes only when three are at work at once
        return block, threading.get_ident() == here, torch.get_num_threads(), torch.is_grad_enabled()

    assert map_blocks(work, range(6)) == [(block, False, 1, False) for block in range(6)]
    assert torch.get_num_threads() == 6 == in_a_new_thread(torch.get_num_threads)


def test_one_block_or_none_runs_here() -> None:
    assert map_blocks(lambda _: threading.get_ident(), [0]) == [threading.get_ident()]
    assert map_blocks(lambda block: block, []) == []


def test_an_error_in_a_block_is_raised_and_the_number_comes_back() -> None:
    def work(block: int) -> None:
        raise KeyError(block)

    with pytest.raises(KeyError):
        map_blocks(work, range(4))
    assert torch.get_num_threads() == 6


@pytest.mark.parametrize("blocks", [1, 4])
def test_blocks_write_to_tensors_of_inference_mode(blocks: int) -> None:
    with torch.inference_mode():
        table = torch.zeros(blocks)
        map_blocks(lambda block: table[block].fill_(block), range(blocks))
        assert table.tolist() == list(range(blocks))


def test_a_block_has_no_threads_to_divide() -> None:
    def work(_: int) -> int:
        with one_thread() as threads:
            return threads

    assert map_blocks(work, range(4)) == [1, 1, 1, 1]


@pytest.mark.parametrize("operator", ["energy", "similarity"])
def test_streaming_operators_run_on_one_thread_forward_and_backward(operator: str) -> None:
    seen: set[int] = set()

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            seen.add(torch.get_num_threads())
            return func(*args, **(kwargs or {}))

    p = torch.full((1, 2, 3, 3), 0.5, requires_grad=True)
    q, weight, bias, image = torch.rand(1, 1, 9, 2), torch.ones(1), torch.zeros(1), torch.zeros(1, 1, 3, 3)
    with Watch():
        if operator == "energy":
            loss = pairwise_window_energy(p, image)
        else:
            loss = attentive_similarity_loss(q, q, weight, bias, p)
    assert seen == {1}
    seen.clear()
    with Watch():
        loss.backward()
    assert 1 in seen  # the rest is autograd's own
    assert torch.get_num_threads() == 6


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no affinity of processes on this system")
def test_usable_cores_are_those_of_the_affinity() -> None:
    cores = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(cores)})
        assert usable_cores() == 1
    finally:
        os.sched_setaffinity(0, cores)
    assert usable_cores() == len(cores)
