"""Converters on small files made here: positions in space, values, sections, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import h5py
import nibabel as nib
import nrrd
import numpy as np
import pydicom
import pytest
from pydicom.dataset import FileDataset, FileMetaDataset

from common.data import open_data
from common.data.__main__ import main
from common.data.contract.dataset import read_data
from common.data.contract.faults import DataError
from common.data.converters.base import write_volume
from common.data.converters.decathlon import convert_decathlon
from common.data.converters.la import convert_la2018, convert_la_h5
from common.data.converters.nnunet import convert_nnunet
from common.data.converters.pancreas import convert_pancreas, read_label
from common.data.loading.dicom import read_dicom_series

SHAPE = (12, 10, 8)
BRIGHT = (9, 2, 5)  # no axis alike, none in the middle


def picture(shape: tuple[int, ...] = SHAPE, seed: int = 0) -> np.ndarray:
    """Noise with one voxel that outshines all."""
    image = np.random.default_rng(seed).integers(0, 100, shape).astype(np.int16)
    image[BRIGHT] = 1000
    return image


def mask(value: int = 1) -> np.ndarray:
    label = np.zeros(SHAPE, dtype=np.uint8)
    label[8:11, 1:4, 4:7] = value
    return label


def load(path: Path) -> tuple[np.ndarray, np.ndarray]:
    file = nib.load(path)
    return np.asarray(file.dataobj), file.affine  # type: ignore[attr-defined]


def save(path: Path, volume: np.ndarray, affine: np.ndarray | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(volume, np.eye(4) if affine is None else affine), path)


def listing(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "dataset.json").read_text()))


def brightest(path: Path) -> np.ndarray:
    """Position in space (mm, right-anterior-superior) of the brightest voxel."""
    volume, affine = load(path)
    index = np.unravel_index(int(np.argmax(volume)), volume.shape)
    return np.asarray((affine @ [*index, 1.0])[:3])


def accepted(folder: Path) -> None:
    """The data contract finds nothing wrong but the missing validation section."""
    try:
        open_data(str(folder))
    except DataError as error:
        assert [fault.where for fault in error.faults] == ["validation"], str(error)


# left atrium, NRRD


def write_nrrd(
    path: Path, volume: np.ndarray, directions: np.ndarray | None, space: str = "left-posterior-superior"
) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    header: dict[str, Any] = {}
    if directions is not None:
        header = {"space": space, "space directions": directions, "space origin": np.array([10.0, -20.0, 30.0])}
    nrrd.write(str(path), volume, header)


def la_download(root: Path) -> np.ndarray:
    """Two training cases and one below a testing folder; returns the space directions (rows: axes)."""
    turn = np.array([[0.0, 0.8, 0.6], [1.0, 0.0, 0.0], [0.0, -0.6, 0.8]])  # an oblique scan
    directions = turn * np.array([[0.625], [0.7], [1.25]])
    for number, name in enumerate(("Training Set/AAA", "Training Set/BBB", "Testing Set/CCC")):
        image = picture(seed=number)
        image[BRIGHT] = 255
        write_nrrd(root / name / "lgemri.nrrd", image.astype(np.uint8), directions)
        write_nrrd(root / name / "laendo.nrrd", mask(255), directions)
    return directions


def test_la2018(tmp_path: Path) -> None:
    directions = la_download(tmp_path / "in")
    output = convert_la2018(str(tmp_path / "in"), str(tmp_path / "out"))
    content = listing(output)
    assert content["labels"] == {"0": "background", "1": "left atrium"}
    assert [r["group"] for r in content["training"]] == ["AAA", "BBB"]
    assert [r["group"] for r in content["test"]] == ["CCC"]
    record = content["training"][0]
    left_posterior_superior = np.array([10.0, -20.0, 30.0]) + np.array(BRIGHT) @ directions
    np.testing.assert_allclose(brightest(output / record["image"]), left_posterior_superior * [-1, -1, 1], atol=1e-4)
    label, affine = load(output / record["label"])
    np.testing.assert_array_equal(label, mask(1))
    np.testing.assert_allclose(affine, load(output / record["image"])[1])
    np.testing.assert_allclose(nib.affines.voxel_sizes(affine), [0.625, 0.7, 1.25], rtol=1e-5)
    accepted(output)


def test_a_linked_case_is_a_case(tmp_path: Path) -> None:
    la_download(tmp_path / "in")
    (tmp_path / "in" / "Training Set").rename(tmp_path / "disk")
    (tmp_path / "in" / "Training Set").symlink_to(tmp_path / "disk")
    output = convert_la2018(str(tmp_path / "in"), str(tmp_path / "out"))
    assert [r["group"] for r in listing(output)["training"]] == ["AAA", "BBB"]


def test_la2018_cropped_keeps_positions_and_takes_a_test_list(tmp_path: Path) -> None:
    la_download(tmp_path / "in")
    (tmp_path / "test.list").write_text("BBB\n\n")
    whole = convert_la2018(str(tmp_path / "in"), str(tmp_path / "whole"))
    output = convert_la2018(
        str(tmp_path / "in"), str(tmp_path / "out"), margin=1, test_list=str(tmp_path / "test.list")
    )
    assert [r["group"] for r in listing(output)["test"]] == ["BBB"]
    name = listing(output)["training"][0]["image"]
    assert load(output / name)[0].shape == (5, 5, 5)
    np.testing.assert_allclose(brightest(output / name), brightest(whole / name), atol=1e-4)


@pytest.mark.parametrize(
    "space, signs", [("right-anterior-superior", (1, 1, 1)), ("left-anterior-superior", (-1, 1, 1))]
)
def test_nrrd_in_another_space(tmp_path: Path, space: str, signs: tuple[int, int, int]) -> None:
    image = picture()
    write_nrrd(tmp_path / "in/AAA/lgemri.nrrd", image, np.eye(3), space)
    write_nrrd(tmp_path / "in/AAA/laendo.nrrd", mask(255), None)  # no geometry: takes the image's
    output = convert_la2018(str(tmp_path / "in"), str(tmp_path / "out"))
    expected = (np.array([10.0, -20.0, 30.0]) + BRIGHT) * signs
    np.testing.assert_allclose(brightest(output / "images/AAA.nii.gz"), expected, atol=1e-4)
    np.testing.assert_allclose(load(output / "labels/AAA.nii.gz")[1], load(output / "images/AAA.nii.gz")[1])


def test_la2018_refuses(tmp_path: Path) -> None:
    target = str(tmp_path / "out")
    with pytest.raises(DataError, match="no such folder"):
        convert_la2018(str(tmp_path / "none"), target)
    (tmp_path / "in").mkdir()
    with pytest.raises(DataError, match=r"holds no <case>/lgemri.nrrd"):
        convert_la2018(str(tmp_path / "in"), target)
    la_download(tmp_path / "in")
    case = tmp_path / "in/Training Set/AAA"
    for volume, directions, message in (
        (mask(7), None, r"laendo.nrrd: is no mask, it holds the values \[0, 7\]"),
        (mask(255)[1:], None, r"laendo.nrrd: has shape \(11, 10, 8\)"),
        (mask(255), np.eye(3), "lies elsewhere in space"),
    ):
        write_nrrd(case / "laendo.nrrd", volume, directions)
        with pytest.raises(DataError, match=message):
            convert_la2018(str(tmp_path / "in"), target)
    (case / "laendo.nrrd").unlink()
    with pytest.raises(DataError, match=r"laendo.nrrd is missing in .*AAA"):
        convert_la2018(str(tmp_path / "in"), target)
    (case / "laendo.nrrd").write_bytes(b"junk")
    with pytest.raises(DataError, match="cannot be read as NRRD"):
        convert_la2018(str(tmp_path / "in"), target)
    (tmp_path / "list").write_text("ZZZ")
    with pytest.raises(DataError, match="cases that are not there: ZZZ"):
        convert_la2018(str(tmp_path / "in"), target, test_list=str(tmp_path / "list"))
    assert not Path(target).exists()


# left atrium, h5


def write_h5(path: Path, **volumes: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        for name, volume in volumes.items():
            file[name] = volume


def test_la_h5(tmp_path: Path) -> None:
    for name in ("AAA", "BBB"):
        image = np.random.default_rng(len(name)).normal(size=SHAPE) + ord(name[0])
        write_h5(tmp_path / "in" / name / "mri_norm2.h5", image=image, label=mask())
    (tmp_path / "test.list").write_text("BBB")
    output = convert_la_h5(str(tmp_path / "in"), str(tmp_path / "out"), test_list=str(tmp_path / "test.list"))
    content = listing(output)
    assert [len(content[section]) for section in ("training", "test")] == [1, 1]
    image, affine = load(output / "images/BBB.nii.gz")
    assert image.dtype == np.float32 and image.shape == SHAPE
    np.testing.assert_allclose(affine, np.diag([-0.625, -0.625, 0.625, 1.0]))
    np.testing.assert_array_equal(load(output / "labels/BBB.nii.gz")[0], mask())
    accepted(output)


def test_la_h5_refuses(tmp_path: Path) -> None:
    path = tmp_path / "in/AAA/mri_norm2.h5"
    write_h5(path, image=picture())
    with pytest.raises(DataError, match="data sets image and label"):
        convert_la_h5(str(tmp_path / "in"), str(tmp_path / "out"))
    path.write_bytes(b"junk")
    with pytest.raises(DataError, match="cannot be read"):
        convert_la_h5(str(tmp_path / "in"), str(tmp_path / "out"))


# pancreas


def write_dicom(folder: Path, volume: np.ndarray, orientation: list[float] | None = None, uid: str = "1.2.3") -> None:
    """Volume (columns, rows, slices) in HU as slices; file names and instance numbers run against the positions."""
    folder.mkdir(parents=True, exist_ok=True)
    count = volume.shape[2]
    for number in range(count):
        meta = FileMetaDataset()
        meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
        meta.MediaStorageSOPClassUID = pydicom.uid.CTImageStorage
        meta.MediaStorageSOPInstanceUID = pydicom.uid.UID(f"{uid}.{number + 1}")
        item = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
        item.SOPClassUID, item.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
        item.Modality, item.SeriesInstanceUID, item.InstanceNumber = "CT", uid, count - number
        item.Rows, item.Columns = volume.shape[1], volume.shape[0]
        item.ImageOrientationPatient = orientation or [1, 0, 0, 0, 1, 0]
        item.ImagePositionPatient = [-50.0, -60.0, 100.0 + 2.5 * number]
        item.PixelSpacing = [0.8, 0.7]  # between rows, between columns
        item.RescaleSlope, item.RescaleIntercept = 2, -1024
        item.SamplesPerPixel, item.PhotometricInterpretation = 1, "MONOCHROME2"
        item.BitsAllocated, item.BitsStored, item.HighBit, item.PixelRepresentation = 16, 16, 15, 0
        item.PixelData = ((volume[:, :, number].T + 1024) // 2).astype("<u2").tobytes()
        item.save_as(folder / f"1-{count - number:03d}.dcm", enforce_file_format=True)


def abdomen() -> np.ndarray:
    """Air and a lump of soft tissue where the mask is; one bright voxel; even values, as the slope is 2."""
    image = np.full(SHAPE, -1000, dtype=np.int16)
    image[mask() > 0] = 80
    image[BRIGHT] = 290
    return image


def test_dicom_positions_spacing_and_hounsfield_units(tmp_path: Path) -> None:
    write_dicom(tmp_path / "a/b", abdomen())
    volume, affine = read_dicom_series(tmp_path)
    assert volume.dtype == np.int16
    np.testing.assert_array_equal(volume, abdomen())
    left_posterior_superior = np.array([-50 + 0.7 * BRIGHT[0], -60 + 0.8 * BRIGHT[1], 100 + 2.5 * BRIGHT[2]])
    np.testing.assert_allclose((affine @ [*BRIGHT, 1])[:3], left_posterior_superior * [-1, -1, 1])


def test_dicom_refuses(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no .dcm"):
        read_dicom_series(tmp_path)
    write_dicom(tmp_path / "a", abdomen())
    (tmp_path / "a/1-003.dcm").unlink()
    with pytest.raises(DataError, match=r"2\.5 to 5 mm apart"):
        read_dicom_series(tmp_path / "a")
    write_dicom(tmp_path / "a", abdomen())
    write_dicom(tmp_path / "a/c", abdomen(), uid="1.2.4")
    with pytest.raises(DataError, match="2 series"):
        read_dicom_series(tmp_path / "a")
    write_dicom(tmp_path / "a/c", abdomen(), orientation=[0, 1, 0, 0, 0, -1])
    with pytest.raises(DataError, match="differ in size or orientation"):
        read_dicom_series(tmp_path / "a")
    (tmp_path / "d").mkdir()
    (tmp_path / "d/1.dcm").write_bytes(b"junk")
    with pytest.raises(DataError, match=r"1\.dcm: cannot be read as DICOM"):
        read_dicom_series(tmp_path / "d")


def test_pancreas_dicom_with_labels_of_useless_headers(tmp_path: Path) -> None:
    for number in ("0001", "0002", "0025"):
        write_dicom(tmp_path / f"in/Pancreas-CT/PANCREAS_{number}/study/Pancreas-99667", abdomen())
        save(tmp_path / f"in/TCIA_pancreas_labels/label{number}.nii.gz", mask())  # affine: identity
    (tmp_path / "test.list").write_text("PANCREAS_0001")
    output = convert_pancreas(str(tmp_path / "in"), str(tmp_path / "out"), test_list=str(tmp_path / "test.list"))
    content = listing(output)
    assert [r["image"] for r in content["test"]] == ["images/PANCREAS_0001.nii.gz"]
    assert [r["group"] for r in content["training"]] == ["PANCREAS_0002", "PANCREAS_0002"]  # one patient
    label, affine = load(output / "labels/PANCREAS_0001.nii.gz")
    image, image_affine = load(output / "images/PANCREAS_0001.nii.gz")
    np.testing.assert_array_equal(label, image > 0)
    np.testing.assert_allclose(affine, image_affine)
    np.testing.assert_allclose(brightest(output / "images/PANCREAS_0001.nii.gz"), [43.7, 58.4, 112.5], atol=1e-4)


def test_pancreas_nifti_images_of_any_orientation(tmp_path: Path) -> None:
    affine = np.diag([-0.7, -0.8, 2.5, 1.0])
    affine[:3, 3] = [50, 60, 100]
    source = nib.Nifti1Image(abdomen(), affine)
    for number, axes in enumerate(("RAS", "LAS", "LPI"), 1):
        turn = nib.orientations.ornt_transform(
            nib.orientations.io_orientation(affine), nib.orientations.axcodes2ornt(axes)
        )
        path = tmp_path / f"images/PANCREAS_{number:04d}.nii.gz"
        path.parent.mkdir(exist_ok=True)
        nib.save(source.as_reoriented(turn), path)
        save(tmp_path / f"labels/label{number:04d}.nii.gz", mask())
    output = convert_pancreas(
        str(tmp_path / "images"), str(tmp_path / "out"), labels=str(tmp_path / "labels"), margin=1
    )
    for record in listing(output)["training"]:
        image, _ = load(output / record["image"])
        assert image.shape == (5, 5, 5)
        np.testing.assert_array_equal(load(output / record["label"])[0], image > 0)
        np.testing.assert_allclose(brightest(output / record["image"]), [43.7, 58.4, 112.5], atol=1e-4)


def test_pancreas_label_with_a_right_header_is_read_by_it(tmp_path: Path) -> None:
    affine = np.diag([-0.7, -0.8, 2.5, 1.0])
    affine[:3, 3] = [50, 60, 100]
    canonical = nib.as_closest_canonical(nib.Nifti1Image(mask(), affine))  # axes flipped, header says so
    nib.save(canonical, tmp_path / "label0001.nii.gz")
    label, way = read_label(tmp_path / "label0001.nii.gz", abdomen(), affine)
    assert way == "header"
    np.testing.assert_array_equal(label, mask())
    with pytest.raises(DataError, match=r"only .* soft tissue.*array.*--label_axes header"):
        read_label(tmp_path / "label0001.nii.gz", abdomen(), affine, "array")


def test_pancreas_refuses(tmp_path: Path) -> None:
    affine = np.diag([-1.0, -1.0, 1.0, 1.0])
    path = tmp_path / "label0001.nii.gz"
    save(path, mask())
    with pytest.raises(DataError, match="lies elsewhere than its image"):
        read_label(path, abdomen(), affine, "header")
    save(path, mask()[:, 1:])
    with pytest.raises(DataError, match=r"has shape \(12, 9, 8\)"):
        read_label(path, abdomen(), affine)
    save(path, mask() * 0)
    with pytest.raises(DataError, match="is empty"):
        read_label(path, abdomen(), affine)
    with pytest.raises(DataError, match="--label_axes"):
        convert_pancreas(str(tmp_path), str(tmp_path / "out"), label_axes="guess")
    with pytest.raises(DataError, match="no PANCREAS_0001 folders"):
        convert_pancreas(str(tmp_path), str(tmp_path / "out"))
    write_dicom(tmp_path / "PANCREAS_0007", abdomen())
    with pytest.raises(DataError, match="no label for case 0007"):
        convert_pancreas(str(tmp_path), str(tmp_path / "out"))


def test_pancreas_refuses_two_labels_of_one_case(tmp_path: Path) -> None:
    write_dicom(tmp_path / "in/PANCREAS_0001", abdomen())
    for folder in ("a", "b"):
        save(tmp_path / f"in/{folder}/label0001.nii.gz", mask())
    with pytest.raises(DataError, match=r"b/label0001.nii.gz: a second label of case 0001, beside .*/a/label0001"):
        convert_pancreas(str(tmp_path / "in"), str(tmp_path / "out"))


@pytest.mark.parametrize("margin", ["wide", -1, 2.5])
def test_margins_that_are_no_whole_numbers(tmp_path: Path, margin: Any) -> None:
    la_download(tmp_path / "in")
    with pytest.raises(DataError, match=f"--margin: is {margin!r}. Fix: use a whole number of 0 or more"):
        convert_la2018(str(tmp_path / "in"), str(tmp_path / "out"), margin=margin)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "latin-1", "utf-16"])
def test_test_lists_of_other_editors(tmp_path: Path, encoding: str) -> None:
    """The mark of Windows' editors is no part of the first name; what is no UTF-8 is said to be none."""
    la_download(tmp_path / "in")
    (tmp_path / "in/Training Set/AAA").rename(tmp_path / "in/Training Set/Ä")
    (tmp_path / "test.list").write_text("Ä\nBBB\n", encoding=encoding)
    given = {"test_list": str(tmp_path / "test.list")}
    if encoding in ("latin-1", "utf-16"):
        with pytest.raises(DataError, match=r"test.list: is no text in UTF-8 .*Fix: save it as UTF-8"):
            convert_la2018(str(tmp_path / "in"), str(tmp_path / "out"), **given)
        return
    content = listing(convert_la2018(str(tmp_path / "in"), str(tmp_path / "out"), **given))
    assert {record["group"] for record in content["test"]} == {"Ä", "BBB"}


