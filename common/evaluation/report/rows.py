"""The block of cases on the report page: which are shown, and a row of pictures for each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure
from matplotlib.gridspec import SubplotSpec
from numpy.typing import NDArray

from ..metrics import Row
from .cases import CasePicture, draw_caption, draw_marks, draw_scale_bar, load_case
from .drawing import case_legend, draw_case
from .panels import draw_message, listing

_NAME = 28  # letters of a structure's name that a panel has room for
_PANELS = ("image", "label", "prediction", "uncertainty", "largest error")
_GAP = 0.04  # between pictures, share of one's width
_LEGEND, _HEADING, _BELOW = 0.28, 0.24, 0.12  # inches
_SHAPES = (0.55, 1.35)  # height of a picture over its width, least and most; what is outside gets black margins
_WHITE: dict[str, Any] = {"outlines": {"label": "white"}, "line_width": 0.8}


def shown_cases(rows: Sequence[Row]) -> list[tuple[str, str]]:
    """(what it is, case) of the worst, median and best case by Dice averaged over structures; fewer if there are."""
    dice: dict[str, list[float]] = {}
    for row in rows:
        dice.setdefault(row["case"], []).append(row["dice"])
    order = sorted(dice, key=lambda case: (float(np.mean(dice[case])), case))
    if len(order) < 3:
        return list(zip(("worst", "best") if len(order) == 2 else ("only",), order, strict=False))
    return [("worst", order[0]), ("median", order[(len(order) - 1) // 2]), ("best", order[-1])]


class CaseRows:
    """Legend and a row of pictures for each case shown.

    Args:
        rows: of the evaluation's table.
        folder: of the cases' folders.
        labels: value to name of the structures.
        width: of the block, in inches.

    Attributes:
        height: of the block, in inches: as much as the pictures take.
    """

    def __init__(self, rows: Sequence[Row], folder: Path, labels: Mapping[int, str], width: float) -> None:
        self.rows, self.labels = rows, labels
        self.cases = shown_cases(rows)
        units = {row["case"]: row["unit"] for row in rows}
        self.pictures = [load_case(folder, case, in_mm=units[case] == "mm") for _, case in self.cases]
        self.panel = width / (len(_PANELS) + _GAP * (len(_PANELS) - 1))
        self.shapes = [picture_shape(picture) for picture in self.pictures]
        self.heights = [_HEADING + shape * self.panel + _BELOW for shape in self.shapes]
        self.height = _LEGEND + sum(self.heights)
        self._places: dict[str, NDArray[np.float64]] = {}

    def draw(self, figure: Figure, place: SubplotSpec) -> None:
        """Draw the block into its place, whose height is :attr:`height`."""
        grid = place.subgridspec(1 + len(self.cases), 1, height_ratios=(_LEGEND, *self.heights), hspace=0)
        maps = [p.uncertainty for p in self.pictures if p is not None and p.uncertainty is not None]
        top = max((float(np.quantile(m, 0.998)) for m in maps), default=0.0) or 1.0
        colours = None
        for index, (kind, _) in enumerate(self.cases):
            ratios = (_HEADING, self.shapes[index] * self.panel, _BELOW)
            cell = grid[1 + index].subgridspec(3, 1, height_ratios=ratios, hspace=0)
            self._places[f"{kind} case"] = np.asarray(grid[1 + index].get_position(figure).extents)
            colours = self._draw_row(figure, cell[1], index, top) or colours
        self._draw_legend(figure, grid[0], colours)

    def cut_out(self, page: NDArray[Any]) -> dict[str, NDArray[Any]]:
        """Each case's row out of the pixels of the finished page, (height, width, 3), by "cases/worst case"."""
        high, wide = page.shape[:2]
        return {
            f"cases/{name}": page[round((1 - y1) * high) : round((1 - y0) * high), round(x0 * wide) : round(x1 * wide)]
            for name, (x0, y0, x1, y1) in self._places.items()
        }

    def _draw_legend(self, figure: Figure, place: SubplotSpec, colours: ScalarMappable | None) -> None:
        ax = figure.add_subplot(place)
        ax.set_axis_off()
        handles = case_legend(self.labels)
        ax.legend(handles=handles, loc="center left", ncols=6, handlelength=1.2, borderpad=0.0, borderaxespad=0.0)
        if colours is not None:
            bar = figure.colorbar(colours, cax=ax.inset_axes((0.86, 0.36, 0.14, 0.28)), orientation="horizontal")
            bar.outline.set_linewidth(0.4)
            ends = (colours.norm.vmin or 0.0, colours.norm.vmax or 1.0)
            bar.set_ticks([])
            ax.text(
                0.853, 0.5, f"uncertainty (transparent where low)  {ends[0]:.3g}", ha="right", va="center", size=6.5
            )
            ax.text(1.006, 0.5, f"{ends[1]:.2g}", ha="left", va="center", size=6.5)

    def _draw_row(self, figure: Figure, place: SubplotSpec, index: int, top: float) -> ScalarMappable | None:
        (kind, case), picture = self.cases[index], self.pictures[index]
        own = [row for row in self.rows if row["case"] == case]
        colours = None
        if picture is None:
            axes = [figure.add_subplot(place)]
            draw_message(axes[0], f"no pictures of {case}")
        else:
            grid = place.subgridspec(1, len(_PANELS), wspace=_GAP)
            axes = [figure.add_subplot(grid[column]) for column in range(len(_PANELS))]
            colours = _draw_pictures(axes, picture, self.labels, top)
            for ax, shown in zip(axes, (*[picture] * 4, picture.worst), strict=True):
                if ax.images and shown is not None:
                    fill_picture(ax, shown, self.shapes[index])
        axes[0].set_title(f"{kind.capitalize()} case:  {case if len(case) <= 32 else case[:31] + '…'}")
        axes[-1].set_title(_details(own, picture), loc="right", fontsize=7, fontweight="normal", color="0.3")
        return colours


