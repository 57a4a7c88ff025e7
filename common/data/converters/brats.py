"""BraTS 2020 (glioma, MRI): four modalities on one grid, three nested regions told by three values."""

from __future__ import annotations

from pathlib import Path

from .base import Case, Source, converter
from .cases import drop_unlabelled, find_parts, listed_source, read_label, require_parts

MODALITIES = ("flair", "t1", "t1ce", "t2")
LABELS = ("background", "necrotic and non-enhancing tumour core", "oedema", "enhancing tumour")
VALUES = {1: 1, 2: 2, 4: 3}
# training case 355 was published with its mask under this name
MISNAMED = "w39_1998.09.19_segm"


@converter("brats2020", "BraTS 2020, glioma, four MRI modalities")
def convert_brats2020(source: Path, unlabelled: bool = False, test_list: str | None = None) -> Source:
    """Convert ``BraTS20_Training_001/BraTS20_Training_001_{flair,t1,t1ce,t2,seg}.nii`` (or ``.nii.gz``).

    The stored 4 (enhancing tumour) becomes 3. The challenge's regions are unions: whole tumour 1 to 3, tumour core 1
    and 3, enhancing tumour 3. The mask of case 355, published as ``W39_1998.09.19_Segm.nii``, is found.

    Args:
        source: folder of the download.
        unlabelled: add cases without a mask (those of the validation data) to ``training``; without it they are left
            out.
        test_list: text file with the names of the test cases, one per line.

    Returns:
        name, labels and cases.

    Raises:
        DataError: when files are missing, unreadable or do not fit each other.
    """
    parts = rf"(?:(?P=case)_)?(?P<part>{'|'.join(MODALITIES)}|seg|{MISNAMED})"
    files = find_parts(
        source,
        rf"(?P<case>BraTS20_\w+_\d+)/{parts}\.nii(?:\.gz)?",
        "BraTS20_Training_001/BraTS20_Training_001_flair.nii",
    )
    for case in files.values():
        if MISNAMED in case:
            case.setdefault("seg", case[MISNAMED])
    files = drop_unlabelled(files, "seg", source, unlabelled)
    require_parts(files, MODALITIES, source)
    cases = (
        Case(
            name,
            [case[modality] for modality in MODALITIES],
            read_label(case["seg"], VALUES) if "seg" in case else None,
        )
        for name, case in files.items()
    )
    return listed_source("BraTS 2020 (glioma, MRI)", LABELS, MODALITIES, files, cases, test_list)
