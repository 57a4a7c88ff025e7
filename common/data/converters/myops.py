"""MyoPS 2020 (myocardial pathology): cine (C0), late enhancement (DE) and T2 of one heart on one grid."""

from __future__ import annotations

from pathlib import Path

from .base import Case, Source, converter
from .cases import drop_unlabelled, find_parts, listed_source, read_label, require_parts

CHANNELS = ("C0", "DE", "T2")
LABELS = ("background", "myocardium", "left ventricle", "right ventricle", "oedema", "scar")
VALUES = {200: 1, 500: 2, 600: 3, 1220: 4, 2221: 5}


@converter("myops2020", "MyoPS 2020, myocardial pathology, three MRI sequences")
def convert_myops2020(source: Path, unlabelled: bool = False, test_list: str | None = None) -> Source:
    """Convert ``train25/myops_training_101_{C0,DE,T2}.nii.gz`` and ``train25_myops_gd/myops_training_101_gd.nii.gz``.

    The stored 200, 500, 600, 1220 and 2221 become 1 to 5. "Myocardium" is the healthy part: oedema and scar lie in it.

    Args:
        source: folder of the download, above ``train25`` and ``train25_myops_gd``.
        unlabelled: add cases without a label (those of ``test20``) to ``training``; without it they are left out.
        test_list: text file with the names of the test cases (``myops_training_101``), one per line.

    Returns:
        name, labels and cases.

    Raises:
        DataError: when files are missing, unreadable or do not fit each other.
    """
    pattern = r"(?P<case>myops_(?:training|test)_\d+)_(?P<part>C0|DE|T2|gd)\.nii(?:\.gz)?"
    files = find_parts(source, pattern, "myops_training_101_C0.nii.gz")
    files = drop_unlabelled(files, "gd", source, unlabelled)
    require_parts(files, [name.lower() for name in CHANNELS], source)
    cases = (
        Case(
            name,
            [case[channel.lower()] for channel in CHANNELS],
            read_label(case["gd"], VALUES) if "gd" in case else None,
        )
        for name, case in files.items()
    )
    return listed_source("MyoPS 2020 (myocardial pathology, MRI)", LABELS, CHANNELS, files, cases, test_list)
