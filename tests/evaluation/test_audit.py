from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.inferers import SimpleInferer
from monai.transforms import Compose, CopyItemsd, EnsureTyped, LoadImaged, Orientationd

from common.data import DataError, make_phantom
from common.evaluation.audit import auroc, disagreement, mean_dice, near_foreground, propose_label, suspicion, volumes
from common.evaluation.report.audit import LabelAudit

STRUCTURES = {0: "background", 1: "body", 2: "lobe", 3: "cap"}


@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize("dims", [2, 3])
def test_suspicion_disagreement_and_proposal_against_loops(classes: int, dims: int) -> None:
    rng = np.random.default_rng(0)
    shape = (4, 5, 3)[:dims]
    probabilities = rng.dirichlet(np.ones(classes), shape)
    probabilities = np.moveaxis(probabilities, -1, 0)
    label = rng.integers(0, classes, shape)
    suspect = suspicion(probabilities, label)
    proposed = propose_label(probabilities, label, 0.6)
    for place in np.ndindex(*shape):
        column = [float(channel[place]) for channel in probabilities]
        assert suspect[place] == pytest.approx(1 - column[label[place]], abs=1e-6)
        assert proposed[place] == (int(np.argmax(column)) if max(column) >= 0.6 else label[place])
    for structure in range(1, classes):
        seen = probabilities[structure]
        overlap = sum(float(seen[p]) for p in np.ndindex(*shape) if label[p] == structure)
        total = sum(float(seen[p]) + (label[p] == structure) for p in np.ndindex(*shape))
        assert disagreement(probabilities, label, structure) == pytest.approx(1 - 2 * overlap / total)


def test_what_is_rightly_absent_is_not_suspect() -> None:
    """A softmax is nowhere 0: a structure that nobody labelled counts where the model sees it, not before."""
    probabilities = np.stack([np.full((4, 4, 4), 0.9), np.full((4, 4, 4), 0.1)])
    nothing = np.zeros((4, 4, 4), int)
    assert disagreement(probabilities, nothing, 1) == 0.0
    probabilities[:, 0, 0, 0] = 0.2, 0.8
    assert disagreement(probabilities, nothing, 1) == 1.0
    assert disagreement(np.stack([np.ones((2, 2)), np.zeros((2, 2))]), np.ones((2, 2), int), 1) == 1.0


def test_auroc_against_all_pairs() -> None:
    rng = np.random.default_rng(1)
    scores, wrong = rng.integers(0, 5, 40).astype(float), rng.random(40) < 0.3
    pairs = [(a > b) + 0.5 * (a == b) for a in scores[wrong] for b in scores[~wrong]]
    assert auroc(scores, wrong) == pytest.approx(np.mean(pairs))
    assert auroc(scores, np.zeros(40, bool)) is None


def test_volumes_near_foreground_and_dice_by_hand() -> None:
    label, true = np.zeros((9, 9), int), np.zeros((9, 9), int)
    label[0, :4], true[0, 2:5] = 1, 1
    assert volumes(label, true, 1) == (2, 1)
    assert mean_dice(label, true, {1: "a"}) == pytest.approx(2 * 2 / 7)
    assert mean_dice(label, true, {1: "a", 2: "absent"}) == pytest.approx((2 * 2 / 7 + 1) / 2)
    near = near_foreground(label, true, 2.0)
    assert near[2, 0] and not near[3, 0] and near[0, 6] and not near[0, 7]
    assert not near_foreground(np.zeros((3, 3), int), np.zeros((3, 3), int)).any()


