from __future__ import annotations

import itertools

import pytest
import torch

from common.ops.windows import window_neighbours, window_offsets, window_pairs


@pytest.mark.parametrize(("radius", "dims", "count"), [(1, 2, 8), (5, 2, 120), (1, 3, 26), (3, 3, 342)])
def test_number_of_offsets(radius: int, dims: int, count: int) -> None:
    offsets = window_offsets(radius, dims)
    assert len(offsets) == len(set(offsets)) == count
    assert all(tuple(-step for step in offsets[i]) == offsets[-1 - i] for i in range(count))


def test_radius_of_zero_is_refused() -> None:
    with pytest.raises(ValueError, match="radius must be at least 1"):
        window_offsets(0, 2)


@pytest.mark.parametrize("shape", [(4, 5), (2, 7), (1, 1), (3, 4, 2)])
@pytest.mark.parametrize("radius", [1, 2, 3])
def test_every_pair_is_met_once(shape: tuple[int, ...], radius: int) -> None:
    voxels = list(itertools.product(*map(range, shape)))
    expected = {
        (p, q) for p in voxels for q in voxels if p < q and max(abs(a - b) for a, b in zip(p, q, strict=True)) <= radius
    }
    numbers = torch.arange(len(voxels)).reshape(shape)
    met = []
    for offset, first, second in window_pairs(shape, radius):
        for i, j in zip(numbers[first].flatten().tolist(), numbers[second].flatten().tolist(), strict=True):
            assert tuple(b - a for a, b in zip(voxels[i], voxels[j], strict=True)) == offset
            met.append(tuple(sorted((voxels[i], voxels[j]))))
    assert len(met) == len(expected) and set(met) == expected


@pytest.mark.parametrize("shape", [(4, 5), (3, 2, 4)])
def test_neighbours_are_those_of_the_offsets(shape: tuple[int, ...]) -> None:
    index, inside = window_neighbours(shape, 2)
    voxels = list(itertools.product(*map(range, shape)))
    for number, voxel in enumerate(voxels):
        for place, offset in enumerate(window_offsets(2, len(shape))):
            other = tuple(a + b for a, b in zip(voxel, offset, strict=True))
            there = all(0 <= a < size for a, size in zip(other, shape, strict=True))
            assert bool(inside[number, place]) is there
            assert voxels[int(index[number, place])] == (other if there else voxel)
