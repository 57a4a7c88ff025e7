"""CHAOS (abdominal MRI): T1-DUAL in-phase scans as DICOM, their labels as one PNG a slice.

A PNG shows the pixels of one DICOM file, row by row and column by column. The challenge names it like that file; where
the names differ, both are counted in the order of their names. A file's place in the volume is its position in space,
which need not follow that order. As a check on sides, the right kidney must lie to the right of the left one.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pydicom
from PIL import Image, UnidentifiedImageError

from ..contract.output import fault
from ..contract.walk import paths_below
from ..loading.dicom import LPS_TO_RAS, read_dicom_series
from .base import Case, Source, Volume, below_test_folder, converter, held_out_names

logger = logging.getLogger(__name__)

LABELS = {"0": "background", "1": "liver", "2": "right kidney", "3": "left kidney", "4": "spleen"}
RIGHT_KIDNEY, LEFT_KIDNEY = 2, 3
# least and greatest grey value of each structure, as the challenge gives them; files hold 63, 126, 189 and 252
GREY_VALUES = {1: (55, 70), 2: (110, 135), 3: (175, 200), 4: (240, 255)}
_UNKNOWN = 255


@converter("chaos", "CHAOS, abdominal MRI, T1 in-phase")
def convert_chaos(source: Path, test_list: str | None = None) -> Source:
    """Convert ``<case>/T1DUAL/DICOM_anon/InPhase/*.dcm`` and ``<case>/T1DUAL/Ground/*.png``.

    Cases below a folder whose name begins with "test" have no published labels; they are left out, and the log says so.

    Args:
        source: folder of the download, or its ``MR`` folder.
        test_list: text file with the names of the test cases (the case folders' names), one per line.

    Returns:
        name, labels and cases.

    Raises:
        DataError: when files are missing, unreadable or do not fit each other.
    """
    cases = _find_cases(source)
    tests = held_out_names(test_list, cases)
    return Source("CHAOS (abdominal MRI, T1 in-phase)", LABELS, _read_cases(cases, tests))


def _read_cases(cases: dict[str, Path], tests: set[str]) -> Iterator[Case]:
    for case, path in cases.items():
        scans = path / "DICOM_anon" / "InPhase"
        image, affine = read_dicom_series(scans)
        label = read_label(path / "Ground", scans, image.shape, affine)
        section = "test" if case in tests else "training"
        name = f"case_{case.zfill(2)}"
        yield Case(name, Volume(image, affine), Volume(label, affine), section=section, group=case)


def read_label(ground: Path, scans: Path, shape: tuple[int, ...], affine: np.ndarray) -> np.ndarray:
    """Read the PNGs of one case onto the grid of its image.

    Args:
        ground: folder of the PNGs.
        scans: folder of the DICOM files, one for each PNG.
        shape: (columns, rows, slices) of the image.
        affine: (4, 4) of the image, voxel to mm, right-anterior-superior.

    Returns:
        label (columns, rows, slices) uint8.

    Raises:
        DataError: when a PNG is missing, unreadable, of another size or grey value, or left and right are exchanged.
    """
    label = np.zeros(shape, dtype=np.uint8)
    to_voxels = np.linalg.inv(affine) @ LPS_TO_RAS
    for scan, path in _pairs(ground, scans):
        position = pydicom.dcmread(scan, stop_before_pixels=True).ImagePositionPatient
        place = round(float((to_voxels @ [*map(float, position), 1.0])[2]))
        label[:, :, place] = _read_png(path, (shape[1], shape[0])).T
    kidneys = [np.argwhere(label == kidney) for kidney in (RIGHT_KIDNEY, LEFT_KIDNEY)]
    sides = [affine[0] @ [*voxels.mean(axis=0), 1.0] for voxels in kidneys if voxels.size]
    if len(sides) == 2 and sides[0] <= sides[1]:
        what = "the right kidney lies to the left of the left one"
        raise fault(ground, what, "check that the PNGs belong to this case and are not mirrored")
    return label


def _find_cases(folder: Path) -> dict[str, Path]:
    """Folder ``T1DUAL`` of each labelled case, in the order of the case numbers."""
    cases: dict[str, Path] = {}
    left_out = []
    for path in sorted(paths_below(folder, "T1DUAL"), key=_natural):
        case = path.parent.name
        if not (path / "Ground").is_dir():
            if not below_test_folder(path, folder):
                raise fault(path / "Ground", "there is no such folder", "download the case again")
            left_out.append(case)
        elif case in cases:
            raise fault(path, f"a second case of the name {case}, beside {cases[case]}", "keep one of them")
        else:
            cases[case] = path
    if not cases:
        raise fault(folder, "holds no <case>/T1DUAL with Ground", "give the folder above the case folders")
    if left_out:
        logger.info("left out, as they have no labels: %s", ", ".join(left_out))
    return cases


def _pairs(ground: Path, scans: Path) -> list[tuple[Path, Path]]:
    """DICOM file and PNG of each slice."""
    files = sorted(paths_below(scans, "*.dcm"), key=_natural)
    pictures = sorted(paths_below(ground, "*.png"), key=_natural)
    if len(files) != len(pictures):
        what = f"holds {len(pictures)} PNGs for {len(files)} DICOM files in {scans}"
        raise fault(ground, what, "download the case again")
    by_name = {path.stem: path for path in pictures}
    if set(by_name) == {path.stem for path in files}:
        return [(path, by_name[path.stem]) for path in files]
    return list(zip(files, pictures, strict=True))


def _natural(path: Path) -> list[tuple[int, str]]:
    """Sorting key that takes the digits in a path for numbers: 2 comes before 10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", str(path)) if part]


def _read_png(path: Path, size: tuple[int, int]) -> np.ndarray:
    """Label values of one slice, uint8 (rows, columns)."""
    try:
        with Image.open(path) as picture:
            grey = np.asarray(picture.convert("L"))
    except (UnidentifiedImageError, OSError, SyntaxError) as error:
        raise fault(path, f"cannot be read as PNG ({error})", "download it again") from error
    if grey.shape != size:
        raise fault(path, f"has {grey.shape} rows and columns, its DICOM file {size}", "download the case again")
    table = np.full(256, _UNKNOWN, dtype=np.uint8)
    table[0] = 0
    for structure, (low, high) in GREY_VALUES.items():
        table[low : high + 1] = structure
    label = table[grey]
    if (label == _UNKNOWN).any():
        strange = np.unique(grey[label == _UNKNOWN]).tolist()
        known = ", ".join(f"{low} to {high}" for low, high in GREY_VALUES.values())
        raise fault(path, f"holds the grey values {strange[:8]}", f"give labels of 0, {known}")
    return label
