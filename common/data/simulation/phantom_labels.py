"""Simple scribbles and raters for the phantom, each as a sampling and a deterministic applying step."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy import ndimage
from skimage.morphology import skeletonize


def sample_scribble(rng: np.random.Generator) -> dict[str, Any]:
    """Draw the parameters of one case's scribbles; JSON-serialisable.

    Args:
        rng: source of everything random.

    Returns:
        ``distance``: of the background's scribble from the structures, in voxels; ``angle``: where its arc starts,
        radians; ``arc``: its length, radians.
    """
    return {
        "distance": float(rng.uniform(3, 5)),
        "angle": float(rng.uniform(-np.pi, np.pi)),
        "arc": float(rng.uniform(2, 4)),
    }


def apply_scribble(label: np.ndarray, parameters: dict[str, Any], unlabelled: int = 255) -> np.ndarray:
    """Scribbles of a dense label: slice by slice each structure's skeleton, and an arc in the background.

    Args:
        label: (H, W, D) integers; the slices lie along the last axis.
        parameters: from :func:`sample_scribble`.
        unlabelled: value of voxels without a scribble.

    Returns:
        (H, W, D) integers of the label's type.
    """
    scribble = np.full_like(label, unlabelled)
    for index in range(label.shape[-1]):
        plane, drawn = label[..., index], scribble[..., index]
        foreground = plane > 0
        if not foreground.any():
            continue
        distance = ndimage.distance_transform_edt(~foreground)
        ring = np.abs(distance - parameters["distance"]) < 0.6
        rows, columns = np.indices(plane.shape)
        middle = ndimage.center_of_mass(foreground)
        angle = np.arctan2(rows - middle[0], columns - middle[1])
        drawn[ring & ((angle - parameters["angle"]) % (2 * np.pi) < parameters["arc"])] = 0
        for structure in np.unique(plane[foreground]):
            drawn[skeletonize(plane == structure)] = structure
    return scribble


def sample_rater(rng: np.random.Generator, rater: int, raters: int) -> dict[str, Any]:
    """Draw the parameters of one rater's mask of one case; JSON-serialisable.

    Raters differ by habit (the first draws tight, the last generously) and by chance from case to case.

    Args:
        rng: source of everything random.
        rater: this rater's number, from 0.
        raters: number of raters.

    Returns:
        ``offset``: of the outer border, in voxels (outwards is positive); ``waviness``: largest local deviation, in
        voxels; ``seed``: of the local deviation.
    """
    habit = 0.0 if raters == 1 else 2 * rater / (raters - 1) - 1
    return {
        "offset": float(1.2 * habit + rng.normal(scale=0.2)),
        "waviness": float(rng.uniform(0.8, 1.6)),
        "seed": int(rng.integers(2**31)),
    }


def apply_rater(label: np.ndarray, parameters: dict[str, Any]) -> np.ndarray:
    """One rater's version of a label: every border moved by the habit and by a smooth random field.

    Args:
        label: (H, W, D) integers.
        parameters: from :func:`sample_rater`.

    Returns:
        (H, W, D) integers of the label's type; no structure of ``label`` is lost.
    """
    rng = np.random.default_rng(parameters["seed"])
    structures = [int(value) for value in np.unique(label) if value != 0]
    heights = []  # signed distance to each structure's border, positive inside, with the rater's deviation
    for structure in structures:
        inside = label == structure
        signed = ndimage.distance_transform_edt(inside) - ndimage.distance_transform_edt(~inside)
        field = ndimage.gaussian_filter(rng.normal(size=label.shape), [0.1 * size for size in label.shape])
        field *= parameters["waviness"] / np.abs(field).max()
        shift = parameters["offset"] + field
        # a shift inwards leaves the structure's innermost voxels
        heights.append(np.where(signed >= 0.9 * signed.max(), np.maximum(signed, 0.5), signed + shift))
    result = np.zeros_like(label)
    if not structures:
        return result
    stacked = np.stack(heights)
    drawn = stacked.max(axis=0) > 0.5
    result[drawn] = np.asarray(structures, dtype=label.dtype)[stacked.argmax(axis=0)[drawn]]
    return result
