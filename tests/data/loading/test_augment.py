"""Random transforms of training: where patches lie, and that image and label stay together."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from monai.transforms import Compose

from common.data.loading.augment import augment_patches

SIZE = (24, 20, 12)


def case() -> dict[str, torch.Tensor]:
    """A label of one voxel in a far corner, and an image that tells where each voxel is from."""
    label = torch.zeros(1, *SIZE, dtype=torch.uint8)
    label[0, 22, 18, 10] = 1
    return {"image": torch.arange(24 * 20 * 12.0).reshape(1, *SIZE), "label": label}


def patches(draws: int = 60, **arguments: Any) -> list[dict[str, torch.Tensor]]:
    transforms = Compose(augment_patches(["image", "label"], (8, 8, 4), **arguments))
    transforms.set_random_state(seed=0)
    return [transforms(case()) for _ in range(draws)]


@pytest.mark.parametrize(("foreground", "least", "most"), [(None, 0, 10), (0.0, 0, 10), (0.5, 18, 42), (1.0, 60, 60)])
def test_a_share_of_the_patches_holds_a_labelled_voxel(foreground: float | None, least: int, most: int) -> None:
    drawn = patches(foreground=foreground)
    assert {tuple(patch["image"].shape) for patch in drawn} == {(1, 8, 8, 4)}
    found = sum(bool(patch["label"].any()) for patch in drawn)
    assert least <= found <= most
    place = int(case()["image"][0, 22, 18, 10])
    for patch in drawn:
        assert torch.equal(patch["image"] == place, patch["label"] == 1), "image and label are cut and turned together"


def test_a_label_without_structures_is_no_fault() -> None:
    transforms = Compose(augment_patches(["image", "label"], (8, 8, 4), foreground=0.33))
    empty = case() | {"label": torch.zeros(1, *SIZE, dtype=torch.uint8)}
    assert transforms(empty)["image"].shape == (1, 8, 8, 4)
