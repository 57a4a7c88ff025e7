from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from bundles.attenscribble.scripts.transforms import LabelledOnlyd, LoadScribbled, ResizeScribbled


def write(folder: Path, name: str, values: list[int]) -> str:
    path = folder / f"{name}.nii.gz"
    nib.save(nib.Nifti1Image(np.array(values, dtype=np.uint8).reshape(len(values), 1, 1), np.eye(4)), path)
    return str(path)


def codes(record: dict[Any, Any], **arguments: Any) -> list[int]:
    found = LoadScribbled(**({"num_classes": 3} | arguments))(record)["scribble"]
    assert found.dtype == torch.uint8 and found.shape[0] == 1
    return found.flatten().tolist()


@pytest.mark.parametrize(("unlabelled", "classes"), [(255, 3), (3, 3), (4, 4)])
def test_scribble_files(tmp_path: Path, unlabelled: int, classes: int) -> None:
    """The value for unlabelled may be the number of classes, as in ACDC's scribbles."""
    path = write(tmp_path, "s", [unlabelled, 0, 1, classes - 1])
    record = {"scribble": path, "scribble_unlabelled_value": unlabelled}
    assert codes(record, num_classes=classes) == [1, 2, 3, classes + 1]


def test_the_value_for_unlabelled_comes_with_the_record(tmp_path: Path) -> None:
    """A server's records have none; then it is the default."""
    record = {"scribble": write(tmp_path, "s", [7, 0, 1])}
    assert codes(record | {"scribble_unlabelled_value": 7}) == [1, 2, 3]


def test_a_drawing_has_a_stroke_in_the_background(tmp_path: Path) -> None:
    """What an annotation tool saves: 0 where nothing is drawn, 1 and 2 structures, 3 drawn background."""
    assert codes({"label": write(tmp_path, "l", [0, 1, 2, 3])}) == [1, 3, 4, 2]


def test_a_label_without_one_is_dense(tmp_path: Path) -> None:
    assert codes({"label": write(tmp_path, "l", [0, 1, 2, 0])}) == [2, 3, 4, 2]


def test_a_reference_is_no_scribble(tmp_path: Path) -> None:
    """It is what measures, so it must not teach."""
    with pytest.raises(KeyError, match="label"):
        codes({"reference": write(tmp_path, "c", [0, 1])})


def test_the_dense_label_on_demand_and_the_reference_without_it(tmp_path: Path) -> None:
    scribble, dense = write(tmp_path, "s", [255, 1]), write(tmp_path, "d", [0, 1])
    assert codes({"scribble": scribble, "label": dense}, source="label") == [2, 3]
    assert codes({"scribble": scribble, "reference": dense}, source="label") == [2, 3]
    assert codes({"scribble": scribble, "label": dense}) == [1, 3]


def test_other_values_are_told(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"s\.nii\.gz.*\[7\].*3"):
        codes({"scribble": write(tmp_path, "s", [255, 7, 1])})
    with pytest.raises(ValueError, match="source"):
        LoadScribbled(3, source="labels")


def test_only_what_is_labelled_is_compared() -> None:
    logits = torch.tensor([[0.0, 9.0, 0.0, 0.0], [9.0, 0.0, 9.0, 9.0], [0.0, 0.0, 0.0, 0.0]]).reshape(3, 1, 4)
    label = torch.tensor([3, 4, 1, 0], dtype=torch.uint8).reshape(1, 1, 4)
    found = LabelledOnlyd()({"pred": logits, "label": label})
    assert found["pred"].flatten().tolist() == [1, 0, 0, 0]
    assert found["label"].flatten().tolist() == [1, 2, 0, 0]


def resized(codes: torch.Tensor, *size: int) -> torch.Tensor:
    found: torch.Tensor = ResizeScribbled((*size, -1))({"scribble": MetaTensor(codes)})["scribble"]
    assert found.dtype == torch.uint8
    return torch.as_tensor(found)


@pytest.mark.parametrize(("old", "new"), [(216, 128), (256, 48), (96, 64), (50, 17)])
def test_a_line_of_one_pixel_stays_where_it_is(old: int, new: int) -> None:
    """Wherever it lies: every new pixel that it passes through is marked, and no other."""
    for place in range(old):
        codes = torch.ones((1, old, old, 2), dtype=torch.uint8)
        codes[0, place, 5:-5] = 3
        found = resized(codes, new, new)
        assert found.shape == (1, new, new, 2) and set(found.unique().tolist()) == {1, 3}
        rows = (found[0, :, new // 2, 0] == 3).nonzero()[:, 0].tolist()
        low, high = place * new / old, (place + 1) * new / old
        assert rows == list(range(int(low), math.ceil(high - 1e-9)))


def test_labels_stay_in_their_place() -> None:
    """Half a pixel's shift, as of pixels counted from their corners, would show in a disc's centre."""
    axis = torch.arange(216) + 0.5
    disc = ((axis[:, None] - 100) ** 2 + (axis - 120) ** 2 < 40**2).to(torch.uint8) + 2
    found = resized(disc[None, ..., None].expand(1, -1, -1, 2).contiguous(), 128, 128)[0, ..., 0] == 3
    centre = (found.nonzero().float().mean(0) + 0.5) * 216 / 128
    torch.testing.assert_close(centre, torch.tensor([100.0, 120.0]), atol=0.1, rtol=0)


def test_what_is_drawn_most_in_a_pixel_counts_and_its_centre_before_all() -> None:
    codes = torch.ones((1, 6, 6, 1), dtype=torch.uint8)
    codes[0, :3, 0] = 2
    codes[0, 0, 1:3] = 4  # three of class 0 and two of class 2 in the first new pixel, whose centre is not drawn
    codes[0, 4, 4], codes[0, 3, 3:] = 3, 4  # one pixel at the centre of the last one, three beside it
    assert resized(codes, 2, 2)[0, ..., 0].tolist() == [[2, 1], [1, 3]]


def test_larger_maps_are_not_drawn_thicker() -> None:
    codes = torch.ones((1, 4, 4, 1), dtype=torch.uint8)
    codes[0, 1] = 2
    assert resized(codes, 8, 8)[0, :, 0, 0].tolist() == [1, 1, 2, 2, 1, 1, 1, 1]
