"""Pairs of voxels in a local window, the ground that the window operators share.

A window of radius r holds the voxels at most r away along every axis: 2r + 1 places an axis, its centre included.
Every unordered pair belongs to exactly one offset of the half window, so an operator that is symmetric in a pair
visits half of the offsets and serves both voxels at once.

An operator that is not symmetric streams over blocks of planes: each is cut out with a margin of the radius and laid
out flat, so that any offset is a shift of one contiguous row, and what it works with stays in a CPU's cache.
"""

from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
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


def window_sizes(shape: Sequence[int], radius: int, like: torch.Tensor) -> torch.Tensor:
    """How many places of every voxel's window lie in the image, the voxel itself included: (H, W[, D]).

    Args:
        shape: spatial sizes (H, W[, D]).
        radius: of the window, in voxels.
        like: gives dtype and device.

    Example:
        >>> window_sizes((2, 3), 1, torch.zeros(()))
        tensor([[4., 6., 4.],
                [4., 6., 4.]])
    """
    sizes = like.new_ones(())
    for size in shape:
        places = torch.arange(size, device=like.device)
        inside = (places + radius).clamp_max(size - 1) - (places - radius).clamp_min(0) + 1
        sizes = sizes[..., None] * inside.to(like.dtype)
    return sizes


def box_sum(values: torch.Tensor, radius: int, spatial_dims: int) -> torch.Tensor:
    """Sum over every voxel's window, the voxel itself included, one axis after the other.

    Args:
        values: (..., H, W[, D]); places outside count nothing.
        radius: of the window, in voxels.
        spatial_dims: number of trailing axes to sum along.

    Returns:
        (..., H, W[, D]), in the dtype of the values.

    Example:
        >>> box_sum(torch.tensor([[1.0, 2.0, 4.0, 8.0]]), 1, 1)
        tensor([[ 3.,  7., 14., 12.]])
    """
    for axis in range(-spatial_dims, 0):
        size = values.shape[axis]
        summed = values.clone(memory_format=torch.contiguous_format)
        for step in range(1, min(radius, size - 1) + 1):
            before, after = values.narrow(axis, 0, size - step), values.narrow(axis, step, size - step)
            summed.narrow(axis, step, size - step).add_(before)
            summed.narrow(axis, 0, size - step).add_(after)
        values = summed
    return values


def shifted(padded: torch.Tensor, offset: Sequence[int], radius: int) -> torch.Tensor:
    """The view of what lies at an offset from every voxel, by constant bounds: sizes stay free when traced.

    Args:
        padded: (..., H + 2 radius, W + 2 radius[, D + 2 radius]).
        offset: at most the radius along every axis, in voxels.
        radius: of the padding, in voxels.

    Returns:
        (..., H, W[, D]).
    """
    place: Index = (..., *(slice(radius + step, step - radius or None) for step in offset))
    return padded[place]


def runs_plain() -> bool:
    """Whether PyTorch is recording operations (tracing, exporting, compiling) and cannot see into a custom function."""
    return torch.jit.is_tracing() or torch.compiler.is_compiling()


@dataclass(frozen=True)
class WindowBlock:
    """Planes of one image with the margin that their windows reach into, laid out flat.

    Attributes:
        image: number of the image in its batch.
        planes: along the first spatial axis, without the margin.
        shape: spatial sizes of the image (H, W[, D]).
        radius: of the windows, in voxels: the margin on all sides.
    """

    image: int
    planes: slice
    shape: tuple[int, ...]
    radius: int

    @cached_property  # asked for at every offset
    def strides(self) -> tuple[int, ...]:
        """Of the flat layout, an axis each."""
        padded = [size + 2 * self.radius for size in self.shape]
        return tuple(math.prod(padded[axis + 1 :]) for axis in range(len(padded)))

    @cached_property
    def length(self) -> int:
        """From the first voxel to the last in the flat layout: what an operation works on, some margin included."""
        sizes = (self.planes.stop - self.planes.start, *self.shape[1:])
        return 1 + sum((size - 1) * stride for size, stride in zip(sizes, self.strides, strict=True))

    @cached_property
    def first(self) -> int:
        """Place of the first voxel in the flat layout."""
        return self.radius * sum(self.strides)

    def reach(self, margin: int) -> slice:
        """The planes and so many more on both sides, as far as the image goes."""
        return slice(max(self.planes.start - margin, 0), min(self.planes.stop + margin, self.shape[0]))

    def cut(self, values: torch.Tensor, outside: float) -> torch.Tensor:
        """Planes of (B, C, H, W[, D]) with their margin, flat: (C, padded size)."""
        return self.lay_out(values[self.image][:, self.reach(self.radius)], outside)

    def lay_out(self, values: torch.Tensor, outside: float) -> torch.Tensor:
        """The same from those planes alone, ``reach(radius)`` of one image: (C, planes, W[, D])."""
        r, reach = self.radius, self.reach(self.radius)
        planes = self.planes.stop - self.planes.start + 2 * r
        padded = values.new_full((len(values), planes, *(size + 2 * r for size in self.shape[1:])), outside)
        first = reach.start - self.planes.start + r
        inner = [slice(r, r + size) for size in self.shape[1:]]
        place: Index = (slice(None), slice(first, first + reach.stop - reach.start), *inner)
        padded[place] = values
        return padded.flatten(1)

    def at(self, padded: torch.Tensor, offset: Sequence[int]) -> torch.Tensor:
        """What lies at an offset from every voxel: (C, length), a view."""
        return padded.narrow(1, self.first + self.flat(offset), self.length)

    def flat(self, offset: Sequence[int]) -> int:
        """An offset as a step in the flat layout."""
        return sum(map(operator.mul, offset, self.strides))

    def write(self, values: torch.Tensor, target: torch.Tensor) -> None:
        """Put the voxels of (C, length) into their planes of (B, C, H, W[, D])."""
        place = target[self.image][:, self.planes]
        place.copy_(values.as_strided(place.shape, (values.stride(0), *self.strides), values.storage_offset()))


def window_blocks(batch: torch.Tensor, radius: int, elements: int) -> list[WindowBlock]:
    """Blocks that cover a batch; on a GPU one an image.

    Args:
        batch: (B, C, H, W[, D]).
        radius: of the windows, in voxels, at least 1.
        elements: of one channel of a block, about; at least one plane is taken.

    Raises:
        ValueError: when the radius is below 1 or there are not 2 or 3 spatial axes.
    """
    if radius < 1:
        raise ValueError(f"radius must be at least 1 voxel, got {radius}.")
    if batch.ndim not in (4, 5):
        raise ValueError(f"expected (B, C, H, W) or (B, C, H, W, D), got {tuple(batch.shape)}.")
    shape = tuple(batch.shape[2:])
    if not batch.numel():
        return []
    planes = shape[0]
    if batch.device.type == "cpu":
        planes = min(planes, max(1, elements // math.prod(size + 2 * radius for size in shape[1:])))
    starts = range(0, shape[0], planes)
    return [
        WindowBlock(image, slice(start, min(start + planes, shape[0])), shape, radius)
        for image, start in itertools.product(range(len(batch)), starts)
    ]
