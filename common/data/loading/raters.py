"""Masks of several raters, whose number differs from case to case."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.data.utils import list_data_collate
from monai.transforms import LoadImage, Transform

from ...ops.likeliest import likeliest

PATHS = ("label", "labels", "reference", "probability")


class LoadRatersd(Transform):
    """Load what a record's raters drew.

    Adds ``raters`` (R, H, W[, D]) class numbers, one channel a rater, and ``rater_count``, R. A record without
    ``labels`` has one rater where there is a ``label``; an unlabelled one has count 0 and one channel of background,
    which is no rater's. Other paths of masks in the record are dropped.

    Args:
        consensus: add ``label`` (1, H, W[, D]): that file where the record has one, else the class that most raters
            chose at each voxel, the lowest of several; and to measure with, where the record has it, ``probability``
            (structures, H, W[, D]).
    """

    def __init__(self, consensus: bool = False) -> None:
        self.consensus = consensus
        self.load, self.load_probability = (
            LoadImage(image_only=True, ensure_channel_first=True, dtype=dtype) for dtype in (np.uint8, np.float32)
        )

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Load one record's masks."""
        d = {key: value for key, value in data.items() if key not in PATHS}
        paths = data.get("labels") or ([data["label"]] if "label" in data else [])
        if paths:
            masks = [self.load(path) for path in paths]
            d["raters"] = MetaTensor(torch.cat([mask.as_tensor() for mask in masks]), meta=masks[0].meta)
        else:
            image = data["image"]
            d["raters"] = MetaTensor(torch.zeros(image[:1].shape, dtype=torch.uint8), meta=image.meta)
        d["rater_count"] = torch.tensor(len(paths))
        if self.consensus:
            d["label"] = self.load(data["label"]) if "label" in data else majority(d["raters"])
            if "probability" in data:
                d["probability"] = self.load_probability(data["probability"])
        return d


def majority(raters: torch.Tensor) -> torch.Tensor:
    """The class that most raters chose at each voxel, the lowest of several: (1, *S) from (R, *S) class numbers."""
    votes = torch.stack([(raters == number).sum(0, keepdim=True) for number in range(int(raters.max()) + 1)])
    chosen = likeliest(votes, 0).to(raters.dtype)
    return MetaTensor(chosen, meta=raters.meta) if isinstance(raters, MetaTensor) else chosen


def collate_raters(batch: Sequence[Mapping[Hashable, Any]]) -> Any:
    """MONAI's collation of cases whose ``raters`` differ in number: background fills up to the largest of them."""
    most = max(len(case["raters"]) for case in batch)
    cases = []
    for case in batch:
        raters = case["raters"]
        filling = torch.zeros((most - len(raters), *raters.shape[1:]), dtype=raters.dtype)
        cases.append({**case, "raters": torch.cat((torch.as_tensor(raters), filling))})
    return list_data_collate(cases)
