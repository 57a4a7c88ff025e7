"""Simulated scribbles in two steps: ``sample_scribbles`` draws parameters, ``apply_scribbles`` replays them exactly.

Parameters are plain JSON, so that a data set carries what was done to it and can be remade.

The method is that of AttenScribble (arXiv 2312.06614, Sec. 3.1) after Valvano et al. (arXiv 2007.01152): the border of
each structure is eroded until its connectivity would break, which leaves its skeleton; the background's scribble is the
skeleton of what lies outside the structures, but inside their common convex hull grown by 5 pixels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import ndimage
from skimage.morphology import convex_hull_image, skeletonize

from ..contract.records import SCRIBBLE_UNLABELLED
from .noise import bounding_box

MARGIN = 5.0


def sample_scribbles(rng: np.random.Generator, structures: Sequence[int], keep: float = 1.0) -> list[dict[str, Any]]:
    """Draw which part of its skeleton a rater traces, for the background and for each structure.

    A rater stops before the end of a skeleton: its share nearest to one side stays, the side drawn at random and
    the same in all slices. ``keep=1``, as in the paper, leaves nothing to chance.

    Args:
        rng: source of chance; four draws for the background and for each structure.
        structures: label values to scribble; 0 (background) comes of itself and is refused.
        keep: least share of a skeleton's voxels that is traced, above 0 and at most 1; the greatest is 1.

    Returns:
        one ``{"structure": int, "share": float, "direction": [float, float, float]}`` for the background (structure 0)
        and for each structure, in the given order; the direction is a unit vector along the array's axes.

    Raises:
        ValueError: when ``keep`` is out of range or a structure is not positive.
    """
    if not 0 < keep <= 1:
        raise ValueError(f"keep must be above 0 and at most 1, got {keep}")
    if any(structure <= 0 for structure in structures):
        raise ValueError(f"structures must be positive label values, got {list(structures)}")
    parameters = []
    for structure in (0, *structures):
        share = round(float(rng.uniform(keep, 1.0)), 3)
        direction = rng.normal(size=3)
        direction /= np.linalg.norm(direction)
        # rounded so that the JSON shows what was applied, digit for digit; a share of 0 would trace nothing
        rounded = [round(float(number), 3) for number in direction]
        parameters.append({"structure": int(structure), "share": max(share, 0.001), "direction": rounded})
    return parameters


def apply_scribbles(
    label: np.ndarray,
    parameters: Sequence[dict[str, Any]],
    slice_axis: int | None = 2,
    margin: float = MARGIN,
    width: int = 1,
    unlabelled: int = SCRIBBLE_UNLABELLED,
) -> np.ndarray:
    """Scribbles of a dense label, slice by slice or in 3D, without chance.

    - Every structure of a slice is scribbled, each of its separate parts with at least one voxel before ``share`` takes
      some away, the structure with at least one after it.
    - A scribbled voxel has the label's value there: strokes of any width stay inside their structure.
    - Slices without any of the structures stay unlabelled, as a rater skips them.
    - In 3D a skeleton keeps what the structure encloses: a shell, as the background around structures is one, becomes
      a closed surface.

    Args:
        label: (X, Y) or (X, Y, Z) integers, left unchanged.
        parameters: what ``sample_scribbles`` returned; only the structures that it names are scribbled.
        slice_axis: axis across which the slices of a 3D label lie; None scribbles the volume as a whole. A 2D label is
            one slice.
        margin: how far the structures' convex hull is grown to bound the background's scribble, in voxels.
        width: of the strokes, in voxels; 1 is the bare skeleton, a pen of 3 reaches one voxel to each side.
        unlabelled: value of voxels without a scribble; no value of the label.

    Returns:
        a new array of the label's shape and type.

    Raises:
        ValueError: when the label is not of integers, has another number of axes or holds the value ``unlabelled``, or
            a setting is out of range.

    Example::

        >>> label = np.zeros((4, 9), dtype=np.uint8)
        >>> label[1, 2:7] = 1
        >>> strokes = [{"structure": structure, "share": 1.0, "direction": [1.0, 0.0, 0.0]} for structure in (0, 1)]
        >>> print(apply_scribbles(label, strokes, margin=1, unlabelled=9))
        [[9 9 0 0 0 0 0 9 9]
         [9 0 1 1 1 1 1 0 9]
         [9 9 0 0 0 0 0 9 9]
         [9 9 9 9 9 9 9 9 9]]
    """
    _check(label, slice_axis, margin, width, unlabelled)
    scribble = np.full_like(label, unlabelled)
    across = slice_axis if label.ndim == 3 else None
    axes = [axis for axis in range(label.ndim) if axis != across]
    strokes = [{**item, "direction": np.asarray(item["direction"])[axes]} for item in parameters]
    if across is None:
        _draw(label, scribble, strokes, margin, width)
        return scribble
    for plane, drawn in zip(np.moveaxis(label, across, 0), np.moveaxis(scribble, across, 0), strict=True):
        _draw(plane, drawn, strokes, margin, width)
    return scribble


def skeleton(region: np.ndarray) -> np.ndarray:
    """Erode a region's border until its connectivity would break (Zhang-Suen thinning in 2D, Lee's in 3D).

    Args:
        region: (X, Y) or (X, Y, Z) bool; outside the array there is no region.

    Returns:
        bool mask of the same shape, inside the region, with at least one voxel in each of its connected parts.

    Example::

        >>> corner = np.zeros((5, 7), dtype=bool)
        >>> corner[:, :3] = corner[2:, :] = True
        >>> print(skeleton(corner).astype(int))
        [[0 1 0 0 0 0 0]
         [0 1 0 0 0 0 0]
         [0 1 0 0 0 1 0]
         [0 0 1 1 1 0 0]
         [0 0 0 0 0 0 0]]
    """
    inner = (slice(1, -1),) * region.ndim
    thin = skeletonize(np.pad(region, 1)).astype(bool)[inner]
    parts, count = ndimage.label(region, ndimage.generate_binary_structure(region.ndim, region.ndim))
    lost = sorted(set(range(1, count + 1)) - set(parts[thin].tolist()))
    if lost:  # in 3D thinning wipes out some shapes, such as 2 x 2 x 3 voxels
        depth = ndimage.distance_transform_edt(np.pad(region, 1))[inner]
        for deepest in ndimage.maximum_position(depth, parts, lost):
            thin[deepest] = True
    return np.asarray(thin)


def _draw(
    label: np.ndarray, scribble: np.ndarray, strokes: Sequence[dict[str, Any]], margin: float, width: int
) -> None:
    """Scribble one slice or volume (changes ``scribble``)."""
    structures = [item["structure"] for item in strokes if item["structure"] > 0]
    box = bounding_box(np.isin(label, structures), math.ceil(margin) + 1)
    if box is None:
        return
    part, drawn = label[box], scribble[box]
    for item in strokes:
        region = part == item["structure"]
        if item["structure"] == 0:
            region &= _grown_hull(np.isin(part, structures), margin)
        if not region.any():
            continue
        line = _traced(skeleton(region), item["share"], item["direction"])
        if width > 1:
            line = (ndimage.distance_transform_edt(~line) <= (width - 1) / 2) & region
        drawn[line] = item["structure"]


def _traced(line: np.ndarray, share: float, direction: np.ndarray) -> np.ndarray:
    """The share of a line's voxels that lies farthest against the direction, at least one voxel."""
    voxels = np.argwhere(line)
    # rounded, so that voxels side by side rank the same on every machine
    order = np.argsort(np.round(voxels @ direction, 6), kind="stable")
    traced = np.zeros_like(line)
    traced[tuple(voxels[order[: math.ceil(share * len(voxels))]].T)] = True
    return traced


