"""The page about sets of answers: beside the raters, case by case; does the entropy know where raters disagree?"""

from __future__ import annotations

import csv
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure
from matplotlib.gridspec import SubplotSpec
from numpy.typing import NDArray

from ...files import atomic_path
from ..ambiguity import AMBIGUITY_FILE, pairs_that_differ, rank_correlation
from ..metrics import Row
from ..samples import MEASURES
from .cases import (
    VIEWS,
    CasePicture,
    draw_caption,
    draw_scale_bar,
    grey_window,
    pick_slice,
    read_channels,
    slice_axis,
    zoom_window,
)
from .drawing import case_legend, draw_case
from .panels import draw_message, structure_colour

PAGE = "report_samples.png"
_WIDTH, _SIDES = 8.27, (0.07, 0.955)  # inches, of A4; left and right margin, share of the width
_SHOWN = 5  # raters and answers beside each other
_GAP = 0.04  # between pictures, share of one's width
_TITLE, _LEGEND, _HEADING, _BELOW, _FOOT = 0.78, 0.26, 0.24, 0.14, 0.42  # inches
_ABOVE_CHARTS, _CHARTS, _BELOW_CHARTS = 0.3, 2.1, 0.66  # inches
_HEADS = ("GED", "unbiased", "Dice soft", "Dice max", "Dice match", "spread", "raters'", "correlation")


@dataclass
class SetPicture:
    """One slice of a case with everybody's masks, turned and zoomed, ready to draw.

    Attributes:
        picture: image, label, consensus and entropy of the answers.
        raters: (R, rows, columns) class numbers.
        samples: (n, rows, columns) class numbers.
        disagreement: share of pairs of raters that differ, (rows, columns), in [0, 1].
    """

    picture: CasePicture
    raters: NDArray[np.int64]
    samples: NDArray[np.int64]
    disagreement: NDArray[np.float64]


def load_set(folder: Path, case: str, in_mm: bool = True) -> SetPicture | None:
    """Read a case's maps, ``<case>/<case>_{image,label,pred,uncertainty,raters,samples}.nii.gz``, and cut a slice.

    The slice shows most of structures and of the raters' disagreement, see :func:`~.cases.pick_slice`.

    Args:
        folder: of the cases' folders.
        case: its name.
        in_mm: the case's files state a voxel size.

    Returns:
        the slice, or None when a file is missing or has another shape.
    """
    names = ("image", "label", "pred", "uncertainty", "raters", "samples")
    paths = {name: folder / case / f"{case}_{name}.nii.gz" for name in names}
    if not all(path.is_file() for path in paths.values()):
        return None
    maps = {name: read_channels(path) for name, path in paths.items()}
    image, spacing = maps["image"][0][..., 0], maps["image"][1]
    if any(volume.shape[:3] != image.shape for volume, _ in maps.values()):
        return None
    label, raters = maps["label"][0][..., 0], np.moveaxis(maps["raters"][0], -1, 0)
    differ = pairs_that_differ(raters, int(raters.max()) + 1)
    axis = slice_axis(image.shape, spacing)
    index = pick_slice(label, np.where(differ > 0, -1, label), axis, image.shape[axis])
    across, down = (a for a in range(3) if a != axis)

    def plane(volume: NDArray[Any]) -> NDArray[Any]:
        return np.take(volume, index, axis=axis).T[::-1, ::-1]

    flat = {name: plane(maps[name][0][..., 0]) for name in ("image", "label", "pred", "uncertainty")}
    sets = {name: [plane(volume) for volume in np.moveaxis(maps[name][0], -1, 0)] for name in ("raters", "samples")}
    pixel = (spacing[down], spacing[across])
    rows, columns = flat["image"].shape
    zoom = zoom_window([flat["label"], flat["pred"], *sets["raters"]], (rows, columns), pixel)
    picture = CasePicture(
        image=flat["image"][zoom],
        label=flat["label"][zoom].astype(np.int64),
        prediction=flat["pred"][zoom].astype(np.int64),
        uncertainty=flat["uncertainty"][zoom],
        spacing=pixel,
        window=grey_window(image, [label]),
        where=f"{VIEWS[axis]} slice {index + 1} of {image.shape[axis]}",
        in_mm=in_mm,
    )
    masks = {name: np.stack([mask[zoom].astype(np.int64) for mask in members]) for name, members in sets.items()}
    return SetPicture(picture, masks["raters"], masks["samples"], plane(differ)[zoom])


