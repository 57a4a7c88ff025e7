"""The temperature that is fitted, against a search, and from cases to the file beside the weights."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar

from common.data.loading.temperature import read_temperatures
from common.errors import ExpectedError
from common.evaluation import calibrating
from common.evaluation.calibrating import Calibrator, fit_temperature
from common.evaluation.ensemble import Ensemble
from common.evaluation.evaluators import CaseEvaluator
from common.evaluation.inferers import ProbabilityWindowInferer
from common.evaluation.metrics import read_rows
from common.files import file_digest
from tests.evaluation.test_evaluators import CPU, SHAPE, Bright, loader, records

__all__ = ["records"]


def drawn(classes: int, temperature: float, number: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Logarithms of random probabilities, and labels drawn from them at a temperature."""
    generator = torch.Generator().manual_seed(seed)
    logarithms = (3 * torch.randn(number, classes, generator=generator)).log_softmax(1)
    labels = torch.multinomial((logarithms / temperature).softmax(1), 1, generator=generator)[:, 0]
    return logarithms, labels


@pytest.mark.parametrize("temperature", [0.4, 1.0, 2.5, 6.0])
@pytest.mark.parametrize("classes", [2, 4])
def test_finds_the_temperature_that_labels_were_drawn_at(classes: int, temperature: float) -> None:
    logarithms, labels = drawn(classes, temperature, 100_000)
    found = fit_temperature(logarithms, labels, torch.ones(len(labels)))
    assert found == pytest.approx(temperature, rel=0.05)


def test_is_the_minimum_that_a_search_over_loops_finds() -> None:
    logarithms, labels = drawn(3, 2.0, 60)
    weights = torch.rand(60, generator=torch.Generator().manual_seed(1))

    def loss(temperature: float) -> float:
        total = 0.0
        for row, label, weight in zip(logarithms.tolist(), labels.tolist(), weights.tolist(), strict=True):
            powers = [math.exp(value) ** (1 / temperature) for value in row]
            total -= weight * math.log(powers[label] / sum(powers))
        return total

    expected = minimize_scalar(loss, bounds=(0.1, 10.0), method="bounded", options={"xatol": 1e-9}).x
    assert fit_temperature(logarithms, labels, weights) == pytest.approx(expected, rel=1e-5)


def test_where_all_are_right_or_wrong_it_stays_in_its_range() -> None:
    logarithms, _ = drawn(3, 1.0, 50)
    ones = torch.ones(50)
    coldest = fit_temperature(logarithms, logarithms.argmax(1), ones)
    hottest = fit_temperature(logarithms, logarithms.argmin(1), ones)
    assert 1 / calibrating.HOTTEST <= coldest < 0.2 and 5.0 < hottest <= calibrating.HOTTEST


def make(records: list[dict[str, str]], folder: Path, **options: Any) -> tuple[CaseEvaluator, Calibrator]:
    weights = folder / "models" / "model.pt"
    weights.parent.mkdir(exist_ok=True)
    weights.write_bytes(b"weights")
    evaluator = CaseEvaluator(
        CPU, loader(records), Bright(), ProbabilityWindowInferer(SHAPE), folder / "out", {1: "box"}, weights=weights
    )
    return evaluator, Calibrator(evaluator, records, weights, **options)


