"""One segmentation from a set of them: the likeliest class on the average, or STAPLE."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform
from monai.utils import optional_import
from numpy.typing import ArrayLike, NDArray

from ..errors import ExpectedError

CONSENSUS = ("mean", "staple")
_ITERATIONS = 100  # at most, of expectation maximisation; answers of one network need about ten


def staple(masks: ArrayLike) -> NDArray[np.float32]:
    """Probability that a voxel belongs to the structure, from masks whose makers are not equally good.

    Expectation maximisation of the makers' sensitivities and specificities with the hidden truth: Warfield et al.,
    Simultaneous truth and performance level estimation (STAPLE), IEEE Trans. Med. Imaging 23(7), 2004; computed by
    SimpleITK. It runs in the box around all that is marked, one voxel wider: the prior is the mean share of marked
    voxels, which would otherwise depend on how much background an image has.

    Args:
        masks: (n, *S), two or three spatial axes, not 0 inside.

    Returns:
        (*S), in [0, 1]. Masks that are all equal are their own answer.

    Raises:
        ExpectedError: SimpleITK is not installed.
        ValueError: there are no masks, or they have other axes.
    """
    check_staple()
    chosen = np.asarray(masks).astype(bool)
    if chosen.ndim not in (3, 4) or len(chosen) == 0:
        raise ValueError(f"masks must be (n, H, W[, D]) with at least one of them, got {chosen.shape}.")
    result = np.zeros(chosen.shape[1:], dtype=np.float32)
    marked = np.nonzero(chosen.any(axis=0))
    if marked[0].size == 0:
        return result
    box = tuple(slice(max(0, int(axis.min()) - 1), int(axis.max()) + 2) for axis in marked)
    result[box] = _estimate(np.stack([mask[box] for mask in chosen]))
    return result


def _estimate(masks: NDArray[np.bool_]) -> NDArray[np.float32]:
    if (masks == masks[:1]).all():
        return masks[0].astype(np.float32)
    simpleitk, _ = optional_import("SimpleITK")
    images = [simpleitk.GetImageFromArray(mask.astype(np.uint8)) for mask in masks]
    found = simpleitk.GetArrayFromImage(simpleitk.STAPLE(images, 1.0, 1, _ITERATIONS))
    # where nothing is background there is no specificity to estimate
    return np.where(np.isfinite(found), found, masks.mean(axis=0)).astype(np.float32)


def check_staple() -> None:
    """Raise an :class:`~common.errors.ExpectedError` when SimpleITK is not installed."""
    if not optional_import("SimpleITK")[1]:
        raise ExpectedError("consensus: staple needs SimpleITK, which is not installed. Fix: pip install SimpleITK.")


class StapleConsensusd(MapTransform):
    """Put the consensus by STAPLE of ``samples`` (n, *S), class numbers, in the place of a segmentation.

    Each class against the rest, background too; the class of largest probability wins, the lowest of several.

    Args:
        keys: the segmentation (1, *S).
        num_classes: C, background included.

    Raises:
        ExpectedError: SimpleITK is not installed.
    """

    def __init__(self, keys: KeysCollection, num_classes: int) -> None:
        super().__init__(keys)
        check_staple()
        self.num_classes = num_classes

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Replace the segmentation."""
        d = dict(data)
        samples = torch.as_tensor(d["samples"]).cpu().numpy()
        likely = np.stack([staple(samples == number) for number in range(self.num_classes)])
        for key in self.key_iterator(d):
            chosen = torch.from_numpy(likely.argmax(0)[None].astype(np.uint8))
            d[key] = MetaTensor(chosen.to(d[key].device), meta=d[key].meta)
        return d
