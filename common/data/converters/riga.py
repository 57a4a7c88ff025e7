"""RIGA (fundus photographs): optic disc and cup, outlined by six ophthalmologists.

The masks are not published, but photographs on which each rater's outlines are drawn. The outlines are where such a
photograph differs from the unmarked one; the regions that they enclose become the label. A pixel of a stroke goes to
the nearest region, so a boundary runs in the middle of its stroke.
"""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
from scipy import ndimage
from skimage.measure import regionprops

from ..contract.faults import DataError
from ..contract.output import fault
from .base import Case, Source, Volume, converter
from .cases import Parts, find_files, listed_source, only_files, require_parts
from .pictures import COLOURS, read_photograph

logger = logging.getLogger(__name__)

LABELS = ("background", "optic disc", "optic cup")
RATERS = ("-1", "-2", "-3", "-4", "-5", "-6")  # as the files' names end
DIFFERENCE = 40  # grey values (of 255) by which a stroke differs in one colour; JPEG differs by less elsewhere
SMALLEST_REGION = 0.01  # share of the disc; what is smaller is a gap within a stroke


@converter("riga", "RIGA, optic disc and cup, six raters")
def convert_riga(source: Path, test_list: str | None = None) -> Source:
    """Convert ``image1prime.jpg`` (unmarked) and ``image1-1.jpg`` to ``image1-6.jpg`` (marked), or ``.tif``.

    Photographs become volumes of depth 1, red, green and blue a file each. Value 1 is the disc around the cup, 2 the
    cup. A rater's marking in which two nested outlines are not found is left out, and so are markings whose unmarked
    photograph is not there (``MagrabiFemale/image48``); the log says so. The collection names no patients: each
    photograph is a group of its own.

    Args:
        source: folder of the download, or of one of its parts (``BinRushed``, ``Magrabia``, ``MESSIDOR``).
        test_list: text file with the names of the test cases (the folder's path and the image's name, joined by "_",
            such as ``BinRushed_BinRushed1_image1``), one per line.

    Returns:
        name, labels and cases.

    Raises:
        DataError: when files are missing, unreadable or do not fit each other.
    """
    pattern = r"(?P<case>(?:[^/]+/)*image\d+)(?P<part>prime|-[1-6])\.(?:jpe?g|tiff?|png)"
    found = _with_photograph(find_files(source, pattern, "image1prime.jpg and image1-1.jpg"), source)
    require_parts(found, RATERS, source)
    files = {name.replace("/", "_").replace(" ", "_"): parts for name, parts in found.items()}
    cases = (_read_case(name, parts) for name, parts in files.items())
    return listed_source("RIGA (optic disc and cup, six raters)", LABELS, COLOURS, files, cases, test_list)


def _with_photograph(found: dict[str, dict[str, list[Path]]], folder: Path) -> dict[str, Parts]:
    """The files of the photographs that are there unmarked; without it, outlines cannot be told from the picture."""
    without = [name for name, parts in found.items() if "prime" not in parts]
    if len(without) == len(found):
        raise fault(folder, f"no prime for {', '.join(without[:8])}", "download the photographs without markings, too")
    if without:
        logger.warning("left out, as the photograph without markings (prime) is missing: %s", ", ".join(without))
    return only_files({name: parts for name, parts in found.items() if "prime" in parts})


def _read_case(name: str, parts: Parts) -> Case:
    image = read_photograph(parts["prime"])
    raters = [mask for rater in RATERS if (mask := _read_marking(parts[rater], image)) is not None]
    if not raters:
        raise fault(parts["prime"], "outlines can be read in not one marking of it", "remove this photograph")
    return Case(name, image, raters=raters)


def _read_marking(path: Path, image: list[Volume]) -> Volume | None:
    """Label of one rater; None where the outlines cannot be read."""
    differences = []
    for before, after in zip(image, read_photograph(path), strict=True):
        if before.voxels.shape != after.voxels.shape:
            what = f"has {after.voxels.shape[:2]} rows and columns, the unmarked photograph {before.voxels.shape[:2]}"
            raise fault(path, what, "download the case again")
        differences.append(np.abs(after.voxels.astype(np.int16) - before.voxels)[..., 0])
    try:
        label = fill_outlines(np.max(differences, axis=0) > DIFFERENCE, path)
    except DataError as error:
        logger.warning("a rater is left out: %s", error)
        return None
    return Volume(label[..., None], np.eye(4), path)


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
