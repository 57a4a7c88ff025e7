"""Slices of volumes."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform, RandomizableTransform


class RandSliced(RandomizableTransform, MapTransform):
    """Take one slice of a volume, drawn evenly from all, or from those in which something is marked if any is.

    Args:
        keys: volumes (channels, H, W, D), which become slices (channels, ., .).
        axis: spatial axis of the file across which the slices lie, 0 to 2.
        marked: item that tells which slices are drawn from; None: all.
        least: a slice is marked where this item is at least so large.

    Raises:
        ValueError: for another axis.
    """

    def __init__(self, keys: KeysCollection, axis: int = 2, marked: str | None = None, least: float = 1) -> None:
        MapTransform.__init__(self, keys)
        RandomizableTransform.__init__(self, 1.0)
        if axis not in (0, 1, 2):
            raise ValueError(f"slice_axis must be 0, 1 or 2, got {axis}.")
        self.axis, self.marked, self.least = axis, marked, least

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Take the slice."""
        d = dict(data)
        slices = d[self.first_key(d)].shape[self.axis + 1]
        choices: Any = range(slices)
        if self.marked is not None:
            others = tuple(axis for axis in range(4) if axis != self.axis + 1)
            marked = torch.as_tensor(d[self.marked] >= self.least).amax(others).nonzero()[:, 0].tolist()
            choices = marked or choices
        place = int(choices[self.R.randint(len(choices))])
        for key in self.key_iterator(d):
            volume = d[key]
            plane = torch.as_tensor(volume).select(self.axis + 1, place).clone()
            d[key] = MetaTensor(plane, meta={"filename_or_obj": volume.meta.get("filename_or_obj", "")})
        return d
