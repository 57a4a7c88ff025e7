"""ISIC (skin lesions, dermoscopy) with the masks of several annotators."""

from __future__ import annotations

from pathlib import Path

from .base import Case, Source, converter, source_folder
from .cases import Parts, drop_unlabelled, find_parts, listed_source, require_parts
from .crops import PICKLES, crop_cases, find_pickle, read_crops
from .pictures import COLOURS, read_mask, read_photograph

LABELS = ("background", "skin lesion")


@converter("isic", "ISIC, skin lesions, several annotators", PICKLES)
def convert_isic(
    source: Path, masks: str | None = None, unlabelled: bool = False, test_list: str | None = None
) -> Source:
    """Convert ``ISIC_0000000.jpg`` and masks ``ISIC_0000000_<annotator>.png``, or a pickle of such images and masks.

    Images become volumes of depth 1, red, green and blue a file each. Every file whose name goes on after the image's
    is the mask of one annotator; superpixels are passed over. A pickle has the form of the LIDC one, with images
    (H, W, 3), and nothing in it is executed.

    Args:
        source: folder of the images at any depth, a pickle, or the folder that holds a pickle alone.
        masks: folder of the masks, at any depth; None looks below ``source``.
        unlabelled: add images without a mask to ``training``; without it those below a folder of test or validation
            cases are left out, and others are a fault.
        test_list: text file with the names of the test cases (``ISIC_0000000``), one per line.

    Returns:
        name, labels and cases.

    Raises:
        DataError: when files are missing, unreadable or do not fit each other.
    """
    title = "ISIC (skin lesions, several annotators)"
    path = find_pickle(source)
    if path is not None:
        entries = read_crops(path, len(COLOURS))
        return listed_source(title, LABELS, COLOURS, entries, crop_cases(path, entries, str), test_list)
    parts = _find_pictures(source, source if masks is None else source_folder(masks), unlabelled)
    cases = (
        Case(
            name,
            read_photograph(files["image"]),
            raters=[read_mask(files[part]) for part in sorted(files) if part != "image"],
        )
        for name, files in parts.items()
    )
    return listed_source(title, LABELS, COLOURS, parts, cases, test_list)


def _find_pictures(images: Path, masks: Path, unlabelled: bool) -> dict[str, Parts]:
    """The photograph and the masks of each case."""
    pictures = find_parts(images, r"(?P<case>ISIC_\d+)(?P<part>)\.(?:jpe?g|png)", "ISIC_0000000.jpg")
    pattern = r"(?P<case>ISIC_\d+)_(?P<part>(?!superpixels)[^/]+)\.(?:png|bmp|tiff?)"
    found = find_parts(masks, pattern, "ISIC_0000000_<annotator>.png")
    require_parts({case: pictures.get(case, {}) for case in found}, ["image"], images)
    parts = {case: {**pictures[case], **found.get(case, {})} for case in pictures}
    return drop_unlabelled(parts, lambda files: len(files) > 1, images, unlabelled)
