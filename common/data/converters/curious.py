"""CuRIOUS 2022 (brain tumours in ultrasound, the RESECT images with the RESECT-SEG masks)."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from .base import binary_mask, read_volume, source_folder
from .cases import Case, Volume, find_parts, read_nifti, require_parts, write_cases

LABELS = ("background", "tumour")


def convert_curious2022(source: str, output: str, masks: str | None = None, test_list: str | None = None) -> Path:
    """Convert ``NIFTI/Case1/US/Case1-US-before.nii.gz`` and ``Case1/Case1-US-before-tumor.nii.gz``.

    The ultrasound before resection is taken, in which the tumour was outlined. A mask whose header gives no position
    (neither qform nor sform) takes its image's.

    Args:
        source: folder of the RESECT download.
        output: folder to write; nothing there is overwritten.
        masks: folder of the masks, at any depth; None looks below ``source``.
        test_list: text file with the names of the test cases (``Case1``), one per line.

    Returns:
        the folder written.

    Raises:
        DataError: when files are missing, unreadable or do not fit each other.
    """
    folder = source_folder(source)
    mask_folder = folder if masks is None else source_folder(masks)
    images = find_parts(folder, r"(?P<case>Case\d+)-US-before(?P<part>)\.nii(?:\.gz)?", "Case1-US-before.nii.gz")
    pattern = r"(?P<case>Case\d+)-US-before-(?P<part>tumor)\.nii(?:\.gz)?"
    found = find_parts(mask_folder, pattern, "Case1-US-before-tumor.nii.gz")
    require_parts({case: found.get(case, {}) for case in images}, ["tumor"], mask_folder)
    require_parts({case: images.get(case, {}) for case in found}, ["image"], folder)
    cases = [
        Case(case, [parts["image"]], partial(_read_mask, found[case]["tumor"], parts["image"]))
        for case, parts in sorted(images.items(), key=lambda item: int(item[0][4:]))
    ]
    return write_cases(output, "CuRIOUS 2022 (brain tumour, ultrasound)", LABELS, cases, ["US"], test_list)


def _read_mask(path: Path, image: Path) -> Volume:
    mask = read_nifti(path)
    header = read_volume(path)[1].image.header
    affine = mask.affine
    if int(header["qform_code"]) == int(header["sform_code"]) == 0:
        affine = read_volume(image)[1].affine
    return Volume(binary_mask(mask.voxels, path), affine, path)
