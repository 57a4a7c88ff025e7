"""Converters of data sets that are stacks of slices (ACDC, CHAOS), on small files made here."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
from PIL import Image

from common.data.__main__ import main
from common.data.contract.dataset import read_data
from common.data.contract.faults import DataError
from common.data.converters.acdc import convert_acdc
from common.data.converters.chaos import convert_chaos
from tests.data.test_converters import accepted, listing, load, save, write_dicom

# ACDC

AFFINE = np.diag([-1.5, -1.4, 8.0, 1.0])
AFFINE[:3, 3] = [90, 80, -20]


def heart(seed: int = 0) -> np.ndarray:
    """Three structures, of no symmetry; the last slice is empty."""
    label = np.zeros((16, 14, 4), dtype=np.uint8)
    label[2:7, 3:8, :3] = 1
    label[7:13, 2:9, :3] = 2
    label[8:11, 3:6, :3] = 3
    return np.roll(label, seed, axis=1)


def drawn(label: np.ndarray) -> np.ndarray:
    """Every third row of the label, and a line of background."""
    scribble = np.full_like(label, 4)
    scribble[::3] = label[::3]
    scribble[label == 0] = 4
    scribble[0, :5] = 0
    return scribble


def acdc_download(root: Path, scribbles: Path) -> None:
    """Two training patients with two frames, a test patient; 4D files and Info.cfg beside them."""
    for patient, frames in ((1, (1, 12)), (2, (1, 9)), (101, (1,))):
        name = f"patient{patient:03d}"
        folder = root / ("testing" if patient > 100 else "training") / name
        for frame in frames:
            label = heart(patient % 3)
            image = (np.random.default_rng(100 * patient + frame).random(label.shape) * 99).astype(np.float32)
            save(folder / f"{name}_frame{frame:02d}.nii.gz", image, AFFINE)
            save(folder / f"{name}_frame{frame:02d}_gt.nii.gz", label, AFFINE)
            if patient < 100:  # scribbles without a position in space
                save(scribbles / name / f"{name}_frame{frame:02d}_scribble.nii.gz", drawn(label))
        save(folder / f"{name}_4d.nii.gz", np.zeros((16, 14, 4, 2), dtype=np.float32), AFFINE)
        (folder / "Info.cfg").write_text("ED: 1\nES: 12\n")


@pytest.fixture
def acdc(tmp_path: Path) -> Path:
    acdc_download(tmp_path / "in", tmp_path / "scribbles")
    return tmp_path


def test_acdc_without_scribbles(acdc: Path) -> None:
    output = convert_acdc(str(acdc / "in"), str(acdc / "out"))
    content = listing(output)
    assert content["labels"] == {"0": "background", "1": "right ventricle", "2": "myocardium", "3": "left ventricle"}
    assert [r["group"] for r in content["training"]] == ["patient001", "patient001", "patient002", "patient002"]
    assert [r["group"] for r in content["test"]] == ["patient101"]
    assert content["training"][1] == {
        "image": "images/patient001_frame12.nii.gz",
        "label": "labels/patient001_frame12.nii.gz",
        "group": "patient001",
    }
    assert "scribble_unlabelled_value" not in content
    source = acdc / "in/training/patient001/patient001_frame12.nii.gz"
    np.testing.assert_array_equal(load(output / "images/patient001_frame12.nii.gz")[0], load(source)[0])
    np.testing.assert_array_equal(load(output / "labels/patient002_frame09.nii.gz")[0], heart(2))
    accepted(output)


@pytest.mark.parametrize("flat", [False, True])
def test_acdc_with_scribbles_in_folders_or_in_one(acdc: Path, flat: bool) -> None:
    if flat:
        for path in sorted((acdc / "scribbles").rglob("*.nii.gz")):
            path.rename(acdc / "scribbles" / path.name)
    main(["convert", "acdc", str(acdc / "in"), str(acdc / "out"), "--scribbles", str(acdc / "scribbles")])
    content = listing(acdc / "out")
    assert content["scribble_unlabelled_value"] == 4
    assert all({"label", "scribble"} <= set(record) for record in content["training"])
    assert not any("scribble" in record for record in content["test"])
    scribble, affine = load(acdc / "out" / content["training"][2]["scribble"])
    np.testing.assert_array_equal(scribble, drawn(heart(2)))
    np.testing.assert_allclose(affine, AFFINE)  # its image's
    accepted(acdc / "out")
    main(["split", str(acdc / "out"), "--fraction", "0.5"])
    data, faults = read_data(acdc / "out", "dataset_split.json")
    assert faults == [] and len({record["group"] for record in data.validation}) == 1


def test_acdc_takes_a_test_list(acdc: Path) -> None:
    (acdc / "test.list").write_text("patient002\n")
    for path in (acdc / "scribbles/patient002").iterdir():
        path.unlink()  # a test patient needs none
    save(acdc / "scribbles/patient101_frame01_scribble.nii.gz", drawn(heart(101 % 3)))
    output = convert_acdc(
        str(acdc / "in"), str(acdc / "out"), scribbles=str(acdc / "scribbles"), test_list=str(acdc / "test.list")
    )
    assert {r["group"] for r in listing(output)["test"]} == {"patient002"}
    assert {r["group"] for r in listing(output)["training"]} == {"patient001", "patient101"}


def test_acdc_refuses(acdc: Path) -> None:
    source, target, scribbles = str(acdc / "in"), str(acdc / "out"), str(acdc / "scribbles")
    path = acdc / "scribbles/patient001/patient001_frame12_scribble.nii.gz"
    wrong = {
        "only .* of its structure voxels carry the value of patient001_frame12_gt": drawn(heart(1))[::-1],
        r"has shape \(14, 16, 4\)": drawn(heart(1)).transpose(1, 0, 2),
        r"holds the values \[7\]": np.full((16, 14, 4), 7, dtype=np.uint8),
    }
    for message, scribble in wrong.items():
        save(path, scribble)
        with pytest.raises(DataError, match=message):
            convert_acdc(source, target, scribbles)
    path.unlink()
    with pytest.raises(DataError, match=r"no scribble .* for patient001_frame12"):
        convert_acdc(source, target, scribbles)
    (acdc / "in/training/patient002/patient002_frame01_gt.nii.gz").unlink()
    with pytest.raises(DataError, match=r"no label .* for patient002_frame01"):
        convert_acdc(source, target)
    with pytest.raises(DataError, match="holds no patientXXX"):
        convert_acdc(scribbles, target)
    with pytest.raises(DataError, match="there is no such folder"):
        convert_acdc(str(acdc / "nowhere"), target)
    assert not Path(target).exists()


def test_acdc_refuses_two_scribbles_of_one_frame(acdc: Path) -> None:
    """Two annotators' folders below one: neither is taken by its name."""
    first = acdc / "scribbles/patient001/patient001_frame12_scribble.nii.gz"
    save(acdc / "scribbles/second/patient001_frame12_scribble.nii.gz", load(first)[0])
    with pytest.raises(DataError, match=r"second/.*: a second scribble of patient001_frame12, beside .*/patient001/"):
        convert_acdc(str(acdc / "in"), str(acdc / "out"), str(acdc / "scribbles"))
    assert not (acdc / "out").exists()


