"""BraTS 2020 (glioma, MRI): four modalities on one grid, three nested regions told by three values."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from .base import source_folder
from .cases import Case, drop_unlabelled, find_parts, read_label, require_parts, write_cases

MODALITIES = ("flair", "t1", "t1ce", "t2")
LABELS = ("background", "necrotic and non-enhancing tumour core", "oedema", "enhancing tumour")
VALUES = {1: 1, 2: 2, 4: 3}
# training case 355 was published with its mask under this name
MISNAMED = "w39_1998.09.19_segm"


def convert_brats2020(source: str, output: str, unlabelled: bool = False, test_list: str | None = None) -> Path:
    """Convert ``BraTS20_Training_001/BraTS20_Training_001_{flair,t1,t1ce,t2,seg}.nii`` (or ``.nii.gz``).

    The stored 4 (enhancing tumour) becomes 3. The challenge's regions are unions: whole tumour 1 to 3, tumour core 1
    and 3, enhancing tumour 3. The mask of case 355, published as ``W39_1998.09.19_Segm.nii``, is found.

    Args:
        source: folder of the download.
        output: folder to write; nothing there is overwritten.
        unlabelled: add cases without a mask (those of the validation data) to ``training``; without it they are left
            out.
        test_list: text file with the names of the test cases, one per line.

    Returns:
        the folder written.

    Raises:
        DataError: when files are missing, unreadable or do not fit each other.
    """
    folder = source_folder(source)
    parts = rf"(?:(?P=case)_)?(?P<part>{'|'.join(MODALITIES)}|seg|{MISNAMED})"
    files = find_parts(
        folder,
        rf"(?P<case>BraTS20_\w+_\d+)/{parts}\.nii(?:\.gz)?",
        "BraTS20_Training_001/BraTS20_Training_001_flair.nii",
    )
    for case in files.values():
        if MISNAMED in case:
            case.setdefault("seg", case[MISNAMED])
    files = drop_unlabelled(files, "seg", folder, unlabelled)
    require_parts(files, MODALITIES, folder)
    cases = [
        Case(
            name,
            [case[modality] for modality in MODALITIES],
            partial(read_label, case["seg"], VALUES) if "seg" in case else None,
        )
        for name, case in files.items()
    ]
    return write_cases(output, "BraTS 2020 (glioma, MRI)", LABELS, cases, MODALITIES, test_list)
