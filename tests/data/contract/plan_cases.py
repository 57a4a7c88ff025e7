"""What data sets are like, for rules of a plan."""

from __future__ import annotations

from typing import Any

import numpy as np

from common.data.contract.plan.traits import Traits

UNIT = {"_target_": "ScaleIntensityd", "keys": "image", "channel_wise": True}


def make_traits(
    shape: tuple[int, int, int] = (192, 144, 88), spacing: tuple[float, ...] = (0.6, 0.6, 0.6), **others: Any
) -> Traits:
    count = others.pop("count", 10)
    values: dict[str, Any] = {
        "num_classes": 2,
        "channels": 1,
        "modalities": ("MR",),
        "shapes": np.tile(shape, (count, 1)),
        "spacings": np.tile(spacing, (count, 1)),
        "kinds": {"label": 4, "clean": 4, "unlabelled": 6},
        "smallest": {"organ": 50_000.0},
    }
    return Traits(**(values | others))