# types


@pytest.mark.parametrize(
    ("largest", "dtype", "stored"),
    [
        (2**31 - 1, "int64", "int32"),
        (2**31 - 1, "uint64", "int32"),
        (2**31, "int64", "float32"),
        (2**63, "uint64", "float32"),
    ],
)
def test_integers_of_64_bits_are_written_as_others(tmp_path: Path, largest: int, dtype: str, stored: str) -> None:
    volume = np.arange(24, dtype=dtype).reshape(2, 3, 4)
    volume[1, 2, 3] = largest
    write_volume(tmp_path / "a.nii.gz", volume, np.eye(4))
    read, _ = load(tmp_path / "a.nii.gz")
    assert read.dtype == stored
    np.testing.assert_array_equal(read, volume.astype(stored))


def test_an_image_of_int64_is_converted(tmp_path: Path) -> None:
    directions = la_download(tmp_path / "in")
    write_nrrd(tmp_path / "in/Training Set/AAA/lgemri.nrrd", picture().astype(np.int64), directions)
    output = convert_la2018(str(tmp_path / "in"), str(tmp_path / "out"))
    image, _ = load(output / listing(output)["training"][0]["image"])
    assert image.dtype == np.int32
    np.testing.assert_array_equal(image, picture())


@pytest.mark.parametrize("dtype", ["bool", "float16", "U3", "object"])
def test_types_that_nifti_lacks_are_refused(tmp_path: Path, dtype: str) -> None:
    volume = np.zeros((2, 3, 4), dtype=dtype)
    with pytest.raises(DataError, match=r"scan.h5: stores .*, a type that NIfTI lacks. Fix: store its voxels as"):
        write_volume(tmp_path / "a.nii.gz", volume, np.eye(4), tmp_path / "scan.h5")
    with pytest.raises(DataError, match=r"^a.nii.gz: stores "):
        write_volume(tmp_path / "a.nii.gz", volume, np.eye(4))
    assert list(tmp_path.iterdir()) == []


