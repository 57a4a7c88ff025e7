"""Overlap, surface distances and calibration of segmentations, per case and per structure.

Definitions, for prediction P and reference R of one structure:

- Dice 2|P&R| / (|P|+|R|) and Jaccard |P&R| / |P|R|; both 1 when P and R are empty.
- The surface of a mask: its voxels with a background voxel, or the image's border, among their face neighbours.
- 95HD: the 95th percentile (linear interpolation) of the distances from each surface voxel of P to the surface of R,
  the same from R to P, and the larger of the two: ``monai.metrics.compute_hausdorff_distance(percentile=95)``.
- ASD, symmetric: the mean over the surface voxels of both masks together of their distance to the other surface:
  ``monai.metrics.compute_average_surface_distance(symmetric=True)``.
- Distances are 0 when both masks are empty, and the image's diagonal (the worst there can be) when exactly one is: a
  missed structure makes the mean worse, it never drops out of it.
- ECE and classwise ECE: see ``calibration.py``.

No metric is ever NaN. A calibration error of a case without any foreground voxel does not exist: None, and an empty
cell in the CSV file.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from monai.metrics.utils import get_mask_edges, get_surface_distance
from numpy.typing import ArrayLike, NDArray

from ..files import atomic_path
from .calibration import ECE_BINS, calibration_errors

__all__ = [
    "CSV_COLUMNS",
    "MEAN_STRUCTURE",
    "CaseTable",
    "Row",
    "Summary",
    "bootstrap_interval",
    "image_diagonal",
    "metric_name",
    "read_rows",
    "structure_metrics",
    "summarise",
    "surface_distances",
    "write_rows",
]

Row = dict[str, Any]
MEAN_STRUCTURE = "mean of structures"
OVERLAPS, DISTANCES, CALIBRATION = ("dice", "jaccard"), ("hd95", "asd"), ("ece", "classwise_ece")
CSV_COLUMNS = (
    *("case", "label", "structure", *OVERLAPS, *DISTANCES, "unit", "missed", "spurious"),
    *("prediction_voxels", "reference_voxels", *CALIBRATION),
)
RELIABILITY_COLUMNS = ("lower", "upper", "count", "confidence", "accuracy")


def _checked_spacing(spacing: Sequence[float] | None, dims: int) -> tuple[tuple[float, ...], str]:
    """Spacing as floats and its unit; ValueError unless there is one positive number a dimension."""
    if spacing is None:
        return (1.0,) * dims, "voxel"
    values = tuple(float(s) for s in spacing)
    if len(values) != dims or not all(np.isfinite(v) and v > 0 for v in values):
        raise ValueError(f"spacing must be {dims} positive numbers in mm, one a dimension, got {values}")
    return values, "mm"


def image_diagonal(shape: Sequence[int], spacing: Sequence[float]) -> float:
    """Length of the image's space diagonal, from corner to corner of the outermost voxels, in units of ``spacing``."""
    return float(np.linalg.norm(np.multiply(shape, spacing)))