# CHAOS

SHAPE = (12, 10, 8)  # columns, rows, slices
GREY = (0, 63, 126, 189, 252)


def organs() -> np.ndarray:
    """Label of four organs, each in its own slices; columns run from right to left, as in an axial scan."""
    label = np.zeros(SHAPE, dtype=np.uint8)
    label[1:5, 2:6, 1:6] = 1
    label[2:4, 7:9, 2:5] = 2
    label[8:10, 7:9, 3:6] = 3
    label[9:11, 1:4, 4:8] = 4
    return label


def chaos_case(root: Path, case: str, label: np.ndarray, orientation: list[float] | None = None) -> Path:
    """DICOM files whose names run against their positions, and PNGs named like them; the image follows the label."""
    folder = root / case / "T1DUAL"
    image = np.where(label > 0, 200 + 2 * label.astype(np.int16), 0).astype(np.int16)
    write_dicom(folder / "DICOM_anon/InPhase", image, orientation)
    write_dicom(folder / "DICOM_anon/OutPhase", image, orientation)
    (folder / "Ground").mkdir()
    for number in range(label.shape[2]):
        grey = np.asarray(GREY, dtype=np.uint8)[label[:, :, number].T]
        Image.fromarray(grey).save(folder / "Ground" / f"1-{label.shape[2] - number:03d}.png")
    return folder