# decathlon


def decathlon_task(root: Path) -> None:
    affine = np.diag([1.0, 2.0, 3.0, 1.0])
    for number in range(3):
        four = np.stack([picture(seed=number), picture(seed=number + 10)], axis=-1)
        save(root / f"imagesTr/BRATS_{number}.nii.gz", four, affine)
        save(root / f"labelsTr/BRATS_{number}.nii.gz", mask(1 + number % 2), affine)
    save(root / "imagesTs/BRATS_9.nii.gz", np.stack([picture(seed=8), picture(seed=9)], axis=-1), affine)
    content = {
        "name": "BRATS",
        "modality": {"0": "FLAIR", "1": "T1w"},
        "labels": {"0": "background", "1": "edema", "2": "tumour"},
        "numTraining": 3,
        "training": [
            {"image": f"./imagesTr/BRATS_{number}.nii.gz", "label": f"./labelsTr/BRATS_{number}.nii.gz"}
            for number in range(3)
        ],
        "test": ["./imagesTs/BRATS_9.nii.gz"],
    }
    (root / "dataset.json").write_text(json.dumps(content))


def test_decathlon_with_several_modalities(tmp_path: Path) -> None:
    decathlon_task(tmp_path / "in")
    output = convert_decathlon(str(tmp_path / "in"), str(tmp_path / "out"))
    content = listing(output)
    assert content["channel_names"] == {"0": "FLAIR", "1": "T1w"} and "test" not in content
    assert len(content["training"]) == 3
    for folder in ("images", "labels"):
        volume, affine = load(output / folder / "BRATS_1.nii.gz")
        before, before_affine = load(tmp_path / "in" / f"{folder}Tr/BRATS_1.nii.gz")
        np.testing.assert_array_equal(volume, before)
        np.testing.assert_array_equal(affine, before_affine)
    accepted(output)
    more = convert_decathlon(str(tmp_path / "in"), str(tmp_path / "more"), unlabelled=True)
    assert listing(more)["training"][3] == {"image": "images/BRATS_9.nii.gz"}
    accepted(more)