def _grown_hull(mask: np.ndarray, margin: float) -> np.ndarray:
    """Convex hull of all structures, grown by a Euclidean ball."""
    voxels = np.argwhere(mask)
    if mask.ndim == 3 and np.linalg.matrix_rank(voxels - voxels[0]) < 3:
        mask = ndimage.binary_dilation(mask)  # a flat structure spans no hull in 3D
    hull = convex_hull_image(mask)
    return np.asarray(ndimage.distance_transform_edt(~hull) <= margin)


def _check(label: np.ndarray, slice_axis: int | None, margin: float, width: int, unlabelled: int) -> None:
    if not np.issubdtype(label.dtype, np.integer):
        raise ValueError(f"a label map must hold integers, got {label.dtype}")
    if label.ndim not in (2, 3):
        raise ValueError(f"a label map to scribble on must have 2 or 3 axes, got {label.ndim}")
    if slice_axis not in (None, 0, 1, 2):
        raise ValueError(f"slice_axis must be 0, 1, 2 or None, got {slice_axis!r}")
    if not 0 <= margin < math.inf or width < 1:
        raise ValueError(f"margin must be 0 or more and width 1 or more, got {margin} and {width}")
    if (label == unlabelled).any():
        raise ValueError(f"the label holds {unlabelled}, which is to mark voxels without a scribble")
