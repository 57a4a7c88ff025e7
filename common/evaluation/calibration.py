"""Calibration of probabilities over the foreground of a segmentation: ECE, classwise ECE, Brier, NLL, reliability.

Calibration is taken over the voxels that are foreground in the reference or in the prediction, in bins of equal width
over [0, 1]: background far from any structure is easy, and would hide everything else.

- ECE: confidence is the largest probability, set against whether its class is right (Guo et al., ICML 2017,
  https://proceedings.mlr.press/v70/guo17a.html).
- Classwise ECE: each class's probability set against the presence of that class, averaged over all classes, background
  included (Kull et al., NeurIPS 2019, https://arxiv.org/abs/1910.12656).
- Brier: squared distance of the probabilities from the one-hot label, summed over classes: in [0, 2] (Brier, 1950).
- NLL: negative logarithm of the probability of the voxel's label, in nats, none above 16 (float32's -log 2^-23).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from monai.metrics.calibration import calibration_binning
from numpy.typing import ArrayLike, NDArray

from ..data.loading.temperature import LEAST_PROBABILITY

__all__ = [
    "ECE_BINS",
    "CalibrationErrors",
    "calibration_errors",
    "calibration_sums",
    "expected_errors",
    "foreground_voxels",
]

ECE_BINS = 15
# MONAI sums bins in float32: small chunks, added up in float64, keep counts exact and means precise
_CHUNK = 2**16


def calibration_sums(probabilities: ArrayLike, truth: ArrayLike, bins: int = ECE_BINS) -> NDArray[np.float64]:
    """Binned sums behind every calibration error, through MONAI's ``calibration_binning``.

    Bins are of equal width over [0, 1] and hold their upper end: (lower, upper].

    Args:
        probabilities: (K, N) in [0, 1], K rows binned separately.
        truth: (K, N), 1 where the event of that probability happened, else 0.
        bins: number of bins.

    Returns:
        (3, K, bins): number of voxels, sum of probabilities, sum of events.
    """
    values = torch.as_tensor(np.asarray(probabilities), dtype=torch.float32)
    events = torch.as_tensor(np.asarray(truth), dtype=torch.float32)
    sums = np.zeros((3, values.shape[0], bins))
    for start in range(0, values.shape[1], _CHUNK):
        p, happened = (array[None, :, start : start + _CHUNK].contiguous() for array in (values, events))
        mean_p, mean_truth, counts = calibration_binning(p, happened, num_bins=bins)
        chunk = torch.stack((counts, mean_p.nan_to_num() * counts, mean_truth.nan_to_num() * counts))
        sums += chunk[:, 0].double().numpy()
    return sums


def expected_errors(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    """(K,) expected calibration error from (3, K, bins): the bins' gaps weighted by their share of the voxels."""
    error: NDArray[np.float64] = np.abs(sums[1] - sums[2]).sum(axis=-1) / sums[0].sum(axis=-1)
    return error


class CalibrationErrors(NamedTuple):
    """What calibration comes to in one case; numbers are None when no voxel is foreground.

    Attributes:
        ece: expected calibration error.
        classwise_ece: mean of the classes' own.
        brier: mean over voxels.
        nll: mean over voxels, in nats.
        sums: (3, bins): voxels, sum of confidence, sum of right answers.
    """

    ece: float | None
    classwise_ece: float | None
    brier: float | None
    nll: float | None
    sums: NDArray[np.float64]

    @classmethod
    def none(cls, bins: int = ECE_BINS) -> CalibrationErrors:
        """Of a case without foreground."""
        return cls(None, None, None, None, np.zeros((3, bins)))


def foreground_voxels(
    probabilities: ArrayLike, prediction: ArrayLike, reference: ArrayLike
) -> tuple[NDArray[np.float32], NDArray[np.integer]]:
    """Probabilities (C, N) and labels (N,) of the voxels that are foreground in the reference or in the prediction.

    Args:
        probabilities: (C, *S) probabilities (after softmax), S of 2 or 3 dimensions.
        prediction: integer label map (*S).
        reference: integer label map (*S).

    Raises:
        ValueError: if shapes do not match or ``probabilities`` are not probabilities.
    """
    values, true = np.asarray(probabilities, dtype=np.float32), np.asarray(reference)
    if values.shape[1:] != true.shape or np.shape(prediction) != true.shape:
        shapes = f"{values.shape}, {np.shape(prediction)} and {true.shape}"
        raise ValueError(f"probabilities, prediction and reference must be (C, *S), (*S) and (*S), got {shapes}")
    foreground = (true != 0) | (np.asarray(prediction) != 0)
    values, true = values[:, foreground], true[foreground]
    # half precision rounds sums by up to 1e-3 a class; logits are off by far more
    if true.size and (not np.allclose(values.sum(axis=0), 1.0, atol=1e-2) or values.min() < -1e-3):
        raise ValueError("probabilities must be finite, at least 0 and sum to 1 over classes: apply softmax first")
    return values, true


def calibration_errors(
    probabilities: ArrayLike, prediction: ArrayLike, reference: ArrayLike, bins: int = ECE_BINS
) -> CalibrationErrors:
    """Calibration of one case over its foreground voxels; the definitions are above.

    Args:
        probabilities: as in :func:`foreground_voxels`.
        prediction: with ``reference`` it decides which voxels count.
        reference: integer label map (*S).
        bins: number of bins.

    Raises:
        ValueError: see :func:`foreground_voxels`.
    """
    values, true = foreground_voxels(probabilities, prediction, reference)
    if not true.size:
        return CalibrationErrors.none(bins)
    one_hot = true[None] == np.arange(len(values))[:, None]
    classwise = expected_errors(calibration_sums(values, one_hot, bins)).mean()
    sums = calibration_sums(values.max(axis=0)[None], (values.argmax(axis=0) == true)[None], bins)
    brier = np.square(values - one_hot, dtype=np.float64).sum(axis=0).mean()
    own = np.take_along_axis(values, true[None].astype(np.int64), axis=0).astype(np.float64)
    nll = -np.log(np.maximum(own, LEAST_PROBABILITY)).mean()
    return CalibrationErrors(float(expected_errors(sums)[0]), float(classwise), float(brier), float(nll), sums[:, 0])
