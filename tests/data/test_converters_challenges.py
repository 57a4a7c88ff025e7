"""Converters of challenges whose images are NIfTI files in layouts of their own, on small trees made here."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from common.data.__main__ import main
from common.data.contract.faults import DataError
from common.data.converters.atlas import convert_atlas2023
from common.data.converters.brats import convert_brats2020
from common.data.converters.curious import convert_curious2022
from common.data.converters.decathlon import convert_amos22
from common.data.converters.flare21 import convert_flare2021
from common.data.converters.isles import convert_isles2022
from common.data.converters.myops import convert_myops2020
from tests.data.test_converters import listing, load, save

SHAPE = (24, 24, 8)
BRIGHT = (15, 6, 5)  # no axis alike, none in the middle
# an oblique scan with three spacings, the first axis to the left
AFFINE = np.eye(4)
AFFINE[:3, :3] = np.array([[-1.0, 0.0, 0.0], [0.0, 0.8, -0.6], [0.0, 0.6, 0.8]]) * [0.9, 1.1, 3.0]
AFFINE[:3, 3] = [40.0, -30.0, 12.5]


def picture(seed: int, shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    """Noise with one voxel that outshines all."""
    image = np.random.default_rng(seed).integers(0, 100, shape).astype(np.int16)
    image[BRIGHT] = 1000
    return image


def blocks(*values: int) -> np.ndarray:
    """A label with one block for each value, one after the other along the first axis, and the bright voxel in one."""
    label = np.zeros(SHAPE, dtype=np.int16)
    for number, value in enumerate(values):
        label[24 - 4 * (number + 1) : 24 - 4 * number, 4:9, 4:7] = value
    return label


def passes_check(folder: Path) -> None:
    """``python -m common.data check`` finds no fault (it would exit), after ``split`` where there is no validation."""
    name = "dataset.json"
    if "validation" not in listing(folder):
        name = "dataset_split.json"
        main(["split", str(folder), "--fraction", "0.34"])
    main(["check", str(folder), "--datalist", name, "--bundles", str(folder / "none")])


def placed(folder: Path, record: dict[str, Any], affine: np.ndarray, atol: float = 1e-3) -> None:
    """Every channel and the label lie where the download has them, and each channel's bright voxel too."""
    for name in [record["image"]] if isinstance(record["image"], str) else record["image"]:
        voxels, stored = load(folder / name)
        assert tuple(map(int, np.unravel_index(int(np.argmax(voxels)), voxels.shape))) == BRIGHT
        np.testing.assert_allclose(stored, affine, atol=atol)
    np.testing.assert_allclose(load(folder / record["label"])[1], affine, atol=atol)


def agrees(folder: Path, record: dict[str, Any], label: np.ndarray) -> None:
    np.testing.assert_array_equal(load(folder / record["label"])[0], label)


def fails(convert: Callable[..., Path], source: Path, message: str, **options: Any) -> None:
    """One fault in plain words with a fix, and nothing is left behind."""
    output = source.parent / "refused"
    with pytest.raises(DataError, match=message) as caught:
        convert(str(source), str(output), **options)
    assert all(fault.fix for fault in caught.value.faults)
    assert [path.name for path in source.parent.iterdir() if "refused" in path.name] == []


# BraTS 2020


def brats(root: Path, ending: str = ".nii") -> Path:
    """Cases 1, 2 and 355, whose mask has another name, and one without a mask; files of macOS beside them."""
    training = root / "MICCAI_BraTS2020_TrainingData"
    for number in (1, 2, 355):
        name = f"BraTS20_Training_{number:03d}"
        for channel, modality in enumerate(("flair", "t1", "t1ce", "t2")):
            save(training / name / f"{name}_{modality}{ending}", picture(10 * number + channel), AFFINE)
        mask = "W39_1998.09.19_Segm" if number == 355 else f"{name}_seg"
        save(training / name / f"{mask}{ending}", blocks(1, 2, 4), AFFINE)
        (training / name / f"._{name}_t1{ending}").write_bytes(b"macOS")
    validation = root / "MICCAI_BraTS2020_ValidationData" / "BraTS20_Validation_001"
    for channel, modality in enumerate(("flair", "t1", "t1ce", "t2")):
        save(validation / f"BraTS20_Validation_001_{modality}{ending}", picture(channel), AFFINE)
    return root


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_brats2020(tmp_path: Path, ending: str) -> None:
    output = convert_brats2020(str(brats(tmp_path / "in", ending)), str(tmp_path / "out"))
    content = listing(output)
    assert list(content["channel_names"].values()) == ["flair", "t1", "t1ce", "t2"]
    assert content["labels"]["3"] == "enhancing tumour"
    assert [record["group"][-3:] for record in content["training"]] == ["001", "002", "355"]
    for number, record in zip((1, 2, 355), content["training"], strict=True):
        placed(output, record, AFFINE)
        agrees(output, record, blocks(1, 2, 3))
        for channel, name in enumerate(record["image"]):
            np.testing.assert_array_equal(load(output / name)[0], picture(10 * number + channel))
    passes_check(output)


