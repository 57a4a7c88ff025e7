"""Medical Segmentation Decathlon: any task folder (``dataset.json``, ``imagesTr``, ``labelsTr``, ``imagesTs``)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..contract.faults import DataError, Fault
from ..contract.output import fault
from ..contract.records import normalise_labels
from .base import Case, Source, converter, read_json, stem
from .cases import with_patients

FIRST_MR_CASE = 501  # of AMOS 2022; cases 1 to 500 are CT
MODALITIES = ("ct", "mr", "both")


@converter("decathlon", "a task of the Medical Segmentation Decathlon")
def convert_decathlon(source: Path, unlabelled: bool = False, group_pattern: str | None = None) -> Source:
    """Convert a task of the Medical Segmentation Decathlon; images are hard-linked where possible, else copied.

    Images with several modalities stay 4D files; the JSON declares their channels (``channel_names``). The decathlon
    keeps the labels of its test images back, so they are left out, or taken as unlabelled training images. A list
    ``validation`` (with labels), which some data sets of this form have, becomes ``validation``.

    Args:
        source: folder of the task, which holds ``dataset.json``.
        unlabelled: add the test images to ``training`` without labels.
        group_pattern: regular expression whose first group, or whole match, is the patient in an image's name; without
            it the records have no `group`, so that each case counts as a patient of its own.

    Returns:
        name, labels and cases.

    Raises:
        DataError: when ``dataset.json`` or files that it names are missing or of another form.
    """
    found = _convert(source, unlabelled, lambda _: True)
    return replace(found, cases=with_patients(found.cases, group_pattern))


@converter("amos22", "AMOS 2022, 15 abdominal organs, CT and MR")
def convert_amos22(source: Path, modality: str = "both", unlabelled: bool = False) -> Source:
    """Convert a folder of the decathlon's form with a labelled ``validation`` list.

    CT (cases 1 to 500) and MR (from 501 on) are in one folder, told apart by the numbers in their names.

    Args:
        source: folder that holds ``dataset.json``, ``imagesTr``, ``labelsTr``, ``imagesVa``, ``labelsVa``.
        modality: ``ct``, ``mr`` or ``both``.
        unlabelled: add the test images to ``training`` without labels.

    Returns:
        name, labels and cases.

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

    return _convert(source, unlabelled, wanted)


def _convert(folder: Path, unlabelled: bool, wanted: Callable[[Path], bool]) -> Source:
    """Those entries of ``dataset.json`` whose image is wanted."""
    content = read_json(folder / "dataset.json")
    labels = _labels(content, folder / "dataset.json")
    cases = _cases(content, folder, unlabelled, wanted)
    modality = content.get("modality")
    extra = {"channel_names": modality} if isinstance(modality, dict) else {}
    return Source(str(content.get("name", folder.name)), labels, cases, extra)


def _cases(content: dict[str, Any], folder: Path, unlabelled: bool, wanted: Callable[[Path], bool]) -> list[Case]:
    """All cases; every file that is missing is told at once."""
    cases: list[Case] = []
    faults: list[Fault] = []
    for key in ("training", "validation", "test"):
        for image, label in (_paths(entry, folder) for entry in _entries(content, key, folder)):
            if not wanted(image):
                continue
            if key == "training" and label is None:
                faults.append(Fault(str(image), "has no label in `training`", "give the JSON of a decathlon task"))
            elif key != "test" and label is not None:
                cases.append(Case(stem(image), image, label, section=key))
            elif unlabelled:
                cases.append(Case(stem(image), image))
    faults += [
        Fault(str(path), "is missing", "unpack the whole archive again")
        for case in cases
        for path in (case.image, case.label)
        if isinstance(path, Path) and not path.is_file()
    ]
    if faults:
        raise DataError(faults, str(folder))
    if not any(case.section == "training" for case in cases):
        raise fault(folder / "dataset.json", "its list `training` is empty", "give the folder of a complete task")
    return cases


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
