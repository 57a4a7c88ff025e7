"""What the tests of this bundle share: a small network and batches."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bundles.ambissl.scripts.network import ProbabilisticUNet

SIDE = 32  # pixels


def small_network(classes: int = 3, dims: int = 2, **settings: Any) -> ProbabilisticUNet:
    """A network whose prior is far from a point."""
    defaults: dict[str, Any] = {"backbone": "resnet10", "decoder_channels": (16, 8, 8, 8, 8), "head_channels": 8}
    return ProbabilisticUNet(dims, 1, classes, **(defaults | {"prior_channels": (4, 8), "latent_size": 4} | settings))


def make_batch(
    counts: tuple[int, ...] = (3, 4, 0, 0), classes: int = 3, dims: int = 2, side: int = SIDE
) -> dict[str, Tensor]:
    """Images with as many raters as ``counts`` says; 0: unlabelled."""
    shape = (side,) * dims
    return {
        "image": torch.rand(len(counts), 1, *shape),
        "strong": torch.rand(len(counts), 1, *shape),
        "raters": torch.randint(0, classes, (len(counts), max(*counts, 1), *shape)),
        "rater_count": torch.tensor(counts),
    }