def test_brats2020_options(tmp_path: Path) -> None:
    root = brats(tmp_path / "in")
    (tmp_path / "test.txt").write_text("BraTS20_Training_002\n")
    content = listing(convert_brats2020(str(root), str(tmp_path / "out"), True, str(tmp_path / "test.txt")))
    assert [record["group"] for record in content["test"]] == ["BraTS20_Training_002"]
    assert "label" not in content["training"][-1] and len(content["training"]) == 3


def test_brats2020_refuses(tmp_path: Path) -> None:
    root = brats(tmp_path / "in")
    case = root / "MICCAI_BraTS2020_TrainingData" / "BraTS20_Training_001"
    mask = case / "BraTS20_Training_001_seg.nii"
    save(mask, blocks(1, 2, 3), AFFINE)
    fails(convert_brats2020, root, r"001_seg.nii: holds the values \[3\], known are 0, 1, 2, 4")
    save(mask, blocks(1) + 0.5, AFFINE)
    fails(convert_brats2020, root, "001_seg.nii: has label values that are not whole numbers")
    save(mask, blocks(1)[:-1], AFFINE)
    fails(convert_brats2020, root, "001_seg.nii: has shape 23 x 24 x 8, its image .* has 24 x 24 x 8")
    save(mask, blocks(1), np.eye(4))
    fails(convert_brats2020, root, "001_seg.nii: lies elsewhere in space")
    mask.unlink()
    fails(convert_brats2020, root, "no label for BraTS20_Training_001")
    save(mask, blocks(1), AFFINE)
    (case / "BraTS20_Training_001_t1ce.nii").unlink()
    fails(convert_brats2020, root, "no t1ce for BraTS20_Training_001")
    (tmp_path / "empty").mkdir()
    fails(convert_brats2020, tmp_path / "empty", "holds no BraTS20_Training_001")


# ISLES 2022

FLAIR_AFFINE = AFFINE.copy()
FLAIR_AFFINE[:3, :3] = AFFINE[:3, :3] * 0.5  # twice as fine; the same first voxel centre


def isles(root: Path, nested: bool) -> Path:
    """Three cases in one of the two layouts; the mask of the third is empty. FLAIR is finer than DWI."""
    for number in (1, 2, 3):
        case = Path(f"sub-strokecase{number:04d}") / "ses-0001"
        name = f"sub-strokecase{number:04d}_ses-0001"
        folder = (root if nested else root / "rawdata") / case
        for channel, modality in enumerate(("dwi", "adc")):
            place = folder / "dwi" if nested else folder
            save(place / f"{name}_{modality}.nii.gz", picture(10 * number + channel), AFFINE)
            (place / f"{name}_{modality}.json").write_text("{}")
        flair = np.repeat(np.repeat(np.repeat(picture(number), 2, 0), 2, 1), 2, 2).astype(np.float32)
        place = folder / "anat" if nested else folder
        save(place / f"{name}_{'FLAIR' if nested else 'flair'}.nii.gz", flair, FLAIR_AFFINE)
        mask = blocks(1) if number < 3 else np.zeros(SHAPE, dtype=np.int16)
        save(root / "derivatives" / case / f"{name}_msk.nii.gz", mask, AFFINE)
    return root


@pytest.mark.parametrize("nested", [False, True])
def test_isles2022(tmp_path: Path, nested: bool) -> None:
    output = convert_isles2022(str(isles(tmp_path / "in", nested)), str(tmp_path / "out"))
    content = listing(output)
    assert list(content["channel_names"].values()) == ["dwi", "adc"]
    assert [record["group"] for record in content["training"]] == [f"sub-strokecase000{n}" for n in (1, 2, 3)]
    assert [record.get("empty", False) for record in content["training"]] == [False, False, True]
    for record in content["training"]:
        placed(output, record, AFFINE)
    agrees(output, content["training"][1], blocks(1))
    passes_check(output)


@pytest.mark.parametrize("nested", [False, True])
def test_isles2022_resamples_flair(tmp_path: Path, nested: bool) -> None:
    output = convert_isles2022(str(isles(tmp_path / "in", nested)), str(tmp_path / "out"), flair=True)
    record = listing(output)["training"][1]
    assert len(record["image"]) == 3
    flair, affine = load(output / record["image"][2])
    np.testing.assert_allclose(affine, AFFINE, atol=1e-5)
    # voxel i of DWI lies on voxel 2 i of FLAIR, which repeats voxel i twice
    np.testing.assert_allclose(flair, picture(2), atol=1e-2)
    passes_check(output)


