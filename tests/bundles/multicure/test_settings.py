"""What the settings refuse together, and what they make of the patches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from monai.bundle import ConfigParser

from bundles.multicure.scripts.settings import SETTINGS
from tests.bundles.conftest import Bundle


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({}, ""),
        ({"unlabelled_per_batch": 0}, "labelled_per_batch, unlabelled_per_batch: a batch is a single image"),
        ({"unlabelled_per_batch": 0, "patch_size": [32, 32, 32]}, "labelled_per_batch, unlabelled_per_batch: a batch"),
        ({"unlabelled_per_batch": 0, "patch_size": [32, 32, 32], "multicure": False}, ""),
        ({"unlabelled_per_batch": 0, "multicure": False}, "patch_size, labelled_per_batch, unlabelled_per_batch: "),
        ({"ema_decay": 0.99}, "patch_size, unlabelled_per_batch: a single patch of 16 voxels a side"),
    ],
)
def test_a_single_image_is_not_normalised(changes: dict[str, Any], fault: str) -> None:
    values = {"patch_size": [16, 16, 16], "labelled_per_batch": 1, "unlabelled_per_batch": 1, "multicure": True}
    found = [str(fault) for check in SETTINGS.checks for fault in check(values | changes)]
    assert len(found) == bool(fault) and "".join(found).startswith(fault)
    assert all("Fix: give 2 images or more, or " in text for text in found)


def test_turns_and_flips_can_be_switched_off(tmp_path: Path) -> None:
    bundle = Bundle("multicure", tmp_path)
    for given, probabilities in (({}, [0.75, 0.5, 0.5]), ({"rotate90_prob": 0, "flip_prob": 0}, [0.0, 0.0, 0.0])):
        config = ConfigParser(bundle.load("train"))
        config.update(bundle.tiny("train") | given)
        with bundle.imported():
            crop, *turns = config.get_parsed_content("train#random_transforms")
        assert [turn.prob for turn in turns] == probabilities
