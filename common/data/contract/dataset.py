"""The data contract: one JSON in the decathlon manner, read and checked before anything is trained."""

from __future__ import annotations

import logging
import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .faults import DataError, Fault
from .records import KINDS, SCRIBBLE_UNLABELLED, SECTIONS, is_kind, normalise_labels, normalise_names, parse_sections
from .strict_json import read_json

logger = logging.getLogger(__name__)

#: what a bundle may ask of a data set, and the words for it
NEEDS = {kind: f"training records {details.words}" for kind, details in KINDS.items()} | {
    "validation": "a `validation` section in which every record has a `label`"
}


@dataclass
class SegmentationData:
    """A data set that was read and checked.

    Records have absolute path strings, ``group`` filled in (default: the image path) and ``label_quality`` filled in
    (default: ``clean``) where there is a ``label``. Keys that the contract does not know are kept.

    Attributes:
        root: folder of the JSON.
        name: name of the data set.
        labels: name of each label value; 0 is the background.
        scribble_unlabelled_value: value of voxels without a scribble.
        training: records.
        validation: records.
        test: records.
        channels: names of image channels, empty if the JSON does not declare them.
        notes: what is worth knowing but no fault.
    """

    root: Path
    name: str
    labels: dict[int, str]
    scribble_unlabelled_value: int = SCRIBBLE_UNLABELLED
    training: list[dict[str, Any]] = field(default_factory=list)
    validation: list[dict[str, Any]] = field(default_factory=list)
    test: list[dict[str, Any]] = field(default_factory=list)
    channels: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def num_classes(self) -> int:
        """Number of classes, background included."""
        return max(self.labels, default=0) + 1

    def section(self, name: str, *kinds: str) -> list[dict[str, Any]]:
        """Records of ``training``, ``validation`` or ``test``.

        Args:
            name: of the section.
            kinds: leave out, with a note, records of none of these kinds, see
                :data:`~common.data.contract.records.KINDS`; a fault if none is left.

        Raises:
            KeyError: another name.
            ValueError: another kind.
            DataError: no record is left.
        """
        if name not in SECTIONS:
            raise KeyError(f"no section {name!r}: use one of {', '.join(SECTIONS)}")
        listed = getattr(self, name)
        if not kinds:
            return list(listed)
        records = [record for record in listed if any(is_kind(record, kind) for kind in kinds)]
        wanted = " or ".join(KINDS[kind].words for kind in kinds)
        if not records:
            what = f"the data set in {self.root} has no record {wanted} here"
            raise DataError([Fault(name, what, "add one to the JSON, or name another section with --section")])
        if len(records) < len(listed):
            missing = len(listed) - len(records)
            logger.warning(f"{name}: {missing} of {len(listed)} records left out, only those {wanted} are used")
        return records


def read_data(
    dataset_dir: str | os.PathLike[str], datalist: str = "dataset.json"
) -> tuple[SegmentationData, list[Fault]]:
    """Read the JSON; opens no image.

    Args:
        dataset_dir: folder of the data set.
        datalist: name of the JSON in that folder.

    Returns:
        what could be read, and the faults of the JSON.

    Raises:
        DataError: there is no readable JSON object at all.
    """
    root = Path(dataset_dir).expanduser().resolve()
    content = load_json(root, datalist)
    faults: list[Fault] = []
    labels = normalise_labels(content.get("labels"), datalist, faults)
    unlabelled = content.get("scribble_unlabelled_value", SCRIBBLE_UNLABELLED)
    if not isinstance(unlabelled, int) or isinstance(unlabelled, bool):
        what = f"scribble_unlabelled_value is {unlabelled!r}, not a whole number"
        fix = f"give the value that marks voxels without a scribble, such as {SCRIBBLE_UNLABELLED}"
        faults.append(Fault(datalist, what, fix))
        unlabelled = SCRIBBLE_UNLABELLED
    if unlabelled in labels:
        what = f"scribble_unlabelled_value {unlabelled} is also the label value of '{labels[unlabelled]}'"
        faults.append(Fault(datalist, what, f"use a value that is no label, such as {SCRIBBLE_UNLABELLED}"))
        unlabelled = SCRIBBLE_UNLABELLED  # so that this one mistake is not told once more for each scribble
    name, channels = normalise_names(content, root.name, datalist, faults)
    data = SegmentationData(root, name, labels, unlabelled, channels=channels)
    for section, records in parse_sections(content, root, faults, data.notes).items():
        setattr(data, section, records)
        for record in records:
            if "scribble" in record:
                record["scribble_unlabelled_value"] = unlabelled
    return data, faults


def load_json(root: Path, datalist: str) -> dict[str, Any]:
    """The JSON object of a data set as it stands in the file.

    Raises:
        DataError: the folder or the file is missing, or the file is no JSON object.
    """
    path = root / datalist
    if not root.is_dir():
        raise DataError([Fault(str(root), "there is no such folder", "give the folder that holds the data set's JSON")])
    if not path.is_file():
        others = sorted(entry.name for entry in root.glob("*.json"))
        fix = f"name it with --datalist, here: {', '.join(others)}" if others else "see `python -m common.data convert`"
        raise DataError([Fault(str(path), "there is no such file", fix)])
    content = read_json(path, "correct the file there")
    if not isinstance(content, dict):
        what = f"holds a {type(content).__name__} where an object is expected"
        raise DataError([Fault(str(path), what, 'write {"name": ..., "labels": {...}, "training": [...], ...}')])
    return content


def compare_classes(data: SegmentationData, num_classes: int | None, where: str) -> list[Fault]:
    """Fault if the network has another number of classes than the data set; None takes any number."""
    if num_classes is None or not data.labels or num_classes == data.num_classes:
        return []
    what = f"declares {data.num_classes} classes (background included), the network has {num_classes}"
    return [Fault(where, what, f"use --num_classes {data.num_classes}")]


def missing_needs(data: SegmentationData, needs: Sequence[str]) -> list[Fault]:
    """Which of a method's needs the data set does not meet; a data set for training always needs ``validation``.

    Args:
        data: the data set.
        needs: some of :data:`NEEDS`.

    Returns:
        one fault for each need that is not met.

    Raises:
        ValueError: another need.
    """
    if unknown := sorted(set(needs) - set(NEEDS)):
        raise ValueError(f"unknown needs {unknown}: use some of {', '.join(NEEDS)}")
    faults = [
        Fault("training", f"the method needs {NEEDS[kind]}, there are none", KINDS[kind].fix or f"add {NEEDS[kind]}")
        for kind in needs
        if kind in KINDS and not any(is_kind(record, kind) for record in data.training)
    ]
    if not data.validation and ("validation" in needs or data.training):
        fix = (
            f"`python -m common.data split {shlex.quote(str(data.root))} --fraction 0.2 --seed 0` writes "
            "dataset_split.json with one, by group; then use --datalist dataset_split.json"
        )
        what = "there is no `validation` section, so training cannot tell its best state"
        faults.append(Fault("validation", what, fix))
    elif "validation" in needs and not all("label" in record for record in data.validation):
        what = f"the method needs {NEEDS['validation']}, some have none"
        faults.append(Fault("validation", what, "add their labels or remove the records"))
    return faults
