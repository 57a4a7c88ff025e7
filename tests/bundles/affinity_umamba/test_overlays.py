"""Overlays of the paper's data sets: whose each number is, and that they fit what the converters write."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.bundle import ConfigParser

from bundles.affinity_umamba.scripts.baselines import UNetPlusPlus
from common.data.converters import acdc, atlas, brats, curious, flare21, iseg, isles, myops, promise12

CONFIGS = Path(__file__).resolve().parents[3] / "bundles" / "affinity_umamba" / "configs"
# classes with background and channels: of what the converter writes, or as the Decathlon and AMOS publish them
WRITTEN = {
    "acdc": (len(acdc.LABELS), 1),
    "iseg2017": (len(iseg.LABELS), len(iseg.CHANNELS)),
    "brats2020": (len(brats.LABELS), len(brats.MODALITIES)),
    "isles2022": (len(isles.LABELS), len(isles.CHANNELS)),
    "promise12": (len(promise12.LABELS), 1),
    "myops2020": (len(myops.LABELS), len(myops.CHANNELS)),
    "msd_heart": (2, 1),
    "msd_hippocampus": (3, 1),
    "amos22": (16, 1),
    "atlas2022": (len(atlas.LABELS), 1),
    "curious2022": (len(curious.LABELS), 1),
    "flare2021": (len(flare21.LABELS), 1),
}
BASELINES = ("umamba", "unet", "dynunet", "attention_unet", "unet_plus_plus", "segresnet", "swin_unetr")


def merged(*names: str) -> dict[str, Any]:
    return dict(ConfigParser.load_config_files([CONFIGS / f"{name}.yaml" for name in names]))


@pytest.mark.parametrize("name", ["paper", *WRITTEN])
def test_each_number_says_whose_it_is(name: str) -> None:
    lines = (CONFIGS / f"{name}.yaml").read_text(encoding="utf-8").splitlines()
    numbers = [line for line in lines if re.search(r"^ *\w+: .*\d", line)]
    assert len(numbers) >= 6
    assert [line for line in numbers if not re.search(r"# .*\b(paper|family|ours)\b", line)] == []


def test_the_papers_numbers() -> None:
    config = merged("train", "paper")
    printed: dict[str, Any] = {
        "learning_rate": 0.01,
        "max_epochs": 500,
        "margin": 0.1,
        "affinity": 0.01,
        "refined": 0.1,
    }
    printed |= {"lalr": True, "iae": True, "pne": True}
    assert {key: config[key] for key in printed} == printed
    assert config["optimizer"]["_target_"] == "torch.optim.SGD"


@pytest.mark.parametrize("name", WRITTEN)
def test_overlays_fit_the_data(name: str) -> None:
    config = merged("train", "paper", name)
    assert (config["num_classes"], config["in_channels"]) == WRITTEN[name]
    assert len(config["filters"]) == len(config["strides"]) == len(config["kernels"])
    for axis, size in enumerate(config["patch_size"]):
        step = math.prod(stride if isinstance(stride, int) else stride[axis] for stride in config["strides"])
        assert size % step == 0 and size // step >= 3, "the deepest stage sees more than its borders"


@pytest.mark.parametrize("name", WRITTEN)
def test_coarse_axes_are_halved_when_voxels_are_cubes(name: str) -> None:
    """As nnU-Net plans: an axis waits until the others have come to its spacing."""
    config = merged("train", name)
    spacing = list(config["spacing"])
    for stride in config["strides"][1:]:
        steps = [stride] * 3 if isinstance(stride, int) else stride
        for axis, step in enumerate(steps):
            if step > 1:
                assert spacing[axis] < 2.5 * min(spacing), f"axis {axis} is halved too early"
        spacing = [length * step for length, step in zip(spacing, steps, strict=True)]


def test_every_trained_weight_of_unet_plus_plus_gets_a_gradient() -> None:
    """Several processes wait for each of them."""
    network = UNetPlusPlus(spatial_dims=2, features=(4, 4, 4, 4, 4, 4))
    network(torch.rand(1, 1, 32, 32)).sum().backward()
    assert [name for name, weight in network.named_parameters() if weight.requires_grad and weight.grad is None] == []


@pytest.mark.parametrize("name", BASELINES)
def test_baselines_learn_from_the_labels_alone(name: str) -> None:
    config = merged("train", name)
    assert (config["lalr"], config["margin"], config["affinity"]) == (False, 0.0, 0.0)
    assert {config["network_def"][key] for key in ("in_channels", "out_channels")} == {"@in_channels", "@num_classes"}