def test_decathlon_refuses(tmp_path: Path) -> None:
    root, target = tmp_path / "in", str(tmp_path / "out")
    decathlon_task(root)
    content = listing(root)
    (root / "imagesTr/BRATS_0.nii.gz").unlink()
    (root / "labelsTr/BRATS_1.nii.gz").unlink()
    with pytest.raises(DataError, match=r"2 faults(.|\n)*BRATS_0(.|\n)*BRATS_1"):
        convert_decathlon(str(root), target)
    for changes, message in (
        ({"training": []}, "is empty"),
        ({"training": {}}, "is no list"),
        ({"training": [3]}, "unknown form"),
        ({"labels": None}, "`labels` is missing"),
    ):
        (root / "dataset.json").write_text(json.dumps({**content, **changes}))
        with pytest.raises(DataError, match=message):
            convert_decathlon(str(root), target)
    for text, message in (("{", "not JSON"), ("[]", "holds a list")):
        (root / "dataset.json").write_text(text)
        with pytest.raises(DataError, match=message):
            convert_decathlon(str(root), target)
    (root / "dataset.json").unlink()
    with pytest.raises(DataError, match="dataset.json: is missing"):
        convert_decathlon(str(root), target)
    assert not Path(target).exists()


# nnU-Net


def nnunet_folder(root: Path, **changes: Any) -> None:
    for case in ("la_a", "la_b"):
        for channel in range(2):
            save(root / f"imagesTr/{case}_{channel:04d}.nii.gz", picture(seed=ord(case[-1]) + channel))
        save(root / f"labelsTr/{case}.nii.gz", mask())
    for channel in range(2):
        save(root / f"imagesTs/la_c_{channel:04d}.nii.gz", picture(seed=channel))
    content = {
        "channel_names": {"0": "T1", "1": "T2"},
        "labels": {"background": 0, "atrium": 1},
        "numTraining": 2,
        "file_ending": ".nii.gz",
    }
    (root / "dataset.json").write_text(json.dumps({**content, **changes}))