class Oracle(torch.nn.Module):
    """Knows the true label of each image by its brightness: images are made so that the intensity is the class."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        classes = torch.arange(4, dtype=torch.float32).reshape(1, 4, 1, 1, 1)
        return (-6.0 * (image.round() - classes).abs()).softmax(1)


def audit_of(folder: Path, quality: str = "noisy", **changes: Any) -> LabelAudit:
    data = make_phantom(
        folder / "data", shape=(24, 24, 16), cases={"training": 8, "validation": 1, "test": 1}, noise_radius=(1, 2)
    )
    records = json.loads((data / "dataset.json").read_text())["training"]
    for record in records:
        for key in ("image", "label", "reference"):
            if key in record:
                record[key] = str(data / record[key])
        # the image shows the truth, turned so that the model's axes are not the file's
        truth = nib.Nifti1Image.from_filename(record.get("reference", record["label"]))
        affine = np.diag([-1.0, 1.0, 1.5, 1.0])
        nib.save(nib.Nifti1Image(np.asarray(truth.dataobj).astype(np.float32), affine), record["image"])
        for key in ("label", "reference"):
            if key in record:
                values = np.asarray(nib.Nifti1Image.from_filename(record[key]).dataobj)
                nib.save(nib.Nifti1Image(values.astype(np.uint8), affine), record[key])
    preprocessing = Compose(
        [
            LoadImaged(["image", "label"], ensure_channel_first=True),
            CopyItemsd("image", names="shown"),
            Orientationd("image", axcodes="RAS", labels=None),
            EnsureTyped(["image", "label"], dtype=[torch.float32, torch.uint8]),
        ]
    )
    return LabelAudit(
        Oracle(),
        records,
        quality,
        preprocessing,
        SimpleInferer(),
        STRUCTURES,
        folder / "out",
        **changes,
    )


def test_audit_with_a_model_that_knows_finds_every_fault(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    audit = audit_of(tmp_path, shown=2)
    audit.run()
    with (tmp_path / "out" / "audit_measured.csv").open() as file:
        measured = list(csv.DictReader(file))
    assert len(measured) == 8 - 4
    for row in measured:
        assert float(row["dice_proposed"]) == 1.0 > float(row["dice_label"])
        assert float(row["auroc_image"]) == float(row["auroc_near"]) == 1.0
    with (tmp_path / "out" / "audit.csv").open() as file:
        rows = list(csv.DictReader(file))
    by_case = {row["case"]: float(row["score"]) for row in rows}
    ranked = sorted(by_case, key=lambda case: -by_case[case])
    assert [row["case"] for row in rows[::3]] == ranked and {row["unit"] for row in rows} == {"ml"}
    for row in measured:
        assert by_case[row["case"]] == pytest.approx(1 - float(row["dice_label"]), abs=0.02)
    case = ranked[0]
    suspect = nib.Nifti1Image.from_filename(tmp_path / "out" / case / f"{case}_suspect.nii.gz")
    label = nib.Nifti1Image.from_filename(tmp_path / "out" / case / f"{case}_label.nii.gz")
    np.testing.assert_allclose(suspect.affine, np.diag([-1.0, 1.0, 1.5, 1.0]))
    reference = np.asarray(nib.Nifti1Image.from_filename(tmp_path / "data" / "images" / f"{case}.nii.gz").dataobj)
    np.testing.assert_array_equal(np.asarray(suspect.dataobj) > 0.5, np.asarray(label.dataobj) != reference)
    assert (tmp_path / "out" / "audit.png").stat().st_size > 10_000
    assert "Spearman" in capsys.readouterr().out


def test_audit_of_clean_labels_measures_nothing(tmp_path: Path) -> None:
    audit = audit_of(tmp_path, quality="clean")
    audit.run()
    assert not (tmp_path / "out" / "audit_measured.csv").exists()


def test_audit_without_such_labels_says_what_to_do() -> None:
    arguments: list[Any] = [None, None, None, STRUCTURES, "out"]
    with pytest.raises(DataError, match="--quality all"):
        LabelAudit(Oracle(), [{"image": "a", "label": "b"}], "noisy", *arguments)
    with pytest.raises(ValueError, match="noisy, clean, all"):
        LabelAudit(Oracle(), [], "bad", *arguments)
