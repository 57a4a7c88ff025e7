"""What the settings refuse together, and what its overlays and settings make of the data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from monai.bundle import ConfigParser

from bundles.alc.scripts.settings import SETTINGS
from tests.bundles.conftest import ROOT, Bundle


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({}, ""),
        ({"clean_per_batch": 1}, "patch_size, clean_per_batch, noisy_per_batch: a single patch of 16 voxels a side"),
        ({"clean_per_batch": 1, "noisy_per_batch": 1}, "patch_size, noisy_per_batch: a single patch of 16 voxels"),
        ({"clean_per_batch": 1, "noisy_per_batch": 1, "ramp_scale": 0.0}, ""),
        ({"noisy_per_batch": 2}, ""),
        ({"clean_per_batch": 1, "patch_size": [16, 16, 32]}, ""),
    ],
)
def test_a_single_voxel_is_not_normalised(changes: dict[str, Any], fault: str) -> None:
    values = {"patch_size": [16, 16, 16], "clean_per_batch": 2, "noisy_per_batch": 0, "ramp_scale": 1.0} | changes
    found = [str(fault) for check in SETTINGS.checks for fault in check(values)]
    assert len(found) == bool(fault) and "".join(found).startswith(fault)
    assert all("Fix: give 2 images or more, or one side above 16." in text for text in found)


def test_all_labels_of_the_phantom_are_validated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = Bundle("alc", tmp_path)
    monkeypatch.setattr("common.data.contract.open._open_phantom", lambda kind, folder: bundle.dataset)
    config = ConfigParser(ConfigParser.load_config_files([ROOT / file for file in bundle.files("train", "all_labels")]))
    config.update(bundle.tiny("train") | {"dataset_dir": None})
    with bundle.imported():
        assert {record["label_quality"] for record in config.get_parsed_content("train#dataset#data")} == {"clean"}
        assert len(config.get_parsed_content("validate#dataset#data")) == 1
