"""The place of a training patch."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

from monai.config import KeysCollection
from monai.transforms import RandCropByPosNegLabeld


class RandForegroundCropd(RandCropByPosNegLabeld):
    """One patch, in a share of the draws around a labelled voxel, else around one of the background.

    As nnU-Net, on which U-Mamba trains, draws a third of its patches: small structures would be seen too rarely.

    Args:
        keys: image, label and what else lies in their space.
        label_key: the label, (1, H, W[, D]), 0 is background.
        spatial_size: of the patch, in voxels; no larger than the image.
        foreground: share of the draws, in [0, 1].
    """

    def __init__(
        self, keys: KeysCollection, label_key: str, spatial_size: Sequence[int], foreground: float = 0.33
    ) -> None:
        super().__init__(keys, label_key, spatial_size, pos=foreground, neg=1.0 - foreground, num_samples=1)

    def __call__(self, data: Mapping[Hashable, Any], lazy: bool | None = None) -> dict[Hashable, Any]:  # type: ignore[override]
        """The patch itself; MONAI's gives a list of them."""
        (patch,) = super().__call__(data, lazy)
        return patch
