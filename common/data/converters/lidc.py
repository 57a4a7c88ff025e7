"""LIDC-IDRI crops around lung nodules (CT), outlined by four raters, as the literature publishes them: a pickle."""

from __future__ import annotations

from pathlib import Path

from ..contract.output import fault
from .cases import write_cases
from .crops import crop_cases, find_pickle

LABELS = ("background", "nodule")


def convert_lidc(source: str, output: str, test_list: str | None = None) -> Path:
    """Convert a pickle of ``{name: {"series_uid": ..., "image": (H, W), "masks": [(H, W), ...]}}``.

    Slices become volumes of depth 1. The patient is what stands before the first ``_`` of ``series_uid``, or all of it.
    Masks of raters who saw no nodule are empty, and are kept. Nothing in the pickle is executed.

    Args:
        source: the pickle, or the folder that holds it alone.
        output: folder to write; nothing there is overwritten.
        test_list: text file with the names of the test cases (names of the entries), one per line.

    Returns:
        the folder written.

    Raises:
        DataError: when the pickle is missing, damaged, of another form, or holds anything but plain arrays.
    """
    path = find_pickle(source)
    if path is None:
        raise fault(source, "is no .pkl or .pickle file, nor a folder with one", "unzip the download, give its pickle")
    cases = crop_cases(path, 1, lambda series: series.split("_")[0])
    return write_cases(output, "LIDC-IDRI crops (lung nodules, CT)", LABELS, cases, ["CT"], test_list)
