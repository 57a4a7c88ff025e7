"""iSeg 2017 (brain of infants of six months, MRI): T1 and T2 in the Analyze format.

Analyze stores no position and no trustworthy orientation. Voxels keep the order and the spacing of the file; the axes
are taken to run as the format says, the first to the left, the second to anterior, the third to superior, with the
origin in the middle. Which side is left cannot be told from the files.
"""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np

from ..contract.output import fault
from .base import Case, Source, Volume, converter
from .cases import drop_unlabelled, find_parts, listed_source, renumbered, require_parts, three_axes

LABELS = ("background", "cerebrospinal fluid", "grey matter", "white matter")
VALUES = {10: 1, 150: 2, 250: 3}
CHANNELS = ("T1", "T2")


@converter("iseg2017", "iSeg 2017, infant brain, T1 and T2, Analyze")
def convert_iseg2017(source: Path, unlabelled: bool = False, test_list: str | None = None) -> Source:
    """Convert ``subject-1-T1.hdr``, ``subject-1-T2.hdr`` and ``subject-1-label.hdr``, each with its ``.img``.

    The stored 10, 150 and 250 become 1, 2 and 3.

    Args:
        source: folder of the download.
        unlabelled: add subjects without a label (11 to 23) to ``training``; without it those below a folder of test
            cases are left out, and others are a fault.
        test_list: text file with the names of the test cases (``subject-1``), one per line.

    Returns:
        name, labels and cases.

    Raises:
        DataError: when files are missing, unreadable or do not fit each other.
    """
    files = find_parts(source, r"(?P<case>subject-\d+)-(?P<part>T1|T2|label)\.hdr", "subject-1-T1.hdr")
    files = drop_unlabelled(files, "label", source, unlabelled)
    require_parts(files, [name.lower() for name in CHANNELS], source)
    cases = (
        Case(
            name,
            [read_analyze(case[channel.lower()]) for channel in CHANNELS],
            _read_label(case["label"]) if "label" in case else None,
        )
        for name, case in files.items()
    )
    return listed_source("iSeg 2017 (infant brain, MRI)", LABELS, CHANNELS, files, cases, test_list)


def read_analyze(path: Path) -> Volume:
    """Read an Analyze volume; see the module for its place in space.

    Args:
        path: the ``.hdr`` file, with the ``.img`` beside it.

    Returns:
        the stored voxels; trailing axes of length 1 are dropped.

    Raises:
        DataError: when a file is missing, cannot be read, or has no spacing.
    """
    if not path.with_suffix(".img").is_file():
        raise fault(path.with_suffix(".img"), "is missing", "download the case again: .hdr and .img belong together")
    try:
        file = nib.AnalyzeImage.from_filename(str(path))
        voxels = np.asanyarray(file.dataobj)
        with path.open("rb") as stream:  # nibabel mends a spacing of 0 when it loads; here it shows
            raw = nib.AnalyzeHeader.from_fileobj(stream, check=False)
        spacing = np.asarray(raw["pixdim"][1:4], dtype=float)
    except (nib.filebasedimages.ImageFileError, nib.spatialimages.HeaderDataError, OSError, ValueError) as error:
        raise fault(path, f"cannot be read as Analyze ({error})", "download it again") from error
    if not np.all(np.isfinite(spacing)) or np.any(spacing <= 0):
        raise fault(path, f"has voxel spacing {spacing.tolist()} mm", "correct pixdim in the header")
    voxels = three_axes(voxels, path)
    affine = np.diag([*(spacing * [-1, 1, 1]), 1.0])
    affine[:3, 3] = -affine[:3, :3] @ ((np.array(voxels.shape) - 1) / 2)
    return Volume(voxels.astype(voxels.dtype.newbyteorder("=")), affine, path)


def _read_label(path: Path) -> Volume:
    return renumbered(read_analyze(path), VALUES)
