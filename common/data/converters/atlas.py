"""ATLAS 2023 (liver and liver tumours, contrast-enhanced MRI)."""

from __future__ import annotations

from pathlib import Path

from .base import Case, Source, converter
from .cases import drop_unlabelled, find_parts, listed_source, read_label, require_parts

LABELS = ("background", "liver", "liver tumour")


@converter("atlas2023", "ATLAS 2023, liver tumours, MRI")
def convert_atlas2023(source: Path, unlabelled: bool = False, test_list: str | None = None) -> Source:
    """Convert ``imagesTr/im0.nii.gz`` and ``labelsTr/lb0.nii.gz``; a ``dataset.json`` there is not needed.

    Args:
        source: folder of the download.
        unlabelled: add images without a label to ``training``; without it they are a fault.
        test_list: text file with the names of the test cases (``case_00``), one per line.

    Returns:
        name, labels and cases.

    Raises:
        DataError: when files are missing, unreadable or do not fit each other.
    """
    pattern = r"(?:imagesTr|labelsTr)/(?P<part>im|lb)(?P<case>\d+)\.nii(?:\.gz)?"
    files = find_parts(source, pattern, "imagesTr/im0.nii.gz and labelsTr/lb0.nii.gz")
    files = drop_unlabelled(files, "lb", source, unlabelled)
    require_parts(files, ["im"], source)
    files = {f"case_{number.zfill(2)}": files[number] for number in sorted(files, key=int)}
    cases = (
        Case(
            name,
            [case["im"]],
            read_label(case["lb"], {1: 1, 2: 2}) if "lb" in case else None,
        )
        for name, case in files.items()
    )
    return listed_source("ATLAS 2023 (liver tumours, MRI)", LABELS, ["T1"], files, cases, test_list)
