"""PROMISE12 (prostate, T2-weighted MRI) as MetaImage files."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from .base import source_folder
from .cases import Case, Volume, drop_unlabelled, find_parts, renumbered, require_parts, write_cases
from .mhd import read_mhd

LABELS = ("background", "prostate")


def convert_promise12(source: str, output: str, unlabelled: bool = False, test_list: str | None = None) -> Path:
    """Convert ``Case00.mhd`` and ``Case00_segmentation.mhd``, each with its ``.raw``.

    The challenge's test cases carry the numbers of training cases: those in a folder whose name begins with "test" get
    the name ``test_Case00``.

    Args:
        source: folder of the download.
        output: folder to write; nothing there is overwritten.
        unlabelled: add cases without a segmentation to ``training``; without it those below a folder of test cases are
            left out, and others are a fault.
        test_list: text file with the names of the test cases (``Case00``), one per line.

    Returns:
        the folder written.

    Raises:
        DataError: when files are missing, unreadable or do not fit each other.
    """
    folder = source_folder(source)
    pattern = r"(?:(?P<split>test)[^/]*/)?(?P<case>Case\d+)(?P<part>_segmentation|)\.mh[da]"
    files = find_parts(folder, pattern, "Case00.mhd")
    files = drop_unlabelled(files, "segmentation", folder, unlabelled)
    require_parts(files, ["image"], folder)
    cases = [
        Case(
            name,
            [partial(read_mhd, case["image"])],
            partial(_read_label, case["segmentation"]) if "segmentation" in case else None,
        )
        for name, case in files.items()
    ]
    return write_cases(output, "PROMISE12 (prostate, MRI)", LABELS, cases, ["T2"], test_list)


def _read_label(path: Path) -> Volume:
    return renumbered(read_mhd(path), {1: 1})
