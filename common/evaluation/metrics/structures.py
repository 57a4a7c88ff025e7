"""What the metrics are computed from: two masks of one structure, or a whole case. Each part is computed once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from monai.metrics.utils import get_mask_edges, get_surface_distance
from numpy.typing import ArrayLike, NDArray

from ..calibration import ECE_BINS, CalibrationErrors, calibration_errors


def image_diagonal(shape: Sequence[int], spacing: Sequence[float]) -> float:
    """Length of the image's space diagonal, from corner to corner of the outermost voxels, in units of ``spacing``.

    An axis of one voxel counts nothing: an image of one slice is a 2D image.
    """
    flat = _flat_axes(shape)
    return float(np.linalg.norm([shape[axis] * spacing[axis] for axis in range(len(shape)) if axis not in flat]))


def _flat_axes(shape: Sequence[int]) -> tuple[int, ...]:
    """The axes of one voxel, along which an image has no extent; none of them where it is a single voxel."""
    return tuple(axis for axis, size in enumerate(shape) if size == 1) if max(shape) > 1 else ()


def _surfaces(
    prediction: NDArray[np.bool_], reference: NDArray[np.bool_]
) -> tuple[list[int], tuple[NDArray[np.bool_], NDArray[np.bool_]]]:
    """First corner of the bounding box of both masks together, and their surfaces in it.

    Every voxel on that box's faces has background, or the image's border, behind it: erosion sees the same neighbours
    as in the whole image, so the surfaces are equal. An image of one slice has no surface across it, else all voxels
    would be surface.
    """
    flat = _flat_axes(prediction.shape)
    places = np.nonzero(prediction | reference)
    corner = [int(axis.min()) for axis in places]
    box = tuple(slice(first, int(axis.max()) + 1) for first, axis in zip(corner, places, strict=True))
    edges = get_mask_edges(np.squeeze(prediction[box], flat), np.squeeze(reference[box], flat), crop=False)
    return corner, (np.expand_dims(edges[0], flat), np.expand_dims(edges[1], flat))


def surface_distances(
    prediction: NDArray[np.bool_], reference: NDArray[np.bool_], spacing: Sequence[float]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Distance of each surface voxel of one mask to the other mask's surface, both ways.

    Args:
        prediction: mask (D, H, W) or (H, W), not empty.
        reference: mask of the same shape, not empty.
        spacing: voxel size along each axis.

    Returns:
        distances prediction to reference (one a surface voxel of the prediction), and reference to prediction.
    """
    _, edges = _surfaces(prediction, reference)
    return _distances(edges[0], edges[1], spacing), _distances(edges[1], edges[0], spacing)


def _distances(edge: NDArray[np.bool_], other: NDArray[np.bool_], spacing: Sequence[float]) -> NDArray[np.float64]:
    return np.asarray(get_surface_distance(edge, other, spacing=list(spacing)), dtype=np.float64)


def farthest_voxels(
    prediction: NDArray[np.bool_], reference: NDArray[np.bool_], spacing: Sequence[float]
) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    """The surface voxels that a 95HD stands for: 5% of a surface, those farthest from the other one.

    Args:
        prediction: mask (D, H, W) or (H, W), not empty.
        reference: mask of the same shape, not empty.
        spacing: voxel size along each axis.

    Returns:
        indices (N, dimensions) and distances (N,), each at least the 95HD, of the surface whose distances have the
        larger 95th percentile.
    """
    corner, edges = _surfaces(prediction, reference)
    ways = [(edge, _distances(edge, other, spacing)) for edge, other in (edges, edges[::-1])]
    edge, distances = max(ways, key=lambda way: float(np.percentile(way[1], 95)))
    far = distances >= np.percentile(distances, 95)
    return np.argwhere(edge)[far] + np.array(corner), distances[far]


@dataclass(frozen=True)
class MaskPair:
    """Prediction and reference of one structure, and what several metrics need of them.

    Attributes:
        prediction: mask (D, H, W) or (H, W).
        reference: mask of the same shape.
        spacing: voxel size along each axis, in the unit of the distances.
    """

    prediction: NDArray[np.bool_]
    reference: NDArray[np.bool_]
    spacing: tuple[float, ...]

    @cached_property
    def sizes(self) -> tuple[int, int]:
        """Voxels of the prediction and of the reference."""
        return int(self.prediction.sum()), int(self.reference.sum())

    @cached_property
    def common(self) -> int:
        """Voxels of both."""
        return int((self.prediction & self.reference).sum())

    @cached_property
    def union(self) -> int:
        """Voxels of either."""
        return sum(self.sizes) - self.common

    @cached_property
    def distances(self) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
        """:func:`surface_distances` in units of the spacing; None when a mask is empty."""
        return surface_distances(self.prediction, self.reference, self.spacing) if all(self.sizes) else None

    @property
    def worst(self) -> float:
        """Distance when a mask is empty: 0 when both are, else the image's diagonal."""
        return image_diagonal(self.reference.shape, self.spacing) if self.union else 0.0

    @cached_property
    def in_voxels(self) -> MaskPair:
        """The same masks with voxels of size 1."""
        unit = (1.0,) * len(self.spacing)
        return self if self.spacing == unit else MaskPair(self.prediction, self.reference, unit)


@dataclass(frozen=True)
class Case:
    """A whole case: what calibration needs.

    Attributes:
        probabilities: (C, *S) after softmax, or None.
        prediction: integer label map (*S).
        reference: integer label map (*S).
        bins: number of calibration bins.
        tempered: the probabilities (C, *S) after temperature scaling, or None.
    """

    probabilities: ArrayLike | None
    prediction: ArrayLike
    reference: ArrayLike
    bins: int = ECE_BINS
    tempered: ArrayLike | None = None

    @cached_property
    def calibration(self) -> CalibrationErrors:
        """:func:`~common.evaluation.calibration.calibration_errors`; without probabilities all None and zeros."""
        return self._errors(self.probabilities)

    @cached_property
    def tempered_calibration(self) -> CalibrationErrors:
        """The same of the tempered probabilities."""
        return self._errors(self.tempered)

    def _errors(self, probabilities: ArrayLike | None) -> CalibrationErrors:
        if probabilities is None:
            return CalibrationErrors.none(self.bins)
        return calibration_errors(probabilities, self.prediction, self.reference, self.bins)