def agrees(folder: Path, record: dict[str, str], label: np.ndarray) -> None:
    """The label lies on its image's grid, on the tissue that it names."""
    image, affine = load(folder / record["image"])
    stored, label_affine = load(folder / record["label"])
    np.testing.assert_allclose(label_affine, affine)
    np.testing.assert_array_equal(stored, label)
    np.testing.assert_array_equal(image[stored > 0], 200 + 2 * stored[stored > 0].astype(int))
    assert (image[stored == 0] == 0).all()


@pytest.mark.parametrize("oblique", [False, True])
def test_chaos(tmp_path: Path, oblique: bool) -> None:
    orientation = [1.0, 0.0, 0.0, 0.0, 0.96, 0.28] if oblique else None
    for case in ("2", "10"):
        chaos_case(tmp_path / "in/Train_Sets/MR", case, organs(), orientation if case == "2" else None)
    (tmp_path / "in/Test_Sets/MR/3/T1DUAL/DICOM_anon/InPhase").mkdir(parents=True)  # no Ground: left out
    main(["convert", "chaos", str(tmp_path / "in"), str(tmp_path / "out")])
    content = listing(tmp_path / "out")
    assert content["labels"] == {
        "0": "background",
        "1": "liver",
        "2": "right kidney",
        "3": "left kidney",
        "4": "spleen",
    }
    assert [record["group"] for record in content["training"]] == ["2", "10"] and "test" not in content
    for record in content["training"]:
        agrees(tmp_path / "out", record, organs())
    _, affine = load(tmp_path / "out" / content["training"][1]["label"])
    right, left = (affine @ [*np.argwhere(organs() == kidney).mean(axis=0), 1] for kidney in (2, 3))
    assert right[0] > left[0]  # right-anterior-superior: the first coordinate grows to the right
    lowest = (affine @ [0, 0, 0, 1])[2], (affine @ [0, 0, 7, 1])[2]
    np.testing.assert_allclose(lowest, [100.0, 117.5])  # write_dicom: feet to head, 2.5 mm apart
    accepted(tmp_path / "out")


def test_chaos_pngs_of_other_names_follow_the_order_of_the_dicom_names(tmp_path: Path) -> None:
    """Numbers are ordered as numbers: mask9 comes before mask10."""
    folder = chaos_case(tmp_path / "in", "1", organs())
    for path in sorted((folder / "Ground").iterdir()):
        path.rename(path.with_name(f"mask{int(path.stem[2:]) + 5}.png"))
    output = convert_chaos(str(tmp_path / "in"), str(tmp_path / "out"))
    agrees(output, listing(output)["training"][0], organs())


def test_chaos_grey_values_and_colour_modes(tmp_path: Path) -> None:
    """The documented ranges are read, their ends included; a PNG of three equal channels is grey."""
    folder = chaos_case(tmp_path / "in", "1", organs())
    path = folder / "Ground/1-003.png"  # the slice at place 8 - 3
    grey = np.zeros((10, 12), dtype=np.uint8)
    grey[0, :8] = [55, 70, 110, 135, 175, 200, 240, 255]
    Image.fromarray(np.stack([grey] * 3, axis=-1)).save(path)
    output = convert_chaos(str(tmp_path / "in"), str(tmp_path / "out"))
    label, _ = load(output / "labels/case_01.nii.gz")
    assert label[:8, 0, 5].tolist() == [1, 1, 2, 2, 3, 3, 4, 4] and (label[:, 1:, 5] == 0).all()


