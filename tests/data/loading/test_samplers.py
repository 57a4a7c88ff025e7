"""Batches from streams of kinds of records."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from torch import distributed

from common.data.contract.records import is_kind
from common.data.loading.samplers import StreamBatchSampler, StreamLoader

Batch = list[tuple[int, int]]


def records(clean: int, noisy: int) -> list[dict[str, Any]]:
    """Clean and noisy records, mixed: the odd ones are noisy while there are any."""
    made = [{"image": f"c{number}", "label": "l"} for number in range(clean)]
    for number in range(noisy):
        made.insert(2 * number + 1, {"image": f"n{number}", "label": "l", "label_quality": "noisy"})
    return made


def epoch(sampler: StreamBatchSampler, number: int) -> list[Batch]:
    sampler.set_epoch(number)
    return list(sampler)


def in_rank(monkeypatch: pytest.MonkeyPatch, rank: int, ranks: int) -> None:
    monkeypatch.setattr(distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(distributed, "get_rank", lambda: rank)
    monkeypatch.setattr(distributed, "get_world_size", lambda: ranks)


@pytest.mark.parametrize(("clean", "noisy"), [(3, 5), (1, 9), (7, 2)])
def test_every_batch_has_the_same_composition(clean: int, noisy: int) -> None:
    data = records(clean, noisy)
    sampler = StreamBatchSampler(data, {"clean": 2, "noisy": 3}, batches=7)
    assert len(sampler) == 7 and len(list(sampler)) == 7
    for batch in sampler:
        assert [is_kind(data[index], "clean") for index, _ in batch] == [True, True, False, False, False]


def test_labelled_and_unlabelled() -> None:
    data = [{"label": "a"}, {}, {"label": "b"}, {}]
    sampler = StreamBatchSampler(data, {"label": 1, "unlabelled": 1}, batches=4)
    for (first, _), (second, _) in sampler:
        assert first in (0, 2) and second in (1, 3)


@pytest.mark.parametrize(("clean", "noisy"), [(4, 0), (0, 4)])
def test_one_stream_fills_the_batch(clean: int, noisy: int) -> None:
    """An annotation tool knows clean labels only; with the sizes 1 and 3 its batches still have 4."""
    sampler = StreamBatchSampler(records(clean, noisy), {"clean": 1, "noisy": 3}, batches=5)
    for batch in sampler:
        assert sorted(index for index, _ in batch) == [0, 1, 2, 3]


@pytest.mark.parametrize(("first", "second"), [(0, 2), (2, 0)])
def test_a_stream_may_be_left_out(first: int, second: int) -> None:
    data = records(3, 3)
    drawn = {
        is_kind(data[index], "clean")
        for batch in StreamBatchSampler(data, {"clean": first, "noisy": second}, 6)
        for index, _ in batch
    }
    assert drawn == {first > 0}


def test_every_case_is_seen_equally_often() -> None:
    data = records(3, 8)
    sampler = StreamBatchSampler(data, {"clean": 1, "noisy": 2}, batches=6)
    seen = Counter(index for number in range(1, 5) for batch in epoch(sampler, number) for index, _ in batch)
    # 24 batches: 24 clean draws of 3 cases, 48 noisy ones of 8
    assert seen == {index: 8 if is_kind(record, "clean") else 6 for index, record in enumerate(data)}


def test_no_case_comes_again_before_the_others_of_its_stream() -> None:
    sampler = StreamBatchSampler(records(6, 0), {"clean": 2}, batches=3)
    turns = [tuple(index for batch in epoch(sampler, number) for index, _ in batch) for number in range(1, 6)]
    assert all(sorted(turn) == list(range(6)) for turn in turns)
    assert len(set(turns)) > 1, "each turn has an order of its own"


def test_an_epoch_depends_on_seed_and_number_alone() -> None:
    data = records(5, 9)
    sampler = StreamBatchSampler(data, {"clean": 2, "noisy": 2}, batches=4, seed=3)
    forward = {number: epoch(sampler, number) for number in (1, 2, 3)}
    resumed = StreamBatchSampler(data, {"clean": 2, "noisy": 2}, batches=4, seed=3)
    assert {number: epoch(resumed, number) for number in (3, 1, 2)} == forward
    assert forward[1] != forward[2]
    assert epoch(StreamBatchSampler(data, {"clean": 2, "noisy": 2}, batches=4, seed=4), 1) != forward[1]


def test_every_draw_has_a_seed_of_its_own() -> None:
    sampler = StreamBatchSampler(records(2, 2), {"clean": 2, "noisy": 2}, batches=50)
    seeds = [seed for number in (1, 2) for batch in epoch(sampler, number) for _, seed in batch]
    assert len(set(seeds)) == len(seeds) and all(0 <= seed < 2**32 for seed in seeds)


@pytest.mark.parametrize("ranks", [2, 3])
def test_processes_share_each_stream(ranks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Together they see each case once a turn: none twice, none left out."""
    data = records(6, 12)
    drawn: list[int] = []
    seeds: list[int] = []
    for rank in range(ranks):
        in_rank(monkeypatch, rank, ranks)
        batches = epoch(StreamBatchSampler(data, {"clean": 1, "noisy": 2}, batches=6 // ranks), 1)
        drawn += [index for batch in batches for index, _ in batch]
        seeds += [seed for batch in batches for _, seed in batch]
    assert sorted(drawn) == list(range(18))
    assert len(set(seeds)) == len(seeds)


def test_no_records() -> None:
    with pytest.raises(ValueError, match="`training` section is empty"):
        StreamBatchSampler([], {"clean": 1}, 1)


@pytest.mark.parametrize(("first", "second"), [(0, 0), (-1, 2), (2, -1)])
def test_empty_batches_are_refused(first: int, second: int) -> None:
    with pytest.raises(ValueError, match=f"got .*'clean': {first}, 'noisy': {second}"):
        StreamBatchSampler(records(2, 2), {"clean": first, "noisy": second}, 1)


def test_as_many_streams_as_kinds() -> None:
    """What is of no kind that is named goes with the last."""
    data = [*records(2, 2), {"image": "u"}, {"image": "s", "scribble": "s"}]
    sampler = StreamBatchSampler(data, {"clean": 1, "noisy": 1, "unlabelled": 2}, batches=4)
    assert sampler.streams == [[0, 2], [1, 3], [4, 5]]
    for batch in sampler:
        assert sorted(index for index, _ in batch[2:]) == [4, 5]


def test_unknown_kinds_are_refused() -> None:
    with pytest.raises(ValueError, match="no kind of record is called 'cleen': use one of label, clean"):
        StreamBatchSampler(records(2, 2), {"cleen": 1}, 1)


def test_loader_gives_what_the_sampler_draws() -> None:
    class Cases:
        data = records(3, 5)

        def __len__(self) -> int:
            return len(self.data)

        def __getitem__(self, item: tuple[int, int]) -> tuple[int, int]:
            return item

    streams = {"clean": 1, "noisy": 2}
    loader = StreamLoader(Cases(), streams, batches=4, seed=5)
    expected = list(StreamBatchSampler(Cases.data, streams, batches=4, seed=5))
    found = [list(zip(*(part.tolist() for part in batch), strict=True)) for batch in loader]
    assert found == expected
