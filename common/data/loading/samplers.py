"""Batches drawn from two streams of cases, those to trust and the others."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from torch import distributed
from torch.utils.data import Sampler


def has_clean_label(record: dict[str, Any]) -> bool:
    """Whether a record's label is to be trusted; a label of which nothing is said is."""
    return record.get("label_quality", "clean") == "clean"


class TwoStreamBatchSampler(Sampler[list[tuple[int, int]]]):
    """Batches with a fixed number of cases from each of two streams, such as clean and noisy labels.

    Each stream runs through its cases in a new random order again and again. If one stream has no cases (all labels
    clean, say, when an annotation tool trains) the other fills the batch. What a batch holds follows from (seed,
    epoch, position, rank) alone, so a resumed run continues exactly; ranks share each stream without overlap.

    An item is (index, seed): the seed replays the case's random transforms, whichever worker runs them, see
    :class:`~common.data.loading.datasets.ReplayableDataset`.

    Args:
        records: the data list that the dataset holds, in its order.
        first: cases a batch from the first stream.
        second: cases a batch from the second stream.
        batches: batches an epoch, for each rank.
        seed: of the order.
        is_first: tells the first stream's records; default: a clean label.

    Raises:
        ValueError: when there are no records, or a batch would be empty.
    """

    def __init__(
        self,
        records: Sequence[dict[str, Any]],
        first: int,
        second: int,
        batches: int,
        seed: int = 0,
        is_first: Callable[[dict[str, Any]], bool] = has_clean_label,
    ) -> None:
        if len(records) == 0:
            raise ValueError("No records to draw batches from: the `training` section is empty.")
        if first < 0 or second < 0 or first + second == 0:
            raise ValueError(f"A batch needs cases, got {first} from the first stream and {second} from the second.")
        streams = [
            [i for i, r in enumerate(records) if is_first(r)],
            [i for i, r in enumerate(records) if not is_first(r)],
        ]
        sizes = [first, second]
        for index in (0, 1):
            if not streams[index]:
                sizes = [sum(sizes) if i != index else 0 for i in (0, 1)]
        self.streams, self.sizes = streams, sizes
        self.batches = batches
        self.seed = seed
        self.epoch = 1
        initialized = distributed.is_available() and distributed.is_initialized()
        self.rank = distributed.get_rank() if initialized else 0
        self.ranks = distributed.get_world_size() if initialized else 1

    def __len__(self) -> int:
        return self.batches

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch, from 1, whose batches come next."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        first_batch = (self.epoch - 1) * self.batches
        for number in range(first_batch, first_batch + self.batches):
            indices = [i for stream in (0, 1) for i in self._draw(stream, number)]
            seeds = np.random.SeedSequence((self.seed, number, self.rank)).generate_state(len(indices))
            yield [(index, int(seed)) for index, seed in zip(indices, seeds, strict=True)]

    def _draw(self, stream: int, number: int) -> list[int]:
        cases, size = self.streams[stream], self.sizes[stream]
        start = (number * self.ranks + self.rank) * size
        drawn = []
        for position in range(start, start + size):
            turn, place = divmod(position, len(cases))
            order = np.random.default_rng((self.seed, stream, turn)).permutation(len(cases))
            drawn.append(cases[order[place]])
        return drawn
