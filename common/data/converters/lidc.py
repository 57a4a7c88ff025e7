"""LIDC-IDRI crops around lung nodules (CT), outlined by four raters, as the literature publishes them: a pickle."""

from __future__ import annotations

from pathlib import Path

from ..contract.output import fault
from .base import Source, converter
from .cases import listed_source
from .crops import PICKLES, crop_cases, find_pickle, read_crops

LABELS = ("background", "nodule")


@converter("lidc", "LIDC-IDRI crops, four raters, a pickle of arrays", PICKLES)
def convert_lidc(source: Path, test_list: str | None = None) -> Source:
    """Convert a pickle of ``{name: {"series_uid": ..., "image": (H, W), "masks": [(H, W), ...]}}``.

    Slices become volumes of depth 1. The patient is what stands before the first ``_`` of ``series_uid``, or all of it.
    Masks of raters who saw no nodule are empty, and are kept. Nothing in the pickle is executed.

    Args:
        source: the pickle, or the folder that holds it alone.
        test_list: text file with the names of the test cases (names of the entries), one per line.

    Returns:
        name, labels and cases.

    Raises:
        DataError: when the pickle is missing, damaged, of another form, or holds anything but plain arrays.
    """
    path = find_pickle(source)
    if path is None:
        raise fault(source, "is no .pkl or .pickle file, nor a folder with one", "unzip the download, give its pickle")
    entries = read_crops(path, 1)
    cases = crop_cases(path, entries, lambda series: series.split("_")[0])
    return listed_source("LIDC-IDRI crops (lung nodules, CT)", LABELS, ["CT"], entries, cases, test_list)
