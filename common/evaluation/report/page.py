"""Pictures for people: one page about a trained model, and the drawing of one case that other pages reuse.

:func:`write_report` makes the page and its table, :func:`draw_case` draws one slice with contours and an overlay into
any matplotlib axes, :func:`case_legend` gives the matching legend entries.

Figures are made through matplotlib's object interface, never through ``pyplot``: no window system is needed and no
global figure is left behind.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize, to_rgba
from matplotlib.figure import Figure
from matplotlib.gridspec import SubplotSpec
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from ...files import atomic_path
from ...training.tracking import track_report
from ..metrics import Row, Summary, read_rows, summarise, write_rows
from .cases import CasePicture, draw_caption, draw_scale_bar, load_case
from .panels import (
    History,
    draw_dice_strip,
    draw_losses,
    draw_message,
    draw_reliability,
    draw_summary_table,
    draw_validation,
    listing,
    read_history,
    read_reliability,
    structure_colour,
)

__all__ = ["MASK_STYLES", "case_legend", "draw_case", "structure_colour", "write_report"]

MASK_STYLES: dict[str, Any] = {
    "label": "solid",
    "prediction": (0, (2.0, 1.0)),
    "proposed": (0, (2.0, 1.0)),
    "reference": (0, (0.8, 0.8)),
}
"""Line style of each kind of mask; a name not listed takes the next of ``_OTHER_STYLES``."""

_OTHER_STYLES: tuple[Any, ...] = ((0, (4.0, 1.0, 1.0, 1.0)), (0, (6.0, 1.5)), (0, (1.0, 2.0)))
UNCERTAINTY_MAP = "inferno"
SUMMARY_COLUMNS = ("metric", "structure", "unit", "mean", "sd", "lo", "hi", "n", "missed")
_PAGE = (8.27, 11.69)  # A4 portrait, inches
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


def _line_styles(names: Sequence[str]) -> dict[str, Any]:
    """Line style of each mask name: the known one, else the next unused one."""
    unknown = [name for name in names if name not in MASK_STYLES]
    return {
        name: MASK_STYLES[name] if name in MASK_STYLES else _OTHER_STYLES[unknown.index(name) % len(_OTHER_STYLES)]
        for name in names
    }


def _draw_contour(ax: Axes, mask: NDArray[np.bool_], colour: str, style: Any, width: float) -> None:
    """Outline of a binary mask, closed at the picture's border too, on a dark casing that keeps it visible."""
    padded = np.pad(mask, 1).astype(np.float32)
    rows, columns = np.arange(-1, mask.shape[0] + 1), np.arange(-1, mask.shape[1] + 1)
    # a little inside the mask, so that outlines of touching structures lie beside and not on top of each other, all
    # casings below all outlines
    level, casing = [0.7], (0.0, 0.0, 0.0, 0.6)
    ax.contour(
        columns, rows, padded, levels=level, colors=[casing], linewidths=width + 1.0, linestyles="solid", zorder=2
    )
    ax.contour(columns, rows, padded, levels=level, colors=[colour], linewidths=width, linestyles=[style], zorder=3)


def _draw_overlay(
    ax: Axes, overlay: NDArray[Any], value_range: tuple[float, float] | None, aspect: float
) -> ScalarMappable:
    """Colour a map over the picture; opacity follows the value, so that the image shows where the map is low."""
    values = np.where(np.isfinite(overlay), overlay, 0.0).astype(np.float32)
    low, high = value_range or (0.0, float(values.max()))
    norm = Normalize(low, high if high > low else low + 1.0)
    colours = ScalarMappable(norm, UNCERTAINTY_MAP)
    strength = np.clip(norm(values).filled(0.0), 0.0, 1.0)
    rgba = colours.to_rgba(values)
    rgba[..., 3] = 0.9 * strength**0.6
    ax.imshow(rgba, aspect=aspect, interpolation="nearest")
    return colours


