"""The cases of a data set: their files found by name, and written in the form of the data contract."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from tqdm import tqdm

from ..contract.faults import DataError, Fault
from ..contract.output import fault, new_folder, place, write_json
from ..contract.volumes import Header, compare_geometry, read_header
from .base import data_list, held_out_names, read_volume, write_volume

logger = logging.getLogger(__name__)

#: parts of a case by name; each is one file
Parts = dict[str, Path]
# folders in which challenges hand out images without labels
_HELD_BACK = re.compile(r"test|valid", re.IGNORECASE)


@dataclass(frozen=True)
class Volume:
    """Voxels in space.

    Attributes:
        voxels: (X, Y, Z).
        affine: (4, 4) voxel to mm, right-anterior-superior.
        source: file they were read from, for messages.
    """

    voxels: np.ndarray
    affine: np.ndarray
    source: Path


@dataclass(frozen=True)
class Case:
    """One case to be written; volumes are read when their turn comes.

    Attributes:
        name: by which its files are called.
        images: one entry a channel: a NIfTI file that is kept as it is, or what reads the volume.
        label: reads the dense label; None for none.
        raters: read the masks of several raters; one that gives None is left out.
        group: patient or subject; the name where it is empty.
        section: ``training``, ``validation`` or ``test``.
    """

    name: str
    images: Sequence[Path | Callable[[], Volume]]
    label: Callable[[], Volume] | None = None
    raters: Sequence[Callable[[], Volume | None]] = ()
    group: str = ""
    section: str = "training"


def find_parts(folder: Path, pattern: str, expected: str) -> dict[str, Parts]:
    """Files of each case, in the order of their paths; hidden files (such as ``._name`` of macOS) are passed over.

    Args:
        folder: searched at any depth.
        pattern: regular expression, found in a file's path from ``folder`` (with ``/``, case ignored), with the groups
            ``case`` and ``part``; a group ``split``, where it is found, is put before the name of the case.
        expected: the files as a person would write them, for messages.

    Returns:
        by the name of the case, its files by part (in small letters; ``image`` where the group is empty).

    Raises:
        DataError: when there is none, or two files for one part.
    """
    found: dict[str, Parts] = {}
    wanted = re.compile(rf"(?:^|/){pattern}$", re.IGNORECASE)
    for path in sorted(folder.rglob("*")):
        match = wanted.search(path.relative_to(folder).as_posix())
        if match is None or path.name.startswith(".") or not path.is_file():
            continue
        split = match.groupdict().get("split")
        case = f"{split.lower()}_{match['case']}" if split else match["case"]
        part = match["part"].lower().strip("_") or "image"
        parts = found.setdefault(case, {})
        if part in parts:
            what = f"a second {part} of {case}, beside {parts[part]}"
            raise fault(path, what, "keep one of them, or give the folder of one data set alone")
        parts[part] = path
    if not found:
        raise fault(folder, f"holds no {expected}", "give the folder of the download")
    return found


def require_parts(cases: Mapping[str, Parts], parts: Iterable[str], folder: Path) -> None:
    """Ask for files that every case must have.

    Raises:
        DataError: with all that are missing.
    """
    lacking = {part: [case for case in cases if part not in cases[case]] for part in parts}
    faults = [
        Fault(str(folder), f"no {part} for {', '.join(names[:8])}", "download these cases again, or remove them")
        for part, names in lacking.items()
        if names
    ]
    if faults:
        raise DataError(faults, str(folder))


def drop_unlabelled(
    cases: dict[str, Parts], label: str | Callable[[Parts], bool], folder: Path, unlabelled: bool
) -> dict[str, Parts]:
    """Cases to convert: those with a label, and with ``unlabelled`` also those without.

    Args:
        cases: parts of each case.
        label: name of the part that is the label, or what tells whether parts hold one.
        folder: of the download.
        unlabelled: keep cases without a label.

    Raises:
        DataError: when a case lacks its label and lies in no folder of test or validation cases, whose labels are held
            back; or nothing is left.
    """
    labelled = label if callable(label) else lambda parts: label in parts
    without = [case for case, parts in cases.items() if not labelled(parts)]
    if unlabelled:
        return cases
    held_back = {
        case for case in without if _HELD_BACK.search(next(iter(cases[case].values())).relative_to(folder).as_posix())
    }
    missing = [case for case in without if case not in held_back]
    if missing:
        what = f"no label for {', '.join(missing[:8])}"
        raise fault(folder, what, "download these cases again, or give --unlabelled to take them without")
    if held_back:
        logger.info("left out, as they have no labels: %s", ", ".join(sorted(held_back)))
    kept = {case: parts for case, parts in cases.items() if case not in held_back}
    if not kept:
        raise fault(folder, "holds no case with a label", "give the folder of the labelled cases, or --unlabelled")
    return kept


def read_nifti(path: Path) -> Volume:
    """A NIfTI file of 3 axes; further axes of length 1 are dropped.

    Raises:
        DataError: when it cannot be read or has other axes.
    """
    voxels, header = read_volume(path)
    return Volume(three_axes(voxels, path), header.affine, path)


def read_label(path: Path, values: Mapping[int, int]) -> Volume:
    """A label map with its values renumbered.

    Args:
        path: NIfTI file of 3 axes.
        values: our value for each stored one; 0 stays 0.

    Raises:
        DataError: when it cannot be read or holds other values.
    """
    return renumbered(read_nifti(path), values)


def renumbered(label: Volume, values: Mapping[int, int]) -> Volume:
    """A label map whose stored values are replaced by ours.

    Args:
        label: (X, Y, Z) of any type.
        values: our value for each stored one; 0 stays 0.

    Returns:
        the same as uint8.

    Raises:
        DataError: when it holds other values.
    """
    known = {0: 0, **values}
    stored, places = np.unique(label.voxels, return_inverse=True)
    strange = [value for value in stored.tolist() if value not in known]
    if strange:
        what = f"holds the values {strange[:8]}, known are {', '.join(map(str, known))}"
        raise fault(label.source, what, "check that it is the label, as published")
    table = np.array([known[value] for value in stored.tolist()], dtype=np.uint8)
    return Volume(table[places].reshape(label.voxels.shape), label.affine, label.source)


def three_axes(voxels: np.ndarray, path: Path) -> np.ndarray:
    """The array with its trailing axes of length 1 dropped, or added, to have 3.

    Raises:
        DataError: when it has another length along a fourth axis.
    """
    if any(size != 1 for size in voxels.shape[3:]):
        raise fault(path, f"has shape {voxels.shape}", "give a volume of 3 axes")
    return voxels.reshape((*voxels.shape, 1, 1)[:3])


def write_cases(
    output: str,
    title: str,
    labels: Sequence[str],
    cases: Sequence[Case],
    channels: Sequence[str],
    test_list: str | None = None,
) -> Path:
    """Write a data set: images, labels and ``dataset.json``. NIfTI images are hard-linked where possible.

    Every channel and label must lie on the grid of the first channel; labels take its affine. Records of empty labels
    say so, as published masks are meant.

    Args:
        output: folder to write; nothing there is overwritten.
        title: name of the data set.
        labels: names of the values 0, 1, ...; the first is the background.
        cases: in order.
        channels: names of the image channels; as many as each case has images.
        test_list: text file with the names of the cases for the section ``test``, one per line.

    Returns:
        the folder written.

    Raises:
        DataError: when a file is unreadable or does not fit its image, or the test list names unknown cases.
    """
    tests = held_out_names(test_list, [case.name for case in cases])
    with new_folder(Path(str(output))) as target:
        sections: dict[str, list[dict[str, Any]]] = {"training": [], "validation": [], "test": []}
        for case in tqdm(cases, desc="converting", leave=False):
            sections["test" if case.name in tests else case.section].append(_write_case(target, case, channels))
        listing = data_list(title, {str(value): name for value, name in enumerate(labels)}, sections)
        listing["channel_names"] = {str(number): name for number, name in enumerate(channels)}
        write_json(listing, target / "dataset.json")
    return Path(str(output))


def _write_case(target: Path, case: Case, channels: Sequence[str]) -> dict[str, Any]:
    suffixes = [f"_{name.lower().replace(' ', '_')}" for name in channels] if len(channels) > 1 else [""]
    names: list[str] = []
    first: Header | None = None
    for source, suffix in zip(case.images, suffixes, strict=True):
        header, name = _write_image(target, source, f"images/{case.name}{suffix}")
        names.append(name)
        if first is not None:
            _same_grid(header, first, source if isinstance(source, Path) else Path(name), names[0])
        else:
            first = header
    assert first is not None  # a case has an image
    record: dict[str, Any] = {"image": names if len(names) > 1 else names[0], "group": case.group or case.name}
    if case.label is not None:
        label = case.label()
        record["label"] = _write_label(target, label, first, f"labels/{case.name}.nii.gz", names[0])
        if not label.voxels.any():
            record["empty"] = True
    masks = [mask for read in case.raters if (mask := read()) is not None]
    if case.raters and not masks:
        raise fault(target / names[0], "not one rater's mask of this case can be read", "remove the case")
    if masks:
        record["labels"] = [
            _write_label(target, mask, first, f"labels/{case.name}_rater{number}.nii.gz", names[0])
            for number, mask in enumerate(masks, 1)
        ]
    return record


def _write_image(target: Path, source: Path | Callable[[], Volume], name: str) -> tuple[Header, str]:
    """Link a file, or write a volume; returns its geometry and the path in the data set."""
    if isinstance(source, Path):

        def report(what: str, fix: str) -> None:
            raise fault(source, what, fix)

        header = read_header(str(source), report)
        assert header is not None  # else a fault was raised
        name += ".nii.gz" if source.name.endswith(".gz") else ".nii"
        place(source, target / name, link=True)
        return header, name
    volume = source()
    name += ".nii.gz"
    if (target / name).exists():
        raise fault(volume.source, f"a second file for {Path(name).name}", "give the cases different names")
    write_volume(target / name, volume.voxels, volume.affine)
    return _geometry(volume), name


def _write_label(target: Path, label: Volume, image: Header, name: str, of: str) -> str:
    _same_grid(_geometry(label), image, label.source, of)
    write_volume(target / name, label.voxels, image.affine)
    return name


def _geometry(volume: Volume) -> Header:
    return Header(volume.voxels.shape, 1, volume.affine, nib.Nifti1Image(volume.voxels, volume.affine))


def _same_grid(header: Header, image: Header, path: Path, of: str) -> None:
    def report(what: str, fix: str) -> None:
        raise fault(path, what, "download the case again, or resample it to the image's grid")

    compare_geometry(header, image, f"its image {Path(of).name}", report)
