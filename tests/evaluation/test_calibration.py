"""Calibration errors against hand arithmetic, naive loops and MONAI's own metric."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from monai.metrics import CalibrationErrorMetric

from common.evaluation.calibration import ECE_BINS, calibration_errors, calibration_sums
from tests.evaluation.test_metrics import blob_map, random_probabilities


def naive_ece(confidence: np.ndarray, truth: np.ndarray, bins: int) -> float:
    """Expected calibration error with a loop over voxels; bins hold their upper end."""
    groups: dict[int, list[int]] = {}
    for index, value in enumerate(confidence):
        groups.setdefault(max(0, math.ceil(float(value) * bins) - 1), []).append(index)
    return sum(
        len(group) / len(confidence) * abs(np.mean(confidence[group]) - np.mean(truth[group]))
        for group in groups.values()
    )


@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize("shape", [(12, 11), (5, 6, 7)])
def test_calibration_equals_naive_loops_and_monai(classes: int, shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(classes)
    reference = blob_map(rng, shape, classes)
    probabilities = random_probabilities(rng, classes, shape)
    prediction = probabilities.argmax(axis=0)
    ece, classwise, brier, nll, sums = calibration_errors(probabilities, prediction, reference)
    foreground = (reference > 0) | (prediction > 0)
    values, true = probabilities[:, foreground], reference[foreground]
    right = (values.argmax(axis=0) == true).astype(float)
    assert ece == pytest.approx(naive_ece(values.max(axis=0), right, ECE_BINS), abs=1e-5)
    per_class = [naive_ece(values[c], (true == c).astype(float), ECE_BINS) for c in range(classes)]
    assert classwise == pytest.approx(np.mean(per_class), abs=1e-5)
    distances = [sum((values[c, n] - (true[n] == c)) ** 2 for c in range(classes)) for n in range(len(true))]
    assert brier == pytest.approx(np.mean(distances), rel=1e-5)
    assert nll == pytest.approx(-np.mean([math.log(values[true[n], n]) for n in range(len(true))]), rel=1e-5)
    metric = CalibrationErrorMetric(num_bins=ECE_BINS, metric_reduction="none")
    metric(y_pred=torch.as_tensor(values)[None], y=torch.as_tensor(true[None] == np.arange(classes)[:, None])[None])
    assert classwise == pytest.approx(metric.aggregate().mean().item(), abs=1e-5)
    metric.reset()
    metric(y_pred=torch.as_tensor(values.max(axis=0))[None, None], y=torch.as_tensor(right)[None, None])
    assert ece == pytest.approx(metric.aggregate().item(), abs=1e-5)
    assert sums[0].sum() == foreground.sum()
    assert sums[2].sum() == pytest.approx(right.sum(), rel=1e-6)


def test_calibration_by_hand() -> None:
    """Four voxels at confidence 0.9, half of them right: ECE 0.4; both classes of two are off by as much."""
    probabilities = np.array([[0.1] * 4, [0.9] * 4]).reshape(2, 2, 2)
    reference = np.array([[1, 1], [0, 0]])
    ece, classwise, brier, nll, sums = calibration_errors(probabilities, np.ones((2, 2), dtype=int), reference)
    assert ece == pytest.approx(0.4) and classwise == pytest.approx(0.4)
    assert brier == pytest.approx((0.02 + 1.62) / 2) and nll == pytest.approx(-(math.log(0.9) + math.log(0.1)) / 2)
    # 0.9 * 15 = 13.5: the 14th bin
    assert sums[:, 13] == pytest.approx([4, 3.6, 2]) and sums[0].sum() == 4


def test_no_foreground_and_impossible_labels() -> None:
    nothing, sure = np.zeros((2, 2), dtype=int), np.stack([np.ones((2, 2)), np.zeros((2, 2))])
    assert calibration_errors(sure, nothing, nothing)[:4] == (None, None, None, None)
    # a label of probability 0 costs float32's 23 bits, and not infinity
    assert calibration_errors(sure, nothing, nothing + 1).nll == pytest.approx(23 * math.log(2))


def test_binned_sums_do_not_depend_on_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    values, truth = rng.random((3, 1000)), rng.integers(0, 2, (3, 1000))
    whole = calibration_sums(values, truth)
    monkeypatch.setattr("common.evaluation.calibration._CHUNK", 64)
    assert np.allclose(calibration_sums(values, truth), whole, rtol=1e-5)
    assert whole[0].sum() == 3000


def test_calibration_refuses_what_is_not_probabilities() -> None:
    label = np.ones((3, 3), dtype=int)
    for bad in (np.full((2, 3, 3), 3.0), np.full((2, 3, 3), np.nan), np.stack([label * -0.5, label * 1.5])):
        with pytest.raises(ValueError, match="apply softmax first"):
            calibration_errors(bad, label, label)
    with pytest.raises(ValueError, match=r"must be \(C, \*S\)"):
        calibration_errors(np.full((2, 3, 4), 0.5), label, label)
