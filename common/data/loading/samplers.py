"""Batches drawn from streams of cases, one for each kind of record."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from monai.data import DataLoader
from monai.data.utils import list_data_collate
from torch import distributed
from torch.utils.data import Sampler

from ..contract.records import is_kind


class StreamBatchSampler(Sampler[list[tuple[int, int]]]):
    """Batches with a fixed number of cases from each of several streams, such as clean and noisy labels.

    A record goes to the first stream whose kind it is, or, if it is of none of them, to the last. Each stream runs
    through its cases in a new random order again and again. A stream without cases (all labels clean, say, when an
    annotation tool trains) leaves its places to the first stream that has some. What a batch holds follows from (seed,
    epoch, position, rank) alone, so a resumed run continues exactly; ranks share each stream without overlap.

    An item is (index, seed): the seed replays the case's random transforms, whichever worker runs them, see
    :class:`~common.data.loading.datasets.ReplayableDataset`.

    Args:
        records: the data list that the dataset holds, in its order.
        streams: kind of record, see :data:`~common.data.contract.records.KINDS`, to cases a batch.
        batches: batches an epoch, for each rank.
        seed: of the order.

    Raises:
        ValueError: when there are no records, a kind is unknown, or a batch would be empty.

    Example:
        >>> records = [{"label": "a", "label_quality": "clean"}, {"label": "b", "label_quality": "noisy"}]
        >>> sampler = StreamBatchSampler(records, {"clean": 1, "noisy": 2}, batches=1)
        >>> [[records[index]["label"] for index, _ in batch] for batch in sampler]
        [['a', 'b', 'b']]
    """

    def __init__(
        self, records: Sequence[dict[str, Any]], streams: Mapping[str, int], batches: int, seed: int = 0
    ) -> None:
        if len(records) == 0:
            raise ValueError("No records to draw batches from: the `training` section is empty.")
        sizes = list(streams.values())
        if min(sizes, default=0) < 0 or sum(sizes) == 0:
            raise ValueError(f"A batch needs cases, got {dict(streams)} from the streams.")
        self.streams: list[list[int]] = [[] for _ in sizes]
        for index, record in enumerate(records):
            fitting = [number for number, kind in enumerate(streams) if is_kind(record, kind)]
            self.streams[fitting[0] if fitting else -1].append(index)
        filled = next(number for number, stream in enumerate(self.streams) if stream)
        for number, stream in enumerate(self.streams):
            if not stream:
                sizes[filled] += sizes[number]
                sizes[number] = 0
        self.sizes = sizes
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
            indices = [i for stream in range(len(self.streams)) for i in self._draw(stream, number)]
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


class StreamLoader(DataLoader):
    """MONAI's DataLoader over the batches of a :class:`StreamBatchSampler`.

    Args:
        dataset: a :class:`~common.data.loading.datasets.ReplayableDataset`; its ``data`` are the records.
        streams: kind of record to cases a batch.
        batches: batches an epoch, for each rank.
        seed: of the order.
        num_workers: processes that load.
        collate_fn: from cases to a batch; default: MONAI's.
    """

    def __init__(
        self,
        dataset: Any,
        streams: Mapping[str, int],
        batches: int,
        seed: int = 0,
        num_workers: int = 0,
        collate_fn: Callable[[Sequence[Any]], Any] = list_data_collate,
    ) -> None:
        sampler = StreamBatchSampler(dataset.data, streams, batches, seed)
        super().__init__(dataset, batch_sampler=sampler, num_workers=num_workers, collate_fn=collate_fn)
