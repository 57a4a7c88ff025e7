"""DICOM series as images to segment: found, named, and with the same voxels in the same places as NIfTI."""

from __future__ import annotations

import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from common.data import DataError, images_to_segment
from common.data.loading.dicom import find_series, read_dicom_series, series_as_nifti, source_files
from common.errors import ExpectedError
from tests.data.loading.series import SLANTED, write_series

VOLUME = np.random.default_rng(0).integers(-1000, 1000, (7, 6, 5))


def names(root: Path) -> list[str]:
    return sorted(series.name for series in find_series(root))


@pytest.mark.parametrize("ending", [".dcm", ""])
def test_voxels_and_places_are_those_of_the_nifti_file(tmp_path: Path, ending: str) -> None:
    write_series(tmp_path / "scan", VOLUME, ending=ending)
    nib.save(nib.Nifti1Image(VOLUME.astype(np.int16), SLANTED), tmp_path / "same.nii.gz")
    (record,) = images_to_segment(tmp_path / "scan", output_dir=tmp_path / "out")
    assert record == {"image": str(tmp_path / "out" / "dicom" / "scan.nii.gz")}
    found, same = (
        nib.Nifti1Image.from_filename(record["image"]),
        nib.Nifti1Image.from_filename(tmp_path / "same.nii.gz"),
    )
    np.testing.assert_array_equal(np.asarray(found.dataobj), np.asarray(same.dataobj))
    np.testing.assert_allclose(found.affine, same.affine, atol=1e-5)
    # file 1 is the last slice
    files = source_files(Path(record["image"]))
    assert [path.name for path in files] == [f"IM{5 - number:03d}{ending}" for number in range(5)]
    assert source_files(tmp_path / "same.nii.gz") == []


@pytest.mark.parametrize(
    "text", ['{"Modality": "MR"}', '{"files": "a.dcm"}', '{"files": [1, 2]}', '["a.dcm"]', "null", "no JSON", "\xff"]
)
def test_a_json_of_another_program_names_no_files(tmp_path: Path, text: str) -> None:
    (tmp_path / "s.json").write_bytes(text.encode("latin-1"))
    assert source_files(tmp_path / "s.nii.gz") == []


def test_series_are_called_by_their_folders(tmp_path: Path) -> None:
    write_series(tmp_path / "patient 1" / "CT", VOLUME, uid="1.1")
    write_series(tmp_path / "patient 2", VOLUME, uid="1.2", ending=".a")
    write_series(tmp_path / "patient 2", VOLUME, uid="1.3", ending=".b", SeriesNumber=7)
    write_series(tmp_path / "patient 2", VOLUME, uid="1.4", ending=".c", SeriesNumber=7)
    assert names(tmp_path) == ["patient_1_CT", "patient_2_2", "patient_2_4", "patient_2_7"]
    assert names(tmp_path / "patient 1" / "CT") == ["CT"]


def test_linked_folders_are_entered(tmp_path: Path) -> None:
    write_series(tmp_path / "disk" / "CT", VOLUME)
    (tmp_path / "scans").mkdir()
    (tmp_path / "scans" / "patient").symlink_to(tmp_path / "disk")
    assert names(tmp_path / "scans") == ["patient_CT"]
    np.testing.assert_array_equal(read_dicom_series(tmp_path / "scans")[0], VOLUME)


def test_what_holds_no_slices_is_passed_over(tmp_path: Path) -> None:
    write_series(tmp_path / "scan", VOLUME)
    write_series(tmp_path / "scout", VOLUME[..., :1], uid="1.7", ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    write_series(tmp_path / "seg", VOLUME, uid="1.8", ImagePositionPatient=None, Modality="SEG", NumberOfFrames=5)
    (tmp_path / "scan" / "notes").write_text("no DICOM")
    (tmp_path / "scan" / ".hidden").write_bytes((tmp_path / "scan" / "IM001.dcm").read_bytes())
    write_series(tmp_path / "report", VOLUME, uid="1.9", ImagePositionPatient=None, Modality="SR")
    assert names(tmp_path) == ["scan"]


def test_nifti_files_come_first(tmp_path: Path) -> None:
    write_series(tmp_path / "both", VOLUME)
    nib.save(nib.Nifti1Image(VOLUME.astype(np.int16), SLANTED), tmp_path / "both" / "a.nii.gz")
    assert images_to_segment(tmp_path / "both", output_dir=tmp_path / "out") == [
        {"image": str(tmp_path / "both" / "a.nii.gz")}
    ]


def test_all_faulty_series_are_told_at_once(tmp_path: Path) -> None:
    write_series(tmp_path / "in" / "gap", VOLUME, uid="1.1")
    (tmp_path / "in" / "gap" / "IM003.dcm").unlink()
    write_series(tmp_path / "in" / "frames", VOLUME, uid="1.2", NumberOfFrames=3)
    write_series(tmp_path / "in" / "colour", VOLUME, uid="1.3", SamplesPerPixel=3)
    write_series(tmp_path / "in" / "fine", VOLUME, uid="1.4")
    with pytest.raises(DataError) as caught:
        images_to_segment(tmp_path / "in", output_dir=tmp_path / "out")
    text = str(caught.value)
    assert "3 faults" in text and "a slice is missing or there twice" in text
    assert "holds 3 frames. Fix: convert it to NIfTI" in text and "is a colour image" in text


def test_a_folder_of_nothing(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no NIfTI image and no DICOM series here"):
        images_to_segment(tmp_path, output_dir=tmp_path / "out")


def test_without_pydicom_one_error_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pydicom", None)
    with pytest.raises(ExpectedError, match="pydicom is not installed. Fix: pip install pydicom"):
        series_as_nifti(tmp_path, tmp_path / "out")
