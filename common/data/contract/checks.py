"""Checks of a data set's files, one record at a time, and of the records against each other."""

from __future__ import annotations

import hashlib
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ...ops.threads import usable_cores
from .dataset import SegmentationData
from .faults import Fault
from .names import shared_names
from .records import SECTIONS, is_kind
from .scribbles import check_scribble, one_sided
from .volumes import (
    Header,
    Report,
    check_image,
    check_resampled,
    check_size,
    compare_geometry,
    count_values,
    hash_voxels,
    read_header,
    read_voxels,
    when_rewritten,
)

WORKERS = min(8, usable_cores())


@dataclass
class Case:
    """What was found in the files of one record.

    Attributes:
        section: ``training``, ``validation`` or ``test``.
        record: the record.
        shape: spatial shape in voxels, None if the image cannot be read.
        spacing: voxel size in mm.
        channels: number of image channels.
        intensities: smallest and largest value of the image, None if unknown.
        counts: voxels of each label value, of ``label``, of the first of ``labels``, or of ``scribble``.
        marked: label values that ``scribble`` marks.
        digest: hash of the image's voxels as they are loaded; equal for copies of one image, whatever their types.
        faults: what is wrong.
        notes: what is odd but allowed.
    """

    section: str
    record: dict[str, Any]
    shape: tuple[int, ...] | None = None
    spacing: tuple[float, ...] = ()
    channels: int = 0
    intensities: tuple[float, float] | None = None
    counts: dict[int, int] | None = None
    marked: set[int] = field(default_factory=set)
    digest: str = ""
    faults: list[Fault] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def image(self) -> str:
        """Path of the image, of its first channel if there are several files."""
        image = self.record["image"]
        return str(image[0] if isinstance(image, list) else image)


def check_records(
    data: SegmentationData,
    in_channels: int | None = None,
    spatial_dims: int | None = None,
    spacing: Sequence[float] | None = None,
) -> list[Fault]:
    """Open every file of a data set and look for faults; notes are added to ``data.notes``.

    Args:
        data: the data set.
        in_channels: image channels of the network, None for any number.
        spatial_dims: axes that images must have, None for any number.
        spacing: voxel size in mm that images will be resampled to, None if that is not known.

    Returns:
        all faults.
    """
    cases = inspect_cases(data, in_channels, spacing)
    data.notes += [note for case in cases for note in case.notes]
    faults = [fault for case in cases for fault in case.faults] + compare_cases(data, cases, in_channels)
    return faults + other_axes(data, cases, spatial_dims)


def other_axes(data: SegmentationData, cases: list[Case], spatial_dims: int | None) -> list[Fault]:
    """A fault for the first image that has not as many axes as the bundle takes; None takes any number."""
    for case in cases:
        if spatial_dims is not None and case.shape is not None and len(case.shape) != spatial_dims:
            what = f"has {len(case.shape)} axes, the bundle takes {spatial_dims}D images"
            fix = (
                "store slices as a volume, or one slice as a volume of depth 1" if spatial_dims == 3 else "store slices"
            )
            return [Fault(_where(data, case.image, case, "image"), what, fix)]
    return []


def inspect_cases(
    data: SegmentationData, in_channels: int | None = None, spacing: Sequence[float] | None = None
) -> list[Case]:
    """Open the files of every record, several records at a time.

    Args:
        data: the data set.
        in_channels: image channels of the network, None for any number; tells channels from a time series.
        spacing: voxel size in mm that images will be resampled to, None if that is not known.

    Returns:
        one entry a record, with its faults.
    """
    cases = [Case(section, record) for section in SECTIONS for record in data.section(section)]
    with ThreadPoolExecutor(WORKERS) as pool:
        done = pool.map(lambda case: _inspect(case, data, in_channels, spacing), cases)
        # disable=None: no bar where nobody watches
        for _ in tqdm(done, total=len(cases), desc="checking data", leave=False, disable=None):
            pass
    return cases


