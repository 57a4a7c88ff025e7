"""Left atrium: 2018 Atrial Segmentation Challenge (LGE-MRI), as downloaded (NRRD) and as the literature's h5 files."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from pathlib import Path

import h5py
import nrrd
import numpy as np

from ..contract.output import fault
from ..contract.walk import paths_below
from ..loading.dicom import LPS_TO_RAS
from .base import Case, Source, Volume, below_test_folder, binary_mask, converter, crop, held_out_names

LABELS = {"0": "background", "1": "left atrium"}
H5_SPACING = 0.625  # mm; the h5 files do not store it
# turns the axes of a NRRD space to right-anterior-superior
_SPACES = {
    "left-posterior-superior": LPS_TO_RAS,
    "lps": LPS_TO_RAS,
    "right-anterior-superior": np.eye(4),
    "ras": np.eye(4),
    "left-anterior-superior": np.diag([-1.0, 1.0, 1.0, 1.0]),
    "las": np.diag([-1.0, 1.0, 1.0, 1.0]),
}


@converter("la2018", "left atrium, LGE-MRI: the 2018 challenge's NRRD files")
def convert_la2018(source: Path, margin: int | None = None, test_list: str | None = None) -> Source:
    """Convert the download of the challenge: any folders with ``<case>/lgemri.nrrd`` and ``<case>/laendo.nrrd``.

    The mask's 255 becomes 1. NRRD positions (left-posterior-superior) become NIfTI's (right-anterior-superior). A mask
    whose header holds no geometry takes the image's. Cases below a folder whose name begins with "test" become
    ``test``, unless a test list is given.

    Args:
        source: folder of the download.
        margin: cut each case to the atrium's bounding box grown by so many voxels, as the literature does (about 25);
            None keeps whole volumes.
        test_list: text file with the names of the test cases, one per line.

    Returns:
        name, labels and cases.

    Raises:
        DataError: when files are missing, unreadable or do not fit each other.
    """
    files = _case_files(source, "lgemri.nrrd")
    lacking = [str(path.parent) for path in files.values() if not (path.parent / "laendo.nrrd").is_file()]
    if lacking:
        raise fault(source, f"laendo.nrrd is missing in {', '.join(lacking)}", "download the cases again, or drop them")
    tests = held_out_names(test_list, files)
    if test_list is None:
        tests = {name for name, path in files.items() if below_test_folder(path.parent, source)}
    return Source("LA 2018 (left atrium, LGE-MRI)", LABELS, _nrrd_cases(files, tests, margin))


def _nrrd_cases(files: dict[str, Path], tests: set[str], margin: int | None) -> Iterator[Case]:
    for name, path in files.items():
        image, affine = _read_nrrd(path)
        mask_path = path.parent / "laendo.nrrd"
        mask, mask_affine = _read_nrrd(mask_path)
        if affine is None:
            raise fault(path, "its header gives no voxel spacing", "download it again")
        _same_grid(path, image, affine, mask_path, mask, mask_affine)
        image, label, affine = crop(image, binary_mask(mask, mask_path), affine, margin)
        section = "test" if name in tests else "training"
        yield Case(name, Volume(image, affine), Volume(label, affine), section=section)


@converter("la_h5", "left atrium, LGE-MRI: the literature's h5 files")
def convert_la_h5(source: Path, test_list: str | None = None) -> Source:
    """Convert the literature's h5 files, ``<case>/mri_norm2.h5`` with the data sets ``image`` and ``label``.

    The files hold images cropped around the atrium, normalised, at 0.625 mm in each direction, without their position
    in space: the origin becomes 0, and the axes are taken to run to left, posterior and superior.

    Args:
        source: folder of the case folders.
        test_list: text file with the names of the test cases, one per line (the literature's ``test.list``).

    Returns:
        name, labels and cases.

    Raises:
        DataError: when files are missing, unreadable or do not fit each other.
    """
    files = _case_files(source, "mri_norm2.h5")
    tests = held_out_names(test_list, files)
    return Source("LA 2018 (left atrium, LGE-MRI, h5)", LABELS, _h5_cases(files, tests))


def _h5_cases(files: dict[str, Path], tests: set[str]) -> Iterator[Case]:
    affine = LPS_TO_RAS @ np.diag([H5_SPACING] * 3 + [1.0])
    for name, path in files.items():
        image, mask = _read_h5(path)
        _same_grid(path, image, affine, path, mask, None)
        label = Volume(binary_mask(mask, path), affine)
        section = "test" if name in tests else "training"
        yield Case(name, Volume(image.astype(np.float32), affine), label, section=section)


def _case_files(folder: Path, file_name: str) -> dict[str, Path]:
    """File of each case; a case is named by its folder."""
    files: dict[str, Path] = {}
    for path in paths_below(folder, file_name):
        name = path.parent.name
        if name in files:
            raise fault(path.parent, f"a second case of the name {name}", "keep one of them")
        files[name] = path
    if not files:
        raise fault(folder, f"holds no <case>/{file_name}", "give the folder above the case folders")
    return files


def _read_nrrd(path: Path) -> tuple[np.ndarray, np.ndarray | None]:
    """Volume (X, Y, Z) and its affine (right-anterior-superior); None when the header gives no geometry."""
    try:
        volume, header = nrrd.read(str(path))
    except (nrrd.NRRDError, OSError, EOFError, ValueError, KeyError, zlib.error) as error:
        raise fault(path, f"cannot be read as NRRD ({error})", "download it again") from error
    if volume.ndim != 3:
        raise fault(path, f"has {volume.ndim} axes", "give a volume of 3 axes")
    space = str(header.get("space", "left-posterior-superior")).lower()
    if space not in _SPACES:
        raise fault(path, f"its space {space!r} is unknown", f"use one of {', '.join(_SPACES)}")
    affine = np.eye(4)
    if header.get("space directions") is not None:
        # a row for each axis: the step in space from one voxel to the next
        affine[:3, :3] = np.asarray(header["space directions"], dtype=float).T
        affine[:3, 3] = header.get("space origin", [0.0] * 3)
    elif header.get("spacings") is not None:
        affine[:3, :3] = np.diag(np.asarray(header["spacings"], dtype=float))
    else:
        return volume, None
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine)) < 1e-9:
        raise fault(path, "its space directions span no volume", "download it again")
    return volume, _SPACES[space] @ affine


def _read_h5(path: Path) -> tuple[np.ndarray, np.ndarray]:
    try:
        with h5py.File(path, "r") as file:
            return np.asarray(file["image"]), np.asarray(file["label"])
    except (OSError, KeyError) as error:
        raise fault(path, f"cannot be read ({error})", "give h5 files with the data sets image and label") from error


def _same_grid(
    path: Path,
    image: np.ndarray,
    affine: np.ndarray,
    mask_path: Path,
    mask: np.ndarray,
    mask_affine: np.ndarray | None,
) -> None:
    if image.shape != mask.shape:
        raise fault(mask_path, f"has shape {mask.shape}, {path.name} has {image.shape}", "download the case again")
    if mask_affine is not None and not np.allclose(mask_affine, affine, atol=1e-2):
        raise fault(mask_path, f"lies elsewhere in space than {path.name}", "download the case again")
