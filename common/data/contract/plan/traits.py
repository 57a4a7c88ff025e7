"""What of a data set decides its settings, measured on the files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import nibabel as nib
import numpy as np

from ..checks import Case
from ..dataset import SegmentationData
from ..records import KINDS, is_kind
from ..volumes import read_volume

SAMPLES = 20_000  # foreground voxels of a case; percentiles of all cases together need no more
WINDOW = (0.5, 99.5)  # percentiles
#: share of voxels with the value 0 from which they are taken for a background that was blanked out
BLANKED = 0.25


@dataclass(frozen=True)
class Foreground:
    """Intensities of labelled structures, over all cases together.

    Attributes:
        low: 0.5th percentile.
        high: 99.5th percentile.
        mean: of the voxels between them.
        deviation: their standard deviation.
    """

    low: float
    high: float
    mean: float
    deviation: float


@dataclass(frozen=True)
class Traits:
    """What of a data set decides its settings.

    Attributes:
        num_classes: background included.
        channels: of the images.
        modalities: names of the channels, empty if nothing declares them.
        shapes: (n, 3) voxels of each image, in the order of the axes that the bundle sees: RAS, or the files' own.
        spacings: (n, 3) mm, in that order.
        kinds: number of training records of each kind.
        smallest: volume in mm3 of each structure where it is smallest, by name.
        foreground: intensities of structures; None where no label can be read with the image.
        lowest: median over cases of the lowest intensity.
        blanked: whether most images have a background of zeros.
    """

    num_classes: int
    channels: int
    modalities: tuple[str, ...]
    shapes: np.ndarray
    spacings: np.ndarray
    kinds: dict[str, int]
    smallest: dict[str, float] = field(default_factory=dict)
    foreground: Foreground | None = None
    lowest: float = 0.0
    blanked: bool = False

    @property
    def extents(self) -> np.ndarray:
        """(n, 3) mm."""
        return self.shapes * self.spacings


def measure_traits(data: SegmentationData, cases: Sequence[Case], reoriented: bool) -> Traits:
    """Measure what decides the settings of a data set without faults.

    Args:
        data: the data set.
        cases: from :func:`~common.data.contract.checks.inspect_cases`; those of training and validation are measured.
        reoriented: whether the bundle turns images to RAS.
    """
    used = [case for case in cases if case.section != "test"]
    order = [_axes(case.image) if reoriented else (0, 1, 2) for case in used]
    shapes = np.array([np.take(case.shape or (), axes) for case, axes in zip(used, order, strict=True)])
    spacings = np.array([np.take(case.spacing, axes) for case, axes in zip(used, order, strict=True)])
    training = [case for case in used if case.section == "training"]
    foreground, zeros = _intensities(training)
    return Traits(
        num_classes=data.num_classes,
        channels=used[0].channels,
        modalities=tuple(data.channels),
        shapes=shapes,
        spacings=spacings,
        kinds={kind: sum(is_kind(case.record, kind) for case in training) for kind in KINDS},
        smallest=_smallest(data, used),
        foreground=foreground,
        lowest=float(np.median([case.intensities[0] for case in used if case.intensities])),
        blanked=bool(np.median(zeros) >= BLANKED) if zeros else False,
    )


def _axes(path: str) -> tuple[int, ...]:
    """The file's axis that becomes each axis of RAS."""
    image: Any = nib.load(path)
    into = nib.orientations.io_orientation(image.affine)[:3, 0].astype(int)
    return tuple(int(axis) for axis in np.argsort(into))


def _smallest(data: SegmentationData, cases: Sequence[Case]) -> dict[str, float]:
    """Smallest volume of each structure in mm3, over dense labels; scribbles have no volume."""
    volumes: dict[str, float] = {}
    for case in cases:
        if case.counts is None or not {"label", "labels"} & case.record.keys():
            continue
        for value, count in case.counts.items():
            if value > 0 and value in data.labels:
                name, volume = data.labels[value], count * float(np.prod(case.spacing))
                volumes[name] = min(volume, volumes.get(name, volume))
    return volumes


def _intensities(cases: Sequence[Case]) -> tuple[Foreground | None, list[float]]:
    """Intensities of structures in all channels together, and the share of zeros in each image."""
    found, zeros = [], []
    for number, case in enumerate(cases):
        paths = case.record["image"] if isinstance(case.record["image"], list) else [case.record["image"]]
        mask = _structures(case)
        for path in paths:
            voxels, _ = read_volume(path)
            zeros.append(float(np.mean(voxels == 0)))
            inside = voxels[mask] if mask is not None else np.empty(0)  # channels lie last, behind the mask's axes
            if inside.size:
                generator = np.random.default_rng(number)
                found.append(generator.choice(inside.ravel().astype(float), min(SAMPLES, inside.size), replace=False))
    if not found:
        return None, zeros
    values = np.concatenate(found)
    low, high = np.percentile(values, WINDOW)
    kept = values[(values >= low) & (values <= high)]
    return Foreground(float(low), float(high), float(kept.mean()), float(kept.std())), zeros


def _structures(case: Case) -> np.ndarray | None:
    """Voxels that a label, a rater or a scribble gives to a structure; None without any of them."""
    record = case.record
    path = record.get("label") or next(iter(record.get("labels", ())), None) or record.get("scribble")
    if path is None:
        return None
    label, _ = read_volume(path)
    return (label > 0) & (label != record["scribble_unlabelled_value"]) if path == record.get("scribble") else label > 0