def draw_case(
    ax: Axes,
    image_2d: NDArray[Any],
    masks: Mapping[str, NDArray[Any]],
    overlay: NDArray[Any] | None = None,
    aspect: float = 1.0,
    title: str = "",
    labels: Mapping[int, str] | None = None,
    *,
    overlay_range: tuple[float, float] | None = None,
    window: tuple[float, float] | None = None,
    filled: Sequence[str] = (),
    outlines: Mapping[str, str] | None = None,
    line_width: float = 1.1,
) -> ScalarMappable | None:
    """Draw one slice in grey with the outlines of label maps and, if given, a map coloured over it.

    A structure has the same colour on every page (:func:`structure_colour` of its value), a kind of mask the same
    line style (:data:`MASK_STYLES`). Row 0 of the arrays is at the top.

    Args:
        ax: axes to draw in; ticks and frame are removed.
        image_2d: intensities, (rows, columns).
        masks: name ("label", "prediction", "proposed", ...) to integer label map (rows, columns), 0 = background.
        overlay: uncertainty or suspicion per pixel, (rows, columns), at least 0; NaN is left transparent.
        aspect: height of a pixel over its width, from the spacing: row spacing / column spacing.
        title: text above the picture.
        labels: value to name of the structures to outline; default: every non-zero value found in ``masks``.
        overlay_range: values at the two ends of the colour scale, to share one scale between pictures; default: 0
            and the largest value of ``overlay``.
        window: intensities shown black and white; default: 1st and 99th percentile of ``image_2d``.
        filled: names of the masks to tint, with solid outlines.
        outlines: mask name to one colour for all its outlines, where the structures' own would be hard to tell from
            an overlay or from another mask.
        line_width: of the outlines, in points.

    Returns:
        what ``figure.colorbar`` needs to explain the overlay, or None without overlay.

    Raises:
        ValueError: if a mask or the overlay has not the shape of the image.

    Example:
        >>> from matplotlib.figure import Figure
        >>> ax = Figure().add_subplot()
        >>> label = np.zeros((8, 8), int)
        >>> label[2:5, 2:5] = 1
        >>> draw_case(ax, np.zeros((8, 8)), {"label": label}, title="case 1", labels={1: "atrium"})
    """
    for name, array in {**masks, **({} if overlay is None else {"overlay": overlay})}.items():
        if array.shape != image_2d.shape or image_2d.ndim != 2:
            raise ValueError(f"{name} {array.shape} and image {image_2d.shape} must have the same 2D shape")
    low, high = window or tuple(np.percentile(image_2d, (1, 99)))
    grey = Normalize(low, high if high > low else low + 1.0)
    ax.imshow(image_2d, cmap="gray", norm=grey, aspect=aspect, interpolation="nearest")
    colours = None if overlay is None else _draw_overlay(ax, overlay, overlay_range, aspect)
    values = sorted(labels) if labels else sorted({int(v) for mask in masks.values() for v in np.unique(mask)})
    styles = _line_styles(list(masks))
    for name, mask in masks.items():
        for value in values:
            if value == 0 or not (mask == value).any():
                continue
            if name in filled:
                tint = np.where((mask == value)[..., None], to_rgba(structure_colour(value), 0.3), 0.0)
                ax.imshow(tint, aspect=aspect, interpolation="nearest")
            colour = (outlines or {}).get(name, structure_colour(value))
            _draw_contour(ax, mask == value, colour, "solid" if name in filled else styles[name], line_width)
    ax.set(xlim=(-0.5, image_2d.shape[1] - 0.5), ylim=(image_2d.shape[0] - 0.5, -0.5), xticks=[], yticks=[])
    ax.spines[:].set_visible(False)
    if title:
        ax.set_title(title)
    return colours


def case_legend(labels: Mapping[int, str], names: Sequence[str] = ()) -> list[Line2D]:
    """Legend entries that go with :func:`draw_case`.

    Args:
        labels: value to structure name; 0 is left out.
        names: kinds of masks drawn, as the keys of ``masks``.

    Returns:
        one coloured entry a structure, then one grey entry in its line style a mask name.
    """
    handles = [
        Line2D([], [], color=structure_colour(value), linewidth=3.0, label=labels[value])
        for value in sorted(labels)
        if value != 0
    ]
    styles = _line_styles(list(names))
    handles += [Line2D([], [], color="0.25", linewidth=1.2, linestyle=styles[name], label=name) for name in names]
    return handles


