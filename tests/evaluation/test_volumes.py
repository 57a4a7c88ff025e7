"""Volumes and their intervals, against counts by hand and against the model that they stand for."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from ignite.engine import Engine
from monai.data import MetaTensor

from common.evaluation.volumes import COLUMNS, CaseVolumes, sampled_interval, structure_volumes, volume_interval


def test_interval_is_that_of_one_level_for_all_voxels() -> None:
    """Quantiles and mean of the number of voxels with p > U, U drawn evenly."""
    p = torch.rand(400, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    levels = (np.arange(20_000) + 0.5) / 20_000
    volumes = (p.numpy()[None] > levels[:, None]).sum(1)
    expected, lower, upper = volume_interval(p, p > 0.5)
    assert expected == pytest.approx(volumes.mean(), rel=1e-4)
    assert lower == pytest.approx(np.quantile(volumes, 0.05), abs=1)
    assert upper == pytest.approx(np.quantile(volumes, 0.95), abs=1)
    # voxels that err independently would give less than a tenth of that width
    assert upper - lower > 10 * 2 * 1.645 * float((p * (1 - p)).sum().sqrt()) / 2


def test_interval_holds_the_segmentation() -> None:
    """With many classes the likeliest may be below the lower threshold."""
    p = torch.full((30,), 1 / 30)
    assert volume_interval(p, torch.arange(30) < 4)[1:] == (0.0, 4.0)


def test_samples_give_quantiles_of_their_volumes() -> None:
    masks = torch.zeros(21, 30, dtype=torch.bool)
    for number in range(21):
        masks[number, :number] = True  # 0 to 20 voxels
    assert sampled_interval(masks) == pytest.approx((10.0, 1.0, 19.0))


PROBABILITIES = torch.tensor([[0.01, 0.6, 0.03, 0.97], [0.96, 0.3, 0.07, 0.02], [0.03, 0.1, 0.9, 0.01]])
PREDICTION = PROBABILITIES.argmax(0)


def test_rows_of_a_case() -> None:
    reference = torch.tensor([1, 1, 0, 0])
    rows = structure_volumes(PREDICTION, PROBABILITIES, {1: "a", 2: "b"}, reference=reference, voxel_ml=0.5)
    assert [set(row) for row in rows] == [set(COLUMNS) - {"case"}] * 2
    a, b = rows
    voxels = {name: a[f"{name}_voxels"] for name in ("predicted", "expected", "lower", "upper", "reference")}
    assert voxels == {"predicted": 1, "expected": pytest.approx(1.35), "lower": 1, "upper": 3, "reference": 2}
    assert all(a[f"{name}_ml"] == pytest.approx(0.5 * number) for name, number in voxels.items())
    assert (b["label"], b["structure"], b["lower_voxels"], b["upper_voxels"]) == (2, "b", 0, 2)


def test_what_was_taken_out_counts_as_empty_and_so_does_its_rim() -> None:
    """A component at one end is kept, one at the other end taken out: half of the voxels between go with it."""
    structure = torch.tensor([0.96, 0.3, 0.07, 0.02, 0.4, 0.9])
    probabilities = torch.stack((1 - structure, structure))
    prediction, left_out = torch.tensor([[0, 0, 0, 0, 0, 1], [1, 0, 0, 0, 0, 0]])
    (row,) = structure_volumes(prediction, probabilities, {1: "a"}, left_out=left_out)
    assert (row["predicted_voxels"], row["lower_voxels"], row["upper_voxels"]) == (1, 0, 2)
    assert row["expected_voxels"] == pytest.approx(0.02 + 0.4 + 0.9)
    samples = torch.tensor([[1, 1, 0, 0, 1, 1], [1, 0, 0, 0, 0, 1]])
    (row,) = structure_volumes(prediction, probabilities, {1: "a"}, samples=samples, left_out=left_out)
    assert row["expected_voxels"] == 1.5 and row["upper_voxels"] == pytest.approx(1.95)
    (whole,) = structure_volumes(prediction, probabilities, {1: "a"}, left_out=torch.zeros_like(left_out))
    assert whole["expected_voxels"] == pytest.approx(float(structure.sum()), abs=1e-3)


def test_unknown_sizes_leave_ml_empty() -> None:
    (row,) = structure_volumes(PREDICTION, PROBABILITIES, {1: "a"})
    assert all(row[name] is None for name in COLUMNS if name.endswith("_ml")) and row["reference_voxels"] is None


def outputs(case: str, affine: torch.Tensor, label: torch.Tensor | None = None) -> Engine:
    meta = {"filename_or_obj": f"/images/{case}.nii.gz"}
    shape = (-1, 4, 1, 1)
    pred = MetaTensor(PREDICTION.reshape(1, 4, 1, 1).to(torch.uint8), affine=affine, meta=dict(meta))
    probabilities = MetaTensor(PROBABILITIES.reshape(shape), affine=affine, meta=dict(meta))
    engine = Engine(lambda *_: [{"pred": pred, "probabilities": probabilities}])
    engine.state.batch = [{} if label is None else {"label": label}]
    return engine


def run(output_dir: Path, case: str, affine: torch.Tensor, label: torch.Tensor | None = None) -> None:
    engine = outputs(case, affine, label)
    CaseVolumes(output_dir, ["a", "b"]).attach(engine)
    (output_dir / case).mkdir(parents=True, exist_ok=True)
    engine.run([engine.state.batch])


def read(output_dir: Path) -> list[dict[str, str]]:
    with (output_dir / "volumes.csv").open() as file:
        return list(csv.DictReader(file))


def test_file_has_a_row_a_case_and_structure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    slanted = torch.tensor([[0.0, 2.0, 0, 5], [10.0, 0, 0, 0], [0, 0, 5.0, 1], [0, 0, 0, 1]], dtype=torch.float64)
    run(tmp_path, "somebody", slanted, torch.tensor([1, 1, 0, 0]).reshape(1, 4, 1, 1))
    a, b = read(tmp_path)
    assert (a["case"], a["label"], a["structure"], a["predicted_voxels"]) == ("somebody", "1", "a", "1")
    assert float(a["predicted_ml"]) == pytest.approx(0.1) and float(a["reference_ml"]) == pytest.approx(0.2)
    # structure b is not there, and at least 0 voxels are certain
    assert "2 of 2 references have a volume inside" in capsys.readouterr().out and b["reference_voxels"] == "0"
    run(tmp_path, "nowhere", torch.eye(4, dtype=torch.float64))
    assert {row["predicted_ml"] for row in read(tmp_path) if row["case"] == "nowhere"} == {""}


def test_earlier_cases_stay_as_long_as_their_folders(tmp_path: Path) -> None:
    affine = torch.diag(torch.tensor([2.0, 1, 1, 1], dtype=torch.float64))
    for case in ("one", "two", "one"):
        run(tmp_path, case, affine)
    assert sorted(row["case"] for row in read(tmp_path)) == ["one", "one", "two", "two"]
    (tmp_path / "two").rmdir()
    run(tmp_path, "three", affine)
    assert sorted({row["case"] for row in read(tmp_path)}) == ["one", "three"]
