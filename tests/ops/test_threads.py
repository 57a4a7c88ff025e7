from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import pytest
import torch

from common.ops.threads import map_blocks, one_thread


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
            assert nested == 1
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