def spread_choice(masks: NDArray[Any], most: int = _SHOWN) -> list[int]:
    """Which masks to show: from the smallest foreground to the largest, evenly spread where there are too many.

    Args:
        masks: (n, rows, columns) class numbers.
        most: how many at most.

    Example:
        >>> spread_choice(np.array([[[1, 1]], [[0, 0]], [[0, 2]]]), most=2)
        [1, 0]
    """
    order = np.argsort((masks > 0).sum(axis=(1, 2)), kind="stable")
    places = np.linspace(0, len(order) - 1, min(most, len(order))).round().astype(int)
    return [int(order[place]) for place in places]


def write_samples_page(folder: Path, title: str, rows: Sequence[Row], dpi: int = 180) -> Path | None:
    """Write ``report_samples.png`` beside the tables of an evaluation whose answers are sets.

    Worst, median and best case by GED: above the image, the raters and where they disagree, below the consensus,
    answers and their entropy, all from the smallest to the largest; entropy against the raters' disagreement over the
    cases, with their Spearman correlation; GED of each case and structure; the measures' means.

    Args:
        folder: of the evaluation, with ``samples.csv`` and ``ambiguity.csv``.
        title: heading of the page.
        rows: of the evaluation's table, which names the structures' values and the unit of lengths.
        dpi: dots per inch.

    Returns:
        path of the page; None where answers are no sets.
    """
    tables = (folder / "samples.csv", folder / AMBIGUITY_FILE)
    if not all(table.is_file() for table in tables):
        return None
    measured, ambiguity = (_read(table) for table in tables)
    labels = {row["label"]: row["structure"] for row in sorted(rows, key=lambda row: row["label"])}
    in_voxels = {row["case"] for row in rows if row["unit"] == "voxel"}
    figure = _draw_page(folder, title, labels, measured, ambiguity, in_voxels)
    with atomic_path(folder / PAGE) as temporary:
        FigureCanvasAgg(figure).print_figure(temporary, dpi=dpi, format="png")
    return folder / PAGE


def _read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def _case_geds(measured: Sequence[Mapping[str, str]]) -> dict[str, float]:
    """GED of each case, the mean over its structures, the largest first."""
    geds: dict[str, list[float]] = {}
    for row in measured:
        geds.setdefault(row["case"], []).append(float(row["ged"]))
    means = {case: float(np.mean(values)) for case, values in geds.items()}
    return dict(sorted(means.items(), key=lambda pair: (-pair[1], pair[0])))


