"""FLARE 2021 (four abdominal organs, CT)."""

from __future__ import annotations

from pathlib import Path

from .base import Case, Source, converter
from .cases import drop_unlabelled, find_parts, listed_source, read_label, require_parts

LABELS = ("background", "liver", "kidney", "spleen", "pancreas")


@converter("flare2021", "FLARE 2021, four abdominal organs, CT")
def convert_flare2021(source: Path, unlabelled: bool = False, test_list: str | None = None) -> Source:
    """Convert ``TrainingImg/train_000_0000.nii.gz`` and ``TrainingMask/train_000.nii.gz``.

    Args:
        source: folder of the download, above ``TrainingImg`` and ``TrainingMask``.
        unlabelled: add images without a mask (those of ``ValidationImg``) to ``training``; without it they are left
            out.
        test_list: text file with the names of the test cases (``train_000``), one per line.

    Returns:
        name, labels and cases.

    Raises:
        DataError: when files are missing, unreadable or do not fit each other.
    """
    pattern = r"(?P<case>[a-z]+_\d{3,})(?P<part>_0000|)\.nii(?:\.gz)?"
    found = find_parts(source, pattern, "TrainingImg/train_000_0000.nii.gz")
    names = {"0000": "image", "image": "mask"}  # a name without a channel number is a mask's
    files = {case: {names[part]: path for part, path in parts.items()} for case, parts in found.items()}
    files = drop_unlabelled(files, "mask", source, unlabelled)
    require_parts(files, ["image"], source)
    values = {value: value for value in range(1, len(LABELS))}
    cases = (
        Case(name, [case["image"]], read_label(case["mask"], values) if "mask" in case else None)
        for name, case in files.items()
    )
    return listed_source("FLARE 2021 (abdominal organs, CT)", LABELS, ["CT"], files, cases, test_list)
