"""nnU-Net raw folders (``DatasetXXX_Name`` of version 2, ``TaskXXX_Name`` of version 1)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..contract.faults import DataError, Fault
from ..contract.output import fault
from ..contract.records import normalise_labels
from .base import NIFTI_ENDINGS, Case, Source, converter, read_json
from .cases import with_patients


@converter("nnunet", "a raw data set of nnU-Net, version 1 or 2")
def convert_nnunet(source: Path, unlabelled: bool = False, group_pattern: str | None = None) -> Source:
    """Convert ``imagesTr/<case>_0000.nii.gz`` (a file for each channel), ``labelsTr/<case>.nii.gz``, ``dataset.json``.

    Images are hard-linked where possible, else copied. A data set with an ``ignore`` label is one of scribbles: its
    labels become ``scribble``, with the value of ``ignore`` as ``scribble_unlabelled_value``. Cases of ``imagesTs``
    become ``test`` if ``labelsTs`` holds their labels. Region-based labels are not supported.

    Args:
        source: the data set's folder, which holds ``dataset.json``.
        unlabelled: add images without a label to ``training`` as unlabelled; without it those of ``imagesTs`` are left
            out and those of ``imagesTr`` are a fault.
        group_pattern: regular expression whose first group, or whole match, is the patient in a case's name; without
            it the records have no `group`, so that each case counts as a patient of its own.

    Returns:
        name, labels and cases.

    Raises:
        DataError: when files are missing or the data set is of a form that is not supported.
    """
    content = read_json(source / "dataset.json")
    ending = _file_ending(content, source)
    channels = content.get("channel_names", content.get("modality"))
    if not isinstance(channels, dict) or not channels:
        raise fault(source / "dataset.json", "has no `channel_names`", "give the dataset.json of a raw folder")
    labels, ignore = _labels(content, source / "dataset.json")
    key = "label" if ignore is None else "scribble"
    cases = with_patients(_plan(source, len(channels), ending, key, unlabelled), group_pattern)
    extra: dict[str, Any] = {"channel_names": {str(number): str(name) for number, name in channels.items()}}
    if ignore is not None:
        extra["scribble_unlabelled_value"] = ignore
    return Source(str(content.get("name", source.name)), labels, cases, extra)


def _plan(folder: Path, channels: int, ending: str, key: str, unlabelled: bool) -> list[Case]:
    """All cases to be written; every file that is missing is told at once."""
    faults: list[Fault] = []
    cases = []
    for part, section in (("Tr", "training"), ("Ts", "test")):
        for name, images in _images(folder / f"images{part}", channels, ending, faults).items():
            label = folder / f"labels{part}" / f"{name}{ending}"
            if label.is_file():
                drawn = key == "scribble" and section == "training"
                cases.append(Case(name, images, None if drawn else label, label if drawn else None, section))
            elif unlabelled:
                cases.append(Case(name, images))
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