def _draw_page(
    folder: Path,
    title: str,
    labels: Mapping[int, str],
    measured: Sequence[Mapping[str, str]],
    ambiguity: Sequence[Mapping[str, str]],
    in_voxels: Collection[str],
) -> Figure:
    geds = _case_geds(measured)
    order = list(geds)
    kinds = {1: ["only"], 2: ["worst", "best"]}.get(len(order), ["worst", "median", "best"])
    middle = [order[(len(order) - 1) // 2]]  # of two, the worse
    chosen = dict(zip(kinds, [*order[:1], *middle, *order[-1:]] if len(order) > 2 else order, strict=True))
    pictures = {kind: load_set(folder, case, case not in in_voxels) for kind, case in chosen.items()}
    side = _WIDTH * (_SIDES[1] - _SIDES[0]) / ((_SHOWN + 2) * (1 + _GAP) - _GAP)
    blocks = [_HEADING + 2 * side * (_shape(pictures[kind]) + _GAP) + _BELOW for kind in chosen]
    table = 0.2 * (len(labels) + 2) + 0.25
    parts = (_LEGEND, *blocks, _ABOVE_CHARTS, _CHARTS, _BELOW_CHARTS, table)
    height = _TITLE + sum(parts) + _FOOT
    figure = Figure(figsize=(_WIDTH, height))
    outer = figure.add_gridspec(
        len(parts), 1, height_ratios=parts, left=_SIDES[0], right=_SIDES[1], top=1 - _TITLE / height,
        bottom=_FOOT / height, hspace=0,
    )  # fmt: skip
    heading, mean = f"{title}: sets of answers", float(np.mean(list(geds.values())))
    size = min(14.0, 700.0 / len(heading))
    figure.text(_SIDES[0], 1 - 0.34 / height, heading, fontsize=size, fontweight="bold", va="center")
    subtitle = f"{len(order)} cases  ·  {_numbers(measured)} answers a case  ·  GED {mean:.3f}"
    figure.text(_SIDES[0], 1 - 0.57 / height, subtitle, fontsize=8, color="0.35", va="center")
    there = [picture for picture in pictures.values() if picture is not None]
    tops = [
        float(np.quantile(m, 0.998)) for p in there for m in (p.picture.uncertainty, p.disagreement) if m is not None
    ]
    top, colours = max(tops, default=0.0) or 1.0, None
    for place, (kind, case) in enumerate(chosen.items(), 1):
        colours = _draw_block(figure, outer[place], pictures[kind], labels, top) or colours
        name = case if len(case) <= 40 else case[:39] + "…"
        corner = outer[place].get_position(figure)
        where = pictures[kind].picture.where if pictures[kind] is not None else ""  # type: ignore[union-attr]
        y = corner.y1 - 0.6 * _HEADING / height
        figure.text(corner.x0, y, f"{kind.capitalize()} case:  {name}", fontsize=8.5, fontweight="bold", va="center")
        details = "  ·  ".join(filter(None, [f"GED {geds[case]:.3f}", where]))
        figure.text(corner.x1, y, details, fontsize=7, color="0.3", va="center", ha="right")
    _draw_legend(figure, outer[0], labels, colours)
    charts = outer[len(chosen) + 2].subgridspec(1, 2, width_ratios=(1, 1.35), wspace=0.22)
    _draw_scatter(figure.add_subplot(charts[0]), ambiguity, {case: kind for kind, case in chosen.items()})
    _draw_geds(figure.add_subplot(charts[1]), measured, labels)
    _draw_table(figure.add_subplot(outer[len(chosen) + 4]), measured, labels)
    return figure


def _numbers(measured: Sequence[Mapping[str, str]]) -> str:
    """How many answers the cases have."""
    return ", ".join(map(str, sorted({int(row["samples"]) for row in measured})))


def _shape(shown: SetPicture | None) -> float:
    """Height of a picture over its width, within limits."""
    if shown is None:
        return 0.2
    (rows, columns), (high, wide) = shown.picture.image.shape, shown.picture.spacing
    return float(np.clip(rows * high / (columns * wide), 0.5, 1.4))


def _draw_block(
    figure: Figure, place: SubplotSpec, shown: SetPicture | None, labels: Mapping[int, str], top: float
) -> ScalarMappable | None:
    """Two rows of one case: raters above, answers below."""
    inner = place.subgridspec(3, 1, height_ratios=(_HEADING, 10, _BELOW), hspace=0)
    height = place.get_position(figure).height * figure.get_figheight()
    inner.set_height_ratios((_HEADING, height - _HEADING - _BELOW, _BELOW))
    if shown is None:
        draw_message(figure.add_subplot(inner[1]), "no pictures of this case")
        return None
    grid = inner[1].subgridspec(2, _SHOWN + 2, wspace=_GAP, hspace=_GAP)
    axes = [[figure.add_subplot(grid[row, column]) for column in range(_SHOWN + 2)] for row in range(2)]
    picture = shown.picture
    common: dict[str, Any] = {
        "aspect": picture.spacing[0] / picture.spacing[1],
        "labels": labels,
        "window": picture.window,
    }
    draw_case(axes[0][0], picture.image, {}, **common)
    draw_caption(axes[0][0], "image")
    draw_scale_bar(axes[0][0], picture)
    assert picture.prediction is not None and picture.label is not None
    draw_case(axes[1][0], picture.image, {"prediction": picture.prediction}, filled=("prediction",), **common)
    draw_caption(axes[1][0], "consensus")
    for row, name, masks in ((0, "rater", shown.raters), (1, "answer", shown.samples)):
        picked = spread_choice(masks)
        for ax, number in zip(axes[row][1:-1], picked, strict=False):
            draw_case(ax, picture.image, {"label": masks[number]}, filled=("label",), **common)
            draw_caption(ax, f"{name} {number + 1} of {len(masks)}")
        for ax in axes[row][1 + len(picked) : -1]:
            ax.set_axis_off()
    white: dict[str, Any] = {"outlines": {"label": "white"}, "line_width": 0.8, "overlay_range": (0.0, top)}
    colours = None
    maps = ((shown.disagreement, "raters' disagreement"), (picture.uncertainty, "answers' entropy"))
    for row, (overlay, caption) in enumerate(maps):
        colours = draw_case(axes[row][-1], picture.image, {"label": picture.label}, overlay=overlay, **white, **common)
        draw_caption(axes[row][-1], caption)
    return colours


def _draw_legend(figure: Figure, place: SubplotSpec, labels: Mapping[int, str], colours: ScalarMappable | None) -> None:
    ax = figure.add_subplot(place)
    ax.set_axis_off()
    ax.legend(handles=case_legend(labels), loc="center left", ncols=6, handlelength=1.2, borderpad=0, borderaxespad=0)
    if colours is not None:
        bar = figure.colorbar(colours, cax=ax.inset_axes((0.83, 0.36, 0.14, 0.28)), orientation="horizontal")
        bar.outline.set_linewidth(0.4)
        bar.set_ticks([])
        ax.text(0.823, 0.5, "maps, label in white (transparent where low)  0", ha="right", va="center", size=6.5)
        ax.text(0.976, 0.5, f"{colours.norm.vmax:.2g}", ha="left", va="center", size=6.5)


def _draw_scatter(ax: Axes, ambiguity: Sequence[Mapping[str, str]], kinds: Mapping[str, str]) -> None:
    """Mean entropy of each case over the raters' disagreement."""
    ax.set_title("Entropy against raters' disagreement")
    x, y = (np.array([float(row[name]) for row in ambiguity]) for name in ("rater_disagreement", "entropy"))
    ax.scatter(x, y, s=16, color="#0072B2", edgecolors="0.25", linewidths=0.35, zorder=3)
    for row, across, up in zip(ambiguity, x, y, strict=True):
        if row["case"] in kinds:
            ax.annotate(kinds[row["case"]], (across, up), (4, 3), textcoords="offset points", fontsize=6.5, color="0.3")
    found = rank_correlation(ambiguity)
    lines = [f"over {len(x)} cases" + (f": Spearman {found:.2f}" if found == found else "")]
    for name, other in (("rater_correlation", "raters' votes"), ("ambiguity_correlation", "true probabilities")):
        if known := [float(row[name]) for row in ambiguity if row[name]]:
            lines.append(f"over voxels, with {other}: {np.mean(known):.2f}")
    ax.text(0.03, 0.97, "\n".join(lines), transform=ax.transAxes, va="top", fontsize=6.5, linespacing=1.4)
    for axis, values in (("x", x), ("y", y)):
        room = 0.12 * max(float(np.ptp(values)), 0.02)
        high = 3.2 * room if axis == "y" else 1.6 * room  # the text stands above the points
        getattr(ax, f"set_{axis}lim")(max(0.0, float(values.min()) - room), float(values.max()) + high)
    ax.set(xlabel="raters' disagreement, mean over marked voxels", ylabel="answers' entropy, likewise")
    ax.grid(color="0.92", linewidth=0.6)


def _draw_geds(ax: Axes, measured: Sequence[Mapping[str, str]], labels: Mapping[int, str]) -> None:
    """GED of each case as a dot per structure, with the mean."""
    ax.set_title("GED per case")
    spread = np.random.default_rng(0)  # the same table always gives the same picture
    for place, (value, name) in enumerate(labels.items()):
        geds = np.array([float(row["ged"]) for row in measured if row["structure"] == name])
        offsets = place - 0.08 + spread.uniform(-0.2, 0.2, len(geds))
        ax.scatter(offsets, geds, s=12, color=structure_colour(value), edgecolors="0.25", linewidths=0.35)
        ax.plot(place + 0.3, geds.mean(), "D", color="0.1", markersize=3.2)
    ax.set(xlim=(-0.5, len(labels) - 0.4), xticks=range(len(labels)))
    names = [name if len(name) <= 12 else name[:11] + "…" for name in labels.values()]
    many = len(names) > 5
    ax.set_xticklabels(names, rotation=30 if many else 0, ha="right" if many else "center")
    ax.set_ylim(0, 1.08 * max(float(row["ged"]) for row in measured) or 1.0)
    ax.set_title("diamonds: means; lower is better", loc="right", fontsize=7, fontweight="normal", color="0.3")
    ax.grid(axis="y", color="0.92", linewidth=0.6)


def _draw_table(ax: Axes, measured: Sequence[Mapping[str, str]], labels: Mapping[int, str]) -> None:
    """Means of all measures over the cases."""
    ax.set_title(f"Means over the cases, n = {_numbers(measured)} answers")
    ax.set_axis_off()
    ax.set(xlim=(0, 1), ylim=(-len(labels) - 2, 0))
    columns = [0.03, *np.linspace(0.28, 0.99, len(MEASURES))]
    lines = [["Structure", *_HEADS]]
    for name in [*labels.values(), None]:
        own = [row for row in measured if name in (None, row["structure"])]
        lines.append([name or "mean", *(f"{np.mean([float(row[m]) for row in own]):.3f}" for m in MEASURES)])
    for number, cells in enumerate(lines):
        for x, cell in zip(columns, cells, strict=True):
            align = "left" if x == columns[0] else "right"
            weight = "bold" if number == 0 else "normal"
            ax.text(x, -number - 0.5, cell[:24], va="center", ha=align, fontsize=7, fontweight=weight)
        if 0 < number <= len(labels):
            ax.plot(0.01, -number - 0.5, "s", color=structure_colour(list(labels)[number - 1]), markersize=4.5)
    for y, width in ((0, 1.0), (-1, 0.6), (-len(lines) + 1, 0.5), (-len(lines), 1.0)):
        ax.axhline(y, color="0.2", linewidth=width)
    note = (
        "GED depends on n; of the Dice, higher is better. Spread: mean 1 - IoU of two answers, beside it that of "
        "two raters; correlation: of their variance maps."
    )
    ax.text(0.0, -len(lines) - 0.35, note, va="top", fontsize=6.3, color="0.3")