@pytest.mark.parametrize("per_class", [False, True])
def test_from_cases_to_the_file(
    records: list[dict[str, str]], per_class: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Sure by 4 logits everywhere; of 64 + 80 voxels of foreground 16 are found in vain and 16 missed."""
    monkeypatch.setattr(calibrating, "LEAST_VOXELS", 50)
    _, calibrator = make(records, tmp_path, per_class=per_class)
    found = calibrator.run()
    assert not (tmp_path / "out").exists(), "it writes nothing of an evaluation"
    right, wrong = 64 + 48, 32
    single = 4.0 / math.log(right / wrong)
    assert (found.cases, found.voxels, found.section) == (2, right + wrong, "validation")
    assert found.temperature == pytest.approx(single, rel=1e-4)
    sure = 1 / (1 + math.exp(-4.0))
    share = right / (right + wrong)
    assert found.nll_before == pytest.approx(-share * math.log(sure) - (1 - share) * math.log(1 - sure), rel=1e-4)
    if per_class:
        # of 128 voxels that are predicted to be in the box 16 are not
        assert found.per_class == pytest.approx((single, 4.0 / math.log(112 / 16)), rel=1e-4)
    else:
        assert found.nll_after == pytest.approx(-share * math.log(share) - (1 - share) * math.log(1 - share), rel=1e-4)
    assert found.nll_after < found.nll_before
    written = json.loads((tmp_path / "models" / "calibration.json").read_text())
    assert written["weights"] == file_digest(tmp_path / "models" / "model.pt")
    assert read_temperatures(tmp_path / "models" / "model.pt") == found
    assert "2 validation cases" in capsys.readouterr().out


def test_a_temperature_is_of_one_network(records: list[dict[str, str]], tmp_path: Path) -> None:
    evaluator, calibrator = make(records, tmp_path)
    found = calibrator.run()
    weights = tmp_path / "models" / "model.pt"
    assert read_temperatures([weights]) == found and read_temperatures([weights, weights]) is None
    assert Calibrator(evaluator, records, [weights]).weights == weights
    with pytest.raises(ExpectedError, match="these are 2. Fix: give calibrating one file"):
        Calibrator(evaluator, records, [weights, weights])
    evaluator.network = Ensemble([Bright()], (0,))
    with pytest.raises(ExpectedError, match="leave mirror_axes out when calibrating"):
        Calibrator(evaluator, records, weights)


def test_a_second_fit_starts_from_the_networks_own_probabilities(records: list[dict[str, str]], tmp_path: Path) -> None:
    first = make(records, tmp_path)[1].run()
    assert make(records, tmp_path)[1].run() == first


def test_a_structure_of_few_voxels_takes_the_temperature_of_all(records: list[dict[str, str]], tmp_path: Path) -> None:
    found = make(records[:1], tmp_path, per_class=True)[1].run()  # 64 voxels
    assert found.per_class == (found.temperature, found.temperature)


def test_a_sample_stands_for_all_voxels_of_a_case(
    records: list[dict[str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = make(records, tmp_path)[1].run()
    monkeypatch.setattr(calibrating, "MOST_VOXELS", 60)
    sampled = make(records, tmp_path)[1].run()
    assert sampled.voxels == pytest.approx(whole.voxels, abs=1)
    assert sampled.temperature == pytest.approx(whole.temperature, rel=0.3)
    assert make(records, tmp_path)[1].run() == sampled


def test_no_foreground(records: list[dict[str, str]], tmp_path: Path) -> None:
    _, calibrator = make(records, tmp_path)
    calibrator.evaluator.inferer = lambda image, network: torch.cat([torch.ones_like(image), 0 * image], 1)
    calibrator._sampled = lambda probabilities, prediction, reference: Calibrator._sampled(  # type: ignore[method-assign]
        calibrator, probabilities, prediction, 0 * reference
    )
    with pytest.raises(ValueError, match="No case has a voxel of foreground"):
        calibrator.run()


def test_evaluation_measures_before_and_after(records: list[dict[str, str]], tmp_path: Path) -> None:
    evaluator, calibrator = make(records, tmp_path)
    evaluator.run()
    first = np.loadtxt(tmp_path / "out" / "metrics.csv", delimiter=",", skiprows=1, dtype=str)
    calibrator.run()
    make(records, tmp_path)[0].run()
    rows = read_rows(tmp_path / "out" / "metrics.csv")
    assert len(first) == len(rows) == 2
    for name in ("nll", "brier", "ece"):
        means = [np.mean([row[key] for row in rows]) for key in (name, f"{name}_calibrated")]
        assert means[1] < means[0]
