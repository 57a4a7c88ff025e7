"""The metrics of an evaluation, case by case, in memory and in files."""

from __future__ import annotations

import csv
import os
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike

from ...files import atomic_path
from ..calibration import ECE_BINS
from .structures import Case
from .summary import Summary, summarise
from .table import FACTS, KEYS, METRICS, Row, csv_columns, structure_metrics

RELIABILITY_COLUMNS = ("lower", "upper", "count", "confidence", "accuracy")
TEMPERED_COLUMNS = ("count_calibrated", "confidence_calibrated", "accuracy_calibrated")


def write_rows(rows: Sequence[Row], path: str | os.PathLike[str], columns: Sequence[str]) -> None:
    """Write rows as CSV with a header, atomically; None gives an empty cell."""
    with atomic_path(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(columns))
        writer.writeheader()
        writer.writerows(rows)


def read_rows(path: str | os.PathLike[str]) -> list[Row]:
    """Read a file of :meth:`CaseTable.write_csv` back into typed rows.

    A metric that the file lacks, as it was written by an earlier version, is None in each row.

    Raises:
        ValueError: if columns are missing that say what the rows are about.
    """
    with open(path, newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        if absent := [name for name in (*KEYS, *FACTS) if name not in (reader.fieldnames or ())]:
            raise ValueError(f"{path}: columns missing: {', '.join(absent)}")
        rows: list[Row] = [dict(row) for row in reader]
    for row in rows:
        row.update({name: int(row[name]) for name in ("label", "prediction_voxels", "reference_voxels")})
        row.update({name: float(row[name]) if row.get(name) else None for name in METRICS})
        row.update({name: row[name] == "True" for name in ("missed", "spurious")})
    return rows


class CaseTable:
    """Collects the metrics of an evaluation, case by case.

    Args:
        labels: value to name of the structures; 0, the background, is left out.
        bins: number of calibration bins.

    Attributes:
        rows: one a case and structure, columns :func:`csv_columns`; metrics of the whole case are the same on each of
            its rows, and None where there is no such number (calibration without probabilities or foreground).
    """

    def __init__(self, labels: Mapping[int, str], bins: int = ECE_BINS) -> None:
        self.labels = {int(value): name for value, name in labels.items() if int(value) != 0}
        if not self.labels or len(set(self.labels.values())) != len(self.labels):
            raise ValueError(f"labels must name at least one structure, each differently, got {dict(labels)}")
        self.bins = bins
        self.rows: list[Row] = []
        self._sums = np.zeros((2, 3, bins))  # of the network's own probabilities, and of the tempered ones

    def add(
        self,
        case: str,
        prediction: ArrayLike,
        reference: ArrayLike,
        spacing: Sequence[float] | None = None,
        probabilities: ArrayLike | None = None,
        tempered: ArrayLike | None = None,
    ) -> list[Row]:
        """Measure one case and keep it; arguments as :func:`structure_metrics` and :class:`.structures.Case`.

        Returns:
            the case's rows.

        Raises:
            ValueError: if the case is there already, or an array does not fit.
        """
        if any(row["case"] == case for row in self.rows):
            raise ValueError(f"case {case!r} was added before: case names must be unique")
        rows = structure_metrics(prediction, reference, self.labels, spacing)
        if probabilities is not None and np.shape(probabilities)[0] <= max(self.labels):
            channels = np.shape(probabilities)[0]
            raise ValueError(f"{channels} probability channels for labels up to {max(self.labels)}")
        whole = Case(probabilities, prediction, reference, self.bins, tempered)
        measured = {name: metric.function(whole) for name, metric in METRICS.items() if metric.of == "case"}
        self._sums += np.stack((whole.calibration.sums, whole.tempered_calibration.sums))
        rows = [{"case": case, **row, **measured} for row in rows]
        self.rows += rows
        return rows

    def summary(self, seed: int = 0) -> Summary:
        """Mean, sd, bootstrap interval, n and missed structures: :func:`summarise`."""
        return summarise(self.rows, seed)

    def format_summary(self, seed: int = 0) -> str:
        """The summary as text to print."""
        return self.summary(seed).format()

    @property
    def reliability(self) -> list[Row]:
        """One row a bin, over the foreground voxels of all cases: lower, upper, count, confidence and accuracy.

        The last two are means over the bin's voxels, None in an empty bin. ``*_calibrated`` are the same after
        temperature scaling.
        """
        rows: list[Row] = []
        for index in range(self.bins):
            row: Row = {"lower": index / self.bins, "upper": (index + 1) / self.bins}
            for ending, sums in zip(("", "_calibrated"), self._sums, strict=True):
                count, confidence, right = sums[:, index]
                row[f"count{ending}"] = int(count)
                row[f"confidence{ending}"] = confidence / count if count else None
                row[f"accuracy{ending}"] = right / count if count else None
            rows.append(row)
        return rows

    def write_csv(self, path: str | os.PathLike[str]) -> None:
        """Write one line a case and structure, columns :func:`csv_columns`."""
        write_rows(self.rows, path, csv_columns())

    def write_reliability_csv(self, path: str | os.PathLike[str]) -> None:
        """Write :attr:`reliability`."""
        write_rows(self.reliability, path, (*RELIABILITY_COLUMNS, *TEMPERED_COLUMNS))
