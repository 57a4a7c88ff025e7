"""Reading of data sets that are as they should be."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from common.data import DataError, LazyData, SegmentationData, make_phantom, open_data
from common.data.contract.faults import Fault
from common.data.contract.records import KINDS, is_kind, normalise_labels

SHAPE = (6, 5, 4)


def write(path: Path, voxels: np.ndarray) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(voxels, np.eye(4)), path)
    return path.name


def write_dataset(root: Path, **changes: Any) -> Path:
    """Two training cases and one for validation; ``changes`` replace top-level entries of the JSON."""
    rng = np.random.default_rng(0)
    for number in range(3):
        write(root / f"image{number}.nii.gz", rng.normal(size=SHAPE).astype(np.float32))
        write(root / f"label{number}.nii.gz", (rng.random(SHAPE) > 0.5).astype(np.uint8))
    records = [{"image": f"image{number}.nii.gz", "label": f"label{number}.nii.gz"} for number in range(3)]
    content = {"name": "tiny", "labels": {"0": "background", "1": "organ"}, "training": records[:2]}
    (root / "dataset.json").write_text(json.dumps({**content, "validation": records[2:], **changes}))
    return root


def test_records_get_absolute_paths_and_defaults(tmp_path: Path) -> None:
    data = open_data(write_dataset(tmp_path), num_classes=2, in_channels=1, needs=["label", "clean", "validation"])
    image = str(tmp_path / "image0.nii.gz")
    expected = {"image": image, "label": str(tmp_path / "label0.nii.gz"), "label_quality": "clean", "group": image}
    assert data.training[0] == expected
    assert (data.name, data.num_classes, data.labels) == ("tiny", 2, {0: "background", 1: "organ"})
    assert [len(data.section(name)) for name in ("training", "validation", "test")] == [2, 1, 0]
    with pytest.raises(KeyError, match="no section 'train'"):
        data.section("train")


@pytest.mark.parametrize(
    "labels",
    [
        {"0": "background", "1": "wall", "2": "pool"},
        {"background": 0, "wall": 1, "pool": 2},
        {"2": "pool", "0": "background", "1": "wall"},
        ["background", "wall", "pool"],
    ],
)
def test_labels_come_to_one_form(labels: Any) -> None:
    faults: list[Fault] = []
    assert list(normalise_labels(labels, "dataset.json", faults).items()) == [
        (0, "background"),
        (1, "wall"),
        (2, "pool"),
    ]
    assert not faults


def test_patient_is_another_word_for_group(tmp_path: Path) -> None:
    records = [{"image": "image0.nii.gz", "patient": 7}, {"image": "image1.nii.gz", "group": "anna"}]
    data = open_data(write_dataset(tmp_path, training=records))
    assert [record["group"] for record in data.training] == ["7", "anna"]


def test_unknown_keys_are_kept_and_noted(tmp_path: Path) -> None:
    records = [{"image": "image0.nii.gz", "label": "label0.nii.gz", "scanner": "A"}]
    data = open_data(write_dataset(tmp_path, training=records))
    assert data.training[0]["scanner"] == "A"
    assert any("`scanner`" in note for note in data.notes)


def test_copies_within_a_section_are_noted(tmp_path: Path) -> None:
    write_dataset(tmp_path)
    shutil.copy(tmp_path / "image0.nii.gz", tmp_path / "copy.nii.gz")
    shutil.copy(tmp_path / "label0.nii.gz", tmp_path / "other.nii.gz")
    records = [{"image": f"{i}.nii.gz", "label": f"{k}.nii.gz"} for i, k in (("image0", "label0"), ("copy", "other"))]
    data = open_data(write_dataset(tmp_path, training=records))
    assert "training: copy.nii.gz, image0.nii.gz are copies of one image (equal voxels)" in data.notes


@pytest.mark.parametrize("name", ["two\nlines", "two \r\n lines\n", "two\u2028lines"])
def test_the_name_is_one_line(name: str, tmp_path: Path) -> None:
    assert open_data(write_dataset(tmp_path, name=name)).name == "two lines"


@pytest.mark.parametrize("names", [{"channel_names": {"0": "T1", "1": "T2"}}, {"modality": {"0": "T1", "1": "T2"}}])
def test_declared_channels_may_share_a_file(tmp_path: Path, names: dict[str, Any]) -> None:
    write_dataset(tmp_path, **names)
    for number in range(3):
        write(tmp_path / f"image{number}.nii.gz", np.random.default_rng(number).random((*SHAPE, 2)).astype(np.float32))
    assert open_data(tmp_path, in_channels=2).channels == ["T1", "T2"]


def test_list_of_channel_files(tmp_path: Path) -> None:
    write(tmp_path / "second.nii.gz", np.random.default_rng(9).random(SHAPE).astype(np.float32))
    records = [{"image": ["image0.nii.gz", "second.nii.gz"], "label": "label0.nii.gz"}]
    held_out = [{"image": ["image2.nii.gz", "second.nii.gz"], "label": "label2.nii.gz"}]
    data = open_data(write_dataset(tmp_path, training=records, validation=held_out), in_channels=2)
    assert data.training[0]["image"] == [str(tmp_path / "image0.nii.gz"), str(tmp_path / "second.nii.gz")]


def test_rounded_headers_pass(tmp_path: Path) -> None:
    """A label whose affine differs by a hundredth of a voxel is where it should be."""
    write_dataset(tmp_path)
    affine = np.eye(4)
    affine[:3, 3] = 0.01
    nib.save(nib.Nifti1Image(np.ones(SHAPE, dtype=np.uint8), affine), tmp_path / "label0.nii.gz")
    open_data(tmp_path)


def test_an_empty_label_that_is_meant(tmp_path: Path) -> None:
    records = [{"image": "image0.nii.gz", "label": "label0.nii.gz", "empty": True}, {"image": "image1.nii.gz"}]
    write_dataset(tmp_path, training=records)
    write(tmp_path / "label0.nii.gz", np.zeros(SHAPE, dtype=np.uint8))
    assert open_data(tmp_path).training[0]["empty"] is True


def test_lazy_data_are_opened_when_asked_for(tmp_path: Path) -> None:
    data = LazyData(dataset_dir=str(tmp_path / "data"))
    write_dataset(tmp_path / "data")  # only now
    assert data.name == open_data(tmp_path / "data").name
    records = data.section("training")
    shutil.rmtree(tmp_path / "data")
    assert data.section("training") == records, "it is opened once"
    with pytest.raises(DataError, match="absent"):
        LazyData(dataset_dir=str(tmp_path / "absent")).section("training")


def test_foreign_records_are_validated_on_a_data_set_that_was_given_and_never_on_the_phantom(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    foreign = [{"image": "elsewhere.nii.gz"}]
    data = LazyData(
        dataset_dir=str(make_phantom(tmp_path / "data", cases={"training": 1, "validation": 1}, shape=(16, 16, 16)))
    )
    assert data.validation_records(foreign) == data.section("validation") != []
    phantom = LazyData(phantom_dir=str(tmp_path / "phantom"))
    assert phantom.validation_records(foreign) == [] and "none validates" in caplog.text
    assert not (tmp_path / "phantom").exists()


def test_new_records_of_the_phantom_are_validated_on_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = make_phantom(tmp_path / "data", cases={"training": 2, "validation": 1}, shape=(16, 16, 16))
    monkeypatch.setattr("common.data.contract.open._open_phantom", lambda kind, folder: dataset)
    data = LazyData()
    own = data.training_records(["validation"])
    changed = [{**record, "label_quality": "clean"} for record in own]
    for records in (own, changed, changed[:1]):
        assert data.validation_records(records) == data.section("validation") != []
    assert data.validation_records([*own, {"image": "elsewhere.nii.gz"}]) == []


def test_scribble_records_know_the_value_for_unlabelled(tmp_path: Path) -> None:
    records = [{"image": "image0.nii.gz", "scribble": "label0.nii.gz"}, {"image": "image1.nii.gz"}]
    write_dataset(tmp_path, training=records, scribble_unlabelled_value=9)
    found = open_data(tmp_path, check=False).training
    assert [record.get("scribble_unlabelled_value") for record in found] == [9, None]


def test_files_stay_closed_without_check(tmp_path: Path) -> None:
    (write_dataset(tmp_path) / "image0.nii.gz").unlink()
    assert isinstance(open_data(tmp_path, check=False), SegmentationData)


def test_all_faults_come_at_once_and_survive_pickling(tmp_path: Path) -> None:
    write_dataset(tmp_path)
    (tmp_path / "image0.nii.gz").unlink()
    (tmp_path / "label1.nii.gz").unlink()
    with pytest.raises(DataError) as caught:
        open_data(tmp_path, num_classes=5, needs=["noisy"])
    error = caught.value
    assert len(error.faults) == 4
    assert str(error).startswith("4 faults in ") and str(error).count("Fix: ") == 4
    copy = pickle.loads(pickle.dumps(error))
    assert str(copy) == str(error) and copy.faults == error.faults


def test_unknown_need_is_the_programmers_mistake(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="unknown needs"):
        open_data(write_dataset(tmp_path), needs=["nosy"])


def test_no_folder_means_phantom_and_one_line_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []

    def small(directory: Path, kind: str) -> Path:
        calls.append(kind)
        return make_phantom(directory, kind, cases={"training": 5, "validation": 1, "test": 1}, shape=(16, 16, 12))

    monkeypatch.setattr("common.data.contract.open.make_phantom", small)
    caplog.set_level("INFO")
    data = open_data(None, phantom_dir=tmp_path / "phantom", needs=["clean", "noisy", "validation"])
    assert calls == ["noisy"] and len(data.training) == 5
    lines = [record.getMessage() for record in caplog.records if record.name.startswith("common.data")]
    assert len(lines) == 1 and "built-in phantom data set (noisy)" in lines[0]


def test_records_of_other_kinds_are_left_out_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = open_data(write_dataset(tmp_path))
    data.training[0].pop("label")
    with caplog.at_level("WARNING"):
        assert data.section("training", "label") == data.training[1:]
    assert "training: 1 of 2 records left out, only those with a `label` are used" in caplog.text
    assert data.section("training", "label", "unlabelled") == data.section("training") == data.training
    with pytest.raises(DataError, match="no record with a `scribble` or with `labels`"):
        data.section("training", "scribble", "raters")


def test_training_records_are_asked_for_with_what_the_method_needs(tmp_path: Path) -> None:
    content = write_dataset(tmp_path)
    data = LazyData(dataset_dir=content, num_classes=5)
    with pytest.raises(DataError) as caught:
        data.training_records(["noisy", "validation"])
    assert "num_classes 2" in str(caught.value) and "label_quality: noisy" in str(caught.value), "not all at once"
    data = LazyData(dataset_dir=content)
    assert data.section("training") == data.training_records(["label"], kinds=["clean"])
    with pytest.raises(DataError, match="needs training records with a `scribble`"):
        data.training_records(["scribble"])


def test_a_record_may_be_of_several_kinds() -> None:
    record = {"image": "a", "label": "b", "label_quality": "noisy", "scribble": "c"}
    found = {kind for kind in KINDS if is_kind(record, kind)}
    assert found == {"label", "noisy", "scribble"}
    assert {kind for kind in KINDS if is_kind({"image": "a"}, kind)} == {"unlabelled"}
    assert {kind for kind in KINDS if is_kind({"image": "a", "labels": ["b"]}, kind)} == {"raters"}
    with pytest.raises(ValueError, match="no kind of record is called 'lable'"):
        is_kind(record, "lable")
