"""What can be said of every bundle's files without running them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from monai.bundle import ConfigParser
from monai.bundle.properties import InferProperties, TrainProperties
from monai.utils import BundlePropertyConfig

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = sorted(path.relative_to(ROOT / "bundles") for path in ROOT.glob("bundles/*/configs/*.yaml"))
STAND_ALONE = ("train", "inference")
RUN_IDS = {"imports", "initialize", "finalize", "run", "training", "evaluating", "calibrating", "inferring"}
RUN_IDS |= {"auditing", "reporting"}
PROPERTIES = {
    details[BundlePropertyConfig.ID].split("::")[0]
    for kind in (TrainProperties, InferProperties)
    for details in kind.values()
}


def merged(config: Path) -> dict[str, Any]:
    """A config as it runs: an overlay on top of train.yaml."""
    files = [ROOT / "bundles" / config]
    if config.stem not in STAND_ALONE:
        files.insert(0, files[0].with_name("train.yaml"))
    return dict(ConfigParser.load_config_files(files))


def strings(content: Any) -> Iterator[str]:
    if isinstance(content, str):
        yield content
    elif isinstance(content, dict):
        for value in content.values():
            yield from strings(value)
    elif isinstance(content, list):
        for value in content:
            yield from strings(value)


def references(content: Any) -> set[str]:
    """Top-level ids that expressions, references and macros name."""
    return {name for text in strings(content) for name in re.findall(r"[@%](\w+)", text)}


def keys_of_evaluation(config: Path) -> set[str]:
    """Settings that a bundle's evaluation and inference both have."""
    files = [ROOT / "bundles" / config.with_name(f"{name}.yaml") for name in ("evaluate", "inference")]
    first, second = (set(ConfigParser.load_config_file(file)) for file in files)
    return first & second - set(ConfigParser.load_config_file(files[0].with_name("train.yaml")))


def test_there_are_bundles() -> None:
    assert CONFIGS


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_every_key_is_used(config: Path) -> None:
    """A key is used when it is run, is a property of MONAI's bundle specification, or such a key leads to it.

    Of an overlay its own keys: where it replaces the method, settings of the replaced one have nothing to read them.
    What evaluation and inference both have may stand in a data set's overlay, which goes with them too.
    """
    content = merged(config)
    own = ConfigParser.load_config_file(ROOT / "bundles" / config)
    reached: set[str] = set()
    waiting = [key for key in content if key in RUN_IDS | PROPERTIES]
    while waiting:
        key = waiting.pop()
        reached.add(key)
        waiting += [name for name in references(content[key]) if name in content and name not in reached]
    unread = {re.split("::|#", key.lstrip("+"))[0] for key in own} - reached
    assert unread - keys_of_evaluation(config) == set(), "nothing reads these keys"


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_every_reference_exists(config: Path) -> None:
    content = merged(config)
    assert {name for name in references(content) if name not in content} == set()


@pytest.mark.parametrize("config", [c for c in CONFIGS if c.stem not in STAND_ALONE], ids=str)
def test_overlays_replace_what_is_there(config: Path) -> None:
    """A misspelt key in an overlay would do nothing, in silence."""
    base = ConfigParser(merged(config.with_name("train.yaml")))
    overlay = ConfigParser.load_config_file(ROOT / "bundles" / config)
    used = references(overlay) | RUN_IDS | PROPERTIES | keys_of_evaluation(config)
    keys = [key.lstrip("+") for key in overlay]
    assert [key for key in keys if key not in base and re.split("::|#", key)[0] not in used] == []


def test_run_does_what_the_named_id_does(bundle: Any) -> None:
    """MONAI Label and the model zoo run ``run``; our users type the other."""
    names = {"train": "training", "evaluate": "evaluating", "inference": "inferring", "audit": "auditing"}
    for name, run_id in names.items():
        if (bundle.configs / f"{name}.yaml").exists():
            content = bundle.load(name)
            steps = content[run_id]
            assert content["run"][: len(steps)] == steps, name


def test_monai_label_finds_what_it_reads(bundle: Any) -> None:
    train = bundle.train
    inference = bundle.load("inference")
    assert {"network", "train", "validate", "run"} <= set(train)
    assert {"dataset", "trainer", "handlers"} <= set(train["train"])
    assert "data" in train["train"]["dataset"] and "dataset" in train["validate"]
    assert "displayable_configs" not in train, "it would be demanded in every training request"
    needed = {"network_def", "preprocessing", "postprocessing", "inferer", "device", "bundle_root"}
    assert needed <= set(inference)
    handlers = train["train"]["handlers"]
    assert isinstance(handlers, list) and all(isinstance(handler, dict) for handler in handlers)
    task_words = ("detection", "classification", "deepedit")
    assert not any(word in bundle.name for word in task_words), "MONAI Label would take it for another task"


def test_nothing_needs_the_bundle_before_it_can_be_imported(bundle: Any) -> None:
    """MONAI puts the bundle's folder on the path after ``imports`` and ``initialize``."""
    for file in sorted(bundle.configs.glob("*.yaml")):
        content = ConfigParser.load_config_file(file)
        early = [*strings(content.get("imports", [])), *strings(content.get("initialize", []))]
        assert [line for line in early if re.search(r"\b(scripts|common)\b", line)] == [], file.name


def test_metadata_describes_this_version(bundle: Any) -> None:
    metadata = json.loads((bundle.configs / "metadata.json").read_text())
    assert metadata["version"] in metadata["changelog"]
    assert metadata["schema"].endswith("meta_schema_20240725.json")
    data = metadata["network_data_format"]
    assert next(iter(data["inputs"])) == "image" and next(iter(data["outputs"])) == "pred"
    assert data["inputs"]["image"]["num_channels"] == bundle.train["in_channels"]
    output = data["outputs"]["pred"]
    phantom = json.loads((bundle.dataset / "dataset.json").read_text())
    assert output["num_channels"] == bundle.train["num_classes"]
    assert output["channel_def"] == phantom["labels"]


@pytest.mark.parametrize("name", ["LICENSE", "configs/logging.conf", "docs/README.md", "docs/data_license.txt"])
def test_files_of_the_specification_are_there(bundle: Any, name: str) -> None:
    assert (bundle.root / name).is_file()


def test_the_equations_are_where_the_docs_say(bundle: Any) -> None:
    """Rows of the equation tables: | equation | `file`, `name` | in words |."""
    text = (bundle.root / "docs" / "README.md").read_text()
    places = re.findall(r"`((?:scripts|common)/[\w/]+\.py)`((?:, `[\w.]+`)+)", text)
    assert len(places) > 4
    for file, names in places:
        source = (ROOT / file if file.startswith("common/") else bundle.root / file).read_text()
        for name in re.findall(r"`([\w.]+)`", names):
            missing = [part for part in name.split(".") if not re.search(rf"\b(?:def|class) {part}\b", source)]
            assert not missing, f"{file} has no {name}"