def surface_distances(
    prediction: NDArray[np.bool_], reference: NDArray[np.bool_], spacing: Sequence[float]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Distance of each surface voxel of one mask to the other mask's surface, both ways.

    Computed on the bounding box of both masks together. Every voxel on that box's faces has background, or the
    image's border, behind it: erosion sees the same neighbours as in the whole image, so the surfaces are equal.

    Args:
        prediction: mask (D, H, W) or (H, W), not empty.
        reference: mask of the same shape, not empty.
        spacing: voxel size along each axis.

    Returns:
        distances prediction to reference (one a surface voxel of the prediction), and reference to prediction.
    """
    places = np.nonzero(prediction | reference)
    box = tuple(slice(int(axis.min()), int(axis.max()) + 1) for axis in places)
    edges = get_mask_edges(prediction[box], reference[box], crop=False)
    there = get_surface_distance(edges[0], edges[1], spacing=list(spacing))
    back = get_surface_distance(edges[1], edges[0], spacing=list(spacing))
    return np.asarray(there, dtype=np.float64), np.asarray(back, dtype=np.float64)


def _mask_metrics(prediction: NDArray[np.bool_], reference: NDArray[np.bool_], spacing: tuple[float, ...]) -> Row:
    """Overlaps, distances and flags of one structure."""
    sizes = int(prediction.sum()), int(reference.sum())
    common = int((prediction & reference).sum())
    union = sum(sizes) - common
    if all(sizes):
        there, back = surface_distances(prediction, reference, spacing)
        hd95 = float(max(np.percentile(there, 95), np.percentile(back, 95)))
        asd = float(np.concatenate((there, back)).mean())
    else:
        hd95 = asd = image_diagonal(reference.shape, spacing) if union else 0.0
    return {
        "dice": 2 * common / sum(sizes) if union else 1.0,
        "jaccard": common / union if union else 1.0,
        "hd95": hd95,
        "asd": asd,
        "missed": sizes[0] == 0 < sizes[1],
        "spurious": sizes[1] == 0 < sizes[0],
        "prediction_voxels": sizes[0],
        "reference_voxels": sizes[1],
    }


def structure_metrics(
    prediction: ArrayLike, reference: ArrayLike, labels: Mapping[int, str], spacing: Sequence[float] | None = None
) -> list[Row]:
    """Metrics of each structure of one case; the definitions are the module's.

    Args:
        prediction: integer label map, (D, H, W) or (H, W).
        reference: integer label map of the same shape.
        labels: value to name of the structures; 0, the background, is left out.
        spacing: voxel size in mm along each axis of the arrays; None: distances are in voxels.

    Returns:
        one row a structure, in the order of the values: label (value), structure (name), dice, jaccard, hd95, asd,
        unit ("mm" or "voxel"), missed (in the reference, not in the prediction), spurious (the reverse),
        prediction_voxels, reference_voxels.

    Raises:
        ValueError: if shapes differ, are not 2D or 3D, or the spacing does not fit.

    Example:
        >>> square = np.zeros((9, 9), int)
        >>> square[2:5, 2:5] = 1
        >>> row = structure_metrics(np.roll(square, 2, axis=1), square, {1: "square"}, spacing=(1.0, 1.5))[0]
        >>> row["hd95"], row["unit"]
        (3.0, 'mm')
    """
    predicted, true = np.asarray(prediction), np.asarray(reference)
    if predicted.shape != true.shape or true.ndim not in (2, 3):
        raise ValueError(f"prediction {predicted.shape} and reference {true.shape} must have the same 2D or 3D shape")
    sizes, unit = _checked_spacing(spacing, true.ndim)
    rows = []
    for value in sorted(v for v in labels if v != 0):
        row = _mask_metrics(predicted == value, true == value, sizes)
        rows.append({"label": value, "structure": labels[value], "unit": unit, **row})
    return rows


def bootstrap_interval(
    values: ArrayLike, seed: int = 0, resamples: int = 2000, level: float = 0.95
) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean: cases are drawn with replacement.

    Args:
        values: one number a case, (N,), N at least 1.
        seed: of the draws; the same seed and values give the same interval.
        resamples: number of draws.
        level: share of the resampled means inside the interval.

    Returns:
        lower and upper end; equal when there is a single case.
    """
    numbers = np.asarray(values, dtype=np.float64)
    draws = np.random.default_rng(seed).integers(0, len(numbers), (resamples, len(numbers)))
    low, high = np.quantile(numbers[draws].mean(axis=1), ((1 - level) / 2, (1 + level) / 2))
    return float(low), float(high)


def metric_name(row: Row) -> str:
    """Name of a summary row's metric, with its unit where it has one."""
    return f"{row['metric']} [{row['unit']}]" if row["unit"] else str(row["metric"])


@dataclass
class Summary:
    """What a table of cases says.

    Attributes:
        rows: one a metric and structure: metric, structure, unit, mean, sd (of the sample, 0 for one case), lo and hi
            (bootstrap interval of the mean over cases), n (cases), missed (cases in which the structure is missed).
        missed: "case: structure" for each structure that is in the reference and not in the prediction.
        spurious: "case: structure" for the reverse.
        cases: number of cases.
    """

    rows: list[Row] = field(default_factory=list)
    missed: list[str] = field(default_factory=list)
    spurious: list[str] = field(default_factory=list)
    cases: int = 0

    def format(self) -> str:
        """The summary as text for people, one line a structure and metric."""
        if not self.rows:
            return "no cases"
        width = max(len(row["structure"]) for row in self.rows)
        lines = [
            f"{self.cases} cases: mean, sd and bootstrap 95% interval of the mean over cases",
            f"{'structure':<{width}}  {'metric':<14} {'mean':>8} {'sd':>8}  {'95% interval':<19}    n missed",
        ]
        for row in self.rows:
            metric = metric_name(row)
            interval = f"[{row['lo']:.4f}, {row['hi']:.4f}]"
            lines.append(
                f"{row['structure']:<{width}}  {metric:<14} {row['mean']:8.4f} {row['sd']:8.4f}  {interval:<19} "
                f"{row['n']:>4} {row['missed']:>6}"
            )
        lines.append("missed structures (distance = image diagonal): " + (", ".join(self.missed) or "none"))
        lines.append("spurious structures (distance = image diagonal): " + (", ".join(self.spurious) or "none"))
        return "\n".join(lines)


def _summary_row(metric: str, structure: str, unit: str, values: Sequence[float], missed: int, seed: int) -> Row:
    """One line of a summary from one number a case."""
    low, high = bootstrap_interval(values, seed)
    return {
        "metric": metric,
        "structure": structure,
        "unit": unit,
        "mean": float(np.mean(values)),
        "sd": float(np.std(values, ddof=1)) if len(values) > 1 else 0.0,
        "lo": low,
        "hi": high,
        "n": len(values),
        "missed": missed,
    }


def _per_case(rows: Sequence[Row], metric: str) -> list[float]:
    """The mean of a metric over each case's structures; cases without it are left out."""
    cases: dict[str, list[float]] = {}
    for row in rows:
        if row[metric] is not None:
            cases.setdefault(row["case"], []).append(row[metric])
    return [float(np.mean(values)) for values in cases.values()]


def summarise(rows: Sequence[Row], seed: int = 0) -> Summary:
    """Mean, spread and interval over cases of each metric, per structure and for their mean.

    The mean of structures is taken within each case first, so that the interval is over cases. Distances in mm and in
    voxels are never averaged together: they get rows of their own.

    Args:
        rows: one a case and structure, as :class:`CaseTable` holds them.
        seed: of the bootstrap.
    """
    structures = list(dict.fromkeys(row["structure"] for row in rows))
    groups = [(name, [row for row in rows if row["structure"] == name]) for name in structures]
    if len(structures) > 1:
        groups.append((MEAN_STRUCTURE, list(rows)))
    result: list[Row] = []
    for name, group in groups:
        missed = sum(row["missed"] for row in group)
        result += [_summary_row(m, name, "", _per_case(group, m), missed, seed) for m in OVERLAPS]
        for unit in sorted({row["unit"] for row in group}):
            part = [row for row in group if row["unit"] == unit]
            missed = sum(row["missed"] for row in part)
            result += [_summary_row(m, name, unit, _per_case(part, m), missed, seed) for m in DISTANCES]
    for metric in CALIBRATION:
        if values := _per_case(rows, metric):
            result.append(_summary_row(metric, "all classes", "", values, 0, seed))
    return Summary(
        rows=result,
        missed=[f"{row['case']}: {row['structure']}" for row in rows if row["missed"]],
        spurious=[f"{row['case']}: {row['structure']}" for row in rows if row["spurious"]],
        cases=len({row["case"] for row in rows}),
    )


def write_rows(rows: Sequence[Row], path: str | os.PathLike[str], columns: Sequence[str]) -> None:
    """Write rows as CSV with a header, atomically; None gives an empty cell."""
    with atomic_path(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(columns))
        writer.writeheader()
        writer.writerows(rows)


def read_rows(path: str | os.PathLike[str]) -> list[Row]:
    """Read a file of :meth:`CaseTable.write_csv` back into typed rows.

    Raises:
        ValueError: if columns are missing.
    """
    with open(path, newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        if absent := [name for name in CSV_COLUMNS if name not in (reader.fieldnames or ())]:
            raise ValueError(f"{path}: columns missing: {', '.join(absent)}")
        rows: list[Row] = [dict(row) for row in reader]
    for row in rows:
        row.update({name: int(row[name]) for name in ("label", "prediction_voxels", "reference_voxels")})
        row.update({name: float(row[name]) for name in (*OVERLAPS, *DISTANCES)})
        row.update({name: float(row[name]) if row[name] else None for name in CALIBRATION})
        row.update({name: row[name] == "True" for name in ("missed", "spurious")})
    return rows


class CaseTable:
    """Collects the metrics of an evaluation, case by case.

    Args:
        labels: value to name of the structures; 0, the background, is left out.
        bins: number of calibration bins.

    Attributes:
        rows: one a case and structure, columns :data:`CSV_COLUMNS`; ece and classwise_ece are the whole case's, the
            same on each of its rows, None without probabilities or foreground.
    """

    def __init__(self, labels: Mapping[int, str], bins: int = ECE_BINS) -> None:
        self.labels = {int(value): name for value, name in labels.items() if int(value) != 0}
        if not self.labels or len(set(self.labels.values())) != len(self.labels):
            raise ValueError(f"labels must name at least one structure, each differently, got {dict(labels)}")
        self.bins = bins
        self.rows: list[Row] = []
        self._sums = np.zeros((3, bins))

    def add(
        self,
        case: str,
        prediction: ArrayLike,
        reference: ArrayLike,
        spacing: Sequence[float] | None = None,
        probabilities: ArrayLike | None = None,
    ) -> list[Row]:
        """Measure one case and keep it; arguments as :func:`structure_metrics` and :func:`calibration_errors`.

        Returns:
            the case's rows.

        Raises:
            ValueError: if the case is there already, or an array does not fit.
        """
        if any(row["case"] == case for row in self.rows):
            raise ValueError(f"case {case!r} was added before: case names must be unique")
        ece: float | None = None
        classwise: float | None = None
        rows = structure_metrics(prediction, reference, self.labels, spacing)
        if probabilities is not None:
            channels = np.shape(probabilities)[0]
            if channels <= max(self.labels):
                raise ValueError(f"{channels} probability channels for labels up to {max(self.labels)}")
            ece, classwise, sums = calibration_errors(probabilities, prediction, reference, self.bins)
            self._sums += sums
        rows = [{"case": case, **row, "ece": ece, "classwise_ece": classwise} for row in rows]
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

        The last two are means over the bin's voxels, None in an empty bin.
        """
        rows = []
        for index, (count, confidence, right) in enumerate(self._sums.T):
            rows.append(
                {
                    "lower": index / self.bins,
                    "upper": (index + 1) / self.bins,
                    "count": int(count),
                    "confidence": confidence / count if count else None,
                    "accuracy": right / count if count else None,
                }
            )
        return rows

    def write_csv(self, path: str | os.PathLike[str]) -> None:
        """Write one line a case and structure, columns :data:`CSV_COLUMNS`."""
        write_rows(self.rows, path, CSV_COLUMNS)

    def write_reliability_csv(self, path: str | os.PathLike[str]) -> None:
        """Write :attr:`reliability`, columns lower, upper, count, confidence, accuracy."""
        write_rows(self.reliability, path, RELIABILITY_COLUMNS)
