"""Slices drawn from volumes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from monai.data import MetaTensor

from common.data.loading.slices import RandSliced


def volume(axis: int, labelled: tuple[int, ...] = (1, 3)) -> dict[Any, Any]:
    """Slices 0 to 4 across the axis hold their number; those labelled have one pixel that is marked."""
    image = torch.arange(5.0).reshape(5, 1, 1).expand(5, 3, 2).movedim(0, axis)[None]
    scribble = torch.ones(5, 3, 2, dtype=torch.uint8)
    for number in labelled:
        scribble[number, 0, 0] = 2
    meta = {"filename_or_obj": "somebody.nii.gz"}
    return {"image": MetaTensor(image, meta=meta), "scribble": MetaTensor(scribble.movedim(0, axis)[None], meta=meta)}


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_marked_slices_are_drawn(axis: int) -> None:
    transform, data = RandSliced(["image", "scribble"], axis, "scribble", 2), volume(axis)
    transform.set_random_state(seed=0)
    seen = []
    for _ in range(40):
        drawn = transform(data)
        assert drawn["image"].shape == drawn["scribble"].shape == (1, 3, 2)
        assert drawn["image"].meta["filename_or_obj"] == "somebody.nii.gz"
        assert drawn["image"].unique().numel() == 1 and int((drawn["scribble"] == 2).sum()) == 1
        seen.append(int(drawn["image"][0, 0, 0]))
    assert set(seen) == {1, 3} and 8 < seen.count(1) < 32


def test_all_slices_are_drawn_when_none_is_marked() -> None:
    transform = RandSliced(["image", "scribble"], 0, "scribble", 2)
    transform.set_random_state(seed=0)
    assert {int(transform(volume(0, ()))["image"][0, 0, 0]) for _ in range(60)} == set(range(5))


def test_slices_do_not_share_the_volume_s_memory() -> None:
    data = volume(2, (4,))
    RandSliced(["image", "scribble"], 2)(data)["image"].fill_(9.0)
    assert float(data["image"].max()) == 4.0


def test_drawing_replays_from_its_seed() -> None:
    transform = RandSliced(["image", "scribble"], 0, "scribble", 2)
    draws = []
    for _ in range(2):
        transform.set_random_state(seed=7)
        draws.append([int(transform(volume(0))["image"][0, 0, 0]) for _ in range(10)])
    assert draws[0] == draws[1]


def test_axis_out_of_range_is_refused() -> None:
    with pytest.raises(ValueError, match="slice_axis"):
        RandSliced("image", 3)


def test_all_slices_are_drawn_without_a_mark() -> None:
    transform = RandSliced(["image", "scribble"], 0)
    transform.set_random_state(seed=0)
    assert {int(transform(volume(0))["image"][0, 0, 0]) for _ in range(60)} == set(range(5))
