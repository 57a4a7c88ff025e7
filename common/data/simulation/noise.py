"""Simulated label noise in two steps: ``sample_*`` draws parameters, ``apply_*`` replays them without chance.

Parameters are plain JSON, so that a corrupted data set carries what was done to it and can be remade to the voxel.

The noise model is the one of the noisy-label literature (Adaptive Label Correction, arXiv 2503.12218, Sec. III-A): each
structure is dilated or eroded by a Euclidean ball with a radius in voxels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.ndimage import distance_transform_edt

OPERATIONS = ("dilate", "erode")
# share of a structure's greatest depth that an erosion may take and that no neighbour may grow beyond
CORE_DEPTH = 0.75


def sample_noise(
    rng: np.random.Generator, radius: tuple[float, float], structures: Sequence[int]
) -> list[dict[str, Any]]:
    """Draw one dilation or erosion (even odds) with a uniform radius for each structure.

    Args:
        rng: source of chance; two draws a structure.
        radius: least and greatest radius of the ball, in voxels.
        structures: label values to change; 0 (background) is refused.

    Returns:
        one ``{"structure": int, "operation": "dilate" | "erode", "radius": float}`` per structure, in the given order.

    Raises:
        ValueError: when the radius range is empty, negative or not finite, or a structure is not positive.
    """
    low, high = float(radius[0]), float(radius[1])
    if not (0 <= low <= high < math.inf):
        raise ValueError(f"radius must be two numbers 0 <= least <= greatest, got {low:g} and {high:g}")
    if any(structure <= 0 for structure in structures):
        raise ValueError(f"structures must be positive label values, got {list(structures)}")
    parameters = []
    for structure in structures:
        operation = OPERATIONS[int(rng.integers(2))]
        # rounded so that the JSON shows what was applied, digit for digit
        size = round(float(rng.uniform(low, high)), 3)
        parameters.append({"structure": int(structure), "operation": operation, "radius": size})
    return parameters


def settle_noise(label: np.ndarray, parameters: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the parameters with ``applied_radius`` (voxels): what is really applied to this label.

    It is the radius asked for, except that an erosion stops at ``CORE_DEPTH`` of the structure's greatest depth, so
    that a core is left, and that it is 0 for a structure which the label lacks. Settling twice changes nothing.

    Args:
        label: integer label map of any number of dimensions.
        parameters: what ``sample_noise`` returned.
    """
    _check(label, parameters)
    settled = []
    for item in parameters:
        applied = 0.0
        box = bounding_box(label == item["structure"], 1)
        if box is not None:
            applied = float(item["radius"])
            if item["operation"] == "erode":
                applied = min(applied, _erosion_limit(_depth(label[box] == item["structure"])))
        settled.append({**item, "applied_radius": applied})
    return settled


def apply_noise(label: np.ndarray, parameters: Sequence[dict[str, Any]]) -> np.ndarray:
    """Dilate or erode structures of a label map by Euclidean balls with radii in voxels.

    - Every structure is changed from its original outline, so the order of the parameters does not matter.
    - A dilation by r takes the voxels at most r away; an erosion by r leaves those more than r away from the nearest
      voxel outside the structure, and gives the rest to background. Beyond the image's edge there is no outside.
    - Voxels that several changed structures claim go to the one whose new surface they lie deepest below (radius plus
      signed distance to the old surface; a tie goes to the smaller label value).
    - Structures without parameters keep all their voxels.
    - Every structure keeps its core, the voxels deeper than ``CORE_DEPTH`` of its greatest depth: none vanishes.

    Args:
        label: integer label map of any number of dimensions, left unchanged.
        parameters: what ``sample_noise`` or ``settle_noise`` returned.

    Returns:
        a new array of the same shape and type.

    Raises:
        ValueError: when the label is not of integers, or parameters are unknown, negative or name a structure twice.
    """
    _check(label, parameters)
    result = label.copy()
    present = [item for item in parameters if (label == item["structure"]).any()]
    if not present:
        return result
    margin = 1 + max((math.ceil(item["radius"]) for item in present if item["operation"] == "dilate"), default=0)
    box = bounding_box(np.isin(label, [item["structure"] for item in present]), margin)
    assert box is not None  # some structure is present
    original = label[box]
    winner = np.zeros_like(original)
    best = np.full(original.shape, -np.inf, dtype=np.float32)
    for item in sorted(present, key=lambda entry: int(entry["structure"])):
        level = _level(original == item["structure"], item["operation"], float(item["radius"]))
        claimed = (level >= 0) & (level > best)
        winner[claimed] = item["structure"]
        best[claimed] = level[claimed]
    changed = np.isin(original, [0, *(item["structure"] for item in present)])
    result[box] = np.where(changed, winner, original)
    return result


def _level(mask: np.ndarray, operation: str, radius: float) -> np.ndarray:
    """How deep each voxel lies below the structure's new surface (voxels); negative outside, infinite in its core."""
    depth = _depth(mask)
    limit = _erosion_limit(depth)
    if operation == "dilate":
        level = np.where(mask, radius + depth, radius - distance_transform_edt(~mask))
    else:
        applied = min(radius, limit)
        level = np.where(mask & (depth > applied), depth - applied, -np.inf)
    level[mask & (depth > limit)] = np.inf
    return level.astype(np.float32)


def _depth(mask: np.ndarray) -> np.ndarray:
    """Distance of a structure's voxels to the nearest voxel outside it; infinite when the structure fills the array."""
    if mask.all():
        return np.full(mask.shape, np.inf)
    return np.asarray(distance_transform_edt(mask))


def _erosion_limit(depth: np.ndarray) -> float:
    """The greatest radius (voxels) that an erosion may have; every structure has voxels deeper than it."""
    deepest = float(depth.max())
    return round(CORE_DEPTH * deepest, 3) if math.isfinite(deepest) else 0.0


def bounding_box(mask: np.ndarray, margin: int) -> tuple[slice, ...] | None:
    """Slices around a mask of any number of dimensions, grown by ``margin`` voxels within the array; None if empty."""
    slices = []
    for axis in range(mask.ndim):
        others = tuple(other for other in range(mask.ndim) if other != axis)
        filled = np.flatnonzero(mask.any(axis=others))
        if filled.size == 0:
            return None
        slices.append(slice(max(int(filled[0]) - margin, 0), int(filled[-1]) + 1 + margin))
    return tuple(slices)


def _check(label: np.ndarray, parameters: Sequence[dict[str, Any]]) -> None:
    if not np.issubdtype(label.dtype, np.integer):
        raise ValueError(f"a label map must hold integers, got {label.dtype}")
    structures = [item["structure"] for item in parameters]
    if len(set(structures)) != len(structures):
        raise ValueError(f"a structure may be named once, got {structures}")
    for item in parameters:
        if item["operation"] not in OPERATIONS:
            raise ValueError(f"operation must be one of {OPERATIONS}, got {item['operation']!r}")
        if item["structure"] <= 0 or not 0 <= item["radius"] < math.inf:
            raise ValueError(f"a structure must be positive and a radius finite and not negative, got {item}")
