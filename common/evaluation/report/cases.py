"""Reading a case's files for a picture: which slice to show, how it is turned, how far to zoom."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from matplotlib import patheffects
from matplotlib.axes import Axes
from numpy.typing import NDArray

from .errors import LargestError, largest_error

__all__ = [
    "MARKS",
    "VIEWS",
    "CasePicture",
    "draw_caption",
    "draw_marks",
    "draw_scale_bar",
    "grey_window",
    "load_case",
    "pick_slice",
    "read_channels",
    "slice_axis",
    "zoom_window",
]

VIEWS = ("sagittal", "coronal", "axial")
# what lies at the left, right, top and bottom of a view: right, left, anterior, posterior, superior, inferior
MARKS = ("APSI", "RLSI", "RLAP")
_AIR = -500.0  # HU; no other modality has values as low as those of air in CT
_SOFT_TISSUE = (-160.0, 240.0)  # HU
_BAR_LENGTHS = (1, 2, 5, 10, 20, 50, 100, 200, 500)


@dataclass
class CasePicture:
    """One slice of a case, ready to draw: rows from top to bottom, columns from left to right.

    Attributes:
        image: (rows, columns), the first channel.
        label: integer label map of the same shape, or None.
        prediction: likewise.
        uncertainty: non-negative map of the same shape, or None.
        spacing: row and column spacing.
        window: intensities shown black and white, see :func:`grey_window`.
        where: which slice this is, in words.
        problems: what was left out because it does not fit the image, in words.
        marks: what lies at the left, right, top and bottom: R, L, A, P, S or I; empty where no file says it.
        error: the largest error in this slice.
        error_place: row and column of its voxel.
        worst: the slice of the largest error, beside this one; None where the prediction has none.
        in_mm: the spacing is in mm; else no file states it, and lengths are in voxels.
    """

    image: NDArray[Any]
    label: NDArray[Any] | None
    prediction: NDArray[Any] | None
    uncertainty: NDArray[Any] | None
    spacing: tuple[float, float]
    window: tuple[float, float]
    where: str
    problems: list[str] = field(default_factory=list)
    marks: str = ""
    error: LargestError | None = None
    error_place: tuple[int, int] | None = None
    worst: CasePicture | None = None
    in_mm: bool = True

    @property
    def unit(self) -> str:
        """Of lengths."""
        return "mm" if self.in_mm else "voxels"


def _read_volume(path: Path) -> tuple[NDArray[np.float32], tuple[float, ...]]:
    """A NIfTI file's first channel in the orientation nearest to RAS, (X, Y, Z), and its spacing in mm."""
    channels, spacing = read_channels(path)
    return channels[..., 0], spacing


def read_channels(path: Path) -> tuple[NDArray[np.float32], tuple[float, ...]]:
    """A NIfTI file in the orientation nearest to RAS, (X, Y, Z, channels), and its spacing in mm."""
    file: Any = nib.load(path)
    if len(file.shape) == 2:
        file = nib.Nifti1Image(np.asanyarray(file.dataobj)[..., None], file.affine)
    file = nib.as_closest_canonical(file)
    data = np.asarray(file.dataobj, dtype=np.float32)
    return data.reshape(*data.shape[:3], -1), tuple(float(s) for s in file.header.get_zooms()[:3])


def slice_axis(shape: Sequence[int], spacing: Sequence[float]) -> int:
    """The axis to cut across: a flat one, else that of the thickest slices, else axial."""
    if 1 in shape:
        return list(shape).index(1)
    return 2 if spacing[2] >= 0.95 * max(spacing) else int(np.argmax(spacing))


def pick_slice(label: NDArray[Any] | None, prediction: NDArray[Any] | None, axis: int, length: int) -> int:
    """The slice that shows most: reference structures and disagreement, weighted alike.

    Each structure's area per slice is divided by its largest, so that small structures count as much as large ones,
    and averaged over structures; the number of voxels that differ, divided by its largest, is added.

    Args:
        label: reference label map (X, Y, Z), or None.
        prediction: predicted label map, or None; stands in for a reference that is absent or empty.
        axis: axis to cut across.
        length: number of slices.

    Returns:
        index of the slice; the middle one when there is nothing to see.
    """
    others = tuple(a for a in range(3) if a != axis)
    score = np.zeros(length)
    shown = label if label is not None and label.any() else prediction
    if shown is not None and shown.any():
        areas = [(shown == value).sum(axis=others) for value in np.unique(shown) if value != 0]
        score += np.mean([area / area.max() for area in areas], axis=0)
    if label is not None and prediction is not None and (label != prediction).any():
        different = (label != prediction).sum(axis=others)
        score += different / different.max()
    return int(score.argmax()) if score.any() else length // 2


