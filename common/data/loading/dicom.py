"""DICOM series of parallel slices as volumes with their position in space, and as NIfTI files to segment."""

from __future__ import annotations

import json
import logging
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from ...errors import ExpectedError
from ...files import atomic_path
from ..contract.faults import DataError
from ..contract.output import fault
from ..contract.walk import paths_below

# NRRD and DICOM give positions as left, posterior, superior; NIfTI as right, anterior, superior
LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
# greatest difference between slice distances, as a share of their mean
UNEVEN = 0.02
_NEEDED = ("SeriesInstanceUID", "ImageOrientationPatient", "ImagePositionPatient", "PixelSpacing", "PixelData")
_OTHERS = (
    ".nii",
    ".gz",
    ".json",
    ".csv",
    ".txt",
    ".png",
    ".jpg",
    ".xml",
    ".zip",
    ".md",
)  # endings of files to pass over
logger = logging.getLogger(__name__)


def read_dicom_series(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Read all slices below a folder, see :func:`read_slices`.

    Args:
        folder: holds the files ``*.dcm`` of one series, at any depth.

    Returns:
        volume (columns, rows, slices) and its affine.

    Raises:
        DataError: when there is no series, more than one, or its slices do not form a volume.
    """
    files = paths_below(folder, "*.dcm")
    if not files:
        raise fault(folder, "holds no .dcm files", "download the case again")
    volume, affine, _ = read_slices(files, folder)
    return volume, affine


def read_slices(files: Sequence[Path], folder: Path) -> tuple[np.ndarray, np.ndarray, list[Path]]:
    """Read the slices of one series.

    Slices are ordered by their position along the normal of the image plane (towards the head in axial scans), not by
    file name or instance number. Rescale slope and intercept are applied: CT comes out in Hounsfield units.

    Args:
        files: of one series, in any order.
        folder: where they are, for messages.

    Returns:
        volume (columns, rows, slices), int16 if all values are whole numbers in its range, else float32; its affine
        (4, 4) voxel to mm, right-anterior-superior; and the files in the order of the slices.

    Raises:
        DataError: when there is more than one series, or the slices do not form a volume.
    """
    slices = [(_read(path), path) for path in files]
    series = {str(item.SeriesInstanceUID) for item, _ in slices}
    if len(series) > 1:
        raise fault(folder, f"holds {len(series)} series", "keep the one that was labelled")
    shapes = {(item.Rows, item.Columns, _orientation(item)) for item, _ in slices}
    if len(shapes) > 1:
        raise fault(folder, "its slices differ in size or orientation", "keep the slices of one volume")
    first = slices[0][0]
    along_row, along_column = np.reshape(np.asarray(first.ImageOrientationPatient, dtype=float), (2, 3))
    normal = np.cross(along_row, along_column)
    slices.sort(key=lambda each: float(np.dot(normal, np.asarray(each[0].ImagePositionPatient, dtype=float))))
    positions = np.asarray([item.ImagePositionPatient for item, _ in slices], dtype=float)
    step = _slice_step(positions, normal, first, folder)
    between_rows, between_columns = map(float, first.PixelSpacing)
    affine = np.eye(4)
    affine[:3, 0] = along_row * between_columns  # from one column to the next
    affine[:3, 1] = along_column * between_rows
    affine[:3, 2] = step
    affine[:3, 3] = positions[0]
    # pixel arrays are (rows, columns)
    volume = np.stack([_rescaled(item, folder).T for item, _ in slices], axis=-1)
    whole = np.array_equal(volume, np.rint(volume)) and np.abs(volume).max() < 2**15
    return volume.astype(np.int16 if whole else np.float32), LPS_TO_RAS @ affine, [path for _, path in slices]


def require_pydicom() -> Any:
    """The package pydicom, which nothing but DICOM needs.

    Raises:
        ExpectedError: when it is not installed.
    """
    try:
        import pydicom
    except ImportError:
        raise ExpectedError("DICOM: the package pydicom is not installed. Fix: pip install pydicom.") from None
    return pydicom


def read_dicom(path: Path, pixels: bool = True) -> Any:
    """Read a DICOM file.

    Args:
        path: the file.
        pixels: read its voxels too.

    Raises:
        DataError: when it is not there, or is no DICOM file.
    """
    pydicom = require_pydicom()
    try:
        return pydicom.dcmread(path, stop_before_pixels=not pixels)
    except (pydicom.errors.InvalidDicomError, OSError, EOFError, ValueError) as error:
        raise fault(path, f"cannot be read as DICOM ({error})", "download it again") from error


def _read(path: Path) -> Any:
    item = read_dicom(path)
    lacking = [name for name in _NEEDED if name not in item]
    if lacking:
        raise fault(path, f"lacks {', '.join(lacking)}", "keep the slices of one CT or MR series in the folder")
    if int(item.get("SamplesPerPixel", 1)) != 1:
        raise fault(path, "is a colour image", "keep the slices of one CT or MR series in the folder")
    return item


def _orientation(item: Any) -> tuple[float, ...]:
    return tuple(round(float(number), 4) for number in item.ImageOrientationPatient)


def _slice_step(positions: np.ndarray, normal: np.ndarray, first: Any, folder: Path) -> np.ndarray:
    """Step in space (mm) from one slice to the next; uneven distances (a missing slice) are refused."""
    if len(positions) == 1:
        return normal * float(first.get("SliceThickness") or 1.0)
    distances = np.diff(positions @ normal)
    mean = float(distances.mean())
    if distances.min() <= 0 or np.abs(distances - mean).max() > max(UNEVEN * mean, 0.01):
        what = f"its slices are {distances.min():.3g} to {distances.max():.3g} mm apart"
        raise fault(folder, what, "download the case again: a slice is missing or there twice")
    return np.asarray((positions[-1] - positions[0]) / (len(positions) - 1))


def _rescaled(item: Any, folder: Path) -> np.ndarray:
    try:
        stored = item.pixel_array.astype(np.float32)
    except (AttributeError, RuntimeError, ValueError) as error:
        raise fault(folder, f"pixels cannot be decoded ({error})", "decompress the series first") from error
    return np.asarray(stored * float(item.get("RescaleSlope", 1)) + float(item.get("RescaleIntercept", 0)))


@dataclass(frozen=True)
class Series:
    """The files of one DICOM series.

    Attributes:
        name: by which its results are called.
        folder: that its first file is in.
        files: in no order.
        frames: more than one where a file holds several slices.
    """

    name: str
    folder: Path
    files: tuple[Path, ...]
    frames: int = 1


def find_series(root: Path) -> list[Series]:
    """All series of slices below a folder, whatever their files are called.

    Localisers and objects that hold no slices in space (segmentations, reports, plans) are passed over. A series is
    called by its folder's path below ``root`` (by the folder itself where that is ``root``), and by its number too
    where its folder holds several.
    """
    pydicom = require_pydicom()
    files: dict[tuple[Path, str], list[Path]] = defaultdict(list)
    heads: dict[tuple[Path, str], Any] = {}
    tags = ["SeriesInstanceUID", "SeriesNumber", "ImageType", "ImagePositionPatient", "NumberOfFrames", "Modality"]
    for path in paths_below(root):
        if path.suffix.lower() in _OTHERS or path.name.startswith(".") or not path.is_file():
            continue
        if not pydicom.misc.is_dicom(path):
            continue
        try:
            head = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=tags)
        except (pydicom.errors.InvalidDicomError, OSError, EOFError, ValueError):
            continue  # a damaged slice shows as a gap in its series
        several = int(head.get("NumberOfFrames") or 1) > 1 and head.get("Modality") != "SEG"
        localiser = "LOCALIZER" in (head.get("ImageType") or ())
        if localiser or not (several or "ImagePositionPatient" in head) or "SeriesInstanceUID" not in head:
            continue
        key = (path.parent, str(head.SeriesInstanceUID))
        files[key].append(path)
        heads[key] = head
    names = _series_names(root, heads)
    return [Series(names[key], key[0], tuple(files[key]), int(heads[key].get("NumberOfFrames") or 1)) for key in heads]


def _series_names(root: Path, heads: dict[tuple[Path, str], Any]) -> dict[tuple[Path, str], str]:
    def plain(words: Iterable[str]) -> str:
        return re.sub(r"[^\w.-]+", "_", "_".join(words)).strip("_.") or "series"

    alone = Counter(folder for folder, _ in heads)
    names: dict[tuple[Path, str], str] = {}
    for (folder, uid), head in heads.items():
        words = list(folder.relative_to(root).parts) or [folder.resolve().name]
        name = plain([*words, str(head.get("SeriesNumber") or "")] if alone[folder] > 1 else words)
        taken, number = set(names.values()), 2
        while name in taken:
            name, number = f"{plain(words)}_{number}", number + 1
        names[(folder, uid)] = name
    return names


def series_as_nifti(root: Path, target: Path) -> list[Path]:
    """Write all series of slices below a folder as ``<series>.nii.gz``, to be segmented as any image.

    Beside each file ``<series>.json`` names the DICOM files in the order of the slices, see :func:`source_files`.

    Args:
        root: folder with DICOM files.
        target: folder to write to.

    Returns:
        the NIfTI files, none where there is no series.

    Raises:
        DataError: with every series that does not form a volume.
    """
    written, faults = [], []
    for series in find_series(root):
        try:
            if series.frames > 1:
                fix = "convert it to NIfTI, with dcm2niix for example, and segment that"
                raise fault(series.files[0], f"holds {series.frames} frames", fix)
            volume, affine, ordered = read_slices(series.files, series.folder)
        except DataError as error:
            faults += error.faults
            continue
        path = target / f"{series.name}.nii.gz"
        image = nib.Nifti1Image(volume, affine)
        image.header.set_xyzt_units("mm")
        with atomic_path(path) as temporary:
            nib.save(image, temporary)
        with atomic_path(_sidecar(path)) as temporary:
            temporary.write_text(json.dumps({"files": [str(file) for file in ordered]}, indent=1) + "\n")
        written.append(path)
    if faults:
        raise DataError(faults, str(root))
    if written:
        logger.info(f"{root}: {len(written)} DICOM series, as NIfTI in {target}")
    return written


def source_files(image: Path) -> list[Path]:
    """The DICOM files, in the order of the slices, of an image that :func:`series_as_nifti` wrote; none of another."""
    path = _sidecar(image)
    try:
        told = json.loads(path.read_text()) if path.is_file() else None
    except ValueError:
        return []
    # other programs leave such a file beside an image too, dcm2niix for one
    files = told.get("files") if isinstance(told, dict) else None
    if not isinstance(files, list) or not all(isinstance(file, str) for file in files):
        return []
    return [Path(file) for file in files]


def _sidecar(image: Path) -> Path:
    return image.with_name(image.name.removesuffix(".nii.gz") + ".json")
