"""Agreement of raters against a double loop, and what `check` says of it."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from common.data import make_phantom
from common.data.__main__ import main
from common.data.contract.agreement import Agreement, format_agreement, rater_agreement, rater_dice


def test_dice_of_each_pair() -> None:
    rng = np.random.default_rng(0)
    masks = [rng.integers(0, 3, (5, 6)) for _ in range(4)] + [np.zeros((5, 6), int)]
    expected = np.ones((5, 5))
    for i, a in enumerate(masks):
        for j, b in enumerate(masks):
            dice = []
            for structure in (1, 2, 3):
                first, second = a == structure, b == structure
                total = first.sum() + second.sum()
                dice.append(2 * (first & second).sum() / total if total else 1.0)
            expected[i, j] = np.mean(dice)
    assert rater_dice(masks, (1, 2, 3)) == pytest.approx(expected)


def test_who_stands_apart() -> None:
    dice = np.array([[1.0, 0.9, 0.2], [0.9, 1.0, 0.3], [0.2, 0.3, 1.0]])
    case = Agreement("a", dice)
    assert case.mean == pytest.approx((0.9 + 0.2 + 0.3) / 3) and case.outlier == 2
    assert Agreement("b", dice[:2, :2]).outlier is None, "of two nobody is the odd one"
    assert Agreement("c", dice[:1, :1]).mean == 1.0
    text = format_agreement([case, Agreement("b", dice[:2, :2])])
    assert "2 to 3 a case in 2 cases" in text and "number 3 in 1 of 1 cases" in text and "a 0.467" in text


def test_a_mask_that_cannot_be_read_is_told_elsewhere(tmp_path: Path) -> None:
    assert rater_agreement({"image": "a.nii.gz", "labels": [str(tmp_path / "none.nii.gz")]}, [1]) is None


def test_a_mask_with_a_fourth_axis_of_length_1_is_a_mask(tmp_path: Path) -> None:
    mask = np.zeros((4, 4, 3), dtype=np.uint8)
    mask[1:3] = 1
    paths = [str(tmp_path / f"rater{number}.nii.gz") for number in range(2)]
    for path, voxels in zip(paths, (mask, mask[..., None]), strict=True):
        nib.save(nib.Nifti1Image(voxels, np.eye(4)), path)
    found = rater_agreement({"image": "a.nii.gz", "labels": paths}, [1])
    assert found is not None and found.mean == 1.0


def test_check_tells_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cases = {"training": 5, "validation": 1, "test": 1}
    root = make_phantom(tmp_path / "raters", "raters", cases=cases, shape=(20, 20, 14))
    main(["check", str(root)])
    text = capsys.readouterr().out
    assert "a case in 6 cases; mean pairwise Dice" in text and "No faults found" in text
