"""ATLAS 2023 (liver and liver tumours, contrast-enhanced MRI)."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from .base import source_folder
from .cases import Case, drop_unlabelled, find_parts, read_label, require_parts, write_cases

LABELS = ("background", "liver", "liver tumour")


def convert_atlas2023(source: str, output: str, unlabelled: bool = False, test_list: str | None = None) -> Path:
    """Convert ``imagesTr/im0.nii.gz`` and ``labelsTr/lb0.nii.gz``; a ``dataset.json`` there is not needed.

    Args:
        source: folder of the download.
        output: folder to write; nothing there is overwritten.
        unlabelled: add images without a label to ``training``; without it they are a fault.
        test_list: text file with the names of the test cases (``case_00``), one per line.

    Returns:
        the folder written.

    Raises:
        DataError: when files are missing, unreadable or do not fit each other.
    """
    folder = source_folder(source)
    pattern = r"(?:imagesTr|labelsTr)/(?P<part>im|lb)(?P<case>\d+)\.nii(?:\.gz)?"
    files = find_parts(folder, pattern, "imagesTr/im0.nii.gz and labelsTr/lb0.nii.gz")
    files = drop_unlabelled(files, "lb", folder, unlabelled)
    require_parts(files, ["im"], folder)
    cases = [
        Case(
            f"case_{number.zfill(2)}",
            [case["im"]],
            partial(read_label, case["lb"], {1: 1, 2: 2}) if "lb" in case else None,
        )
        for number, case in sorted(files.items(), key=lambda item: int(item[0]))
    ]
    return write_cases(output, "ATLAS 2023 (liver tumours, MRI)", LABELS, cases, ["T1"], test_list)
