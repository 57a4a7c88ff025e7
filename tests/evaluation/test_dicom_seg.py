"""DICOM SEG objects: read back, they say the same of the same places."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from ignite.engine import Engine
from pydicom.dataset import Dataset

from common.data import DataError
from common.data.loading.dicom import series_as_nifti, source_files
from common.errors import ExpectedError, root_cause
from common.evaluation.dicom_seg import DicomSegmentations, segmentation_object
from common.settings import SettingsError
from tests.bundles.conftest import ROOT, Bundle
from tests.bundles.test_delivery import NAMES, VOLUME, options, voxels, weights
from tests.data.loading.series import SLANTED, write_series

# an oblique volume whose slices are not sheared: a library that knows volumes reads it as one
TURN = np.array([[0.8, 0.6, 0.0], [-0.48, 0.64, 0.6], [0.36, -0.48, 0.8]])
OBLIQUE = np.eye(4)
OBLIQUE[:3, :3] = TURN @ np.diag([-0.8, -0.7, 2.4])
OBLIQUE[:3, 3] = (40.0, 30.0, -100.0)


def test_the_object_lies_where_the_series_does(tmp_path: Path) -> None:
    highdicom = pytest.importorskip("highdicom")
    image = np.random.default_rng(0).integers(-1000, 1000, (7, 6, 5))
    write_series(tmp_path / "scan", image, OBLIQUE)
    (path,) = series_as_nifti(tmp_path / "scan", tmp_path / "out")
    prediction = np.zeros(image.shape, np.uint8)
    prediction[1:4, 2:5, 0:3] = 1
    prediction[5, 1, 4] = 2
    made = segmentation_object(prediction, source_files(path), {1: "liver", 2: "spleen"}, "a network", "0.1.0")
    made.save_as(tmp_path / "seg.dcm")
    read = highdicom.seg.segread(tmp_path / "seg.dcm")
    assert [segment.SegmentLabel for segment in read.SegmentSequence] == ["liver", "spleen"]
    assert (read.PatientID, read.StudyInstanceUID, read.Modality) == ("P1", "1.2", "SEG")
    volume = read.get_volume(combine_segments=True)
    # it may count its axes otherwise: compare voxels by their places in space, left-posterior-superior
    to_series = np.linalg.inv(np.diag([-1.0, -1.0, 1.0, 1.0]) @ OBLIQUE) @ volume.affine
    found = np.zeros_like(prediction)
    for index in np.argwhere(volume.array > 0):
        place = to_series @ [*index, 1.0]
        np.testing.assert_allclose(place[:3], np.rint(place[:3]), atol=1e-3)
        found[tuple(np.rint(place[:3]).astype(int))] = volume.array[tuple(index)]
    np.testing.assert_array_equal(found, prediction)


def test_nothing_found_is_an_object_too(tmp_path: Path) -> None:
    highdicom = pytest.importorskip("highdicom")
    write_series(tmp_path / "scan", VOLUME)
    (path,) = series_as_nifti(tmp_path / "scan", tmp_path / "out")
    made = segmentation_object(np.zeros(VOLUME.shape, np.uint8), source_files(path), {1: "a"}, "a network", "0.1.0")
    made.save_as(tmp_path / "seg.dcm")
    assert not highdicom.seg.segread(tmp_path / "seg.dcm").pixel_array.any()
    with pytest.raises(ValueError, match="17 DICOM files for 18 slices"):
        segmentation_object(np.zeros(VOLUME.shape, np.uint8), source_files(path)[1:], {1: "a"}, "a network", "0.1.0")


def test_what_anonymisation_takes_out_is_empty(tmp_path: Path) -> None:
    highdicom = pytest.importorskip("highdicom")
    taken = ["PatientID", "PatientName", "PatientBirthDate", "PatientSex", "ReferringPhysicianName", "SliceThickness"]
    taken += ["StudyID", "StudyDate", "StudyTime", "AccessionNumber", "Modality", "PositionReferenceIndicator"]
    without: dict[str, Any] = dict.fromkeys(taken)
    write_series(tmp_path / "scan", VOLUME, **without)
    (path,) = series_as_nifti(tmp_path / "scan", tmp_path / "out")
    prediction = (VOLUME > 0).astype(np.uint8)
    segmentation_object(prediction, source_files(path), {1: "a"}, "a network", "0.1.0").save_as(tmp_path / "seg.dcm")
    read = highdicom.seg.segread(tmp_path / "seg.dcm")
    assert {str(read.get(name) or "") for name in taken if name not in ("SliceThickness", "Modality")} == {""}
    assert "PatientSex" in read and (read.Modality, read.FrameOfReferenceUID) == ("SEG", "1.5")
    (measures,) = read.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence
    between = np.linalg.det(SLANTED[:3, :3]) / np.linalg.norm(np.cross(*SLANTED[:3, :2].T))
    assert float(measures.SliceThickness) == pytest.approx(between, abs=1e-5)
    masks = read.get_pixels_by_source_instance([f"1.2.3.{number + 1}" for number in range(18)], combine_segments=True)
    np.testing.assert_array_equal(masks.transpose(2, 1, 0), prediction)


@pytest.mark.parametrize(
    ("letters", "name"), [("ISO_IR 100", "Müller^Jörg"), (["", "ISO 2022 IR 87"], "Yamada^Tarou=山田^太郎")]
)
def test_names_have_letters_that_the_series_lacks(tmp_path: Path, letters: Any, name: str) -> None:
    """And those that are copied keep theirs, in lists of codes too."""
    highdicom = pytest.importorskip("highdicom")
    code = Dataset()
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = "1", "99OURS", name
    tags: dict[str, Any] = {"PatientName": name, "StudyDescription": name, "ProcedureCodeSequence": [code]}
    write_series(tmp_path / "scan", VOLUME, SpecificCharacterSet=letters, **tags)
    (path,) = series_as_nifti(tmp_path / "scan", tmp_path / "out")
    labels = {1: "[肝]", 2: "почка"}
    nothing = np.zeros(VOLUME.shape, np.uint8)
    segmentation_object(nothing, source_files(path), labels, "a network", "0.1.0").save_as(tmp_path / "seg.dcm")
    read = highdicom.seg.segread(tmp_path / "seg.dcm")
    assert [segment.SegmentLabel for segment in read.SegmentSequence] == ["[肝]", "почка"]
    assert [segment.SegmentedPropertyTypeCodeSequence[0].CodeMeaning for segment in read.SegmentSequence] == [
        "[肝]",
        "почка",
    ]
    copied = (str(read.PatientName), read.StudyDescription, read.ProcedureCodeSequence[0].CodeMeaning)
    assert copied == (name, name, name) and read.SpecificCharacterSet == "ISO_IR 192"


def test_what_no_object_can_be_made_of_is_told_before_the_first_case(tmp_path: Path) -> None:
    pytest.importorskip("highdicom")
    write_series(tmp_path / "in" / "good", VOLUME)
    write_series(tmp_path / "in" / "nowhere", VOLUME, FrameOfReferenceUID=None)
    write_series(tmp_path / "in" / "sex", VOLUME, PatientSex="UNKNOWN")
    write_series(tmp_path / "in" / "two", VOLUME)
    write_series(tmp_path / "other", VOLUME, StudyInstanceUID="1.3")
    (tmp_path / "other" / "IM001.dcm").replace(tmp_path / "in" / "two" / "IM001.dcm")
    images = [str(image) for image in series_as_nifti(tmp_path / "in", tmp_path / "out")]
    # what dcm2niix leaves beside an image
    images.append(str(tmp_path / "s.nii.gz"))
    nib.save(nib.Nifti1Image(VOLUME.astype(np.int16), np.eye(4)), images[-1])
    (tmp_path / "s.json").write_text('{"Modality": "MR"}')

    def start(chosen: list[str]) -> list[Any]:
        seen: list[Any] = []
        engine: Any = Engine(lambda _, batch: seen.append(batch) or [])  # type: ignore[func-returns-value]
        DicomSegmentations(tmp_path / "seg", ROOT / "bundles" / "alc").attach(engine)
        engine.data_loader = SimpleNamespace(dataset=SimpleNamespace(data=[{"image": image} for image in chosen]))
        try:
            engine.run([chosen])
        finally:
            assert not (tmp_path / "seg").exists()
        return seen

    good = [image for image in images if "good" in image]
    assert start(good) == [good]
    with pytest.raises(DataError) as caught:
        start(images)
    nowhere, sex, two, other = sorted(caught.value.faults, key=lambda fault: fault.where)
    assert nowhere.where == str(tmp_path / "in" / "nowhere" / "IM018.dcm") and "dicom_seg false" in nowhere.fix
    assert nowhere.what.startswith("lacks FrameOfReferenceUID,")
    assert "sex" in sex.where and "'UNKNOWN' is not a valid PatientSex" in sex.what
    assert two.where.endswith("IM001.dcm") and two.what == "has another StudyInstanceUID than IM018.dcm"
    assert other.where == images[-1] and other.what.startswith("is of no DICOM series")


def test_inference_writes_it_and_refuses_other_images(tmp_path: Path) -> None:
    highdicom = pytest.importorskip("highdicom")
    bundle = Bundle("alc", tmp_path)
    write_series(tmp_path / "scan", VOLUME)
    (path,) = weights(bundle, tmp_path / "weights", number=1)
    given: dict[str, Any] = {"weights": path, "dicom_seg": True, "structures": NAMES, "preview": False}
    folders = {"dataset_dir": str(tmp_path / "scan"), "output_dir": str(tmp_path / "out")}
    bundle.run("inferring", "inference", **options(bundle, "inference", **given, **folders))
    case = tmp_path / "out" / "scan"
    read = highdicom.seg.segread(case / "scan_seg.dcm")
    assert read.ContentLabel and read.ManufacturerModelName == "Adaptive Label Correction"
    uids = [
        series.SOPInstanceUID
        for series in (highdicom.imread(file) for file in source_files(case.parent / "dicom" / "scan.nii.gz"))
    ]
    masks = read.get_pixels_by_source_instance(uids, combine_segments=True, assert_missing_frames_are_empty=True)
    np.testing.assert_array_equal(masks.transpose(2, 1, 0), voxels(case / "scan_pred.nii.gz"))
    with pytest.raises(Exception) as caught:  # noqa: PT011, B017 - MONAI wraps it
        bundle.run("inferring", "inference", **options(bundle, "inference", **given))
    assert "is of no DICOM series" in str(root_cause(caught.value))
    assert not list((tmp_path / "eval").rglob("*_pred.nii.gz"))


def test_without_highdicom_one_error_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "highdicom", None)
    with pytest.raises(ExpectedError, match="highdicom is not installed. Fix: pip install highdicom"):
        segmentation_object(np.zeros((2, 2, 2)), [Path("a"), Path("b")], {1: "a"}, "a network", "0.1.0")
    bundle = Bundle("alc", tmp_path)
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *_: None)
    with pytest.raises(Exception) as caught:  # noqa: PT011, B017
        bundle.run("inferring", "inference", **bundle.tiny("inference"), dicom_seg=True)
    cause = root_cause(caught.value)
    assert isinstance(cause, SettingsError) and "highdicom is not installed. Fix: pip install highdicom" in str(cause)
    assert not (tmp_path / "eval").exists()