def test_chaos_takes_a_test_list(tmp_path: Path) -> None:
    for case in ("1", "2"):
        chaos_case(tmp_path / "in", case, organs())
    (tmp_path / "test.list").write_text("2\n")
    output = convert_chaos(str(tmp_path / "in"), str(tmp_path / "out"), test_list=str(tmp_path / "test.list"))
    assert [record["image"] for record in listing(output)["test"]] == ["images/case_02.nii.gz"]
    assert [record["image"] for record in listing(output)["training"]] == ["images/case_01.nii.gz"]


def test_chaos_refuses(tmp_path: Path) -> None:
    source, target = str(tmp_path / "in"), str(tmp_path / "out")
    folder = chaos_case(tmp_path / "in", "1", organs())
    first = folder / "Ground/1-001.png"
    good = first.read_bytes()
    Image.fromarray(np.full((10, 12), 90, dtype=np.uint8)).save(first)
    with pytest.raises(DataError, match=r"1-001\.png: holds the grey values \[90\]"):
        convert_chaos(source, target)
    Image.fromarray(np.zeros((12, 10), dtype=np.uint8)).save(first)
    with pytest.raises(DataError, match=r"has \(12, 10\) rows and columns, its DICOM file \(10, 12\)"):
        convert_chaos(source, target)
    first.write_bytes(good[:45])
    with pytest.raises(DataError, match=r"1-001\.png: cannot be read as PNG"):
        convert_chaos(source, target)
    first.unlink()
    with pytest.raises(DataError, match="holds 7 PNGs for 8 DICOM files"):
        convert_chaos(source, target)
    first.write_bytes(good)
    chaos_case(tmp_path / "in/more", "1", organs())
    with pytest.raises(DataError, match="a second case of the name 1"):
        convert_chaos(source, target)
    with pytest.raises(DataError, match="holds no <case>/T1DUAL"):
        convert_chaos(str(folder / "Ground"), target)
    (tmp_path / "in/4/T1DUAL").mkdir(parents=True)
    with pytest.raises(DataError, match=r"4/T1DUAL/Ground: there is no such folder"):
        convert_chaos(source, target)
    assert not Path(target).exists()


def test_chaos_refuses_mirrored_labels(tmp_path: Path) -> None:
    chaos_case(tmp_path / "in", "1", organs()[::-1])
    with pytest.raises(DataError, match="the right kidney lies to the left of the left one"):
        convert_chaos(str(tmp_path / "in"), str(tmp_path / "out"))


def test_chaos_files_as_the_challenge_names_them(tmp_path: Path) -> None:
    """In-phase files have the even numbers, from IMG-0004-00002 on; out-phase files the odd ones."""
    folder = chaos_case(tmp_path / "in", "1", organs())
    for kind in ("DICOM_anon/InPhase", "Ground"):
        for path in sorted((folder / kind).iterdir()):
            path.rename(path.with_name(f"IMG-0004-{2 * int(path.stem[2:]):05d}{path.suffix}"))
    scan = pydicom.dcmread(folder / "DICOM_anon/InPhase/IMG-0004-00002.dcm")
    assert scan.ImagePositionPatient[2] == 117.5  # the first name is the highest slice here
    output = convert_chaos(str(tmp_path / "in"), str(tmp_path / "out"))
    agrees(output, listing(output)["training"][0], organs())
    image = nib.load(output / "images/case_01.nii.gz")
    assert nib.aff2axcodes(image.affine) == ("L", "P", "S")  # type: ignore[attr-defined]