def _inspect(case: Case, data: SegmentationData, in_channels: int | None, spacing: Sequence[float] | None) -> None:
    image = _inspect_image(case, data, in_channels, spacing)
    record = case.record
    if "label" in record:
        case.counts = _inspect_label(case, data, "label", record["label"], image, set(data.labels))
        _check_emptiness(case, data)
    if "labels" in record:
        found = [_inspect_label(case, data, "labels", path, image, set(data.labels)) for path in record["labels"]]
        case.counts = case.counts or found[0]
    if "scribble" in record:
        allowed = {*data.labels, data.scribble_unlabelled_value} if data.labels else set()
        counts = _inspect_label(case, data, "scribble", record["scribble"], image, allowed)
        if counts is not None:
            report = _reporter(case, data, record["scribble"], "scribble")
            case.marked = check_scribble(counts, data.scribble_unlabelled_value, report)
        case.counts = case.counts or counts
    if "reference" in record:
        _inspect_label(case, data, "reference", record["reference"], image, set(data.labels))
    if "probability" in record:
        _inspect_probability(case, data, record["probability"], image)


def _inspect_image(
    case: Case, data: SegmentationData, in_channels: int | None, spacing: Sequence[float] | None
) -> Header | None:
    """Check all channels; returns the geometry of the first file."""
    value = case.record["image"]
    paths = value if isinstance(value, list) else [value]
    headers: list[Header] = []
    digest = hashlib.blake2b(digest_size=16)
    for path in paths:
        report = _reporter(case, data, path, "image")
        header = read_header(path, report)
        if header is None:
            continue
        if headers:
            compare_geometry(header, headers[0], f"the first channel {Path(paths[0]).name}", report)
        headers.append(header)
        if check_size(header, report, _reporter(case, data, path, "image", as_note=True)) and spacing is not None:
            check_resampled(header, spacing, report)
        _check_fourth_axis(header, data, in_channels, len(paths), report)
        voxels = read_voxels(header, report)
        if voxels is None:
            continue
        check_image(voxels, when_rewritten(path, report))
        hash_voxels(voxels, header, digest)
        low, high = float(voxels.min()), float(voxels.max())
        known = case.intensities or (low, high)
        case.intensities = (min(low, known[0]), max(high, known[1]))
        case.digest = digest.hexdigest()
    if len(headers) < len(paths):
        return headers[0] if headers and headers[0].image.get_filename() == paths[0] else None
    case.shape, case.spacing = headers[0].shape, headers[0].spacing
    case.channels = sum(header.channels for header in headers)
    return headers[0]


def _check_fourth_axis(
    header: Header, data: SegmentationData, in_channels: int | None, files: int, report: Report
) -> None:
    if header.channels == 1:
        return
    if files > 1:
        what = f"has a fourth axis of length {header.channels} and is one of {files} channel files"
        report(what, "store one channel a file, or all channels in one file")
    elif header.channels not in (len(data.channels), in_channels):
        what = f"has a fourth axis of length {header.channels} that nothing declares"
        names = f'"channel_names": {{"0": ..., "{header.channels - 1}": ...}}'
        fix = f"write {names} in the JSON if these are channels, split the file if they are time points"
        report(what, fix)


def _inspect_label(
    case: Case, data: SegmentationData, key: str, path: str, image: Header | None, allowed: set[int]
) -> dict[int, int] | None:
    """Check one mask; returns its voxel counts by value, None if they cannot be told."""
    report = _reporter(case, data, path, key)
    header = read_header(path, report)
    if header is None:
        return None
    if header.channels > 1:
        report(f"is a label with a fourth axis of length {header.channels}", "store one label value a voxel")
        return None
    if image is not None:
        compare_geometry(header, image, f"its image {Path(case.image).name}", report)
    voxels = read_voxels(header, report)
    counts = None if voxels is None else count_values(voxels, report)
    if counts is None:
        return None
    strange = sorted(set(counts) - allowed)
    if strange and allowed:
        shown = ", ".join(map(str, strange[:8])) + (" ..." if len(strange) > 8 else "")
        kind = "scribble" if key == "scribble" else "label"
        what = f"has {kind} values {shown}, which `labels` does not declare (declared: {sorted(allowed)})"
        fix = "declare them in `labels`, or renumber the file"
        if strange == [255]:
            fix += "; a mask stored as 0 and 255 must become 0 and 1"
        report(what, fix)
    return counts


