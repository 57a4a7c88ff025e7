"""What the tests of the window operators share."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Any

import torch

Voxel = tuple[int, ...]
EVERY = slice(None)  # channel
SHAPES = [(4, 5), (1, 6), (7, 1), (3, 4, 5), (1, 4, 3), (5, 1, 1)]


def voxels(shape: tuple[int, ...]) -> Iterator[Voxel]:
    return itertools.product(*map(range, shape))


def window(centre: Voxel, shape: tuple[int, ...], radius: int) -> list[Voxel]:
    """The places of a window that lie in the image, word by word."""
    near = (max(abs(a - b) for a, b in zip(centre, other, strict=True)) <= radius for other in voxels(shape))
    return [other for other, inside in zip(voxels(shape), near, strict=True) if inside]


def at(image: int, channel: int | slice, voxel: Voxel) -> Any:
    """Index of one voxel in a (B, C, H, W[, D]) tensor."""
    return (image, channel, *voxel)


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + math.prod(shape)), dtype=dtype)


def classes(batch: int, number: int, shape: tuple[int, ...], seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, number, (batch, 1, *shape), generator=generator)
