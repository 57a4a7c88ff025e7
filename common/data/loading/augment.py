"""Random transforms of training: what is changed here is changed for every bundle.

Each function gives a list, to be appended to a config's deterministic transforms: what comes before the first random
transform is cached.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

from monai.config import KeysCollection
from monai.transforms import (
    CopyItemsd,
    RandAdjustContrastd,
    RandCoarseDropoutd,
    RandCropByPosNegLabeld,
    RandFlipd,
    RandGaussianNoised,
    RandGaussianSmoothd,
    RandRotate90d,
    RandRotated,
    RandScaleIntensityd,
    RandScaleIntensityFixedMeand,
    RandSpatialCropd,
)


def augment_patches(
    keys: KeysCollection,
    patch_size: Sequence[int],
    rotate90_prob: float = 0.75,
    flip_prob: float = 0.5,
    foreground: float | None = None,
) -> list[Any]:
    """Patches of volumes (channels, H, W, D): a random place, then right angles in the first plane and its flips.

    Args:
        keys: image, label and what else lies in their space.
        patch_size: voxels along each axis.
        rotate90_prob: probability of a quarter, half or three-quarter turn.
        flip_prob: probability of a flip along each of the first two axes.
        foreground: share of the patches around a voxel of ``label`` that is not 0, the others lie around one that is;
            None: any place is as likely.

    Returns:
        MONAI's random transforms.
    """
    crop: Any = RandSpatialCropd(keys, roi_size=patch_size, random_size=False)
    if foreground is not None:
        crop = RandForegroundCropd(keys, "label", patch_size, foreground)
    return [crop, *_turns_and_flips(keys, patch_size, rotate90_prob, flip_prob)]


class RandForegroundCropd(RandCropByPosNegLabeld):
    """One patch around a labelled voxel or around one of the background; MONAI's gives a list.

    As nnU-Net (Isensee et al., Nature Methods 2021) draws a third of its patches: small structures are rare.

    Args:
        keys: image, label and what else lies in their space.
        label_key: the label, (1, H, W[, D]), 0 is background.
        patch_size: voxels along each axis, no more than the image has.
        foreground: share of the patches around a labelled voxel, in [0, 1].
    """

    def __init__(self, keys: KeysCollection, label_key: str, patch_size: Sequence[int], foreground: float) -> None:
        super().__init__(keys, label_key, patch_size, pos=foreground, neg=1.0 - foreground, num_samples=1)

    def __call__(self, data: Mapping[Hashable, Any], lazy: bool | None = None) -> dict[Hashable, Any]:
        """The patch of each key."""
        patches: list[dict[Hashable, Any]] = super().__call__(data, lazy)
        return patches[0]


def augment_slices(
    keys: KeysCollection,
    slice_size: Sequence[int],
    mode: Sequence[str],
    rotate90_prob: float = 0.5,
    flip_prob: float = 0.5,
    rotate_prob: float = 0.5,
    rotate_range: float = 0.349,
) -> list[Any]:
    """Slices (channels, H, W): right angles, flips, and rotations.

    Args:
        keys: image, label or scribble.
        slice_size: pixels along each axis.
        mode: interpolation for each key; what a rotation brings in from outside is 0.
        rotate90_prob: probability of a quarter, half or three-quarter turn.
        flip_prob: probability of a flip along each axis.
        rotate_prob: probability of a rotation by an angle drawn evenly.
        rotate_range: largest angle, in radians; the default is 20 degrees.

    Returns:
        MONAI's random transforms.
    """
    rotate = RandRotated(keys, prob=rotate_prob, range_x=rotate_range, mode=mode, padding_mode="zeros")
    return [*_turns_and_flips(keys, slice_size, rotate90_prob, flip_prob), rotate]


def strong_view(key: str, strong: str, size: Sequence[int], prob: float = 0.5, cutout_prob: float = 0.0) -> list[Any]:
    """A strongly changed copy of an image: intensities alone, so that what is known of the image's places holds for it.

    Each with its own chance: brightness and contrast by up to 40 %, gamma 0.7 to 1.5, Gaussian noise of a standard
    deviation up to 0.1, Gaussian blur of 0.5 to 1.5 pixels, and a cut-out of a quarter of each axis.

    Args:
        key: image (channels, *S), in [0, 1]; as it is after the geometric transforms.
        strong: item to add.
        size: pixels along each axis.
        prob: probability of each change.
        cutout_prob: probability of the cut-out.

    Returns:
        MONAI's random transforms.
    """
    blur = (0.5, 1.5)
    return [
        CopyItemsd(key, names=strong),
        RandScaleIntensityd(strong, factors=0.4, prob=prob),
        RandScaleIntensityFixedMeand(strong, factors=0.4, prob=prob),
        RandAdjustContrastd(strong, prob=prob, gamma=(0.7, 1.5)),
        RandGaussianNoised(strong, prob=prob, std=0.1),
        RandGaussianSmoothd(strong, prob=prob, sigma_x=blur, sigma_y=blur, sigma_z=blur),
        RandCoarseDropoutd(
            strong, holes=1, spatial_size=[max(each // 4, 1) for each in size], fill_value=0, prob=cutout_prob
        ),
    ]


def _turns_and_flips(keys: KeysCollection, size: Sequence[int], rotate90_prob: float, flip_prob: float) -> list[Any]:
    square = size[0] == size[1]  # else patches of two shapes would not go into one batch
    return [
        RandRotate90d(keys, prob=rotate90_prob if square else 0.0, spatial_axes=(0, 1)),
        RandFlipd(keys, prob=flip_prob, spatial_axis=0),
        RandFlipd(keys, prob=flip_prob, spatial_axis=1),
    ]