def test_nnunet(tmp_path: Path) -> None:
    root = tmp_path / "Dataset001_LA"
    nnunet_folder(root)
    output = convert_nnunet(str(root), str(tmp_path / "out"))
    content = listing(output)
    assert content["name"] == "Dataset001_LA" and content["labels"] == {"0": "background", "1": "atrium"}
    assert content["channel_names"] == {"0": "T1", "1": "T2"} and "test" not in content
    assert content["training"][0] == {
        "image": ["images/la_a_0000.nii.gz", "images/la_a_0001.nii.gz"],
        "label": "labels/la_a.nii.gz",
    }
    np.testing.assert_array_equal(load(output / "images/la_b_0001.nii.gz")[0], picture(seed=ord("b") + 1))
    accepted(output)


def test_nnunet_test_labels_unlabelled_images_and_version_1(tmp_path: Path) -> None:
    root = tmp_path / "Task001_LA"
    changes = {"channel_names": None, "modality": {"0": "MR", "1": "MR2"}, "labels": {"0": "background", "1": "atrium"}}
    nnunet_folder(root, **changes)
    content = {key: value for key, value in listing(root).items() if value is not None}
    (root / "dataset.json").write_text(json.dumps(content))
    more = convert_nnunet(str(root), str(tmp_path / "more"), unlabelled=True)
    first = "images/la_c_0000.nii.gz"
    assert [r["image"][0] for r in listing(more)["training"] if "label" not in r] == [first]
    save(root / "labelsTs/la_c.nii.gz", mask())
    output = convert_nnunet(str(root), str(tmp_path / "out"))
    assert [r["image"][0] for r in listing(output)["test"]] == [first]
    assert listing(output)["channel_names"] == {"0": "MR", "1": "MR2"}
    accepted(output)