def picture_shape(picture: CasePicture | None) -> float:
    """Height over width of a row's pictures; a flat strip where there are none."""
    if picture is None:
        return 0.3
    (rows, columns), (high, wide) = picture.image.shape, picture.spacing
    return float(np.clip(rows * high / (columns * wide), *_SHAPES))


def fill_picture(ax: Axes, picture: CasePicture, shape: float) -> None:
    """Give axes the row's shape, with black where the image ends, so that all pictures of a row are of one size."""
    (rows, columns), (high, wide) = picture.image.shape, picture.spacing
    ax.set_facecolor("black")
    more_rows = max(0.0, shape * columns * wide / high - rows) / 2
    more_columns = max(0.0, rows * high / shape / wide - columns) / 2
    ax.set(xlim=(-0.5 - more_columns, columns - 0.5 + more_columns), ylim=(rows - 0.5 + more_rows, -0.5 - more_rows))


def _details(own: Sequence[Row], picture: CasePicture | None) -> str:
    """One line about a case: mean Dice and 95HD, missed structures, the slice shown, what does not fit."""
    parts = [f"mean Dice {np.mean([row['dice'] for row in own]):.3f}"]
    parts.append(f"mean 95HD {np.mean([row['hd95'] for row in own]):.1f} {own[0]['unit']}")
    if missed := [row["structure"] for row in own if row["missed"]]:
        parts.append("missed " + listing(missed, 2))
    if picture is not None:
        parts += [picture.where, *picture.problems]
    return "  ·  ".join(parts)


def _draw_pictures(
    axes: Sequence[Axes], picture: CasePicture, labels: Mapping[int, str], top: float
) -> ScalarMappable | None:
    """Image, label, prediction over label, uncertainty, and the slice of the largest error of one case."""
    label, prediction = _masks(picture)
    common = _common(picture, labels)
    colours = None
    draw_case(axes[0], picture.image, {}, **common)
    draw_scale_bar(axes[0], picture)
    draw_caption(axes[0], "image")
    draw_marks(axes[0], picture)
    if label:
        draw_case(axes[1], picture.image, label, filled=("label",), **common)
        draw_caption(axes[1], "label")
    if prediction:
        _draw_prediction(axes[2], picture, labels)
        draw_caption(axes[2], "prediction, label in white" if label else "prediction")
    if picture.uncertainty is not None:
        overlay: dict[str, Any] = {"overlay": picture.uncertainty, "overlay_range": (0.0, top)}
        colours = draw_case(axes[3], picture.image, label, **overlay, **_WHITE, **common)
        draw_caption(axes[3], "uncertainty, label in white" if label else "uncertainty")
    if picture.worst is not None:
        _draw_error(axes[4], picture.worst, labels)
    there = (
        label,
        prediction,
        picture.uncertainty is not None,
        picture.worst is not None or not (label and prediction),
    )
    said = ("no label", "no prediction", "no uncertainty map", "label and prediction agree")
    for ax, shown, text in zip(axes[1:], there, said, strict=True):
        if not shown:
            draw_message(ax, text)
    if picture.worst is None and not (label and prediction):
        draw_message(axes[4], "nothing to compare")
    return colours


def _masks(picture: CasePicture) -> tuple[dict[str, NDArray[Any]], dict[str, NDArray[Any]]]:
    """Label and prediction by name; empty where there is none."""
    label = {} if picture.label is None else {"label": picture.label}
    return label, {} if picture.prediction is None else {"prediction": picture.prediction}


def _common(picture: CasePicture, labels: Mapping[int, str]) -> dict[str, Any]:
    return {"aspect": picture.spacing[0] / picture.spacing[1], "labels": labels, "window": picture.window}


def _draw_prediction(ax: Axes, picture: CasePicture, labels: Mapping[int, str]) -> None:
    label, prediction = _masks(picture)
    # the label last: where it hides the prediction's outline, the two agree
    masks = {**prediction, **label}
    draw_case(ax, picture.image, masks, filled=("prediction",), **_WHITE, **_common(picture, labels))


def _draw_error(ax: Axes, picture: CasePicture, labels: Mapping[int, str]) -> None:
    """The slice of the largest error, with a ring about its voxel."""
    error = picture.error
    assert error is not None and picture.error_place is not None
    _draw_prediction(ax, picture, labels)
    row, column = picture.error_place
    ring = ax.plot(column, row, "o", markersize=9, markerfacecolor="none", markeredgecolor="white", markeredgewidth=1)
    ring[0].set_path_effects([patheffects.withStroke(linewidth=2.2, foreground="#C00000")])
    name = labels.get(error.structure, str(error.structure))
    how = error.kind if error.distance is None else f"{error.distance:.1f} {picture.unit} off"
    shown = name if len(name) <= _NAME else name[: _NAME - 1] + "…"
    draw_caption(ax, f"largest error: {how}\n{shown}\n{picture.where}")
    draw_scale_bar(ax, picture)
