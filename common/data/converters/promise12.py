"""PROMISE12 (prostate, T2-weighted MRI) as MetaImage files."""

from __future__ import annotations

from pathlib import Path

from .base import Case, Source, Volume, converter
from .cases import drop_unlabelled, find_parts, listed_source, renumbered, require_parts
from .mhd import read_mhd

LABELS = ("background", "prostate")


@converter("promise12", "PROMISE12, prostate, MRI, MetaImage")
def convert_promise12(source: Path, unlabelled: bool = False, test_list: str | None = None) -> Source:
    """Convert ``Case00.mhd`` and ``Case00_segmentation.mhd``, each with its ``.raw``.

    The challenge's test cases carry the numbers of training cases: those in a folder whose name begins with "test" get
    the name ``test_Case00``, those in one that begins with "livechallenge" ``livechallenge_Case00``. With a
    segmentation, which was published later, they become ``test``, unless a test list is given.

    Args:
        source: folder of the download.
        unlabelled: add cases without a segmentation to ``training``; without it those below a folder of test cases are
            left out, and others are a fault.
        test_list: text file with the names of the test cases (``Case00``), one per line.

    Returns:
        name, labels and cases.

    Raises:
        DataError: when files are missing, unreadable or do not fit each other.
    """
    pattern = r"(?:(?P<split>livechallenge|test)[^/]*/)?(?P<case>Case\d+)(?P<part>_segmentation|)\.mh[da]"
    files = find_parts(source, pattern, "Case00.mhd")
    files = drop_unlabelled(files, "segmentation", source, unlabelled)
    require_parts(files, ["image"], source)
    cases = (
        Case(
            name,
            [read_mhd(case["image"])],
            _read_label(case["segmentation"]) if "segmentation" in case else None,
            section="test" if test_list is None and "segmentation" in case and "_" in name else "training",
        )
        for name, case in files.items()
    )
    return listed_source("PROMISE12 (prostate, MRI)", LABELS, ["T2"], files, cases, test_list)


def _read_label(path: Path) -> Volume:
    return renumbered(read_mhd(path), {1: 1})