def test_nnunet_ignore_label_becomes_scribbles(tmp_path: Path) -> None:
    nnunet_folder(tmp_path / "in", labels={"background": 0, "atrium": 1, "ignore": 2})
    for case in ("la_a", "la_b"):
        drawn = np.full(SHAPE, 2, dtype=np.uint8)
        drawn[3, 3:6, 4], drawn[9, 2:4, 5] = 0, 1
        save(tmp_path / f"in/labelsTr/{case}.nii.gz", drawn)
    output = convert_nnunet(str(tmp_path / "in"), str(tmp_path / "out"))
    content = listing(output)
    assert content["scribble_unlabelled_value"] == 2 and content["labels"] == {"0": "background", "1": "atrium"}
    assert content["training"][0]["scribble"] == "scribbles/la_a.nii.gz" and "label" not in content["training"][0]
    accepted(output)


def test_nnunet_refuses(tmp_path: Path) -> None:
    root, target = tmp_path / "in", str(tmp_path / "out")
    for changes, message in (
        ({"file_ending": ".png"}, "file_ending .png is not supported"),
        ({"channel_names": {}}, "no `channel_names`"),
        ({"labels": {"background": 0, "whole": [1, 2]}}, "regions"),
        ({"dataset": {}}, "lists files elsewhere"),
        ({"channel_names": {"0": "T1"}}, "beyond the 1 of channel_names"),
        ({"channel_names": {"0": "a", "1": "b", "2": "c"}}, "la_a_0002.nii.gz: is missing"),
    ):
        nnunet_folder(root, **changes)
        with pytest.raises(DataError, match=message):
            convert_nnunet(str(root), target)
    nnunet_folder(root)
    save(root / "imagesTr/stray.nii.gz", picture())
    (root / "labelsTr/la_b.nii.gz").unlink()
    with pytest.raises(DataError, match=r"2 faults(.|\n)*stray(.|\n)*no channel number(.|\n)*la_b.nii.gz: is missing"):
        convert_nnunet(str(root), target)
    assert not Path(target).exists()


