"""Fig. 3 of the paper: the quality of pseudo-labels is measured without a trace in the training."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
import torch
from ignite.engine import Engine
from monai.networks.nets import UNet

from bundles.alc.scripts.method import AdaptiveLabelCorrection
from bundles.alc.scripts.quality import PseudoLabelQuality, mean_dice


def small_method() -> AdaptiveLabelCorrection:
    torch.manual_seed(0)
    return AdaptiveLabelCorrection(UNet(2, 1, 2, (4, 8), (2,), dropout=0.2), passes=2)


def records(count: int) -> list[dict[str, Any]]:
    made: list[dict[str, Any]] = []
    for number in range(count):
        truth = torch.zeros(1, 12, 12)
        truth[:, 3:9, 2 + number % 3 : 9] = 1
        image = truth + 0.1 * torch.randn(1, 12, 12, generator=torch.Generator().manual_seed(number))
        noisy = torch.roll(truth, 2, dims=1)
        made.append({"image": image, "label": noisy, "reference": truth, "label_quality": "noisy"})
    return made


def take(record: dict[str, Any]) -> dict[str, Any]:
    return {key: record[key] for key in ("image", "label", "reference")}


def run(handler: PseudoLabelQuality, method: AdaptiveLabelCorrection) -> list[float]:
    """Two epochs of an engine that fits the references; the random numbers that its steps drew."""
    optimizer = torch.optim.Adam(method.network.parameters(), lr=0.02)
    images = torch.stack([record["image"] for record in handler.records])
    truth = torch.stack([record["reference"] for record in handler.records])[:, 0].long()
    drawn = []

    def step(engine: Engine, batch: Any) -> None:
        drawn.append(float(torch.rand(())))
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(method.network(images), truth).backward()
        optimizer.step()
        method.after_step()

    engine = Engine(step)
    handler.attach(engine)
    torch.manual_seed(3)
    engine.run([0] * 60, max_epochs=2)
    return drawn


def test_curves_of_a_network_that_learns(tmp_path: Path) -> None:
    method = small_method()
    handler = PseudoLabelQuality(method, records(6), take, (8, 8), tmp_path, cases=4)
    drawn = run(handler, method)
    rows = list(csv.DictReader((tmp_path / "pseudo_labels.csv").open()))
    assert [row["iteration"] for row in rows] == ["60", "120"] and (tmp_path / "pseudo_labels.png").stat().st_size > 0
    assert len(handler.patches["image"]) == 4 and handler.patches["image"].shape[2:] == (8, 8)
    given = mean_dice(handler.patches["label"], handler.patches["reference"], 2)
    assert all(float(row["given"]) == pytest.approx(given) for row in rows) and given < 1.0
    assert float(rows[1]["refined"]) > given and float(rows[1]["plain"]) > given

    other = small_method()
    idle = PseudoLabelQuality(other, records(6), take, (8, 8), tmp_path / "idle", interval=99, cases=4)
    assert run(idle, other) == drawn, "measuring changed the training's random numbers"
    for mine, theirs in zip(method.state_dict().values(), other.state_dict().values(), strict=True):
        assert torch.equal(mine, theirs)


def test_records_that_cannot_be_measured(tmp_path: Path) -> None:
    clean = [{**record, "label_quality": "clean"} for record in records(2)]
    with pytest.raises(ValueError, match="No training record has a noisy label and a `reference`"):
        PseudoLabelQuality(small_method(), clean, take, (8, 8), tmp_path)