def zoom_window(
    masks: Sequence[NDArray[Any] | None], shape: tuple[int, int], spacing: tuple[float, float]
) -> tuple[slice, slice]:
    """A window around the structures, about square in mm, with half as much around them as they take themselves."""
    there = np.zeros(shape, dtype=bool)
    for mask in masks:
        there |= False if mask is None else mask != 0
    if not there.any():
        return slice(0, shape[0]), slice(0, shape[1])
    extents = [(int(index.min()), int(index.max()) + 1) for index in np.nonzero(there)]
    structures = max((high - low) * size for (low, high), size in zip(extents, spacing, strict=True))
    whole = max(length * size for length, size in zip(shape, spacing, strict=True))
    side = max(1.5 * structures, 0.35 * whole)
    # square if the structures leave room for it: pictures side by side are then of one size
    side = min(side, max(1.1 * structures, min(length * size for length, size in zip(shape, spacing, strict=True))))
    window = []
    for (low, high), length, size in zip(extents, shape, spacing, strict=True):
        count = min(length, int(np.ceil(side / size)))
        start = int(np.clip((low + high - count) // 2, 0, length - count))
        window.append(slice(start, start + count))
    return window[0], window[1]


def load_case(
    predictions_dir: Path,
    case: str,
    prediction: str = "pred",
    uncertainty: str = "uncertainty",
    in_mm: bool = True,
) -> CasePicture | None:
    """Read a case's pictures, ``<case>/<case>_{image,label,pred,uncertainty}.nii.gz``, and cut the slice to show.

    The slice is across the axis of the thickest slices (axial when equal), where :func:`pick_slice` says, turned as
    radiologists look at it (patient's right on the left, front or head on top, as the file's affine states) and
    zoomed to the structures. Where there is something to compare, the slice of the largest error comes with it.

    Args:
        predictions_dir: folder of the cases' folders.
        case: its name.
        prediction: what the file of the prediction is called, after the case's name.
        uncertainty: likewise that of the uncertainty map.
        in_mm: the case's files state a voxel size; else nothing is known of lengths and of the patient's sides.

    Returns:
        the slice, or None when there is no image.
    """
    stem = predictions_dir / case / case
    if not Path(f"{stem}_image.nii.gz").is_file():
        return None
    image, spacing = _read_volume(Path(f"{stem}_image.nii.gz"))
    found: dict[str, NDArray[np.float32] | None] = {}
    problems = []
    for kind, name in (("label", "label"), ("pred", prediction), ("uncertainty", uncertainty)):
        path = Path(f"{stem}_{name}.nii.gz")
        found[kind] = _read_volume(path)[0] if path.is_file() else None
        volume = found[kind]
        if volume is not None and volume.shape != image.shape:
            problems.append(f"{kind} has another shape")
            found[kind] = None
    axis = slice_axis(image.shape, spacing)
    label, predicted = found["label"], found["pred"]
    volumes = {"image": image, **found}
    window = grey_window(image, [mask for mask in (label, predicted) if mask is not None])
    index = pick_slice(label, predicted, axis, image.shape[axis])
    picture = _cut(volumes, spacing, axis, index, window, in_mm)
    picture.problems = problems
    if label is not None and predicted is not None:
        error = largest_error(label, predicted, spacing, axis)
        picture.worst = None if error is None else _cut(volumes, spacing, axis, error.voxel[axis], window, in_mm, error)
    return picture


def _cut(
    volumes: dict[str, NDArray[np.float32] | None],
    spacing: tuple[float, ...],
    axis: int,
    index: int,
    window: tuple[float, float],
    in_mm: bool,
    error: LargestError | None = None,
) -> CasePicture:
    """One slice of all volumes, turned and zoomed."""
    across, down = (a for a in range(3) if a != axis)
    planes = {
        kind: None if volume is None else np.take(volume, index, axis=axis).T[::-1, ::-1]
        for kind, volume in volumes.items()
    }
    plane = planes.pop("image")
    assert plane is not None
    pixel = (spacing[down], spacing[across])
    zoom = zoom_window((planes["label"], planes["pred"]), (plane.shape[0], plane.shape[1]), pixel)
    label, predicted, uncertain = (None if p is None else p[zoom] for p in planes.values())
    place = None
    if error is not None:
        row, column = plane.shape[0] - 1 - error.voxel[down], plane.shape[1] - 1 - error.voxel[across]
        place = row - zoom[0].start, column - zoom[1].start
    volume = volumes["image"]
    assert volume is not None
    return CasePicture(
        image=plane[zoom],
        label=None if label is None else label.astype(np.int64),
        prediction=None if predicted is None else predicted.astype(np.int64),
        uncertainty=uncertain,
        spacing=pixel,
        window=window,
        where=f"{VIEWS[axis]} slice {index + 1} of {volume.shape[axis]}",
        marks=MARKS[axis] if in_mm else "",
        in_mm=in_mm,
        error=error,
        error_place=place,
    )


def grey_window(image: NDArray[Any], masks: Sequence[NDArray[Any]] = ()) -> tuple[float, float]:
    """Intensities to show black and white: neither the image nor a structure in it is clipped.

    CT is shown in a window of soft tissue (-160 to 240 HU), other images from the 0.5th to the 99.5th percentile; both
    are widened to the 1st and 99th percentile of the structures, which may be a small bright part of the volume.

    Args:
        image: intensities; not finite ones are left out.
        masks: label maps of the same shape, 0 = background.

    Returns:
        the two intensities, the second above the first.
    """
    known = np.isfinite(image)
    if not known.any():
        return 0.0, 1.0
    low, high = np.percentile(image[known], (0.5, 99.5))
    if low <= _AIR:
        low, high = _SOFT_TISSUE
    for mask in masks:
        inside = image[known & (mask != 0)]
        if inside.size:
            ends = np.percentile(inside, (1, 99))
            low, high = min(low, ends[0]), max(high, ends[1])
    return float(low), float(high if high > low else low + 1.0)


def draw_caption(ax: Axes, text: str) -> None:
    """What a picture shows, small in its upper left corner."""
    label = ax.text(0.03, 0.97, text, transform=ax.transAxes, color="white", ha="left", va="top", fontsize=6)
    label.set_path_effects([patheffects.withStroke(linewidth=1.5, foreground="black")])


def draw_scale_bar(ax: Axes, picture: CasePicture) -> None:
    """A bar of round length in the lower left corner."""
    width = picture.image.shape[1] * picture.spacing[1]
    length = max((bar for bar in _BAR_LENGTHS if bar <= 0.3 * width), default=1)
    ends = (0.05, 0.05 + length / width)
    line = ax.plot(ends, (0.05, 0.05), color="white", linewidth=1.6, transform=ax.transAxes, solid_capstyle="butt")[0]
    line.set_path_effects([patheffects.withStroke(linewidth=2.8, foreground="black")])
    text = ax.text(
        sum(ends) / 2, 0.07, f"{length} {picture.unit}", transform=ax.transAxes, color="white", ha="center", fontsize=6
    )
    text.set_path_effects([patheffects.withStroke(linewidth=1.5, foreground="black")])


def draw_marks(ax: Axes, picture: CasePicture) -> None:
    """R, L, A, P, S, I at the picture's edges: which side of the patient lies there."""
    places = ((0.02, 0.5, "left", "center"), (0.98, 0.5, "right", "center"), (0.5, 0.98, "center", "top"))
    for letter, (x, y, ha, va) in zip(picture.marks, (*places, (0.5, 0.02, "center", "bottom")), strict=False):
        text = ax.text(x, y, letter, transform=ax.transAxes, color="white", ha=ha, va=va, fontsize=6.5, weight="bold")
        text.set_path_effects([patheffects.withStroke(linewidth=1.5, foreground="black")])
