"""The metrics of cases, on an evaluator that only hands over what it is given."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
import torch
from ignite.engine import Engine
from monai.data import MetaTensor

from common.evaluation.handlers import CaseMetrics


def evaluate(folder: Path, affine: torch.Tensor, label_in_output: bool = True) -> list[dict[str, str]]:
    """Measure two cases: the first right, in the second one slice of a structure is missing."""
    label = torch.zeros(1, 6, 6, 6)
    label[0, 1:5, 1:5, 1:5] = 1
    worse = label.clone()
    worse[0, 1] = 0
    step = []
    for number, prediction in enumerate((label, worse)):
        pred = MetaTensor(prediction, affine=affine, meta={"filename_or_obj": f"/data/case_{number}.nii.gz"})
        output = {"pred": pred, "probabilities": torch.cat([1 - prediction, prediction])}
        reference = {"label": MetaTensor(label, affine=affine)}
        step.append((reference, output | reference if label_in_output else output))

    def measure(engine: Engine, batch: Any) -> list[dict[str, Any]]:
        engine.state.batch = [reference for reference, _ in batch]
        return [output for _, output in batch]

    evaluator = Engine(measure)
    CaseMetrics(folder, {0: "background", 1: "body"}).attach(evaluator)
    evaluator.run([step[:1], step[1:]])
    with (folder / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("label_in_output", [True, False])
def test_case_metrics_in_millimetres(label_in_output: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = evaluate(tmp_path, torch.diag(torch.tensor([2.0, 1.0, 1.5, 1.0])), label_in_output)
    assert [(row["case"], row["structure"], row["unit"]) for row in rows] == [
        ("case_0", "body", "mm"),
        ("case_1", "body", "mm"),
    ]
    assert [float(row["dice"]) for row in rows] == pytest.approx([1.0, 2 * 48 / (48 + 64)], abs=1e-6)
    assert float(rows[0]["hd95"]) == 0.0
    assert float(rows[1]["hd95"]) == pytest.approx(2.0), "one voxel of 2 mm"
    summary = (tmp_path / "summary.txt").read_text()
    assert "body" in summary and summary.strip() in capsys.readouterr().out
    assert (tmp_path / "reliability.csv").is_file()


def test_an_evaluator_runs_again(tmp_path: Path) -> None:
    label = MetaTensor(torch.ones(1, 4, 4, 4), meta={"filename_or_obj": "a.nii.gz"})
    output = {"pred": label, "label": label, "probabilities": torch.cat([1 - label, label])}
    evaluator = Engine(lambda engine, batch: [output])
    CaseMetrics(tmp_path, {1: "body"}).attach(evaluator)
    for _ in range(2):
        evaluator.run([[{}]])
        assert len((tmp_path / "metrics.csv").read_text().splitlines()) == 2


def test_case_metrics_without_voxel_size(tmp_path: Path) -> None:
    rows = evaluate(tmp_path, torch.eye(4))
    assert {row["unit"] for row in rows} == {"voxel"}