def _inspect_probability(case: Case, data: SegmentationData, path: str, image: Header | None) -> None:
    """Check a map of probabilities, one channel a structure."""
    report = _reporter(case, data, path, "probability")
    header = read_header(path, report)
    if header is None:
        return
    if header.channels != data.num_classes - 1:
        report(f"has {header.channels} channels for {data.num_classes - 1} structures", "store one channel a structure")
    if image is not None:
        compare_geometry(header, image, f"its image {Path(case.image).name}", report)


def _check_emptiness(case: Case, data: SegmentationData) -> None:
    """An empty clean training label is a fault unless the record says it is meant; elsewhere it is a note."""
    if case.counts is None:
        return
    where, marked = _where(data, case.record["label"], case, "label"), set(case.counts) != {0}
    if case.record.get("empty") is True:
        if marked:
            count = sum(case.counts.values()) - case.counts.get(0, 0)
            what = f"the record says that it is empty, but it has {count} voxels of structures"
            case.faults.append(Fault(where, what, 'remove "empty", or correct the label'))
    elif marked:
        return
    elif case.section == "training" and is_kind(case.record, "clean"):
        fix = 'add the label, drop `label` (unlabelled), or write "empty": true if there is truly nothing to label'
        case.faults.append(Fault(where, "the clean label is empty: background everywhere", fix))
    else:
        case.notes.append(f"{where}: the label is empty (background everywhere)")


def compare_cases(data: SegmentationData, cases: list[Case], in_channels: int | None = None) -> list[Fault]:
    """Look for faults that show only when records are compared.

    Args:
        data: the data set; a note is added for structures that no training label holds.
        cases: from :func:`inspect_cases`.
        in_channels: image channels of the network, None for any number.

    Returns:
        the faults.
    """
    faults = [*_duplicates(data, cases), *_same_names(data, cases), *_leaks(cases), *_uneven(data, cases)]
    training = [case for case in cases if case.section == "training"]
    if not any(key in case.record for case in training for key in ("label", "labels")):
        faults += one_sided([case.marked for case in training], data.labels)
    _note_copies(data, cases)
    counted = Counter(case.channels for case in cases if case.channels)
    if in_channels is not None and len(counted) == 1 and in_channels not in counted:
        channels = next(iter(counted))
        what = f"images have {channels} channel{'s' * (channels > 1)}, the network takes {in_channels}"
        faults.append(Fault("dataset", what, f"use --in_channels {channels}"))
    seen = {value for case in training for value in case.counts or {}}
    if seen:
        for value in sorted(set(data.labels) - seen - {0}):
            data.notes.append(f"structure {value} ({data.labels[value]}) is in no training label")
    return faults


def _duplicates(data: SegmentationData, cases: list[Case]) -> Iterator[Fault]:
    """The same image or label file twice in one section."""
    for (section, _), same in _within_sections(_group_by(cases, lambda case: str(case.record["image"]))):
        what = f"{section} lists this image {len(same)} times"
        yield Fault(_relative(data, same[0].image), what, "remove the repeated records")
    for (section, label), same in _within_sections(_group_by(cases, lambda case: str(case.record.get("label", "")))):
        images = {case.image for case in same}
        if len(images) > 1:
            what = f"{len(images)} different images of {section} share this label file"
            yield Fault(_relative(data, label), what, "give each image its own label")


