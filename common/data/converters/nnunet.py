"""nnU-Net raw folders (``DatasetXXX_Name`` of version 2, ``TaskXXX_Name`` of version 1)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..contract.faults import DataError, Fault
from ..contract.output import fault, new_folder, place, write_json
from ..contract.records import normalise_labels
from .base import NIFTI_ENDINGS, data_list, read_json, source_folder


def convert_nnunet(source: str, output: str, unlabelled: bool = False) -> Path:
    """Convert ``imagesTr/<case>_0000.nii.gz`` (a file for each channel), ``labelsTr/<case>.nii.gz``, ``dataset.json``.

    Images are hard-linked where possible, else copied. A data set with an ``ignore`` label is one of scribbles: its
    labels become ``scribble``, with the value of ``ignore`` as ``scribble_unlabelled_value``. Cases of ``imagesTs``
    become ``test`` if ``labelsTs`` holds their labels. Region-based labels are not supported.

    Args:
        source: the data set's folder, which holds ``dataset.json``.
        output: folder to write; nothing there is overwritten.
        unlabelled: add images without a label to ``training`` as unlabelled; without it those of ``imagesTs`` are left
            out and those of ``imagesTr`` are a fault.

    Returns:
        the folder written.

    Raises:
        DataError: when files are missing or the data set is of a form that is not supported.
    """
    folder = source_folder(source)
    content = read_json(folder / "dataset.json")
    ending = _file_ending(content, folder)
    channels = content.get("channel_names", content.get("modality"))
    if not isinstance(channels, dict) or not channels:
        raise fault(folder / "dataset.json", "has no `channel_names`", "give the dataset.json of a raw folder")
    labels, ignore = _labels(content, folder / "dataset.json")
    key = "label" if ignore is None else "scribble"
    cases = _plan(folder, len(channels), ending, key, unlabelled)
    with new_folder(Path(str(output))) as target:
        sections: dict[str, list[dict[str, Any]]] = {"training": [], "test": []}
        for case in cases:
            sections[case.section].append(_write_case(target, case))
        listing = data_list(str(content.get("name", folder.name)), labels, sections)
        listing["channel_names"] = {str(number): str(name) for number, name in channels.items()}
        if ignore is not None:
            listing["scribble_unlabelled_value"] = ignore
        write_json(listing, target / "dataset.json")
    return Path(str(output))


@dataclass(frozen=True)
class _Case:
    """One case to be written; ``key`` is what the label becomes (label or scribble)."""

    name: str
    section: str
    images: list[Path]
    label: Path | None
    key: str


def _plan(folder: Path, channels: int, ending: str, key: str, unlabelled: bool) -> list[_Case]:
    """All cases to be written; every file that is missing is told at once."""
    faults: list[Fault] = []
    cases = []
    for part, section in (("Tr", "training"), ("Ts", "test")):
        for name, images in _images(folder / f"images{part}", channels, ending, faults).items():
            label = folder / f"labels{part}" / f"{name}{ending}"
            if label.is_file():
                cases.append(_Case(name, section, images, label, key if section == "training" else "label"))
            elif unlabelled:
                cases.append(_Case(name, "training", images, None, key))
            elif section == "training":
                faults.append(Fault(str(label), "is missing", "add it, or give --unlabelled"))
    if not any(case.section == "training" for case in cases) and not faults:
        faults.append(Fault(str(folder), "has no training cases", "give the folder that holds imagesTr and labelsTr"))
    if faults:
        raise DataError(faults, str(folder))
    return cases


def _file_ending(content: dict[str, Any], folder: Path) -> str:
    ending = str(content.get("file_ending", ".nii.gz"))
    if ending not in NIFTI_ENDINGS:
        fix = f"convert its files to one of {', '.join(NIFTI_ENDINGS)} first"
        raise fault(folder / "dataset.json", f"file_ending {ending} is not supported", fix)
    if "dataset" in content:
        raise fault(folder / "dataset.json", "lists files elsewhere (`dataset`)", "copy them to imagesTr and labelsTr")
    return ending


def _labels(content: dict[str, Any], path: Path) -> tuple[dict[str, str], int | None]:
    """Label names by value, and the value to be ignored, if any."""
    given = content.get("labels")
    ignore = given.get("ignore") if isinstance(given, dict) else None
    if isinstance(given, dict) and ignore is not None:
        given = {name: value for name, value in given.items() if name != "ignore"}
    faults: list[Fault] = []
    labels = normalise_labels(given, str(path), faults)
    if faults:
        raise DataError(faults)
    return {str(value): name for value, name in labels.items()}, ignore


def _images(folder: Path, channels: int, ending: str, faults: list[Fault]) -> dict[str, list[Path]]:
    """Channel files of each case, in order; missing channels and names of another form are faults."""
    cases: dict[str, list[Path]] = {}
    for path in sorted(folder.glob(f"[!.]*{ending}")):
        name, _, number = path.name[: -len(ending)].rpartition("_")
        if not name or len(number) != 4 or not number.isdigit():
            faults.append(Fault(str(path), "has no channel number", f"name it <case>_0000{ending}"))
        elif int(number) >= channels:
            faults.append(
                Fault(str(path), f"is a channel beyond the {channels} of channel_names", "declare or remove it")
            )
        else:
            cases[name] = [folder / f"{name}_{channel:04d}{ending}" for channel in range(channels)]
    missing = [file for files in cases.values() for file in files if not file.is_file()]
    faults += [Fault(str(file), "is missing", "add the channel's file") for file in missing]
    return cases


def _write_case(target: Path, case: _Case) -> dict[str, Any]:
    names = [f"images/{path.name}" for path in case.images]
    for path, name in zip(case.images, names, strict=True):
        place(path, target / name, link=True)
    record: dict[str, Any] = {"image": names[0] if len(names) == 1 else names, "group": case.name}
    if case.label is not None:
        record[case.key] = f"{case.key}s/{case.label.name}"
        place(case.label, target / record[case.key])
    return record
