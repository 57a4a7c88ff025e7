"""What the settings refuse together."""

from __future__ import annotations

from typing import Any

import pytest

from bundles.multicure.scripts.settings import SETTINGS


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