def test_isles2022_refuses(tmp_path: Path) -> None:
    root = isles(tmp_path / "in", False)
    name = "sub-strokecase0002/ses-0001/sub-strokecase0002_ses-0001"
    (root / "derivatives" / f"{name}_msk.nii.gz").unlink()
    fails(convert_isles2022, root, "no label for sub-strokecase0002_ses-0001")
    save(root / "rawdata" / f"{name}_adc.nii.gz", picture(0), FLAIR_AFFINE)
    fails(convert_isles2022, root, "_adc.nii.gz: lies elsewhere", unlabelled=True)
    (root / "rawdata" / f"{name}_adc.nii.gz").unlink()
    fails(convert_isles2022, root, "no adc for sub-strokecase0002_ses-0001", unlabelled=True)


# MyoPS 2020


def myops(root: Path) -> Path:
    for number in (101, 102, 125):
        for channel, name in enumerate(("C0", "DE", "T2")):
            path = root / "train25" / f"myops_training_{number}_{name}.nii.gz"
            save(path, picture(10 * number + channel), AFFINE)
        label = blocks(200, 500, 600, 1220, 2221)
        save(root / "train25_myops_gd" / f"myops_training_{number}_gd.nii.gz", label, AFFINE)
    for name in ("C0", "DE", "T2"):
        save(root / "test20" / f"myops_test_201_{name}.nii.gz", picture(0), AFFINE)
    return root


def test_myops2020(tmp_path: Path) -> None:
    output = convert_myops2020(str(myops(tmp_path / "in")), str(tmp_path / "out"))
    content = listing(output)
    assert list(content["channel_names"].values()) == ["C0", "DE", "T2"] and len(content["training"]) == 3
    for record in content["training"]:
        placed(output, record, AFFINE)
        agrees(output, record, blocks(1, 2, 3, 4, 5))
    passes_check(output)
    label = tmp_path / "in" / "train25_myops_gd" / "myops_training_102_gd.nii.gz"
    save(label, blocks(200, 2220), AFFINE)
    fails(convert_myops2020, tmp_path / "in", r"102_gd.nii.gz: holds the values \[2220\]")


# CuRIOUS 2022


def curious(root: Path, positioned: bool = True) -> Path:
    """Masks in a folder of their own, with or without a position in their headers."""
    for number in (1, 2, 12):
        folder = root / "NIFTI" / f"Case{number}" / "US"
        save(folder / f"Case{number}-US-before.nii.gz", picture(number), AFFINE)
        save(folder / f"Case{number}-US-after.nii.gz", picture(0), AFFINE)
        mask = nib.Nifti1Image(blocks(1).astype(np.uint8), AFFINE)
        if not positioned:
            mask.set_sform(None, 0)
            mask.set_qform(None, 0)
        path = root / "RESECT_segmentation" / f"Case{number}" / f"Case{number}-US-before-tumor.nii.gz"
        path.parent.mkdir(parents=True)
        nib.save(mask, path)
    return root


@pytest.mark.parametrize("positioned", [True, False])
def test_curious2022(tmp_path: Path, positioned: bool) -> None:
    root = curious(tmp_path / "in", positioned)
    if not positioned:
        mask = root / "RESECT_segmentation/Case2/Case2-US-before-tumor.nii.gz"
        assert not np.allclose(load(mask)[1], AFFINE)
    output = convert_curious2022(str(root / "NIFTI"), str(tmp_path / "out"), str(root / "RESECT_segmentation"))
    content = listing(output)
    assert [record["group"] for record in content["training"]] == ["Case1", "Case2", "Case12"]
    for record in content["training"]:
        placed(output, record, AFFINE)
        agrees(output, record, blocks(1))
    passes_check(output)


def test_curious2022_refuses(tmp_path: Path) -> None:
    root = curious(tmp_path / "in")
    mask = root / "RESECT_segmentation/Case2/Case2-US-before-tumor.nii.gz"
    save(mask, blocks(1), np.diag([1.0, 2, 3, 1]))
    fails(convert_curious2022, root, "Case2-US-before-tumor.nii.gz: lies elsewhere")
    mask.unlink()
    fails(convert_curious2022, root, "no tumor for Case2")
    fails(convert_curious2022, root / "NIFTI", "holds no Case1-US-before-tumor.nii.gz")


# AMOS 2022, ATLAS 2023, FLARE 2021


