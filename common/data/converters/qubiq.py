"""QUBIQ (several raters): one folder a case with the image and one mask file a rater and task.

A data set of the challenge has one or more tasks, each a structure that was outlined by several raters; how many they
are is counted in the files. Images of one slice become volumes of depth 1.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from ..contract.output import fault
from ..contract.volumes import read_volume
from .base import Case, Source, Volume, binary_mask, converter, whole_number
from .cases import Parts, drop_unlabelled, find_parts, listed_source, require_parts


@converter("qubiq", "one set of QUBIQ, several raters")
def convert_qubiq(
    source: Path,
    task: int = 1,
    structure: str | None = None,
    unlabelled: bool = False,
    test_list: str | None = None,
) -> Source:
    """Convert ``Training/case01/image.nii.gz`` and ``task01_seg01.nii.gz``, ``task01_seg02.nii.gz``, ...

    Cases below a folder ``Validation`` that have masks become ``validation``. Visits of one patient (``case1-1``,
    ``case1-2``) share a group. Several channels of an image become a file each.

    Args:
        source: folder of one data set of the challenge (``brain-growth``, ``kidney``, ...).
        task: number of the task (structure) to convert.
        structure: name of the structure; default "task" and its number.
        unlabelled: add cases without masks to ``training``; without it those below a folder of test or validation
            cases are left out, and others are a fault.
        test_list: text file with the names of the test cases (``case01``), one per line.

    Returns:
        name, labels and cases.

    Raises:
        DataError: when files are missing, unreadable or do not fit each other, or no case has the task.
    """
    number = whole_number(task, "--task")
    pattern = r"(?P<case>case[\d-]+)/(?P<part>image|task\d+_seg\d+)\.nii(?:\.gz)?"
    files = find_parts(source, pattern, "case01/image.nii.gz")
    tasks = sorted({int(part[4:].split("_")[0]) for parts in files.values() for part in parts if part != "image"})
    if number not in tasks:
        known = f"use {', '.join(map(str, tasks))}" if tasks else "give a folder with masks (task01_seg01.nii.gz)"
        raise fault("--task", f"{number} is in no case", known)
    files = drop_unlabelled(files, lambda parts: bool(_masks(parts, number)), source, unlabelled)
    require_parts(files, ["image"], source)
    channel_axis, channels = _channels(next(parts for parts in files.values() if _masks(parts, number)), number)
    cases = (_read_case(name, parts, number, channel_axis, source) for name, parts in files.items())
    names = ["image"] if channels == 1 else [f"channel {number}" for number in range(channels)]
    labels = ["background", structure or f"task {number}"]
    return listed_source(f"QUBIQ {source.name}", labels, names, files, cases, test_list)


def _read_case(name: str, parts: Parts, task: int, channel_axis: int | None, folder: Path) -> Case:
    voxels, header = read_volume(parts["image"])
    stack, affine = arrange(voxels, header.affine, channel_axis)
    raters = [_read_mask(mask) for mask in _masks(parts, task)]
    if channel_axis == 0 and raters:
        affine = raters[0].affine  # the image's own takes channels for an axis of space
    validates = re.search(r"valid[^/]*/", parts["image"].relative_to(folder).as_posix(), re.IGNORECASE)
    return Case(
        name,
        [Volume(channel, affine, parts["image"]) for channel in stack],
        section="validation" if validates and raters else "training",
        group=name.split("-")[0],
        raters=raters,
    )


def _masks(parts: Parts, task: int) -> list[Path]:
    """Masks of a task, in the order of the raters' numbers."""
    numbers = {part: [int(number) for number in re.findall(r"\d+", part)] for part in parts if part != "image"}
    return [parts[part] for part in sorted(numbers, key=lambda part: numbers[part]) if numbers[part][0] == task]


def _channels(parts: Parts, task: int) -> tuple[int | None, int]:
    """Axis of the channels among an image's axes longer than 1 (0 or the last; None without one), and their number."""
    path = parts["image"]
    shape, wanted = (
        tuple(size for size in read_volume(file)[1].image.shape if size > 1) for file in (path, _masks(parts, task)[0])
    )
    if shape == wanted:
        return None, 1
    for axis in (len(shape) - 1, 0):
        if len(shape) and shape[:axis] + shape[axis + 1 :] == wanted:
            return axis, shape[axis]
    raise fault(path, f"has axes of {shape}, its mask of {wanted} voxels", "download the case again")


def arrange(voxels: np.ndarray, affine: np.ndarray, channel_axis: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Drop axes of length 1, wherever they are, and put the rest into the order of a volume.

    Args:
        voxels: stored array of a slice or volume, with or without channels.
        affine: (4, 4) of the first three stored axes.
        channel_axis: of the channels, counted among the axes longer than 1; None without channels.

    Returns:
        (C, X, Y, Z), Z 1 for a slice; and the affine (4, 4) of X, Y, Z. Where an axis of space is stored beyond the
        third, the file cannot say where it lies, and the affine is the identity.
    """
    kept = [axis for axis, size in enumerate(voxels.shape) if size > 1]
    channel = None if channel_axis is None else kept.pop(channel_axis)
    flat = np.squeeze(voxels)
    stack = flat[None] if channel_axis is None else np.moveaxis(flat, channel_axis, 0)
    volume = stack.reshape((*stack.shape, 1, 1)[:4])
    dropped = [axis for axis in range(3) if axis not in kept and axis != channel]
    columns = [*kept, *dropped, *([] if channel is None else [channel])][:3]
    if max(columns) > 2:
        return volume, np.eye(4)
    turned = affine.copy()
    turned[:3, :3] = affine[:3, columns]
    return volume, turned


def _read_mask(path: Path) -> Volume:
    voxels, header = read_volume(path)
    stack, affine = arrange(voxels, header.affine)
    return Volume(binary_mask(stack[0], path), affine, path)
