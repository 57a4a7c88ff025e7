"""ISLES 2022 (ischaemic stroke, MRI), in either of the two BIDS layouts in which it was published.

DWI and ADC lie on one grid, on which the lesion was drawn; FLAIR has a grid of its own.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from nibabel.processing import resample_from_to

from ..contract.volumes import Header, read_volume
from .base import Case, Source, Volume, converter
from .cases import drop_unlabelled, find_parts, listed_source, read_label, require_parts

CHANNELS = ("dwi", "adc")
LABELS = ("background", "ischaemic lesion")


@converter("isles2022", "ISLES 2022, ischaemic stroke, MRI")
def convert_isles2022(
    source: Path, flair: bool = False, unlabelled: bool = False, test_list: str | None = None
) -> Source:
    """Convert ``sub-strokecase0001/ses-0001/[dwi/]sub-strokecase0001_ses-0001_{dwi,adc}.nii.gz`` and ``..._msk``.

    Images may lie below ``rawdata`` without folders of their own, or in ``dwi`` and ``anat`` (there FLAIR has capital
    letters); masks lie below ``derivatives``. Records of empty masks say that they are empty: some patients have no
    visible lesion.

    Args:
        source: folder of the download.
        flair: take FLAIR as a third channel, resampled linearly to the grid of DWI (0 outside of it); without it FLAIR
            is left out. The images are not registered.
        unlabelled: add cases without a mask to ``training``; without it they are a fault.
        test_list: text file with the names of the test cases (``sub-strokecase0001_ses-0001``), one per line.

    Returns:
        name, labels and cases.

    Raises:
        DataError: when files are missing, unreadable or do not fit each other.
    """
    files = find_parts(
        source,
        r"(?P<case>sub-[^/_]+_ses-[^/_]+)_(?P<part>dwi|adc|flair|msk)\.nii(?:\.gz)?",
        "sub-strokecase0001_ses-0001_dwi.nii.gz",
    )
    files = drop_unlabelled(files, "msk", source, unlabelled)
    channels = (*CHANNELS, "flair") if flair else CHANNELS
    require_parts(files, channels, source)
    cases = (
        Case(
            name,
            [case["dwi"], case["adc"], *([read_on_grid(case["flair"], case["dwi"])] if flair else [])],
            read_label(case["msk"], {1: 1}) if "msk" in case else None,
            group=name.split("_")[0],
        )
        for name, case in files.items()
    )
    return listed_source("ISLES 2022 (ischaemic stroke, MRI)", LABELS, channels, files, cases, test_list)


def read_on_grid(path: Path, grid: Path) -> Volume:
    """Read an image resampled linearly to another's grid, by their affines; 0 where it does not reach.

    Args:
        path: NIfTI file to read.
        grid: NIfTI file that gives shape and affine.

    Returns:
        float32 volume on that grid.

    Raises:
        DataError: when a file cannot be read.
    """
    target = read_volume(grid)[1]
    header: Header = read_volume(path)[1]
    # grid-constant: a place that misses the last voxel's centre by a rounding error alone is not outside
    image = resample_from_to(header.image, (target.shape, target.affine), order=1, mode="grid-constant")
    return Volume(np.asarray(image.dataobj, dtype=np.float32), target.affine, path)
