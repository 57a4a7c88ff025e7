"""Pictures for people: one page about a trained model, :func:`write_report`.

Figures are made through matplotlib's object interface, never through ``pyplot``: no window system is needed and no
global figure is left behind.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.image import imread
from numpy.typing import NDArray

from ...files import atomic_path
from ...training.tracking import track_report
from ..metrics import Row, Summary, read_rows, summarise, write_rows
from .board import show_on_tensorboard
from .panels import (
    MAX_TABLE_ROWS,
    History,
    draw_dice_strip,
    draw_losses,
    draw_reliability,
    draw_summary_table,
    draw_validation,
    read_history,
    read_reliability,
)
from .rows import CaseRows
from .samples import write_samples_page

__all__ = ["write_report"]

SUMMARY_COLUMNS = ("metric", "structure", "unit", "mean", "sd", "lo", "hi", "n", "missed")
_WIDTH = 8.27  # inches, of A4; the page is as high as what is on it
_SIDES = (0.07, 0.955)  # left and right margin, share of the width
_HEADING, _CURVES, _BELOW_CURVES, _BELOW_CASES, _FOOT = 0.95, 1.75, 0.42, 0.42, 0.3  # inches
_TABLE_ROW, _TABLE_LEAST = 0.27, 1.95  # inches
# keys are checked by matplotlib, whose stubs name them differently from version to version
_STYLE: Any = {
    "font.size": 7.5,
    "axes.titlesize": 8.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 7.5,
    "xtick.labelsize": 6.5,
    "ytick.labelsize": 6.5,
    "legend.fontsize": 6.5,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "axes.edgecolor": "0.3",
    "axes.labelcolor": "0.2",
    "xtick.color": "0.3",
    "ytick.color": "0.3",
}


def _draw_page(
    title: str,
    history: History,
    reliability: NDArray[np.float64] | None,
    rows: Sequence[Row],
    summary: Summary,
    folder: Path,
) -> tuple[Figure, CaseRows]:
    """Put all parts on a page: curves above, cases in the middle, table below."""
    labels = {row["label"]: row["structure"] for row in sorted(rows, key=lambda row: row["label"])}
    cases = CaseRows(rows, folder, labels, _WIDTH * (_SIDES[1] - _SIDES[0]))
    # heading and lines of the structures and their mean
    table = max(_TABLE_LEAST, _TABLE_ROW * (min(len(labels) + 1, MAX_TABLE_ROWS) + 1) / 0.74)
    parts = (_CURVES, _BELOW_CURVES, cases.height, _BELOW_CASES, table)
    height = _HEADING + sum(parts) + _FOOT
    figure = Figure(figsize=(_WIDTH, height))
    left, right = _SIDES
    outer = figure.add_gridspec(
        5, 1, height_ratios=parts, left=left, right=right, top=1 - _HEADING / height, bottom=_FOOT / height, hspace=0
    )
    size = min(14.0, 700.0 / max(1, len(title)))
    figure.text(left, 1 - 0.4 / height, title, fontsize=size, fontweight="bold", va="center")
    figure.text(left, 1 - 0.62 / height, _subtitle(summary), fontsize=8, color="0.35", va="center")
    above = outer[0].subgridspec(1, 3, wspace=0.36)
    draw_losses(figure.add_subplot(above[0]), history)
    draw_validation(figure.add_subplot(above[1]), history)
    stack = above[2].subgridspec(2, 1, height_ratios=(3.2, 1), hspace=0.12)
    diagram = figure.add_subplot(stack[0])
    draw_reliability(diagram, figure.add_subplot(stack[1]), reliability)
    cases.draw(figure, outer[2])
    below = outer[4].subgridspec(1, 2, width_ratios=(2.7, 1), wspace=0.12)
    draw_summary_table(figure.add_subplot(below[0]), summary, labels)
    draw_dice_strip(figure.add_subplot(below[1]), rows, summary, labels)
    return figure, cases


def _subtitle(summary: Summary) -> str:
    """The result in one line."""
    row = [row for row in summary.rows if row["metric"] == "dice"][-1]
    text = f"{summary.cases} cases  ·  Dice {row['mean']:.3f}, 95% interval [{row['lo']:.3f}, {row['hi']:.3f}]"
    return f"{text}  ·  structures missed: {len(summary.missed) or 'none'}"


def write_report(
    results_dir: str | os.PathLike[str],
    history_csv: str | os.PathLike[str],
    title: str = "Segmentation report",
    seed: int = 0,
    dpi: int = 180,
) -> Path:
    """Write one page about a trained model, and the table of its summary.

    On the page: loss terms and validation Dice over time; reliability diagram; worst, median (of two, the worse) and
    best case by Dice averaged over structures, each with its image, label, prediction and uncertainty, all uncertainty
    maps on one colour scale, and the slice of its largest error; the summary as a table and each case's Dice. A part
    whose file is not there says so in its place: a report needs neither training history nor pictures. TensorBoard
    shows the page and each case's pictures beside the curves of the training. Where answers are sets,
    ``report_samples.png`` is written too, see :mod:`.samples`.

    Args:
        results_dir: folder of an evaluation, see :class:`~common.evaluation.handlers.CaseMetrics`; ``report.png``, the
            page, and ``report.csv``, one line a metric and structure (:data:`SUMMARY_COLUMNS`), are written there.
        history_csv: training history, columns iteration, epoch, name, value; names ``loss/<term>``, ``loss/total``,
            ``validation/mean_dice``.
        title: heading of the page.
        seed: of the bootstrap intervals.
        dpi: dots per inch of the page.

    Returns:
        path of the page.

    Raises:
        FileNotFoundError: if there are no metrics.
        ValueError: if a table that is there lacks a column.
    """
    folder, curves = Path(results_dir), Path(history_csv)
    metrics, bins, page = folder / "metrics.csv", folder / "reliability.csv", folder / "report.png"
    if not metrics.is_file():
        raise FileNotFoundError(
            f"{metrics}: no evaluation here. Fix: run `evaluating` first, or give its --output_dir."
        )
    rows = read_rows(metrics)
    summary = summarise(rows, seed)
    history = read_history(curves) if curves.is_file() else {}
    reliability = read_reliability(bins) if bins.is_file() else None
    write_rows(summary.rows, folder / "report.csv", SUMMARY_COLUMNS)
    with matplotlib.rc_context(_STYLE):
        figure, cases = _draw_page(title, history, reliability, rows, summary, folder)
        canvas = FigureCanvasAgg(figure)
        with atomic_path(page) as temporary:
            canvas.print_figure(temporary, dpi=dpi, format="png")
        write_samples_page(folder, title, rows, dpi)  # where answers are sets
    pixels = np.asarray(imread(page)[..., :3] * 255, dtype=np.uint8)
    show_on_tensorboard(folder, {"report/page": pixels, **cases.cut_out(pixels)})
    track_report(folder, {f"{row['structure']}/{row['metric']}": float(row["mean"]) for row in summary.rows})
    return page
