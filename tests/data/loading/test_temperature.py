"""Tempered probabilities: what they are, that no segmentation changes, and the file beside the weights."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from common.data.loading.temperature import Temperatures, read_temperatures, temper
from common.data.loading.transforms import SegmentationAndUncertaintyd
from common.files import file_digest


def maps(classes: int, seed: int, shape: tuple[int, ...] = (7, 6, 5)) -> torch.Tensor:
    """Random probabilities, some of them near ties."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(classes, *shape, generator=generator) * torch.rand(shape, generator=generator).mul(8).exp2()
    logits[1] = torch.where(torch.rand(shape, generator=generator) < 0.3, logits[0] + 1e-7, logits[1])
    return logits.softmax(0)


def write(folder: Path, temperature: float = 2.0, per_class: tuple[float, ...] | None = None) -> Path:
    """Weights with a calibration beside them."""
    weights = folder / "model.pt"
    weights.write_bytes(b"weights")
    found = Temperatures(temperature, per_class, 1.0, 0.5, cases=1, voxels=9, weights=file_digest(weights))
    found.write(folder / "calibration.json")
    return weights


@pytest.mark.parametrize("temperature", [0.05, 0.7, 1.0, 3.0, 20.0])
@pytest.mark.parametrize("classes", [2, 4])
def test_equals_a_loop(classes: int, temperature: float) -> None:
    given = maps(classes, 0, (3, 4)).clamp_min(1e-5)
    given /= given.sum(0)
    found = temper(given, [temperature])
    for row, column in np.ndindex(3, 4):
        powers = [float(given[c, row, column]) ** (1 / temperature) for c in range(classes)]
        expected = [power / sum(powers) for power in powers]
        assert found[:, row, column].tolist() == pytest.approx(expected, rel=1e-4, abs=1e-7)


def test_is_the_softmax_of_divided_logits() -> None:
    logits = torch.randn(3, 5, 5, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(temper(logits.softmax(0), [2.5]), (logits / 2.5).softmax(0))


@pytest.mark.parametrize("per_class", [False, True])
@pytest.mark.parametrize("classes", [2, 4])
def test_no_segmentation_changes(classes: int, per_class: bool, tmp_path: Path) -> None:
    """Exactly, near ties included, and the predicted class keeps the largest probability."""
    generator = np.random.default_rng(classes)
    for seed in range(20):
        temperatures = tuple(float(2.0**x) for x in generator.uniform(-4, 4, classes))
        weights = write(tmp_path, temperatures[0], temperatures if per_class else None)
        given = MetaTensor(maps(classes, seed), meta={"filename_or_obj": "a"})
        plain = SegmentationAndUncertaintyd()({"pred": given})
        tempered = SegmentationAndUncertaintyd(weights=weights)({"pred": given})
        assert torch.equal(plain["pred"], tempered["pred"]) and "uncalibrated" not in plain
        assert torch.equal(tempered["uncalibrated"], given) and not torch.equal(tempered["probabilities"], given)
        largest = tempered["probabilities"].amax(0)
        assert torch.equal(tempered["probabilities"].gather(0, plain["pred"].long())[0], largest)
        torch.testing.assert_close(tempered["probabilities"].sum(0), torch.ones_like(largest), rtol=0, atol=1e-5)
        assert isinstance(tempered["probabilities"], MetaTensor), "it is saved with its place"
        assert not torch.equal(plain["uncertainty"], tempered["uncertainty"])


def test_temperature_of_the_predicted_class() -> None:
    given = maps(3, 1)
    found, predicted = temper(given, [0.5, 1.0, 4.0]), given.argmax(0)
    for number, temperature in enumerate((0.5, 1.0, 4.0)):
        own = predicted == number
        assert own.any() and torch.equal(found[:, own], temper(given, [temperature])[:, own])


@pytest.mark.parametrize("wrong", [[], [1.0, 2.0], [0.0], [-1.0, 1.0, 1.0], [float("nan")]])
def test_temperatures_that_do_not_fit(wrong: list[float]) -> None:
    with pytest.raises(ValueError, match="temperature above 0"):
        temper(maps(3, 0), wrong)


def test_file_is_read_back(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    for per_class in (None, (2.0, 1.5)):
        weights = write(tmp_path, 2.0, per_class)
        found = read_temperatures(weights)
        assert found is not None and found.applied == (per_class or (2.0,))
    assert "2.000, 1.500" in caplog.text


def test_nothing_beside_the_weights(tmp_path: Path) -> None:
    assert read_temperatures(tmp_path / "model.pt") is None
    (tmp_path / "model.pt").write_bytes(b"weights")
    assert read_temperatures(tmp_path / "model.pt") is None


def test_of_other_weights_is_ignored_in_one_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    weights = write(tmp_path)
    weights.write_bytes(b"trained anew")
    assert read_temperatures(weights) is None
    (message,) = caplog.messages
    assert "is ignored: it was fitted to other weights" in message and "run calibrating" in message
    assert "uncalibrated" not in SegmentationAndUncertaintyd(weights=weights)({"pred": maps(2, 0)})


@pytest.mark.parametrize("content", ["", "[]", '{"temperature": 1}', "colder", "nobody"])
def test_damaged_file(content: str, tmp_path: Path) -> None:
    weights = write(tmp_path)
    path = tmp_path / "calibration.json"
    if content in ("colder", "nobody"):
        changed = {"colder": {"temperature": -1.0}, "nobody": {"section": "validation", "whose": 1}}[content]
        content = json.dumps(json.loads(path.read_text()) | changed)
    path.write_text(content)
    with pytest.raises(ValueError, match=r"no file that calibrating wrote\. Fix: remove it"):
        read_temperatures(weights)
