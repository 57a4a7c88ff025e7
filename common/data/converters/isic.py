"""ISIC (skin lesions, dermoscopy) with the masks of several annotators."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from .base import source_folder
from .cases import Case, Parts, drop_unlabelled, find_parts, require_parts, write_cases
from .crops import crop_cases, find_pickle
from .pictures import COLOURS, read_channel, read_mask

LABELS = ("background", "skin lesion")


def convert_isic(
    source: str, output: str, masks: str | None = None, unlabelled: bool = False, test_list: str | None = None
) -> Path:
    """Convert ``ISIC_0000000.jpg`` and masks ``ISIC_0000000_<annotator>.png``, or a pickle of such images and masks.

    Images become volumes of depth 1, red, green and blue a file each. Every file whose name goes on after the image's
    is the mask of one annotator; superpixels are passed over. A pickle has the form of the LIDC one, with images
    (H, W, 3), and nothing in it is executed.

    Args:
        source: folder of the images at any depth, a pickle, or the folder that holds a pickle alone.
        output: folder to write; nothing there is overwritten.
        masks: folder of the masks, at any depth; None looks below ``source``.
        unlabelled: add images without a mask to ``training``; without it those below a folder of test or validation
            cases are left out, and others are a fault.
        test_list: text file with the names of the test cases (``ISIC_0000000``), one per line.

    Returns:
        the folder written.

    Raises:
        DataError: when files are missing, unreadable or do not fit each other.
    """
    path = find_pickle(source)
    if path is not None:
        cases = crop_cases(path, 3, lambda series: series)
    else:
        cases = _picture_cases(source_folder(source), masks, unlabelled)
    return write_cases(output, "ISIC (skin lesions, several annotators)", LABELS, cases, COLOURS, test_list)


def _picture_cases(folder: Path, masks: str | None, unlabelled: bool) -> list[Case]:
    images = find_parts(folder, r"(?P<case>ISIC_\d+)(?P<part>)\.(?:jpe?g|png)", "ISIC_0000000.jpg")
    mask_folder = folder if masks is None else source_folder(masks)
    pattern = r"(?P<case>ISIC_\d+)_(?P<part>(?!superpixels)[^/]+)\.(?:png|bmp|tiff?)"
    found = find_parts(mask_folder, pattern, "ISIC_0000000_<annotator>.png")
    require_parts({case: images.get(case, {}) for case in found}, ["image"], folder)
    parts: dict[str, Parts] = {case: {**images[case], **found.get(case, {})} for case in images}
    parts = drop_unlabelled(parts, lambda files: len(files) > 1, folder, unlabelled)
    return [
        Case(
            name,
            [partial(read_channel, files["image"], channel) for channel in range(len(COLOURS))],
            raters=[partial(read_mask, files[part]) for part in sorted(files) if part != "image"],
        )
        for name, files in parts.items()
    ]
