"""Calibration of probabilities over the foreground of a segmentation: ECE, classwise ECE, reliability.

Calibration is taken over the voxels that are foreground in the reference or in the prediction, in bins of equal width
over [0, 1]: background far from any structure is easy, and would hide everything else.

- ECE: confidence is the largest probability, set against whether its class is right (Guo et al., ICML 2017,
  https://proceedings.mlr.press/v70/guo17a.html).
- Classwise ECE: each class's probability set against the presence of that class, averaged over all classes, background
  included (Kull et al., NeurIPS 2019, https://arxiv.org/abs/1910.12656).
"""

from __future__ import annotations

import numpy as np
import torch
from monai.metrics.calibration import calibration_binning
from numpy.typing import ArrayLike, NDArray

__all__ = ["ECE_BINS", "calibration_errors", "calibration_sums", "expected_errors"]

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


def calibration_errors(
    probabilities: ArrayLike, prediction: ArrayLike, reference: ArrayLike, bins: int = ECE_BINS
) -> tuple[float | None, float | None, NDArray[np.float64]]:
    """ECE and classwise ECE of one case over its foreground voxels; the definitions are above.

    Args:
        probabilities: (C, *S) probabilities (after softmax), S of 2 or 3 dimensions.
        prediction: integer label map (*S); with ``reference`` it decides which voxels count.
        reference: integer label map (*S).
        bins: number of bins.

    Returns:
        ECE, classwise ECE (both None when no voxel is foreground), and the reliability sums (3, bins): voxels,
        sum of confidence, sum of right answers.

    Raises:
        ValueError: if shapes do not match or ``probabilities`` are not probabilities.
    """
    values, true = np.asarray(probabilities, dtype=np.float32), np.asarray(reference)
    if values.shape[1:] != true.shape or np.shape(prediction) != true.shape:
        shapes = f"{values.shape}, {np.shape(prediction)} and {true.shape}"
        raise ValueError(f"probabilities, prediction and reference must be (C, *S), (*S) and (*S), got {shapes}")
    foreground = (true != 0) | (np.asarray(prediction) != 0)
    if not foreground.any():
        return None, None, np.zeros((3, bins))
    values, true = values[:, foreground], true[foreground]
    # half precision rounds sums by up to 1e-3 a class; logits are off by far more
    if not np.allclose(values.sum(axis=0), 1.0, atol=1e-2) or values.min() < -1e-3:
        raise ValueError("probabilities must be finite, at least 0 and sum to 1 over classes: apply softmax first")
    one_hot = true[None] == np.arange(len(values))[:, None]
    classwise = expected_errors(calibration_sums(values, one_hot, bins)).mean()
    sums = calibration_sums(values.max(axis=0)[None], (values.argmax(axis=0) == true)[None], bins)
    return float(expected_errors(sums)[0]), float(classwise), sums[:, 0]
