"""The evaluators that wire themselves, on small volumes and a network that answers as it is told."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import DataLoader, Dataset
from monai.inferers import SimpleInferer
from monai.transforms import Compose, CopyItemsd, LoadImaged, Orientationd

from common.evaluation.evaluators import CaseEvaluator, Validator, case_postprocessing
from common.evaluation.inferers import ProbabilityWindowInferer

CPU = torch.device("cpu")
SHAPE = (8, 8, 8)
AFFINE = np.diag([-1.0, 1.0, 2.0, 1.0])  # the model's axes are not the file's


class Bright(torch.nn.Module):
    """Class 1 where the image is bright, and sure of it by so many logits."""

    def __init__(self, sure: float = 4.0) -> None:
        super().__init__()
        self.sure = sure

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        seen = self.sure * (image - 0.5).sign()
        return torch.cat([-seen, seen], dim=1) / 2


def box(first: int) -> np.ndarray:
    volume = np.zeros(SHAPE, dtype=np.uint8)
    volume[first : first + 4, 2:6, 2:6] = 1
    return volume


@pytest.fixture
def records(tmp_path: Path) -> list[dict[str, str]]:
    """Two cases; in the second the image shows the box one voxel beside the label's."""
    made = []
    for number in range(2):
        files = {"image": tmp_path / f"case_{number}.nii.gz", "label": tmp_path / f"label_{number}.nii.gz"}
        nib.save(nib.Nifti1Image(box(2 + number).astype(np.float32), AFFINE), files["image"])
        nib.save(nib.Nifti1Image(box(2), AFFINE), files["label"])
        made.append({key: str(path) for key, path in files.items()})
    return made


def loader(records: list[dict[str, str]]) -> DataLoader:
    transforms = Compose(
        [
            LoadImaged(["image", "label"], ensure_channel_first=True),
            CopyItemsd("image", names="shown"),
            Orientationd("image", axcodes="RAS", labels=None),
        ]
    )
    return DataLoader(Dataset(records, transforms), batch_size=1)


def test_validator_measures_mean_dice(records: list[dict[str, str]]) -> None:
    transforms = LoadImaged(["image", "label"], ensure_channel_first=True)
    cases = DataLoader(Dataset(records, transforms), batch_size=1)
    validator = Validator(CPU, cases, Bright(), SimpleInferer(), num_classes=2)
    validator.run()
    # the boxes of the second case share 3 of 4 slices
    assert validator.state.metrics["mean_dice"] == pytest.approx((1.0 + 2 * 3 / 8) / 2)
    assert validator.state.best_metric == validator.state.metrics["mean_dice"]


def test_validator_takes_a_postprocessing_of_ones_own(records: list[dict[str, str]]) -> None:
    def blank(data: dict[str, Any]) -> dict[str, Any]:
        onehot = torch.zeros(2, *SHAPE)
        onehot[0] = 1
        return {**data, "pred": onehot, "label": onehot.clone()}

    cases = DataLoader(Dataset(records, LoadImaged(["image", "label"], ensure_channel_first=True)), batch_size=1)
    validator = Validator(CPU, cases, Bright(), SimpleInferer(), num_classes=2, postprocessing=blank)
    validator.run()
    assert validator.state.metrics["mean_dice"] == 1.0


def test_case_evaluator_writes_and_measures(records: list[dict[str, str]], tmp_path: Path) -> None:
    out = tmp_path / "out"
    inferer = ProbabilityWindowInferer(SHAPE)
    CaseEvaluator(CPU, loader(records), Bright(sure=4.0), inferer, out, structures={0: "background", 1: "box"}).run()
    with (out / "metrics.csv").open() as file:
        dice = {row["case"]: float(row["dice"]) for row in csv.DictReader(file) if row["structure"] == "box"}
    assert dice == {"case_0": 1.0, "case_1": pytest.approx(0.75)}
    for number, case in enumerate(("case_0", "case_1")):
        assert {path.name for path in (out / case).iterdir()} == {
            f"{case}_{kind}.nii.gz" for kind in ("image", "label", "pred", "uncertainty")
        }
        pred = nib.Nifti1Image.from_filename(out / case / f"{case}_pred.nii.gz")
        np.testing.assert_allclose(pred.affine, AFFINE)
        np.testing.assert_array_equal(np.asarray(pred.dataobj), box(2 + number))
    # two classes, 4 logits apart everywhere
    p = 1 / (1 + np.exp(-4.0))
    entropy = -(p * np.log(p) + (1 - p) * np.log(1 - p)) / np.log(2)
    uncertainty = nib.Nifti1Image.from_filename(out / "case_0" / "case_0_uncertainty.nii.gz")
    np.testing.assert_allclose(np.asarray(uncertainty.dataobj), entropy, rtol=1e-3)


def test_case_evaluator_without_structures_measures_nothing(records: list[dict[str, str]], tmp_path: Path) -> None:
    seen: list[torch.Tensor] = []

    def keep(data: dict[str, Any]) -> dict[str, Any]:
        seen.append(data["pred"])
        return data

    cases = loader(records)
    CaseEvaluator(CPU, cases, Bright(), ProbabilityWindowInferer(SHAPE), tmp_path / "out", postprocessing=keep).run()
    assert len(seen) == 2 and all(torch.allclose(pred.sum(0), torch.ones(SHAPE)) for pred in seen)
    assert not (tmp_path / "out").exists()


def test_postprocessing_inverts_the_loaders_transforms(tmp_path: Path, records: list[dict[str, str]]) -> None:
    preprocessing = loader(records).dataset.transform
    item = preprocessing(records[0])
    assert not torch.equal(item["image"].affine, item["shown"].affine)
    pred = Bright()(item["image"][None])[0].softmax(0)
    done = case_postprocessing(preprocessing, tmp_path / "out")({**item, "pred": pred})
    torch.testing.assert_close(done["pred"].affine, item["label"].affine)
