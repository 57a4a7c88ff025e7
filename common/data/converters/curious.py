"""CuRIOUS 2022 (brain tumours in ultrasound, the RESECT images with the RESECT-SEG masks)."""

from __future__ import annotations

from pathlib import Path

from ..contract.volumes import read_volume
from .base import Case, Source, Volume, binary_mask, converter, source_folder
from .cases import find_parts, listed_source, require_parts, three_axes

LABELS = ("background", "tumour")


@converter("curious2022", "CuRIOUS 2022, brain tumours, ultrasound")
def convert_curious2022(source: Path, masks: str | None = None, test_list: str | None = None) -> Source:
    """Convert ``NIFTI/Case1/US/Case1-US-before.nii.gz`` and ``Case1/Case1-US-before-tumor.nii.gz``.

    The ultrasound before resection is taken, in which the tumour was outlined. A mask whose header gives no position
    (neither qform nor sform) takes its image's.

    Args:
        source: folder of the RESECT download.
        masks: folder of the masks, at any depth; None looks below ``source``.
        test_list: text file with the names of the test cases (``Case1``), one per line.

    Returns:
        name, labels and cases.

    Raises:
        DataError: when files are missing, unreadable or do not fit each other.
    """
    mask_folder = source if masks is None else source_folder(masks)
    images = find_parts(source, r"(?P<case>Case\d+)-US-before(?P<part>)\.nii(?:\.gz)?", "Case1-US-before.nii.gz")
    pattern = r"(?P<case>Case\d+)-US-before-(?P<part>tumor)\.nii(?:\.gz)?"
    found = find_parts(mask_folder, pattern, "Case1-US-before-tumor.nii.gz")
    require_parts({case: found.get(case, {}) for case in images}, ["tumor"], mask_folder)
    require_parts({case: images.get(case, {}) for case in found}, ["image"], source)
    cases = (
        Case(case, [parts["image"]], _read_mask(found[case]["tumor"], parts["image"]))
        for case, parts in sorted(images.items(), key=lambda item: int(item[0][4:]))
    )
    return listed_source("CuRIOUS 2022 (brain tumour, ultrasound)", LABELS, ["US"], images, cases, test_list)


def _read_mask(path: Path, image: Path) -> Volume:
    stored, header = read_volume(path)
    positioned = int(header.image.header["qform_code"]) != 0 or int(header.image.header["sform_code"]) != 0
    affine = header.affine if positioned else read_volume(image)[1].affine
    return Volume(binary_mask(three_axes(stored, path), path), affine, path)
