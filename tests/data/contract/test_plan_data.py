"""Measuring a data set for a plan, and the command that writes one."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from common.data.__main__ import main
from common.data.contract.checks import inspect_cases
from common.data.contract.dataset import read_data
from common.data.contract.faults import DataError
from common.data.contract.plan import make_plan, rules
from common.data.contract.plan.guide import read_guide
from common.data.contract.plan.traits import measure_traits
from tests.data.contract.plan_cases import UNIT, make_traits


def write_image(path: Path, voxels: np.ndarray, affine: np.ndarray) -> str:
    nib.save(nib.Nifti1Image(voxels, affine), path)
    return path.name


@pytest.fixture
def ct(tmp_path: Path) -> Path:
    """Two CTs whose first file axis runs from foot to head, in slices of 5 mm, with one organ of 2 x 8 x 8 voxels."""
    affine = np.array([[0.0, 1.0, 0.0, 0.0], [0.0, 0.0, 1.0, 0.0], [5.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 1.0]])
    records = []
    for number in range(2):
        image = np.full((12, 24, 30), -1000, dtype=np.int16)
        image[:, 4:20, 4:20] = np.random.default_rng(number).integers(-10, 10, (12, 16, 16))
        label = np.zeros(image.shape, dtype=np.uint8)
        label[4:6, 8:16, 8:16] = 1
        image[label > 0] += 100
        records.append(
            {
                "image": write_image(tmp_path / f"image_{number}.nii.gz", image, affine),
                "label": write_image(tmp_path / f"label_{number}.nii.gz", label, affine),
            }
        )
    content = {"labels": ["background", "organ"], "training": records[:1], "validation": records[1:]}
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    return tmp_path


def test_traits_are_in_the_axes_that_the_bundle_sees(ct: Path) -> None:
    data, faults = read_data(ct)
    cases = inspect_cases(data)
    assert not faults
    traits = measure_traits(data, cases, reoriented=True)
    assert traits.shapes.tolist() == [[24, 30, 12]] * 2 and traits.spacings.tolist() == [[1.0, 1.0, 5.0]] * 2
    assert measure_traits(data, cases, reoriented=False).shapes.tolist() == [[12, 24, 30]] * 2
    assert traits.kinds["clean"] == 1
    assert traits.smallest == {"organ": 2 * 8 * 8 * 5.0} and traits.lowest == -1000.0


def test_foreground_is_what_labels_mark(ct: Path) -> None:
    data, _ = read_data(ct)
    found = measure_traits(data, inspect_cases(data), reoriented=True).foreground
    assert found is not None and 90 <= found.low < 100 < found.high <= 110 and 95 < found.mean < 105
    assert (
        rules.intensity(replace(make_traits(modalities=(), lowest=-1000.0), foreground=found), UNIT).value["a_min"] > 80
    )


@pytest.mark.parametrize("name", ["image", "label"])
def test_a_fourth_axis_of_length_1_changes_nothing(ct: Path, name: str) -> None:
    data, _ = read_data(ct)
    expected = measure_traits(data, inspect_cases(data), reoriented=True)
    file = nib.Nifti1Image.from_filename(ct / f"{name}_0.nii.gz")
    write_image(ct / f"{name}_0.nii.gz", np.asarray(file.dataobj)[..., None], file.affine)
    found = measure_traits(data, inspect_cases(data), reoriented=True)
    assert found.foreground == expected.foreground is not None and found.smallest == expected.smallest


# the command


def test_faults_of_the_data_set_are_shown(ct: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (ct / "label_0.nii.gz").unlink()
    content = json.loads((ct / "dataset.json").read_text())
    content["training"][0]["group"] = content["validation"][0]["group"] = "one patient"
    (ct / "dataset.json").write_text(json.dumps(content))
    with pytest.raises(SystemExit) as caught:
        main(["plan", str(ct), "--bundle", "alc", "--output", str(tmp_path / "plan.yaml")])
    told = capsys.readouterr().err
    assert caught.value.code == 1 and not (tmp_path / "plan.yaml").exists()
    assert "label_0.nii.gz (training/label): there is no such file" in told
    assert "the method needs training records with `label_quality: noisy`" in told
    assert "the group 'one patient' is in both sections" in told


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"bundle": "nothing"}, "there is no bundle 'nothing'"),
        ({"memory": -1}, "--memory: is -1"),
        ({"minutes": "ten"}, "--minutes: is 'ten'"),
    ],
)
def test_bad_options_are_told(ct: Path, options: dict[str, Any], what: str, tmp_path: Path) -> None:
    arguments: dict[str, Any] = {"bundle": "alc", "output": tmp_path / "plan.yaml"} | options
    with pytest.raises(DataError, match=what):
        make_plan(ct, **arguments)


def test_a_plan_is_never_overwritten(ct: Path, tmp_path: Path) -> None:
    (tmp_path / "plan.yaml").write_text("mine: 1\n")
    with pytest.raises(DataError, match="exists already"):
        make_plan(ct, "alc", output=tmp_path / "plan.yaml")
    assert (tmp_path / "plan.yaml").read_text() == "mine: 1\n"


@pytest.mark.parametrize("name", sorted(path.parts[-3] for path in Path("bundles").glob("*/configs/train.yaml")))
def test_guides_of_bundles(name: str) -> None:
    guide = read_guide(name)
    assert set(guide.paper_batch) == set(guide.streams) >= set(guide.short_batch) and guide.multiple % 16 == 0
    assert guide.least_iterations <= guide.iterations and guide.learning_rate <= guide.most_learning_rate
    known = set(guide.config) | {"num_classes"}
    assert {*guide.keep, *guide.short, *guide.windows} <= known, "settings that the bundle has"