# patients in names


def frames_of_patients(root: Path, kind: str) -> None:
    """Two frames of each of three patients, as a decathlon task or an nnU-Net folder."""
    names = [f"patient{patient:03d}_frame{frame:02d}" for patient in (1, 2, 3) for frame in (1, 12)]
    ending = "_0000.nii.gz" if kind == "nnunet" else ".nii.gz"
    for number, name in enumerate(names):
        save(root / f"imagesTr/{name}{ending}", picture(seed=number))
        save(root / f"labelsTr/{name}.nii.gz", mask())
    listed = [{"image": f"./imagesTr/{name}.nii.gz", "label": f"./labelsTr/{name}.nii.gz"} for name in names]
    forms: dict[str, dict[str, Any]] = {
        "nnunet": {"channel_names": {"0": "MR"}, "labels": {"background": 0, "heart": 1}},
        "decathlon": {"modality": {"0": "MR"}, "labels": {"0": "background", "1": "heart"}, "training": listed},
    }
    (root / "dataset.json").write_text(json.dumps(forms[kind]))


@pytest.mark.parametrize("pattern", [r"patient\d+", r"^patient(\d+)_"])
@pytest.mark.parametrize("kind", ["nnunet", "decathlon"])
def test_split_keeps_together_whom_the_pattern_finds(tmp_path: Path, kind: str, pattern: str) -> None:
    frames_of_patients(tmp_path / "in", kind)
    main(["convert", kind, str(tmp_path / "in"), str(tmp_path / "out"), "--group_pattern", pattern])
    groups = [record["group"] for record in listing(tmp_path / "out")["training"]]
    prefix = "" if "(" in pattern else "patient"
    assert groups == [f"{prefix}{number}" for number in ("001", "001", "002", "002", "003", "003")]
    main(["split", str(tmp_path / "out"), "--folds", "3"])
    for fold in range(3):
        data, faults = read_data(tmp_path / "out", f"dataset_fold{fold}.json")
        assert faults == [] and len(data.validation) == 2
        assert len({record["group"] for record in data.validation}) == 1


