"""One DICOM series of parallel slices as a volume with its position in space."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pydicom
from pydicom.dataset import FileDataset
from pydicom.errors import InvalidDicomError

from ..contract.output import fault
from .base import LPS_TO_RAS

# greatest difference between slice distances, as a share of their mean
UNEVEN = 0.02


def read_dicom_series(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Read all slices below a folder.

    Slices are ordered by their position along the normal of the image plane (towards the head in axial scans), not by
    file name or instance number. Rescale slope and intercept are applied: CT comes out in Hounsfield units.

    Args:
        folder: holds the files ``*.dcm`` of one series, at any depth.

    Returns:
        volume (columns, rows, slices), int16 if all values are whole numbers in its range, else float32; and its affine
        (4, 4) voxel to mm, right-anterior-superior.

    Raises:
        DataError: when there is no series, more than one, or its slices do not form a volume.
    """
    slices = [_read(path) for path in sorted(folder.rglob("*.dcm"))]
    if not slices:
        raise fault(folder, "holds no .dcm files", "download the case again")
    series = {str(item.SeriesInstanceUID) for item in slices}
    if len(series) > 1:
        raise fault(folder, f"holds {len(series)} series", "keep the one that was labelled")
    shapes = {(item.Rows, item.Columns, _orientation(item)) for item in slices}
    if len(shapes) > 1:
        raise fault(folder, "its slices differ in size or orientation", "keep the slices of one volume")
    along_row, along_column = np.reshape(np.asarray(slices[0].ImageOrientationPatient, dtype=float), (2, 3))
    normal = np.cross(along_row, along_column)
    slices.sort(key=lambda item: float(np.dot(normal, np.asarray(item.ImagePositionPatient, dtype=float))))
    positions = np.asarray([item.ImagePositionPatient for item in slices], dtype=float)
    step = _slice_step(positions, normal, slices[0], folder)
    between_rows, between_columns = map(float, slices[0].PixelSpacing)
    affine = np.eye(4)
    affine[:3, 0] = along_row * between_columns  # from one column to the next
    affine[:3, 1] = along_column * between_rows
    affine[:3, 2] = step
    affine[:3, 3] = positions[0]
    # pixel arrays are (rows, columns)
    volume = np.stack([_rescaled(item, folder).T for item in slices], axis=-1)
    whole = np.array_equal(volume, np.rint(volume)) and np.abs(volume).max() < 2**15
    return volume.astype(np.int16 if whole else np.float32), LPS_TO_RAS @ affine


def _read(path: Path) -> FileDataset:
    try:
        item = pydicom.dcmread(path)
    except (InvalidDicomError, OSError, EOFError, ValueError) as error:
        raise fault(path, f"cannot be read as DICOM ({error})", "download it again") from error
    needed = ("SeriesInstanceUID", "ImageOrientationPatient", "ImagePositionPatient", "PixelSpacing", "PixelData")
    lacking = [name for name in needed if name not in item]
    if lacking:
        raise fault(path, f"lacks {', '.join(lacking)}", "keep the slices of one CT or MR series in the folder")
    return item


def _orientation(item: FileDataset) -> tuple[float, ...]:
    return tuple(round(float(number), 4) for number in item.ImageOrientationPatient)


def _slice_step(positions: np.ndarray, normal: np.ndarray, first: FileDataset, folder: Path) -> np.ndarray:
    """Step in space (mm) from one slice to the next; uneven distances (a missing slice) are refused."""
    if len(positions) == 1:
        return normal * float(first.get("SliceThickness") or 1.0)
    distances = np.diff(positions @ normal)
    mean = float(distances.mean())
    if distances.min() <= 0 or np.abs(distances - mean).max() > max(UNEVEN * mean, 0.01):
        what = f"its slices are {distances.min():.3g} to {distances.max():.3g} mm apart"
        raise fault(folder, what, "download the case again: a slice is missing or there twice")
    return np.asarray((positions[-1] - positions[0]) / (len(positions) - 1))


def _rescaled(item: FileDataset, folder: Path) -> np.ndarray:
    try:
        stored = item.pixel_array.astype(np.float32)
    except (AttributeError, RuntimeError, ValueError) as error:
        raise fault(folder, f"pixels cannot be decoded ({error})", "decompress the series first") from error
    return stored * float(item.get("RescaleSlope", 1)) + float(item.get("RescaleIntercept", 0))
