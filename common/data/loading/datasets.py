"""Cached data whose random transforms can be replayed."""

from __future__ import annotations

from typing import Any

from monai.data import CacheDataset


class ReplayableDataset(CacheDataset):
    """MONAI's CacheDataset that also takes (index, seed) and then draws its random transforms from that seed.

    The result is the same for any number of workers, and in a resumed run. With a plain index it is MONAI's.

    Args:
        data: list of records.
        transform: a MONAI ``Compose``; what precedes its first random transform is cached.
        kwargs: as for CacheDataset (``cache_rate``, ``num_workers``, ``progress``).
    """

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, tuple):
            index, seed = index
            self.transform.set_random_state(seed=seed)
        return super().__getitem__(index)
