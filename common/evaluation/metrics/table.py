"""The table of metrics; definitions are the package's."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike

from .structures import Case, MaskPair

Row = dict[str, Any]
KEYS = ("case", "label", "structure")
FACTS = ("unit", "missed", "spurious", "prediction_voxels", "reference_voxels")


@dataclass(frozen=True)
class Metric:
    """One metric: a row of :data:`METRICS`.

    Attributes:
        title: for people.
        unit: "" for a number without one, "length" for one in the case's unit (mm, or voxels where no spacing is
            known), or the unit itself, such as "voxel".
        better: which direction is: "higher" or "lower".
        of: what it belongs to: a "structure" (its function is given a :class:`MaskPair`) or the whole "case" (a
            :class:`Case`; it may answer None: there is no such number).
        shown: every metric is in metrics.csv, the summary, report.csv and the comparison; beyond these, where on the
            report's page: in its "table", in the "note" below, or not there: "files".
        function: computes it.
    """

    title: str
    unit: str
    better: Literal["higher", "lower"]
    of: Literal["structure", "case"]
    shown: Literal["table", "note", "files"]
    function: Callable[[Any], float | None]

    def unit_in(self, row: Row) -> str:
        """The unit that the metric has in a row of a table, "" for none."""
        return str(row["unit"]) if self.unit == "length" else self.unit


def _dice(masks: MaskPair) -> float:
    return 2 * masks.common / sum(masks.sizes) if masks.union else 1.0


def _jaccard(masks: MaskPair) -> float:
    return masks.common / masks.union if masks.union else 1.0


def _hd95(masks: MaskPair) -> float:
    if masks.distances is None:
        return masks.worst
    return float(max(np.percentile(way, 95) for way in masks.distances))


def _asd(masks: MaskPair) -> float:
    return masks.worst if masks.distances is None else float(np.concatenate(masks.distances).mean())


def _hd95_medpy(masks: MaskPair) -> float:
    return masks.worst if masks.distances is None else float(np.percentile(np.concatenate(masks.distances), 95))


def _asd_medpy(masks: MaskPair) -> float:
    return masks.worst if masks.distances is None else float(masks.distances[0].mean())


def _hd95_medpy_voxels(masks: MaskPair) -> float:
    return _hd95_medpy(masks.in_voxels)


def _asd_medpy_voxels(masks: MaskPair) -> float:
    return _asd_medpy(masks.in_voxels)


def _calibration(name: str, tempered: bool = False) -> Callable[[Case], float | None]:
    """One number of :class:`~common.evaluation.calibration.CalibrationErrors`."""

    def measure(case: Case) -> float | None:
        number: float | None = getattr(case.tempered_calibration if tempered else case.calibration, name)
        return number

    return measure


# name (the column in CSV files): what it is
METRICS: dict[str, Metric] = {
    "dice": Metric("Dice", "", "higher", "structure", "table", _dice),
    "jaccard": Metric("Jaccard", "", "higher", "structure", "table", _jaccard),
    "hd95": Metric("95HD", "length", "lower", "structure", "table", _hd95),
    "asd": Metric("ASD", "length", "lower", "structure", "table", _asd),
    "hd95_medpy": Metric("95HD, medpy", "length", "lower", "structure", "files", _hd95_medpy),
    "asd_medpy": Metric("ASD, medpy", "length", "lower", "structure", "files", _asd_medpy),
    "hd95_medpy_voxels": Metric("95HD, medpy", "voxel", "lower", "structure", "files", _hd95_medpy_voxels),
    "asd_medpy_voxels": Metric("ASD, medpy", "voxel", "lower", "structure", "files", _asd_medpy_voxels),
    "ece": Metric("ECE", "", "lower", "case", "note", _calibration("ece")),
    "classwise_ece": Metric("classwise ECE", "", "lower", "case", "note", _calibration("classwise_ece")),
    "brier": Metric("Brier", "", "lower", "case", "files", _calibration("brier")),
    "nll": Metric("NLL", "nat", "lower", "case", "files", _calibration("nll")),
    # after temperature scaling
    "ece_calibrated": Metric("ECE, calibrated", "", "lower", "case", "files", _calibration("ece", True)),
    "classwise_ece_calibrated": Metric(
        "classwise ECE, calibrated", "", "lower", "case", "files", _calibration("classwise_ece", True)
    ),
    "brier_calibrated": Metric("Brier, calibrated", "", "lower", "case", "files", _calibration("brier", True)),
    "nll_calibrated": Metric("NLL, calibrated", "nat", "lower", "case", "files", _calibration("nll", True)),
}


def metrics_shown(where: Literal["table", "note", "files"]) -> list[str]:
    """Names of the metrics with that place on the report's page, in the table's order."""
    return [name for name, metric in METRICS.items() if metric.shown == where]


def csv_columns() -> tuple[str, ...]:
    """Columns of metrics.csv: case and structure, what the page's table shows, facts of the case, all else."""
    return (*KEYS, *metrics_shown("table"), *FACTS, *metrics_shown("note"), *metrics_shown("files"))


def _checked_spacing(spacing: Sequence[float] | None, dims: int) -> tuple[tuple[float, ...], str]:
    """Spacing as floats and its unit; ValueError unless there is one positive number a dimension."""
    if spacing is None:
        return (1.0,) * dims, "voxel"
    values = tuple(float(s) for s in spacing)
    if len(values) != dims or not all(np.isfinite(v) and v > 0 for v in values):
        raise ValueError(f"spacing must be {dims} positive numbers in mm, one a dimension, got {values}")
    return values, "mm"


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
        one row a structure, in the order of the values: label (value), structure (name), the metrics of structures in
        :data:`METRICS`, unit of the distances ("mm" or "voxel"), missed (in the reference, not in the prediction),
        spurious (the reverse), prediction_voxels, reference_voxels.

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
        masks = MaskPair(predicted == value, true == value, sizes)
        facts = {
            "unit": unit,
            "missed": masks.sizes[0] == 0 < masks.sizes[1],
            "spurious": masks.sizes[1] == 0 < masks.sizes[0],
            "prediction_voxels": masks.sizes[0],
            "reference_voxels": masks.sizes[1],
        }
        measured = {name: m.function(masks) for name, m in METRICS.items() if m.of == "structure"}
        rows.append({"label": value, "structure": labels[value], **measured, **facts})
    return rows