def _shown_cases(rows: Sequence[Row]) -> list[tuple[str, str]]:
    """(what it is, case) of the worst, median and best case by Dice averaged over structures; fewer if there are."""
    dice: dict[str, list[float]] = {}
    for row in rows:
        dice.setdefault(row["case"], []).append(row["dice"])
    order = sorted(dice, key=lambda case: (float(np.mean(dice[case])), case))
    if len(order) < 3:
        return list(zip(("worst", "best") if len(order) == 2 else ("only",), order, strict=False))
    return [("worst", order[0]), ("median", order[(len(order) - 1) // 2]), ("best", order[-1])]


def _case_details(case: str, rows: Sequence[Row], picture: CasePicture | None) -> str:
    """One line about a case: mean Dice and 95HD, missed structures, the slice shown, what does not fit."""
    own = [row for row in rows if row["case"] == case]
    parts = [f"mean Dice {np.mean([row['dice'] for row in own]):.3f}"]
    parts.append(f"mean 95HD {np.mean([row['hd95'] for row in own]):.1f} {own[0]['unit']}")
    if missed := [row["structure"] for row in own if row["missed"]]:
        parts.append("missed " + listing(missed, 2))
    if picture is not None:
        parts += [picture.where, *picture.problems]
    return "  ·  ".join(parts)


def _draw_case_row(
    axes: Sequence[Axes], picture: CasePicture, labels: Mapping[int, str], top: float, unit: str
) -> ScalarMappable | None:
    """Image, label, prediction over label, and uncertainty of one case, side by side."""
    both = {"label": picture.label, "prediction": picture.prediction}
    masks = {name: mask for name, mask in both.items() if mask is not None}
    label = {name: mask for name, mask in masks.items() if name == "label"}
    common: dict[str, Any] = {
        "aspect": picture.spacing[0] / picture.spacing[1],
        "labels": labels,
        "window": picture.window,
    }
    white: dict[str, Any] = {"outlines": {"label": "white"}, "line_width": 0.8}
    colours = None
    draw_case(axes[0], picture.image, {}, **common)
    draw_scale_bar(axes[0], picture, "voxels" if unit == "voxel" else unit)
    draw_caption(axes[0], "image")
    if label:
        draw_case(axes[1], picture.image, label, filled=("label",), **common)
        draw_caption(axes[1], "label")
    if "prediction" in masks:
        # the label last: where it hides the prediction's outline, the two agree
        ordered = {"prediction": masks["prediction"], **label}
        draw_case(axes[2], picture.image, ordered, filled=("prediction",), **white, **common)
        draw_caption(axes[2], "prediction, label in white" if label else "prediction")
    if picture.uncertainty is not None:
        overlay: dict[str, Any] = {"overlay": picture.uncertainty, "overlay_range": (0.0, top)}
        colours = draw_case(axes[3], picture.image, label, **overlay, **white, **common)
        draw_caption(axes[3], "uncertainty, label in white" if label else "uncertainty")
    parts = (label, "prediction" in masks, picture.uncertainty is not None)
    for ax, there, name in zip(axes[1:], parts, ("label", "prediction", "uncertainty map"), strict=True):
        if not there:
            draw_message(ax, f"no {name}")
    return colours


def _draw_cases(
    figure: Figure, place: SubplotSpec, rows: Sequence[Row], folder: Path, labels: Mapping[int, str]
) -> None:
    """The block of pictures: a row a case, and one colour bar for all uncertainty maps."""
    cases = _shown_cases(rows)
    pictures = [load_case(folder, case) for _, case in cases]
    maps = [p.uncertainty for p in pictures if p is not None and p.uncertainty is not None]
    top = max((float(np.quantile(m, 0.998)) for m in maps), default=0.0) or 1.0
    grid = place.subgridspec(3, 5, width_ratios=(1, 1, 1, 1, 0.05), wspace=0.05, hspace=0.17)
    colours = None
    for index, ((kind, case), picture) in enumerate(zip(cases, pictures, strict=True)):
        heading = f"{kind.capitalize()} case:  {case if len(case) <= 32 else case[:31] + '…'}"
        details = _case_details(case, rows, picture)
        if picture is None:
            axes = [figure.add_subplot(grid[index, :4])]
            draw_message(axes[0], f"no pictures of {case}")
        else:
            axes = [figure.add_subplot(grid[index, column]) for column in range(4)]
            for ax in axes:
                ax.set_anchor("N")
            unit = next(row["unit"] for row in rows if row["case"] == case)
            colours = _draw_case_row(axes, picture, labels, top, unit) or colours
        axes[0].set_title(heading)
        axes[-1].set_title(details, loc="right", fontsize=7, fontweight="normal", color="0.3")
    if colours is not None:
        bar = figure.colorbar(colours, cax=figure.add_subplot(grid[: len(cases), 4]))
        bar.set_label("uncertainty (transparent where low)")
        bar.outline.set_linewidth(0.4)


def _draw_page(
    figure: Figure,
    title: str,
    history: History,
    reliability: NDArray[np.float64] | None,
    rows: Sequence[Row],
    summary: Summary,
    folder: Path,
) -> None:
    """Put all parts on the page: curves above, cases in the middle, table below."""
    labels = {row["label"]: row["structure"] for row in sorted(rows, key=lambda row: row["label"])}
    outer = figure.add_gridspec(
        3, 1, height_ratios=(1.6, 6.35, 1.95), left=0.07, right=0.94, top=0.917, bottom=0.035, hspace=0.14
    )
    figure.text(0.07, 0.966, title, fontsize=min(14.0, 700.0 / max(1, len(title))), fontweight="bold", va="center")
    figure.text(0.07, 0.947, _subtitle(summary), fontsize=8, color="0.35", va="center")
    above = outer[0].subgridspec(1, 3, wspace=0.36)
    draw_losses(figure.add_subplot(above[0]), history)
    draw_validation(figure.add_subplot(above[1]), history)
    stack = above[2].subgridspec(2, 1, height_ratios=(3.2, 1), hspace=0.12)
    diagram = figure.add_subplot(stack[0])
    draw_reliability(diagram, figure.add_subplot(stack[1]), reliability)
    middle = outer[1].subgridspec(2, 1, height_ratios=(0.14, 6.4), hspace=0.075)
    _draw_cases(figure, middle[1], rows, folder, labels)
    legend_ax = figure.add_subplot(middle[0])
    legend_ax.set_axis_off()
    if labels:
        handles = case_legend(labels)
        legend_ax.legend(handles=handles, loc="upper left", ncols=8, handlelength=1.2, borderpad=0.0, borderaxespad=0.0)
    below = outer[2].subgridspec(1, 2, width_ratios=(2.7, 1), wspace=0.12)
    draw_summary_table(figure.add_subplot(below[0]), summary, labels)
    draw_dice_strip(figure.add_subplot(below[1]), rows, summary, labels)


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
    """Write one A4 page about a trained model, and the table of its summary.

    On the page: loss terms and validation Dice over time; reliability diagram; worst, median (of two, the worse) and
    best case by Dice averaged over structures, each with its image, label, prediction and uncertainty, all uncertainty
    maps on one colour scale; the summary as a table and each case's Dice. A part whose file is not there says so in
    its place: a report needs neither training history nor pictures.

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
        figure = Figure(figsize=_PAGE)
        canvas = FigureCanvasAgg(figure)
        _draw_page(figure, title, history, reliability, rows, summary, folder)
        with atomic_path(page) as temporary:
            canvas.print_figure(temporary, dpi=dpi, format="png")
    track_report(folder, {f"{row['structure']}/{row['metric']}": float(row["mean"]) for row in summary.rows})
    return page
