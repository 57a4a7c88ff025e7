"""Medical Segmentation Decathlon: any task folder (``dataset.json``, ``imagesTr``, ``labelsTr``, ``imagesTs``)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..contract.faults import DataError, Fault
from ..contract.output import fault, new_folder, place, write_json
from ..contract.records import normalise_labels
from .base import data_list, read_json, source_folder, stem

FIRST_MR_CASE = 501  # of AMOS22; cases 1 to 500 are CT
MODALITIES = ("ct", "mr", "both")


def convert_decathlon(source: str, output: str, unlabelled: bool = False) -> Path:
    """Convert a task of the Medical Segmentation Decathlon; images are hard-linked where possible, else copied.

    Images with several modalities stay 4D files; the JSON declares their channels (``channel_names``). The decathlon
    keeps the labels of its test images back, so they are left out, or taken as unlabelled training images. A list
    ``validation`` (with labels), which some data sets of this form have, becomes ``validation``.

    Args:
        source: folder of the task, which holds ``dataset.json``.
        output: folder to write; nothing there is overwritten.
        unlabelled: add the test images to ``training`` without labels.

    Returns:
        the folder written.

    Raises:
        DataError: when ``dataset.json`` or files that it names are missing or of another form.
    """
    return _convert(source, output, unlabelled, lambda _: True)


def convert_amos22(source: str, output: str, modality: str = "both", unlabelled: bool = False) -> Path:
    """Convert AMOS 2022 (15 abdominal organs): a folder of the decathlon's form with a labelled ``validation`` list.

    CT (cases 1 to 500) and MR (from 501 on) are in one folder, told apart by the numbers in their names.

    Args:
        source: folder that holds ``dataset.json``, ``imagesTr``, ``labelsTr``, ``imagesVa``, ``labelsVa``.
        output: folder to write; nothing there is overwritten.
        modality: ``ct``, ``mr`` or ``both``.
        unlabelled: add the test images to ``training`` without labels.

    Returns:
        the folder written.

    Raises:
        DataError: when files are missing or of another form, or no case is of the modality.
    """
    if modality not in MODALITIES:
        raise fault("--modality", f"{modality!r} is unknown", f"give one of {', '.join(MODALITIES)}")

    def wanted(image: Path) -> bool:
        number = stem(image).rpartition("_")[2]
        if not number.isdigit():
            raise fault(image, "has no case number", "name it as published: amos_0001.nii.gz")
        return modality == "both" or (int(number) >= FIRST_MR_CASE) == (modality == "mr")

    return _convert(source, output, unlabelled, wanted)


def _convert(source: str, output: str, unlabelled: bool, wanted: Callable[[Path], bool]) -> Path:
    """Convert those entries of ``dataset.json`` whose image is wanted."""
    folder = source_folder(source)
    content = read_json(folder / "dataset.json")
    labels = _labels(content, folder / "dataset.json")
    entries = _sections(content, folder, unlabelled, wanted)
    with new_folder(Path(str(output))) as target:
        sections: dict[str, list[dict[str, Any]]] = {"training": [], "validation": []}
        for section, image, label in entries:
            record = {"image": f"images/{image.name}", "group": stem(image)}
            place(image, target / record["image"], link=True)
            if label is not None:
                record["label"] = f"labels/{label.name}"
                place(label, target / record["label"])
            sections[section].append(record)
        listing = data_list(str(content.get("name", folder.name)), labels, sections)
        if isinstance(content.get("modality"), dict):
            listing["channel_names"] = content["modality"]
        write_json(listing, target / "dataset.json")
    return Path(str(output))


def _sections(
    content: dict[str, Any], folder: Path, unlabelled: bool, wanted: Callable[[Path], bool]
) -> list[tuple[str, Path, Path | None]]:
    """Section, image and label of every record; all files that are missing are told at once."""
    entries: list[tuple[str, Path, Path | None]] = []
    faults: list[Fault] = []
    for key in ("training", "validation", "test"):
        for image, label in (_paths(entry, folder) for entry in _entries(content, key, folder)):
            if not wanted(image):
                continue
            if key == "training" and label is None:
                faults.append(Fault(str(image), "has no label in `training`", "give the JSON of a decathlon task"))
            if key != "test" and label is not None:
                entries.append((key, image, label))
            elif unlabelled:
                entries.append(("training", image, None))
    faults += [
        Fault(str(path), "is missing", "unpack the whole archive again")
        for _, *paths in entries
        for path in paths
        if path is not None and not path.is_file()
    ]
    if faults:
        raise DataError(faults, str(folder))
    if not any(section == "training" for section, *_ in entries):
        raise fault(folder / "dataset.json", "its list `training` is empty", "give the folder of a complete task")
    return entries


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
