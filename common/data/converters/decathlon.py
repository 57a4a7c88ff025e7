"""Medical Segmentation Decathlon: any task folder (``dataset.json``, ``imagesTr``, ``labelsTr``, ``imagesTs``)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..contract.faults import DataError, Fault
from ..contract.output import fault
from ..contract.records import normalise_labels
from .base import Case, Source, converter, read_json, stem


@converter("decathlon", "a task of the Medical Segmentation Decathlon")
def convert_decathlon(source: Path, unlabelled: bool = False) -> Source:
    """Convert a task of the Medical Segmentation Decathlon; images are hard-linked where possible, else copied.

    Images with several modalities stay 4D files; the JSON declares their channels (``channel_names``). The decathlon
    keeps the labels of its test images back, so they are left out, or taken as unlabelled training images.

    Args:
        source: folder of the task, which holds ``dataset.json``.
        unlabelled: add the test images to ``training`` without labels.

    Returns:
        name, labels and cases.

    Raises:
        DataError: when ``dataset.json`` or files that it names are missing or of another form.
    """
    content = read_json(source / "dataset.json")
    labels = _labels(content, source / "dataset.json")
    entries = [(_paths(entry, source), True) for entry in _entries(content, "training", source)]
    if unlabelled:
        entries += [(_paths(entry, source), False) for entry in _entries(content, "test", source)]
    if not entries:
        raise fault(source / "dataset.json", "its list `training` is empty", "give the folder of a complete task")
    faults = [
        Fault(str(path), "is missing", "unpack the whole archive again")
        for (image, label), labelled in entries
        for path in ([image, label] if labelled else [image])
        if path is None or not path.is_file()
    ]
    if faults:
        raise DataError(faults, str(source))
    cases = [Case(stem(image), image, label) for (image, label), _ in entries]
    modality = content.get("modality")
    extra = {"channel_names": modality} if isinstance(modality, dict) else {}
    return Source(str(content.get("name", source.name)), labels, cases, extra)


def _labels(content: dict[str, Any], path: Path) -> dict[str, str]:
    faults: list[Fault] = []
    labels = normalise_labels(content.get("labels"), str(path), faults)
    if faults:
        raise DataError(faults)
    return {str(value): name for value, name in labels.items()}


def _entries(content: dict[str, Any], section: str, folder: Path) -> list[Any]:
    entries = content.get(section, [])
    if not isinstance(entries, list):
        raise fault(folder / "dataset.json", f"`{section}` is no list", "give the JSON of a decathlon task")
    return entries


def _paths(entry: Any, folder: Path) -> tuple[Path, Path | None]:
    """Image and label of an entry; test entries are a bare path."""
    image = entry.get("image") if isinstance(entry, dict) else entry
    label = entry.get("label") if isinstance(entry, dict) else None
    if not isinstance(image, str) or not isinstance(label, str | None):
        raise fault(folder / "dataset.json", f"the entry {entry!r} is of unknown form", "give a decathlon task")
    return folder / image, None if label is None else folder / label
