"""What a bundle tells of itself for a plan: its config, its settings, and what its paper keeps whatever the data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from ....settings.__main__ import table_of
from ..faults import DataError, Fault
from .choice import Choice

GUIDE_FILE = "plan.yaml"


@dataclass(frozen=True)
class Guide:
    """A bundle as a plan sees it.

    Attributes:
        name: of the bundle.
        root: folder of the bundle.
        config: its train.yaml as it stands.
        streams: setting that holds the number of cases a batch, by kind of record.
        multiple: of which sizes in voxels must be, for the network.
        iterations: of the paper's training.
        least_iterations: steps that a training should have; below them patches do not grow.
        learning_rate: of the paper's training.
        most_learning_rate: of a shorter one.
        paper_batch: cases of the paper's batch, by kind of record.
        keep: settings whatever the data, with their reasons.
        short: those that replace them where the paper's iterations would take too long with the smallest patches.
        short_batch: cases a batch there, by kind of record; default: train.yaml's.
        windows: settings in pixels, from the paper's to the least, for slices of ``window_slice`` pixels.
        window_slice: side of the paper's slices in pixels.
    """

    name: str
    root: Path
    config: Mapping[str, Any]
    streams: Mapping[str, str]
    multiple: int = 16
    iterations: int = 6000
    least_iterations: int = 300
    learning_rate: float = 0.01
    most_learning_rate: float = 0.1
    paper_batch: Mapping[str, int] = field(default_factory=dict)
    keep: Mapping[str, Choice] = field(default_factory=dict)
    short: Mapping[str, Choice] = field(default_factory=dict)
    short_batch: Mapping[str, int] = field(default_factory=dict)
    windows: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    window_slice: int = 256

    @property
    def sliced(self) -> bool:
        """Whether the bundle takes slices, resized, and not patches of volumes, resampled."""
        return "slice_size" in self.config

    @property
    def needs(self) -> list[str]:
        """What its training asks of a data set."""
        return list(self.config["train"]["dataset"]["data"]["needs"])

    def batch(self, short: bool = False) -> dict[str, int]:
        """Cases a batch before it grows, by kind of record."""
        usual = {kind: int(self.config[key]) for kind, key in self.streams.items()}
        return {**usual, **(self.short_batch if short else {})}


def read_guide(name: str, bundles: str = "bundles") -> Guide:
    """Read a bundle's train.yaml, its settings and, if there is one, its plan.yaml.

    Args:
        name: of the bundle.
        bundles: folder of the bundles, in the working folder.

    Raises:
        DataError: there is no such bundle, or its plan.yaml has an unknown key.
    """
    root = Path(bundles) / str(name)
    if not (root / "configs" / "train.yaml").is_file():
        known = sorted(path.parts[-3] for path in Path(bundles).glob("*/configs/train.yaml"))
        fix = f"use one of {', '.join(known)}" if known else "go to the root of the repository"
        raise DataError([Fault("--bundle", f"there is no bundle {name!r} in {bundles}", fix)])
    config = yaml.safe_load((root / "configs" / "train.yaml").read_text(encoding="utf-8"))
    streams = {kind: str(key).removeprefix("@") for kind, key in config["train"]["dataloader"]["streams"].items()}
    table = table_of(str(name))
    size = "slice_size" if "slice_size" in config else "patch_size"
    multiple = max(table[size].multiple_of, 16)  # networks of slices pad, but sizes that need none are the better ones
    path = root / GUIDE_FILE
    told = yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else {}
    # what a bundle says nothing of stays as in its train.yaml
    iterations = config["max_epochs"] * config["epoch_length"]
    defaults = {
        "iterations": iterations,
        "least_iterations": min(Guide.least_iterations, iterations),
        "learning_rate": config["learning_rate"],
        "most_learning_rate": config["learning_rate"],
        "paper_batch": {kind: config[key] for kind, key in streams.items()},
    }
    values = defaults | told
    if unknown := sorted(set(values) - set(Guide.__dataclass_fields__) | set(told) & {"name", "root", "config"}):
        raise DataError(
            [Fault(str(path), f"has the unknown key {unknown[0]!r}", "see common/data/contract/plan/guide.py")]
        )
    for part in ("keep", "short"):
        values[part] = {key: Choice(*pair) for key, pair in values.get(part, {}).items()}
    return Guide(name=str(name), root=root, config=config, streams=streams, multiple=multiple, **values)