def amos(root: Path) -> Path:
    lists: dict[str, Any] = {"training": [], "validation": [], "test": []}
    for section, part, numbers in (
        ("training", "Tr", (1, 4, 507)),
        ("validation", "Va", (8, 510)),
        ("test", "Ts", (2,)),
    ):
        for number in numbers:
            name = f"amos_{number:04d}.nii.gz"
            entry = {"image": f"./images{part}/{name}"}
            save(root / entry["image"], picture(number), AFFINE)
            save(root / f"images{part}" / f"._{name}", np.zeros((2, 2, 2), np.uint8))
            if section != "test":
                entry["label"] = f"./labels{part}/{name}"
                save(root / entry["label"], blocks(1, 2), AFFINE)
            lists[section].append(entry)
    labels = {"0": "background", "1": "spleen", "2": "right kidney"}
    content = {"name": "AMOS", "modality": {"0": "CT"}, "labels": labels, **lists}
    (root / "dataset.json").write_text(json.dumps(content))
    return root


@pytest.mark.parametrize(
    ("modality", "training", "validation"),
    [("both", [1, 4, 507], [8, 510]), ("ct", [1, 4], [8]), ("mr", [507], [510])],
)
def test_amos22(tmp_path: Path, modality: str, training: list[int], validation: list[int]) -> None:
    output = convert_amos22(str(amos(tmp_path / "in")), str(tmp_path / "out"), modality)
    content = listing(output)
    for section, numbers in (("training", training), ("validation", validation)):
        assert [int(record["group"][5:]) for record in content[section]] == numbers
        for record in content[section]:
            placed(output, record, AFFINE)
            agrees(output, record, blocks(1, 2))
    assert "test" not in content
    passes_check(output)


def test_amos22_options(tmp_path: Path) -> None:
    root = amos(tmp_path / "in")
    content = listing(convert_amos22(str(root), str(tmp_path / "out"), "ct", unlabelled=True))
    assert [record["group"] for record in content["training"] if "label" not in record] == ["amos_0002"]
    fails(convert_amos22, root, "'pet' is unknown", modality="pet")
    listed = json.loads((root / "dataset.json").read_text())
    fewer = [{"image": entry["image"]} for entry in listed["training"]]
    (root / "dataset.json").write_text(json.dumps({**listed, "training": fewer}))
    fails(convert_amos22, root, r"3 faults(.|\n)*amos_0001.nii.gz: has no label in `training`")
    # validation entries without labels are taken as test entries are
    fewer = [{"image": entry["image"]} for entry in listed["validation"]]
    (root / "dataset.json").write_text(json.dumps({**listed, "validation": fewer}))
    content = listing(convert_amos22(str(root), str(tmp_path / "fewer"), unlabelled=True))
    assert "validation" not in content and len(content["training"]) == 6
    (root / "dataset.json").write_text(json.dumps(listed))
    (root / "labelsVa" / "amos_0008.nii.gz").unlink()
    fails(convert_amos22, root, "labelsVa/amos_0008.nii.gz: is missing")


def atlas(root: Path) -> Path:
    for number in (0, 7, 59):
        save(root / "imagesTr" / f"im{number}.nii.gz", picture(number), AFFINE)
        save(root / "imagesTr" / f"._im{number}.nii.gz", picture(number), AFFINE)
        save(root / "labelsTr" / f"lb{number}.nii.gz", blocks(1, 2), AFFINE)
    return root


def test_atlas2023(tmp_path: Path) -> None:
    root = atlas(tmp_path / "in")
    output = convert_atlas2023(str(root), str(tmp_path / "out"))
    content = listing(output)
    assert [record["group"] for record in content["training"]] == ["case_00", "case_07", "case_59"]
    for number, record in zip((0, 7, 59), content["training"], strict=True):
        placed(output, record, AFFINE)
        agrees(output, record, blocks(1, 2))
        np.testing.assert_array_equal(load(output / record["image"])[0], picture(number))
    passes_check(output)
    (root / "labelsTr" / "lb7.nii.gz").write_bytes(b"cut")
    fails(convert_atlas2023, root, "lb7.nii.gz: cannot be read as NIfTI")


def test_flare2021(tmp_path: Path) -> None:
    root = tmp_path / "in"
    for number in (0, 1, 360):
        save(root / "TrainingImg" / f"train_{number:03d}_0000.nii.gz", picture(number), AFFINE)
        save(root / "TrainingMask" / f"train_{number:03d}.nii.gz", blocks(1, 2, 3, 4), AFFINE)
    save(root / "ValidationImg" / "validation_001_0000.nii.gz", picture(5), AFFINE)
    output = convert_flare2021(str(root), str(tmp_path / "out"))
    content = listing(output)
    assert [record["group"] for record in content["training"]] == ["train_000", "train_001", "train_360"]
    for record in content["training"]:
        placed(output, record, AFFINE)
        agrees(output, record, blocks(1, 2, 3, 4))
    passes_check(output)
    more = listing(convert_flare2021(str(root), str(tmp_path / "more"), unlabelled=True))
    assert [record["group"] for record in more["training"] if "label" not in record] == ["validation_001"]
    (root / "TrainingImg" / "train_001_0000.nii.gz").unlink()
    fails(convert_flare2021, root, "no image for train_001")
