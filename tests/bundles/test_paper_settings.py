"""Overlays called the paper's setting: each number says whose it is, and is the paper's where there is one."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from monai.bundle import ConfigParser
from monai.inferers.utils import _get_scan_interval

ROOT = Path(__file__).resolve().parents[2] / "bundles"
# what the papers print: bundle, overlay, settings of the merged training
PRINTED: dict[tuple[str, str], dict[str, Any]] = {
    ("alc", "la"): {
        **{"patch_size": [112, 112, 80], "spacing": [0.625] * 3, "clean_per_batch": 4, "noisy_per_batch": 20},
        **{"ema_decay": 0.99, "alpha": 3.0, "beta": 2.0, "selected_fraction": 0.5},
    },
    ("alc", "pancreas"): {"patch_size": [96] * 3, "clean_per_batch": 4, "noisy_per_batch": 20},
    ("multicure", "la"): {
        **{"patch_size": [112, 112, 80], "spacing": [0.625] * 3, "learning_rate": 0.01, "weight_decay": 0.0001},
        **{"unlabelled": 1.0, "ramp_length": 0.0, "contrastive": 0.1, "threshold": 0.7},
    },
    ("multicure", "pancreas"): {"patch_size": [96] * 3, "learning_rate": 0.01, "unlabelled": 1.0, "ramp_length": 0.0},
    ("attenscribble", "acdc"): {"slice_size": [256, 256], "crf_weight": 0.1, "attentive_weight": 0.1, "num_classes": 4},
    ("ambissl", "lidc"): {
        **{"slice_size": [128, 128], "num_classes": 2, "raters": 4, "learning_rate": 0.0001, "samples": 10},
        **{"supervised_kl": 1.0, "unsupervised_kl": 0.5, "bound": 0.5, "prune_from": 2, "keep_fraction": 0.5},
    },
    ("ambissl", "isic"): {
        **{"slice_size": [256, 256], "num_classes": 2, "raters": 3, "learning_rate": 0.0001, "in_channels": 3},
        **{"supervised_kl": 1.0, "unsupervised_kl": 0.5, "bound": 0.5, "prune_from": 2, "keep_fraction": 0.5},
    },
    ("attenscribble", "chaos"): {"slice_size": [256, 256], "crf_weight": 0.1, "flip_prob": 0.0, "rotate90_prob": 0.0},
}
WINDOWS = {("alc", "pancreas"): (-125, 275), ("multicure", "pancreas"): (-120, 240)}  # HU
ITERATIONS = {"multicure": 6000, "attenscribble": 60000}
STRIDES = {"la": (18, 18, 4), "pancreas": (16, 16, 16)}


def merged(bundle: str, *names: str) -> ConfigParser:
    return ConfigParser(ConfigParser.load_config_files([ROOT / bundle / "configs" / f"{name}.yaml" for name in names]))


@pytest.mark.parametrize(("bundle", "name"), PRINTED)
def test_each_number_says_whose_it_is(bundle: str, name: str) -> None:
    lines = (ROOT / bundle / "configs" / f"{name}.yaml").read_text(encoding="utf-8").splitlines()
    numbers = [line for line in lines if re.search(r"^ *\w+: .*\d", line)]
    assert len(numbers) >= 7
    silent = [line for line in numbers if not re.search(r"# .*\b(paper|family|ours)\b", line)]
    assert silent == []


@pytest.mark.parametrize(("bundle", "name"), PRINTED)
def test_it_is_the_papers_where_there_is_one(bundle: str, name: str) -> None:
    config = merged(bundle, "train", name)
    assert {key: config.get(key) for key in PRINTED[bundle, name]} == PRINTED[bundle, name]
    if window := WINDOWS.get((bundle, name)):
        assert (config["intensity#a_min"], config["intensity#a_max"]) == window
    if bundle in ITERATIONS:
        assert config["max_epochs"] * config["epoch_length"] == ITERATIONS[bundle]


@pytest.mark.parametrize("name", STRIDES)
@pytest.mark.parametrize("base", [("train", "evaluate"), ("inference",)])
def test_multicures_windows_move_by_the_printed_strides(base: tuple[str, ...], name: str) -> None:
    config = merged("multicure", *base, name)
    patch, overlap = config["patch_size"], config["overlap"]
    overlaps = overlap if isinstance(overlap, list) else [overlap] * 3
    assert _get_scan_interval([200] * 3, patch, 3, overlaps) == STRIDES[name]


@pytest.mark.parametrize(("overlays", "noise"), [((), 0.1), (("la",), 0.1), (("pancreas",), 0.05)])
def test_mean_teachers_noise_fits_the_images(overlays: tuple[str, ...], noise: float) -> None:
    config = merged("multicure", "train", *overlays, "mean_teacher")
    config["imports"] = ["$import monai"]
    assert config.get_parsed_content("input_noise") == noise
