"""What converters of files in folders share: files found by name, labels renumbered, all on one grid."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from ..contract.faults import DataError, Fault
from ..contract.output import fault
from ..contract.volumes import Header, compare_geometry, count_values, read_header, read_volume
from ..contract.walk import paths_below
from .base import Case, Source, Volume, held_out_names

logger = logging.getLogger(__name__)

#: parts of a case by name; each is one file
Parts = dict[str, Path]
# begins the name, or a part of the name, of folders and files in which challenges hand out images without labels
_HELD_BACK = re.compile(r"(?<![a-z])(?:test|valid)", re.IGNORECASE)


def find_files(folder: Path, pattern: str, expected: str) -> dict[str, dict[str, list[Path]]]:
    """All files of each case, in the order of their paths. Names must begin as given: macOS's ``._name`` is none.

    Args:
        folder: searched at any depth.
        pattern: regular expression, found in a file's path from ``folder`` (with ``/``, case ignored), with the groups
            ``case`` and ``part``; a group ``split``, where it is found, is put before the name of the case.
        expected: the files as a person would write them, for messages.

    Returns:
        by the name of the case, as its first file spells it, its files by part (in small letters; ``image`` where the
        group is empty).

    Raises:
        DataError: when there is none.
    """
    found: dict[str, dict[str, list[Path]]] = {}
    spelled: dict[str, str] = {}
    wanted = re.compile(rf"(?:^|/){pattern}$", re.IGNORECASE)
    for path in paths_below(folder):
        match = wanted.search(path.relative_to(folder).as_posix())
        if match is None or not path.is_file():
            continue
        split = match.groupdict().get("split")
        case = f"{split.lower()}_{match['case']}" if split else match["case"]
        case = spelled.setdefault(case.casefold(), case)  # RIGA has Image1-1.tif beside image1-2.tif
        part = match["part"].lower().strip("_") or "image"
        found.setdefault(case, {}).setdefault(part, []).append(path)
    if not found:
        raise fault(folder, f"holds no {expected}", "give the folder of the download")
    return found


def find_parts(folder: Path, pattern: str, expected: str) -> dict[str, Parts]:
    """The one file of each part of each case; see :func:`find_files`.

    Raises:
        DataError: when there is none, or two files for one part.
    """
    return only_files(find_files(folder, pattern, expected))


def only_files(found: Mapping[str, Mapping[str, Sequence[Path]]]) -> dict[str, Parts]:
    """The one file of each part.

    Raises:
        DataError: when there are two.
    """
    for case, parts in found.items():
        for part, paths in parts.items():
            if len(paths) > 1:
                what = f"a second {part} of {case}, beside {paths[0]}"
                raise fault(paths[1], what, "keep one of them, or give the folder of one data set alone")
    return {case: {part: paths[0] for part, paths in parts.items()} for case, parts in found.items()}


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
        DataError: when a case lacks its label and neither it nor a folder above is named for test or validation, whose
            labels are held back; or nothing is left.
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


def with_patients(cases: Iterable[Case], pattern: str | None) -> list[Case]:
    """Cases whose group is the patient in their names.

    Args:
        cases: of a collection that does not say which cases are of one patient.
        pattern: regular expression, found in a case's name: its first group is the patient, or all of it if it has no
            group. None: no case gets a group, and the log says so.

    Raises:
        DataError: when it is no regular expression, or is not found in all names.
    """
    if pattern is None:
        logger.warning(
            "the collection does not say which cases are of one patient: each counts as a patient of its own; where "
            "names tell, give --group_pattern, such as 'patient[0-9]+'"
        )
        return [replace(case, group="") for case in cases]
    try:
        wanted = re.compile(pattern)
    except (re.error, TypeError) as error:  # True is what Python may give
        raise fault("--group_pattern", f"{pattern!r} is no regular expression ({error})", "correct it") from error
    found = [(case, wanted.search(case.name)) for case in cases]
    patients = [(case, match and match[min(1, wanted.groups)]) for case, match in found]
    unknown = [case.name for case, patient in patients if not patient]
    if unknown:
        what = f"{pattern!r} finds no patient in {', '.join(unknown[:8])}"
        raise fault("--group_pattern", what, "give one that is found in the names of all cases")
    return [replace(case, group=patient) for case, patient in patients]


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

    def report(what: str, fix: str) -> None:
        raise fault(_path(label), what, fix)

    known = {0: 0, **values}
    counts = count_values(label.voxels, report)
    assert counts is not None  # else a fault was raised
    strange = [value for value in counts if value not in known]
    if strange:
        what = f"holds the values {strange[:8]}, known are {', '.join(map(str, known))}"
        report(what, "check that it is the label, as published")
    table = np.zeros(max(known) + 1, dtype=np.uint8)
    table[list(known)] = list(known.values())
    return Volume(table[label.voxels.astype(np.int32)], label.affine, label.path)


def three_axes(voxels: np.ndarray, path: Path) -> np.ndarray:
    """The array with its trailing axes of length 1 dropped, or added, to have 3.

    Raises:
        DataError: when it has another length along a fourth axis.
    """
    if any(size != 1 for size in voxels.shape[3:]):
        raise fault(path, f"has shape {voxels.shape}", "give a volume of 3 axes")
    return voxels.reshape((*voxels.shape, 1, 1)[:3])


def listed_source(
    title: str,
    labels: Sequence[str],
    channels: Sequence[str],
    names: Iterable[str],
    cases: Iterable[Case],
    test_list: str | None,
) -> Source:
    """What a converter finds, with its test cases set apart and every case on one grid.

    Args:
        title: name of the data set.
        labels: names of the values 0, 1, ...; the first is the background.
        channels: names of the image channels.
        names: of all cases.
        cases: yielded one by one; see :func:`on_one_grid`.
        test_list: text file with the names of the cases for the section ``test``, one per line.

    Raises:
        DataError: when the test list is missing or names unknown cases.
    """
    tests = held_out_names(test_list, names)
    placed = (on_one_grid(replace(case, section="test") if case.name in tests else case) for case in cases)
    numbered = {str(number): name for number, name in enumerate(channels)}
    return Source(title, {str(value): name for value, name in enumerate(labels)}, placed, {"channel_names": numbered})


def on_one_grid(case: Case) -> Case:
    """A case whose channels and masks all lie on the grid of its first channel.

    Args:
        case: masks are voxels.

    Returns:
        the same; masks take the image's affine (it may differ by a tenth of a voxel), and a label that is background
        everywhere is said to be empty, as published masks are meant.

    Raises:
        DataError: naming the file that lies elsewhere or has another shape.
    """
    first, *others = [case.image] if isinstance(case.image, Path | Volume) else case.image
    grid, name = _geometry(first), Path(_path(first)).name
    for one in (*others, *([case.label] if case.label else []), *case.raters):
        _same_grid(_geometry(one), grid, _path(one), name)

    def placed(mask: Path | Volume) -> Path | Volume:
        return replace(mask, affine=grid.affine) if isinstance(mask, Volume) else mask

    label = None if case.label is None else placed(case.label)
    empty = isinstance(label, Volume) and not label.voxels.any()
    return replace(case, label=label, raters=[placed(mask) for mask in case.raters], empty=empty)


def _path(volume: Path | Volume) -> Path:
    path = volume if isinstance(volume, Path) else volume.path
    return Path("volume") if path is None else path


def _geometry(volume: Path | Volume) -> Header:
    if isinstance(volume, Volume):
        return Header(volume.voxels.shape, 1, volume.affine, None)

    def report(what: str, fix: str) -> None:
        raise fault(volume, what, fix)

    header = read_header(str(volume), report)
    assert header is not None  # else a fault was raised
    return header


def _same_grid(header: Header, image: Header, path: Path, of: str) -> None:
    def report(what: str, fix: str) -> None:
        raise fault(path, what, "download the case again, or resample it to the image's grid")

    compare_geometry(header, image, f"its image {of}", report)
