"""Pairs of voxels in a local window, the ground that the window operators share.

A window of radius r holds the voxels at most r away along every axis: 2r + 1 places an axis, its centre included.
Every unordered pair belongs to exactly one offset of the half window, so an operator that is symmetric in a pair
visits half of the offsets and serves both voxels at once.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import torch

Index = tuple[Any, ...]


def window_offsets(radius: int, spatial_dims: int) -> list[tuple[int, ...]]:
    """Offsets of a window without its centre, in voxels; the opposite of place i is place -1 - i.

    Args:
        radius: of the window, in voxels, at least 1.
        spatial_dims: number of axes.

    Raises:
        ValueError: when the radius is below 1.

    Example:
        >>> window_offsets(1, 2)
        [(-1, -1), (-1, 0), (-1, 1), (0, -1), (0, 1), (1, -1), (1, 0), (1, 1)]
    """
    if radius < 1:
        raise ValueError(f"radius must be at least 1 voxel, got {radius}.")
    offsets = itertools.product(range(-radius, radius + 1), repeat=spatial_dims)
    return [offset for offset in offsets if any(offset)]


def window_pairs(shape: Sequence[int], radius: int) -> Iterator[tuple[tuple[int, ...], Index, Index]]:
    """Every pair of voxels within a window, once: offsets of the half window with where both ends lie.

    Args:
        shape: spatial sizes (H, W[, D]).
        radius: of the window, in voxels.

    Yields:
        the offset, and two indices of (..., H, W[, D]) tensors, one an end: the second end is the first plus
        the offset. Only pairs of which both ends lie in the image are met; an offset that no pair has is left out.

    Example:
        >>> [offset for offset, _, _ in window_pairs((4, 4), 1)]
        [(0, 1), (1, -1), (1, 0), (1, 1)]
    """
    offsets = window_offsets(radius, len(shape))
    for offset in offsets[len(offsets) // 2 :]:
        if any(abs(step) >= size for step, size in zip(offset, shape, strict=True)):
            continue
        first = (..., *(slice(max(-o, 0), size - max(o, 0)) for o, size in zip(offset, shape, strict=True)))
        second = (..., *(slice(max(o, 0), size - max(-o, 0)) for o, size in zip(offset, shape, strict=True)))
        yield offset, first, second


def window_neighbours(
    shape: Sequence[int], radius: int, device: torch.device | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Flat indices of every voxel's neighbours, in the order of :func:`window_offsets`.

    Args:
        shape: spatial sizes (H, W[, D]); N is their product.
        radius: of the window, in voxels.
        device: of the result.

    Returns:
        indices (N, K), int64, of voxels in the image; a place outside it names the voxel itself. And (N, K), bool:
        whether the place lies in the image.

    Example:
        >>> window_neighbours((1, 3), 1)[0][:, 3:5]
        tensor([[0, 1],
                [0, 2],
                [1, 2]])
    """
    offsets = torch.tensor(window_offsets(radius, len(shape)), device=device)
    axes = [torch.arange(size, device=device) for size in shape]
    centres = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).flatten(0, -2)
    places = centres[:, None] + offsets
    inside = ((places >= 0) & (places < torch.tensor(shape, device=device))).all(-1)
    places = torch.where(inside[..., None], places, centres[:, None])
    strides = torch.tensor([int(torch.tensor(shape[axis + 1 :]).prod()) for axis in range(len(shape))], device=device)
    return (places * strides).sum(-1), inside
