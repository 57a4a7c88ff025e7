"""Medical Segmentation Decathlon: any task folder (``dataset.json``, ``imagesTr``, ``labelsTr``, ``imagesTs``)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..contract.faults import DataError, Fault
from ..contract.output import fault, new_folder, place, write_json
from ..contract.records import normalise_labels
from .base import data_list, read_json, source_folder, stem


def convert_decathlon(source: str, output: str, unlabelled: bool = False) -> Path:
    """Convert a task of the Medical Segmentation Decathlon; images are hard-linked where possible, else copied.

    Images with several modalities stay 4D files; the JSON declares their channels (``channel_names``). The decathlon
    keeps the labels of its test images back, so they are left out, or taken as unlabelled training images.

    Args:
        source: folder of the task, which holds ``dataset.json``.
        output: folder to write; nothing there is overwritten.
        unlabelled: add the test images to ``training`` without labels.

    Returns:
        the folder written.

    Raises:
        DataError: when ``dataset.json`` or files that it names are missing or of another form.
    """
    folder = source_folder(source)
    content = read_json(folder / "dataset.json")
    labels = _labels(content, folder / "dataset.json")
    entries = [(_paths(entry, folder), True) for entry in _entries(content, "training", folder)]
    if unlabelled:
        entries += [(_paths(entry, folder), False) for entry in _entries(content, "test", folder)]
    if not entries:
        raise fault(folder / "dataset.json", "its list `training` is empty", "give the folder of a complete task")
    faults = [
        Fault(str(path), "is missing", "unpack the whole archive again")
        for (image, label), labelled in entries
        for path in ([image, label] if labelled else [image])
        if path is None or not path.is_file()
    ]
    if faults:
        raise DataError(faults, str(folder))
    with new_folder(Path(str(output))) as target:
        records = []
        for (image, label), _ in entries:
            record = {"image": f"images/{image.name}", "group": stem(image)}
            place(image, target / record["image"], link=True)
            if label is not None:
                record["label"] = f"labels/{label.name}"
                place(label, target / record["label"])
            records.append(record)
        listing = data_list(str(content.get("name", folder.name)), labels, {"training": records})
        if isinstance(content.get("modality"), dict):
            listing["channel_names"] = content["modality"]
        write_json(listing, target / "dataset.json")
    return Path(str(output))


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
