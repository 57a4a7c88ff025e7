"""Simple scribbles for the phantom, as a sampling and a deterministic applying step."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy import ndimage

from ..contract.records import SCRIBBLE_UNLABELLED
from .scribbles import skeleton


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


def apply_scribble(label: np.ndarray, parameters: dict[str, Any], unlabelled: int = SCRIBBLE_UNLABELLED) -> np.ndarray:
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
            drawn[skeleton(plane == structure)] = structure
    return scribble