def _same_names(data: SegmentationData, cases: list[Case]) -> Iterator[Fault]:
    """Different images of one section whose results would have one name."""
    for section in SECTIONS:
        for name, images in shared_names(case.record["image"] for case in cases if case.section == section).items():
            shown = ", ".join(_relative(data, image) for image in images[:3]) + (", ..." if len(images) > 3 else "")
            what = f"{len(images)} images of {section} have the name {name}, by which results are called: {shown}"
            yield Fault(_relative(data, images[0]), what, "rename the files, by patient for example")


def _note_copies(data: SegmentationData, cases: list[Case]) -> None:
    """One image under two names in one section counts twice, which is odd but spoils nothing; public data have such."""
    for (section, _), same in _within_sections(_group_by(cases, lambda case: case.digest)):
        names = sorted({_relative(data, case.image) for case in same})
        if len(names) > 1:
            data.notes.append(f"{section}: {', '.join(names)} are copies of one image (equal voxels)")


def _leaks(cases: list[Case]) -> Iterator[Fault]:
    """The same image or the same group in two sections."""
    for one, other in combinations(SECTIONS, 2):
        pair = [case for case in cases if case.section in (one, other)]
        told: set[str] = set()
        for read, kind in (
            (lambda case: str(case.record["image"]), "image"),
            (lambda case: case.digest, "copies of one image"),
            (lambda case: str(case.record["group"]), "group"),
        ):
            for value, same in _group_by(pair, read).items():
                groups = {str(case.record["group"]) for case in same}
                if len({case.section for case in same}) < 2 or groups <= told:
                    continue
                told |= groups
                names = ", ".join(sorted({Path(case.image).name for case in same}))
                what = {
                    "image": f"the image {names} is in both sections",
                    "copies of one image": f"{names} are copies of one image (equal voxels) in both sections",
                    "group": f"the group {value!r} is in both sections ({names})",
                }[kind]
                yield Fault(f"{one}, {other}", what, f"keep it in one of them, else {other} measures what was learnt")


def _uneven(data: SegmentationData, cases: list[Case]) -> Iterator[Fault]:
    """Numbers that must be the same in all records: axes, channels."""
    kinds: tuple[tuple[str, Callable[[Case], int], str], ...] = (
        ("axes", lambda case: len(case.shape or ()), "keep 2D and 3D images in separate data sets"),
        ("channels", lambda case: case.channels, "give every case the same channels in the same order"),
    )
    for name, count, fix in kinds:
        numbers = Counter(count(case) for case in cases if count(case))
        if len(numbers) < 2:
            continue
        usual = numbers.most_common(1)[0][0]
        for case in cases:
            if count(case) not in (0, usual):
                what = f"has {count(case)} {name}, most cases have {usual}"
                yield Fault(_where(data, case.image, case, "image"), what, fix)


def _group_by(cases: list[Case], read: Callable[[Case], str]) -> dict[str, list[Case]]:
    """Cases by a value; cases whose value is empty are left out."""
    groups: dict[str, list[Case]] = defaultdict(list)
    for case in cases:
        if read(case):
            groups[read(case)].append(case)
    return groups


def _within_sections(groups: dict[str, list[Case]]) -> Iterator[tuple[tuple[str, str], list[Case]]]:
    for value, same in groups.items():
        for section in SECTIONS:
            members = [case for case in same if case.section == section]
            if len(members) > 1:
                yield (section, value), members


def _reporter(case: Case, data: SegmentationData, path: str, key: str, as_note: bool = False) -> Report:
    where = _where(data, path, case, key)
    if as_note:
        return lambda what, fix: case.notes.append(f"{where}: {what}; {fix}")
    return lambda what, fix: case.faults.append(Fault(where, what, fix))


def _where(data: SegmentationData, path: str, case: Case, key: str) -> str:
    return f"{_relative(data, path)} ({case.section}/{key})"


def _relative(data: SegmentationData, path: str) -> str:
    return os.path.relpath(path, data.root) if Path(path).is_relative_to(data.root) else path
