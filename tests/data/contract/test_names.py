"""What cases are called, and how large their voxels are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from monai.transforms import LoadImage

from common.data.contract.names import case_name, voxel_ml, voxel_size


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("/data/case_1.nii.gz", "case_1"),
        ("case.1.nii", "case.1"),
        (["/data/case_1_flair.nii.gz", "/data/case_1_t1.nii.gz"], "case_1_flair"),
    ],
)
def test_case_name(source: Any, name: str) -> None:
    assert case_name(source) == name


@pytest.mark.parametrize(
    ("affine", "zooms", "expected"),
    [
        (np.eye(4), None, None),
        (None, None, None),  # no affine at all: both codes are 0
        (None, (0.5, 1.0, 3.0), (0.5, 1.0, 3.0)),
        (np.diag([-1.0, 1.0, 1.0, 1.0]), None, (1.0, 1.0, 1.0)),
        (np.diag([2.0, 1.0, 1.5, 1.0]), None, (2.0, 1.0, 1.5)),
    ],
    ids=["identity", "none", "sizes alone", "stated 1 mm", "stated"],
)
def test_voxel_size(affine: Any, zooms: Any, expected: tuple[float, ...] | None, tmp_path: Path) -> None:
    image = nib.Nifti1Image(np.zeros((4, 5, 6), np.float32), affine)
    if zooms is not None:
        image.header.set_zooms(zooms)
    nib.save(image, tmp_path / "a.nii.gz")
    assert voxel_size(LoadImage(image_only=True, ensure_channel_first=True)(tmp_path / "a.nii.gz")) == expected


def test_a_sheared_voxel_has_the_volume_of_its_parallelepiped() -> None:
    assert voxel_ml(np.array([[1.0, 0, 0, 0], [0, 1, 2, 0], [0, 0, 3, 0], [0, 0, 0, 1]])) == pytest.approx(3e-3)
