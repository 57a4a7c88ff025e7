"""Where a prediction is farthest off: the slice and the voxel that a large 95HD comes from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..metrics.structures import farthest_voxels

__all__ = ["LargestError", "largest_error"]


@dataclass(frozen=True)
class LargestError:
    """A structure's largest error.

    Attributes:
        structure: its label value.
        voxel: index along each axis of the voxel that is farthest off, or of the middle of what is missed or spurious.
        distance: of that voxel to the other mask's surface, in units of the spacing; None where there is no other.
        kind: "" for a border that is off, "missed" or "spurious" where one of the masks is empty.
    """

    structure: int
    voxel: tuple[int, ...]
    distance: float | None
    kind: str = ""


def largest_error(
    label: NDArray[Any], prediction: NDArray[Any], spacing: Sequence[float], axis: int
) -> LargestError | None:
    """The largest error, in the slice across ``axis`` that shows most of it.

    A structure that is missed, else spurious, counts more than any distance; of several the largest is taken. Otherwise
    it is the structure with the largest 95HD, the slice in which the voxels beyond its 95HD have the largest sum of
    distances, and of those voxels the farthest.

    Args:
        label: reference label map (X, Y, Z), 0 = background.
        prediction: likewise.
        spacing: voxel size along each axis.
        axis: across which slices are cut.

    Returns:
        the error, or None where the two agree.
    """
    values = [int(value) for value in np.union1d(label, prediction) if value != 0]
    pairs = {value: (prediction == value, label == value) for value in values}
    for kind, empty, there in (("missed", 0, 1), ("spurious", 1, 0)):
        lone = {value: pair[there] for value, pair in pairs.items() if not pair[empty].any()}
        if lone:
            value = max(lone, key=lambda value: int(lone[value].sum()))
            points = np.argwhere(lone[value])
            return LargestError(value, _middle(_fullest(points, np.ones(len(points)), axis)[0]), None, kind)
    far = {value: farthest_voxels(own, true, spacing) for value, (own, true) in pairs.items()}
    if not far:
        return None
    value = max(far, key=lambda value: (float(far[value][1].min()), float(far[value][1].max())))
    points, distances = far[value]
    if not distances.any():
        return None
    points, distances = _fullest(points, distances, axis)
    worst = int(distances.argmax())
    return LargestError(value, tuple(int(i) for i in points[worst]), float(distances[worst]))


def _fullest(
    points: NDArray[np.intp], weights: NDArray[np.float64], axis: int
) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    """The points, with their weights, of the slice across ``axis`` with the largest sum of weights."""
    inside = points[:, axis] == np.bincount(points[:, axis], weights).argmax()
    return points[inside], weights[inside]


def _middle(points: NDArray[np.intp]) -> tuple[int, ...]:
    """The point that is nearest to the mean of all."""
    nearest = np.linalg.norm(points - points.mean(axis=0), axis=1).argmin()
    return tuple(int(i) for i in points[nearest])
