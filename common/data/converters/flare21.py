"""FLARE 2021 (four abdominal organs, CT)."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from .base import source_folder
from .cases import Case, drop_unlabelled, find_parts, read_label, require_parts, write_cases

LABELS = ("background", "liver", "kidney", "spleen", "pancreas")


def convert_flare2021(source: str, output: str, unlabelled: bool = False, test_list: str | None = None) -> Path:
    """Convert ``TrainingImg/train_000_0000.nii.gz`` and ``TrainingMask/train_000.nii.gz``.

    Args:
        source: folder of the download, above ``TrainingImg`` and ``TrainingMask``.
        output: folder to write; nothing there is overwritten.
        unlabelled: add images without a mask (those of ``ValidationImg``) to ``training``; without it they are left
            out.
        test_list: text file with the names of the test cases (``train_000``), one per line.

    Returns:
        the folder written.

    Raises:
        DataError: when files are missing, unreadable or do not fit each other.
    """
    folder = source_folder(source)
    pattern = r"(?P<case>[a-z]+_\d{3,})(?P<part>_0000|)\.nii(?:\.gz)?"
    found = find_parts(folder, pattern, "TrainingImg/train_000_0000.nii.gz")
    names = {"0000": "image", "image": "mask"}  # a name without a channel number is a mask's
    files = {case: {names[part]: path for part, path in parts.items()} for case, parts in found.items()}
    files = drop_unlabelled(files, "mask", folder, unlabelled)
    require_parts(files, ["image"], folder)
    values = {value: value for value in range(1, len(LABELS))}
    cases = [
        Case(name, [case["image"]], partial(read_label, case["mask"], values) if "mask" in case else None)
        for name, case in files.items()
    ]
    return write_cases(output, "FLARE 2021 (abdominal organs, CT)", LABELS, cases, ["CT"], test_list)
