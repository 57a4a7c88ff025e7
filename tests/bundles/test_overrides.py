"""What stands deep in a config can be changed from the command line, and reaches the object that is built."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from monai.bundle import ConfigParser

from tests.bundles.conftest import ROOT

Built = Callable[[str], Any]
# config files, what is overridden, its value, and what then holds
OVERRIDES: list[tuple[tuple[str, ...], str, Any, Callable[[Built], bool]]] = [
    (("train",), "train#trainer#max_epochs", 7, lambda built: built("train#trainer").state.max_epochs == 7),
    (("train",), "validate#inferer#overlap", 0.125, lambda built: built("validate#evaluator").inferer.overlap == 0.125),
    (
        ("train",),
        "train#handlers#0#interval",
        3,
        lambda built: built("train#handlers")[0].handlers[2].interval == 3,
    ),
    (
        ("train",),
        "train#dataset#data",
        [{"image": "a.nii.gz", "label": "b.nii.gz"}] * 3,
        lambda built: sum(map(len, built("train#dataloader").batch_sampler.streams)) == 3,
    ),
    (("train",), "train#dataset#cache_rate", 0.5, lambda built: built("train#dataset").cache_num == 3),
    (
        ("train",),
        "train#dataloader#streams",
        {"label": 3},
        lambda built: built("train#trainer").data_loader.batch_sampler.sizes == [3],
    ),
    (
        ("train",),
        "optimizer#weight_decay",
        0.5,
        lambda built: built("optimizer").param_groups[0]["weight_decay"] == 0.5,
    ),
    (
        ("train",),
        "train#random_transforms#flip_prob",
        0.25,
        lambda built: (
            [t.prob for t in built("train#preprocessing").transforms if type(t).__name__ == "RandFlipd"] == [0.25, 0.25]
        ),
    ),
    (
        ("train",),
        "validate#dataset#data",
        [{"image": "a.nii.gz", "label": "b.nii.gz"}],
        lambda built: len(built("validate#evaluator").data_loader.dataset) == 1,
    ),
    (
        ("train", "evaluate"),
        "evaluate#dataset#data",
        [{"image": "a.nii.gz", "label": "b.nii.gz"}] * 2,
        lambda built: len(built("evaluate#dataloader").dataset) == 2,
    ),
    (("inference",), "inferer#sw_batch_size", 3, lambda built: built("inferer").sw_batch_size == 3),
]


@pytest.mark.parametrize(("files", "place", "value", "holds"), OVERRIDES, ids=[place for _, place, _, _ in OVERRIDES])
def test_override_reaches_what_is_built(
    bundle: Any, files: tuple[str, ...], place: str, value: Any, holds: Callable[[Built], bool]
) -> None:
    config = ConfigParser(ConfigParser.load_config_files([ROOT / file for file in bundle.files(*files)]))
    settings = bundle.tiny(*files) | bundle.small_network | {"cache_rate": 0.0}
    for key, setting in (settings | {place: value}).items():
        config[key] = setting
    with bundle.imported():
        assert holds(config.get_parsed_content)


@pytest.mark.parametrize("bundle", ["affinity_umamba", "alc", "multicure"], indirect=True)
def test_turns_and_flips_can_be_switched_off(bundle: Any) -> None:
    """Left and right may be structures of their own."""
    for given, probabilities in (({}, [0.75, 0.5, 0.5]), ({"rotate90_prob": 0, "flip_prob": 0}, [0.0, 0.0, 0.0])):
        config = ConfigParser(bundle.load("train"))
        config.update(bundle.tiny("train") | given)
        with bundle.imported():
            crop, *turns = config.get_parsed_content("train#random_transforms")
        assert [turn.prob for turn in turns] == probabilities
