"""Connected components of a segmentation."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

from monai.config import KeysCollection
from monai.transforms import KeepLargestConnectedComponent, MapTransform


class LargestComponentd(MapTransform):
    """Keep of each structure its largest connected component alone; the rest becomes background.

    Voxels that share a face, an edge or a corner are connected. ``left_out`` (1, *S) holds the class numbers that were
    taken away, 0 elsewhere. Probabilities and uncertainty stay as they are.

    Args:
        keys: label maps (1, *S).
        active: else the label maps stay as they are, and there is no ``left_out``.
    """

    def __init__(self, keys: KeysCollection = "pred", active: bool = True) -> None:
        super().__init__(keys)
        self.active = active
        self.keep = KeepLargestConnectedComponent(is_onehot=False, independent=True)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Keep the largest components."""
        d = dict(data)
        if self.active:
            for key in self.key_iterator(d):
                before = d[key]
                d[key] = self.keep(before.clone()).to(before.dtype)  # MONAI's works in place
                d["left_out"] = before - d[key]
        return d
