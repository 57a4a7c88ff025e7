"""RIGA (fundus photographs): optic disc and cup, outlined by six ophthalmologists.

The masks are not published, but photographs on which each rater's outlines are drawn. The outlines are where such a
photograph differs from the unmarked one; the regions that they enclose become the label. A pixel of a stroke goes to
the nearest region, so a boundary runs in the middle of its stroke.
"""

from __future__ import annotations

import logging
from functools import partial
from pathlib import Path

import numpy as np
from scipy import ndimage
from skimage.measure import regionprops

from ..contract.faults import DataError
from ..contract.output import fault
from .base import source_folder
from .cases import Case, Volume, find_parts, require_parts, write_cases
from .pictures import COLOURS, read_channel, read_colours

logger = logging.getLogger(__name__)

LABELS = ("background", "optic disc", "optic cup")
RATERS = ("1", "2", "3", "4", "5", "6")
DIFFERENCE = 40  # grey values (of 255) by which a stroke differs in one colour; JPEG differs by less elsewhere
SMALLEST_REGION = 0.01  # share of the disc; what is smaller is a gap within a stroke


def convert_riga(source: str, output: str, test_list: str | None = None) -> Path:
    """Convert ``image1prime.jpg`` (unmarked) and ``image1-1.jpg`` to ``image1-6.jpg`` (marked), or ``.tif``.

    Photographs become volumes of depth 1, red, green and blue a file each. Value 1 is the disc around the cup, 2 the
    cup. A rater's marking in which two nested outlines are not found is left out, and the log says so. The collection
    names no patients: each photograph is a group of its own.

    Args:
        source: folder of the download, or of one of its parts (``BinRushed``, ``Magrabia``, ``MESSIDOR``).
        output: folder to write; nothing there is overwritten.
        test_list: text file with the names of the test cases (the folder's path and the image's name, joined by "_",
            such as ``BinRushed_BinRushed1_image1``), one per line.

    Returns:
        the folder written.

    Raises:
        DataError: when files are missing, unreadable or do not fit each other.
    """
    folder = source_folder(source)
    pattern = r"(?P<case>(?:[^/]+/)*image\d+)(?P<part>prime|-[1-6])\.(?:jpe?g|tiff?|png)"
    found = find_parts(folder, pattern, "image1prime.jpg and image1-1.jpg")
    files = {name: {part.lstrip("-"): path for part, path in parts.items()} for name, parts in found.items()}
    require_parts(files, ["prime", *RATERS], folder)
    cases = [
        Case(
            name.replace("/", "_").replace(" ", "_"),
            [partial(read_channel, parts["prime"], channel) for channel in range(len(COLOURS))],
            raters=[partial(_read_marking, parts[rater], parts["prime"]) for rater in RATERS],
        )
        for name, parts in files.items()
    ]
    return write_cases(output, "RIGA (optic disc and cup, six raters)", LABELS, cases, COLOURS, test_list)


def _read_marking(marked: Path, unmarked: Path) -> Volume | None:
    before = read_colours(unmarked).astype(np.int16)
    after = read_colours(marked).astype(np.int16)
    if before.shape != after.shape:
        raise fault(marked, f"has shape {after.shape}, {unmarked.name} has {before.shape}", "download the case again")
    try:
        label = fill_outlines(np.abs(after - before).max(axis=2) > DIFFERENCE, marked)
    except DataError as error:
        logger.warning("a rater is left out: %s", error)
        return None
    return Volume(label[..., None], np.eye(4), marked)


def fill_outlines(strokes: np.ndarray, path: Path) -> np.ndarray:
    """Regions within two closed outlines, of which one lies in the other; they may touch.

    Args:
        strokes: (H, W), true where an outline is drawn.
        path: of the marked photograph, for messages.

    Returns:
        label (H, W) uint8: 0 outside, 1 between the outlines, 2 within the inner one.

    Raises:
        DataError: when there are no two such outlines.
    """
    closed = ndimage.binary_closing(np.pad(strokes, 2), iterations=2)[2:-2, 2:-2] | strokes
    filled = ndimage.binary_fill_holes(closed)
    discs, count = ndimage.label(filled)
    if count == 0:
        raise fault(path, "shows no outline", "check that it is the marked photograph")
    disc = discs == 1 + int(np.argmax(np.bincount(discs.ravel())[1:]))
    inside, _ = ndimage.label(disc & ~closed)
    regions = [region for region in regionprops(inside) if region.area >= SMALLEST_REGION * disc.sum()]
    if len(regions) != 2:
        what = f"encloses {len(regions)} regions by its outlines, disc and cup would be 2"
        raise fault(path, what, "close or separate the outlines in the picture, or leave this rater out")
    # the cup is convex; what lies around it is a ring, or a crescent where the outlines touch
    ring, cup = sorted(regions, key=lambda region: float(region.solidity))
    label = np.where(inside == ring.label, 1, np.where(inside == cup.label, 2, 0)).astype(np.uint8)
    undecided = disc & (label == 0)
    nearest = ndimage.distance_transform_edt(undecided, return_distances=False, return_indices=True)
    return np.asarray(label[tuple(nearest)])
