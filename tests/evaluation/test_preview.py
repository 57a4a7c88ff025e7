"""The picture of a case: which slices, how they are turned, what is written on them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from ignite.engine import Engine
from monai.data import MetaTensor

from common.evaluation.preview import CasePreview, chosen_slices, draw_preview

RAS = np.diag([1.0, 1.0, 2.0, 1.0])


def sphere() -> np.ndarray:
    """A small structure in the first slices, and a large one around slice 7 of 10."""
    x, y, z = np.indices((12, 14, 10))
    volume = np.zeros((12, 14, 10), dtype=np.uint8)
    volume[2, 2, 0:2] = 2
    volume[(x - 6) ** 2 + (y - 7) ** 2 + (z - 7) ** 2 <= 9] = 1
    return volume


def texts(ax: Any) -> dict[str, tuple[float, float]]:
    return {text.get_text(): text.get_position() for text in ax.texts}


@pytest.mark.parametrize(
    ("spacing", "axis"), [((1, 1, 1), 2), ((1, 1, 5), 2), ((4, 1, 1), 0), ((1, 4, 1), 1), ((1, 1.02, 1), 2)]
)
def test_slices_lie_across_the_axis_of_the_thickest(spacing: tuple[float, ...], axis: int) -> None:
    middle, largest = sphere().shape[axis] // 2, (6, 7, 7)[axis]
    assert chosen_slices(sphere(), spacing) == (axis, middle, largest)


def test_a_flat_image_and_an_empty_one() -> None:
    assert chosen_slices(np.ones((5, 1, 4), int), (1, 1, 3)) == (1, 0, 0)
    assert chosen_slices(np.zeros((5, 6, 9), int), (1, 1, 1)) == (2, 4, 4)


@pytest.mark.parametrize("flips", [(1, 1, 1), (-1, -1, 1), (-1, 1, -1)])
def test_the_patients_right_is_on_the_left_and_the_front_on_top(flips: tuple[int, int, int]) -> None:
    """Whatever the order of the file's voxels."""
    image = np.zeros((12, 14, 10))
    image[10, 12, 7] = 100.0  # right, anterior
    image[1, 12, 7] = 50.0  # left, anterior
    place = tuple(slice(None, None, flip) for flip in flips)
    affine = RAS @ np.diag([*flips, 1])
    figure = draw_preview(image[place], sphere()[place], affine, {1: "ball", 2: "dot"}, "somebody")
    middle, largest = figure.axes
    shown = np.asarray(largest.images[0].get_array())
    assert shown.shape == (14, 12)  # rows: front to back
    assert shown[1, 1] == 100.0 and shown[1, 10] == 50.0
    written = texts(largest)
    assert written["R"][0] < written["L"][0] and written["A"][1] > written["P"][1]
    assert "axial slice 8 of 10, largest structure" in written and "axial slice 6 of 10, middle" in texts(middle)
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    ball = np.count_nonzero(sphere() == 1) * 2 / 1000
    assert legend == [f"ball, {ball:.4g} ml", "dot, 0.004 ml"]


def test_head_is_on_top_where_slices_are_sagittal() -> None:
    figure = draw_preview(np.random.rand(12, 14, 10), sphere(), np.diag([4.0, 1.0, 1.0, 1.0]), {1: "ball"})
    written = texts(figure.axes[1])
    assert written["A"][0] < written["P"][0] and written["S"][1] > written["I"][1]
    assert "sagittal slice 7 of 12, largest structure" in written


def test_without_a_known_space_there_are_no_marks() -> None:
    figure = draw_preview(np.random.rand(12, 14, 10), sphere(), np.eye(4), {1: "ball"}, in_mm=False)
    written = texts(figure.axes[0])
    assert not {"R", "L", "A", "P", "S", "I"} & set(written)
    assert any(text.endswith("voxels") for text in written)
    assert figure.legends[0].get_texts()[0].get_text().endswith("voxels")


def test_nothing_segmented_is_said() -> None:
    figure = draw_preview(np.random.rand(4, 5, 6), np.zeros((4, 5, 6), np.uint8), RAS, {1: "ball"})
    assert any("nothing was segmented" in text for text in texts(figure.axes[1]))


@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
def test_an_image_of_either_nifti_version_has_a_picture(tmp_path: Path, kind: Any) -> None:
    file = tmp_path / "somebody.nii.gz"
    nib.save(kind(np.random.rand(12, 14, 10).astype(np.float32), RAS), file)
    affine, meta = torch.from_numpy(RAS), {"filename_or_obj": str(file)}
    output = {"pred": MetaTensor(torch.from_numpy(sphere())[None], affine=affine, meta=meta)}
    engine = Engine(lambda *_: [output | {"probabilities": torch.zeros(3, 12, 14, 10)}])
    CasePreview(tmp_path / "out").attach(engine)
    engine.run([0])
    assert (tmp_path / "out" / "somebody" / "somebody_preview.png").read_bytes()[1:4] == b"PNG"
