"""Random transforms of training: what is changed here is changed for every bundle.

Each function gives a list, to be appended to a config's deterministic transforms: what comes before the first random
transform is cached.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from monai.config import KeysCollection
from monai.transforms import RandFlipd, RandRotate90d, RandRotated, RandSpatialCropd


def augment_patches(
    keys: KeysCollection, patch_size: Sequence[int], rotate90_prob: float = 0.75, flip_prob: float = 0.5
) -> list[Any]:
    """Patches of volumes (channels, H, W, D): a random place, then right angles in the first plane and its flips.

    Args:
        keys: image, label and what else lies in their space.
        patch_size: voxels along each axis.
        rotate90_prob: probability of a quarter, half or three-quarter turn.
        flip_prob: probability of a flip along each of the first two axes.

    Returns:
        MONAI's random transforms.
    """
    crop = RandSpatialCropd(keys, roi_size=patch_size, random_size=False)
    return [crop, *_turns_and_flips(keys, patch_size, rotate90_prob, flip_prob)]


def augment_slices(
    keys: KeysCollection,
    slice_size: Sequence[int],
    mode: Sequence[str],
    rotate90_prob: float = 0.5,
    flip_prob: float = 0.5,
    rotate_prob: float = 0.5,
) -> list[Any]:
    """Slices (channels, H, W): right angles, flips, and rotations by up to 20 degrees.

    Args:
        keys: image, label or scribble.
        slice_size: pixels along each axis.
        mode: interpolation for each key; what a rotation brings in from outside is 0.
        rotate90_prob: probability of a quarter, half or three-quarter turn.
        flip_prob: probability of a flip along each axis.
        rotate_prob: probability of a rotation by an angle drawn evenly.

    Returns:
        MONAI's random transforms.
    """
    rotate = RandRotated(keys, prob=rotate_prob, range_x=0.349, mode=mode, padding_mode="zeros")  # radians
    return [*_turns_and_flips(keys, slice_size, rotate90_prob, flip_prob), rotate]


def _turns_and_flips(keys: KeysCollection, size: Sequence[int], rotate90_prob: float, flip_prob: float) -> list[Any]:
    square = size[0] == size[1]  # else patches of two shapes would not go into one batch
    return [
        RandRotate90d(keys, prob=rotate90_prob if square else 0.0, spatial_axes=(0, 1)),
        RandFlipd(keys, prob=flip_prob, spatial_axis=0),
        RandFlipd(keys, prob=flip_prob, spatial_axis=1),
    ]
