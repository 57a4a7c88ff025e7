"""Transforms that MONAI lacks."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping
from typing import Any

import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform, Spacingd, Transform

from .samplers import has_clean_label


class MarkCleanLabeld(Transform):
    """Add ``clean``: True where the record's label is to be trusted (``label_quality`` is absent or "clean")."""

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        return {**data, "clean": torch.tensor(has_clean_label(dict(data)))}  # type: ignore[arg-type]


class Resampled(Spacingd):
    """MONAI's Spacingd that survives text beside the image.

    In MONAI 1.6.0 and 1.6.1 Spacingd calls ``update`` on every item whose name begins with that of a key and an
    underscore; annotation servers pass ``image_path``, a string. Such items are kept out of its sight.
    """

    def __call__(self, data: Mapping[Hashable, Any], lazy: bool | None = None) -> dict[Hashable, Any]:
        hidden = {key: value for key, value in data.items() if isinstance(value, str)}
        seen = {key: value for key, value in data.items() if key not in hidden}
        return super().__call__(seen, lazy) | hidden


class SegmentationAndUncertaintyd(MapTransform):
    """Turn class probabilities into a segmentation and an uncertainty map.

    For each key: the probabilities (C, H, W[, D]) move to ``probabilities``, their argmax (1, H, W[, D]) takes their
    place, and ``uncertainty`` (1, H, W[, D]) is the entropy divided by log C: 0 for certain, 1 for no idea.
    """

    def __init__(self, keys: KeysCollection = "pred") -> None:
        super().__init__(keys)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            probabilities = d[key]
            entropy = torch.special.entr(probabilities).sum(0, keepdim=True)
            d["probabilities"] = probabilities
            d["uncertainty"] = (entropy / math.log(len(probabilities))).clamp(0.0, 1.0)
            d[key] = probabilities.argmax(0, keepdim=True).to(torch.uint8)
        return d