@pytest.mark.parametrize("kind", ["nnunet", "decathlon"])
def test_without_a_pattern_each_case_is_a_patient(
    tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    """No group is made up: it is said, the contract counts every image, and check and split go on."""
    frames_of_patients(tmp_path / "in", kind)
    {"nnunet": convert_nnunet, "decathlon": convert_decathlon}[kind](str(tmp_path / "in"), str(tmp_path / "out"))
    assert not any("group" in record for record in listing(tmp_path / "out")["training"])
    assert "each counts as a patient of its own" in caplog.text and "--group_pattern" in caplog.text
    main(["split", str(tmp_path / "out"), "--fraction", "0.5"])
    main(["check", str(tmp_path / "out"), "--datalist", "dataset_split.json", "--bundles", str(tmp_path / "none")])
    assert "No faults found in 6 cases." in capsys.readouterr().out


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        (r"patient(\d+", r"--group_pattern: 'patient\(.* is no regular expression"),
        (True, "--group_pattern: True is no regular expression"),
        (r"patient00[12]", "finds no patient in patient003_frame01, patient003_frame12. Fix: give one"),
        (r"patient00(x?)", "finds no patient in patient001_frame01"),
    ],
)
@pytest.mark.parametrize("kind", ["nnunet", "decathlon"])
def test_patterns_that_find_no_patient(tmp_path: Path, kind: str, pattern: Any, message: str) -> None:
    frames_of_patients(tmp_path / "in", kind)
    convert = {"nnunet": convert_nnunet, "decathlon": convert_decathlon}[kind]
    with pytest.raises(DataError, match=message):
        convert(str(tmp_path / "in"), str(tmp_path / "out"), group_pattern=pattern)
    assert not (tmp_path / "out").exists()


def test_nothing_is_overwritten_and_all_are_named(tmp_path: Path) -> None:
    decathlon_task(tmp_path / "in")
    with pytest.raises(DataError, match="there already"):
        convert_decathlon(str(tmp_path / "in"), str(tmp_path / "in"))
