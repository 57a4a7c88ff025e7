"""What train.yaml, evaluate.yaml and inference.yaml say of the same image must agree, under every overlay.

A network that was trained on images of one spacing, orientation or intensity and is served others answers nonsense, and
nothing else would notice.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from monai.bundle import ConfigParser

ROOT = Path(__file__).resolve().parents[2]
BASES = ("train", "evaluate", "inference", "audit", "multi_gpu_train")  # configs that are no overlay of settings
OVERLAYS = sorted(
    (path.parents[1].name, path.stem) for path in ROOT.glob("bundles/*/configs/*.yaml") if path.stem not in BASES
)
BUNDLES = sorted(path.parents[1].name for path in ROOT.glob("bundles/*/configs/metadata.json"))
PLAIN = [(name, None) for name in BUNDLES]
# they change neither where a voxel lies nor what it holds, or only so in training
NEUTRAL = ("LoadImaged", "EnsureTyped", "SelectItemsd", "CopyItemsd", "SpatialPadd")
LISTS = {
    "train": "train#deterministic_transforms",
    "validate": "validate#preprocessing#transforms",
    "evaluate": "evaluate#preprocessing#transforms",
    "audit": "audit#preprocessing#transforms",
    "inference": "preprocessing#transforms",
}
INFERERS = {"validate": "validate#inferer", "evaluate": "evaluate#inferer", "audit": "audit#inferer"}
INFERERS["inference"] = "inferer"


def merged(bundle: str, *names: str) -> ConfigParser:
    files = [ROOT / "bundles" / bundle / "configs" / f"{name}.yaml" for name in names]
    return ConfigParser(ConfigParser.load_config_files([file for file in files if file.exists()]))


def value(config: ConfigParser, place: str) -> Any:
    """What stands at a place, references and expressions resolved, nothing built."""
    content = config.get(place)
    if isinstance(content, dict):
        return {key: value(config, f"{place}#{key}") for key in content}
    if isinstance(content, list):
        return [value(config, f"{place}#{number}") for number in range(len(content))]
    if isinstance(content, str) and content.startswith("@"):
        return value(config, content[1:].replace("::", "#"))
    return config.get_parsed_content(place, instantiate=False) if isinstance(content, str) else content


def image_transforms(config: ConfigParser, place: str) -> list[dict[str, Any]]:
    """What a list of transforms does to the image."""
    found = []
    for transform in value(config, place):
        keys = transform.get("keys", [])
        keys = [keys] if isinstance(keys, str) else list(keys)
        name = transform["_target_"]
        if "image" not in keys or name.rpartition(".")[2] in NEUTRAL:
            continue
        settings = {key: item for key, item in transform.items() if key not in ("keys", "allow_missing_keys")}
        if isinstance(settings.get("mode"), list):
            settings["mode"] = settings["mode"][keys.index("image")]
        found.append(settings)
    return found


def network(config: ConfigParser) -> dict[str, Any]:
    definition: dict[str, Any] = value(config, "network_def")
    definition.pop("dropout", None)  # active in training alone
    return definition


def told(bundle: str, overlay: str | None) -> dict[str, dict[str, Any]]:
    """What each config says of transforms, windows and network."""
    overlays = [] if overlay is None else [overlay]
    training = merged(bundle, "train", *overlays, "evaluate", "audit")
    configs = {name: training for name in ("train", "validate", "evaluate", "audit") if name in training}
    folder = ROOT / "bundles" / bundle / "configs"
    if overlay is None or not any("#" in key for key in ConfigParser.load_config_file(folder / f"{overlay}.yaml")):
        configs["inference"] = merged(bundle, "inference", *overlays)  # else it is of training alone
    return {name: facts(config, name) for name, config in configs.items()}


def facts(config: ConfigParser, name: str) -> dict[str, Any]:
    found: dict[str, Any] = {"network": network(config)}
    if isinstance(config.get(LISTS[name]), list):  # else it takes the training's
        found["transforms"] = image_transforms(config, LISTS[name])
    inferer = INFERERS.get(name)
    if inferer is not None and inferer in config:
        settings = value(config, inferer)
        found["windows"] = {key: settings.get(key) for key in ("_target_", "roi_size", "spatial_dim")}
    return found


def disagreements(all_told: dict[str, dict[str, Any]]) -> list[str]:
    """Where two configs differ, in words."""
    found = []
    for subject in ("transforms", "network", "windows"):
        sayings = {name: facts[subject] for name, facts in all_told.items() if subject in facts}
        first, *others = sayings
        found += [f"{subject}: {first} and {name}" for name in others if sayings[name] != sayings[first]]
    return found


@pytest.mark.parametrize(("bundle", "overlay"), [*PLAIN, *OVERLAYS])
def test_configs_agree(bundle: str, overlay: str | None) -> None:
    all_told = told(bundle, overlay)
    assert {"train", "evaluate"} <= set(all_told)
    assert all(facts.get("transforms", True) for facts in all_told.values())
    assert sum("transforms" in facts for facts in all_told.values()) >= 2
    assert disagreements(all_told) == []


@pytest.mark.parametrize("bundle", BUNDLES)
def test_inference_is_among_them(bundle: str) -> None:
    names = set(told(bundle, None))
    assert {"train", "validate", "evaluate", "inference"} <= names
    assert ("audit" in names) == (ROOT / "bundles" / bundle / "configs" / "audit.yaml").exists()


WRONG = [
    ("alc", "spacing", [2.0, 1.0, 1.5], "transforms"),
    ("alc", "intensity", {"_target_": "ScaleIntensityd", "keys": "image"}, "transforms"),
    ("alc", "preprocessing#transforms#1#axcodes", "LPS", "transforms"),
    ("alc", "preprocessing#transforms#2#mode", "nearest", "transforms"),
    ("alc", "patch_size", [48, 48, 48], "windows"),
    ("alc", "num_classes", 3, "network"),
    ("multicure", "spacing", [2.0, 1.0, 1.5], "transforms"),
    ("multicure", "threshold", 0.5, "network"),
    ("attenscribble", "slice_axis", 1, "windows"),
    ("attenscribble", "slice_size", [64, 64], "transforms"),
    ("attenscribble", "attention_level", 1, "network"),
]


@pytest.mark.parametrize(("bundle", "place", "wrong", "subject"), WRONG, ids=[f"{b} {p}" for b, p, _, _ in WRONG])
def test_a_wrong_inference_is_seen(bundle: str, place: str, wrong: Any, subject: str) -> None:
    all_told = told(bundle, None)
    config = merged(bundle, "inference")
    config[place] = wrong
    all_told["inference"] = facts(config, "inference")
    assert f"{subject}: {'validate' if 'windows' in subject else 'train'} and inference" in disagreements(all_told)
