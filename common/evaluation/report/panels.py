"""The parts of the report page: what they read, and how each is drawn into its axes.

Every ``draw_*`` function takes axes and plain data, and says so in the axes when there is nothing to draw.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from ..metrics import MEAN_STRUCTURE, METRICS, Row, Summary, metrics_shown
from ..metrics.cases import RELIABILITY_COLUMNS, TEMPERED_COLUMNS

History = dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]]

# Okabe and Ito's colours, told apart by colour-blind readers too; the darkest are left out as they vanish on grey
_STRUCTURE_COLOURS = ("#56B4E9", "#E69F00", "#2FD39B", "#F0E442", "#F07BC4", "#FF6B4A", "#B8A1FF", "#C8E06E")
_TERM_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#AA4499", "#997700", "#44AADD", "#882255", "#666666")
MAX_TABLE_ROWS = 9


def structure_colour(value: int) -> str:
    """Colour of the structure with this label value, the same on every page; repeats after 8 values."""
    return _STRUCTURE_COLOURS[(value - 1) % len(_STRUCTURE_COLOURS)]


def draw_message(ax: Axes, text: str) -> None:
    """Say in an otherwise empty panel what is missing."""
    ax.set(xticks=[], yticks=[])
    for spine in ax.spines.values():
        spine.set(visible=True, color="0.8", linestyle=(0, (3.0, 3.0)))
    ax.text(0.5, 0.5, text, transform=ax.transAxes, ha="center", va="center", color="0.45", style="italic", wrap=True)


def _read_table(path: Path, columns: Sequence[str]) -> list[dict[str, str]]:
    """The lines of a CSV file, a last one that is being written left out; ValueError when it lacks a column."""
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(line for line in file if line.endswith("\n"))
        if absent := [name for name in columns if name not in (reader.fieldnames or ())]:
            raise ValueError(f"{path}: columns missing: {', '.join(absent)}")
        return list(reader)


def read_history(path: Path) -> History:
    """Read a training history: columns iteration, name, value (and others that are not used).

    Args:
        path: CSV file, one line a logged value.

    Returns:
        name to iterations and finite values, in order of iteration; the last of values logged twice counts (a run
        that was resumed repeats some iterations).

    Raises:
        ValueError: if a column is missing.
    """
    series: dict[str, dict[int, float]] = {}
    for row in _read_table(path, ("iteration", "name", "value")):
        series.setdefault(row["name"], {})[int(float(row["iteration"]))] = float(row["value"])
    history: History = {}
    for name, points in series.items():
        kept = sorted((iteration, value) for iteration, value in points.items() if np.isfinite(value))
        if kept:
            iterations, values = np.array(kept, dtype=np.float64).T
            history[name] = iterations, values
    return history


def read_reliability(path: Path) -> NDArray[np.float64]:
    """Read a reliability table: (bins, 8) of lower, upper, count, confidence, accuracy, and the last three once more.

    These are of the probabilities after temperature scaling: count 0 where there was none. NaN in empty bins.
    """
    rows = []
    for row in _read_table(path, RELIABILITY_COLUMNS):
        row = {TEMPERED_COLUMNS[0]: "0"} | row  # tables of an earlier version lack them
        numbers = [row.get(name) for name in (*RELIABILITY_COLUMNS, *TEMPERED_COLUMNS)]
        rows.append([float(number) if number else np.nan for number in numbers])
    return np.array(rows, dtype=np.float64).reshape(-1, len(RELIABILITY_COLUMNS) + len(TEMPERED_COLUMNS))


def _smoothed(values: NDArray[np.float64], width: int) -> NDArray[np.float64]:
    """Mean over the ``width`` values up to each one; over fewer at the start."""
    sums = np.cumsum(np.concatenate(([0.0], values)))
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(0, ends - width)
    means: NDArray[np.float64] = (sums[ends] - sums[starts]) / (ends - starts)
    return means


def draw_losses(ax: Axes, history: History) -> None:
    """Each loss term and their total over iterations; faint as logged, strong as a running mean over 4% of them."""
    ax.set_title("Training loss")
    terms = {name.removeprefix("loss/"): data for name, data in history.items() if name.startswith("loss/")}
    if not terms:
        draw_message(ax, "no training history")
        return
    if any(name.startswith("weight/") for name in history):
        ax.set_title("terms before weights", loc="right", fontsize=7, fontweight="normal", color="0.3")
    names = sorted(terms, key=lambda name: name == "total")
    shown = []
    for index, name in enumerate(names):
        iterations, values = terms[name]
        total = name == "total"
        colour = "0.15" if total else _TERM_COLOURS[index % len(_TERM_COLOURS)]
        smooth = _smoothed(values, max(1, len(values) // 25))
        shown.append(smooth)
        ax.plot(iterations, values, color=colour, linewidth=0.5, alpha=0.22)
        ax.plot(iterations, smooth, color=colour, linewidth=1.4 if total else 1.0, label=name, zorder=4 if total else 3)
    positive = np.concatenate(shown)
    positive = positive[positive > 0]
    # terms of very different size would otherwise be a line on the floor
    low, high = np.quantile(positive, (0.02, 1.0)) if positive.size else (0.0, 1.0)
    # a third of the height is kept for the legend
    if positive.size and high / low > 50:
        ax.set_yscale("log")
        ax.set_ylim(low / 2, high * (2 * high / low) ** 0.45)
    else:
        bottom = min(0.0, min(float(smooth.min()) for smooth in shown))
        ax.set_ylim(bottom, bottom + 1.45 * (high - bottom))
    ax.set_xlabel("iteration")
    ax.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    ax.grid(axis="y", color="0.92", linewidth=0.6)
    ax.legend(loc="upper right", handlelength=1.2, ncols=2, labelspacing=0.25, columnspacing=1.0, borderpad=0.1)


def draw_validation(ax: Axes, history: History) -> None:
    """Mean validation Dice over iterations, with the best one marked."""
    ax.set_title("Validation Dice")
    if "validation/mean_dice" not in history:
        draw_message(ax, "no validation history" if history else "no training history")
        return
    iterations, values = history["validation/mean_dice"]
    best = int(values.argmax())
    ax.plot(iterations, values, color="#0072B2", linewidth=1.2, marker="o", markersize=2.2)
    ax.plot(iterations[best], values[best], "o", color="#D55E00", markersize=4.5, zorder=4)
    bottom = max(0.0, float(values.min()) - 0.05)
    ax.set_ylim(bottom, 1.0)
    ax.text(
        0.97,
        0.05,
        f"best {values[best]:.3f}\nat iteration {iterations[best]:.0f}",
        transform=ax.transAxes,
        ha="right",
        va="bottom",
        color="#D55E00",
    )
    ax.set_xlabel("iteration")
    ax.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    ax.grid(axis="y", color="0.92", linewidth=0.6)


def draw_reliability(ax: Axes, counts_ax: Axes, bins: NDArray[np.float64] | None) -> None:
    """Reliability diagram: accuracy and its gap to confidence per bin, with the number of voxels of each below.

    Bars are of the network's own probabilities, the line of those after temperature scaling, where there is any.

    Args:
        ax: axes of the diagram.
        counts_ax: axes of the counts, below and sharing the horizontal axis.
        bins: as :func:`read_reliability` gives them, or None.
    """
    ax.set_title("Reliability")
    if bins is None or not np.nansum(bins[:, 2]):
        counts_ax.set_visible(False)
        draw_message(ax, "no reliability table" if bins is None else "no foreground voxels")
        return
    lower, upper, count, confidence, accuracy, *tempered = bins.T
    filled = count > 0
    width, middle = (upper - lower) * 0.92, (upper + lower) / 2
    eces = f"ECE {_gap(count, confidence, accuracy):.4f}"
    ax.plot([0, 1], [0, 1], color="0.45", linewidth=0.8, linestyle=(0, (4.0, 2.0)), zorder=4)
    ax.bar(middle[filled], accuracy[filled], width[filled], color="#0072B2", alpha=0.85, label="accuracy")
    ax.bar(
        middle[filled],
        (confidence - accuracy)[filled],
        width[filled],
        bottom=accuracy[filled],
        facecolor=(0.84, 0.37, 0.0, 0.18),
        edgecolor="#D55E00",
        linewidth=0.6,
        label="gap to confidence",
    )
    if tempered[0].any():
        some = tempered[0] > 0
        ax.plot(
            tempered[1][some], tempered[2][some], "o-", color="0.1", markersize=2.5, linewidth=1, label="calibrated"
        )
        eces += f", calibrated {_gap(*tempered):.4f}"
    ax.set_title(f"{eces}, foreground", loc="right", fontsize=7, fontweight="normal", color="0.3")
    ax.set(xlim=(0, 1), ylim=(0, 1), ylabel="accuracy", yticks=[0, 0.5, 1])
    ax.tick_params(labelbottom=False)
    ax.legend(loc="upper left", handlelength=1.0, handleheight=0.8, labelspacing=0.25, borderpad=0.2)
    counts_ax.bar(middle[filled], count[filled] / count.sum(), width[filled], color="0.6")
    counts_ax.set(xlim=(0, 1), xlabel="confidence", xticks=[0, 0.5, 1])
    counts_ax.set_ylabel("share of\nvoxels")
    counts_ax.yaxis.set_major_locator(MaxNLocator(2))


def _gap(count: NDArray[np.float64], confidence: NDArray[np.float64], accuracy: NDArray[np.float64]) -> float:
    """The expected calibration error of a reliability table."""
    filled = count > 0
    return float(np.sum(count[filled] * np.abs(confidence - accuracy)[filled]) / count.sum())


def draw_dice_strip(ax: Axes, rows: Sequence[Row], summary: Summary, labels: Mapping[int, str]) -> None:
    """Dice of each case as a dot per structure, with the mean and its bootstrap interval; missed ones as crosses."""
    ax.set_title("Dice per case")
    # a fixed spread, so that the same table always gives the same picture
    spread = np.random.default_rng(0)
    for place, (value, name) in enumerate(labels.items()):
        own = [row for row in rows if row["structure"] == name]
        offsets = place + spread.uniform(-0.22, 0.22, len(own)) - 0.08
        dice = np.array([row["dice"] for row in own])
        missed = np.array([row["missed"] for row in own])
        ax.scatter(
            offsets[~missed], dice[~missed], s=11, color=structure_colour(value), edgecolors="0.25", linewidths=0.35
        )
        ax.scatter(offsets[missed], dice[missed], s=16, marker="x", color="#C00000", linewidths=1.1)
        line = next(r for r in summary.rows if r["metric"] == "dice" and r["structure"] == name)
        ax.plot([place + 0.3] * 2, [line["lo"], line["hi"]], color="0.1", linewidth=1.3, solid_capstyle="butt")
        ax.plot(place + 0.3, line["mean"], "D", color="0.1", markersize=2.8)
    ax.set(xlim=(-0.5, len(labels) - 0.4), xticks=range(len(labels)))
    names = [name if len(name) <= 12 else name[:11] + "…" for name in labels.values()]
    ax.set_xticklabels(names, rotation=0 if len(names) <= 3 else 30, ha="center" if len(names) <= 3 else "right")
    low = min(row["dice"] for row in rows)
    ax.set_ylim(max(-0.03, np.floor(low * 10 - 0.5) / 10), 1.02)
    ax.grid(axis="y", color="0.92", linewidth=0.6)


def _table_cells(summary: Summary) -> tuple[list[str], list[list[str]], list[list[str]]]:
    """Column heads, then for each structure the main line's cells and the grey line's below."""
    shown = metrics_shown("table")
    kinds = list(dict.fromkeys((row["metric"], row["unit"]) for row in summary.rows if row["metric"] in shown))
    heads = [f"{METRICS[m].title} ({unit})" if unit else METRICS[m].title for m, unit in kinds]
    by_key = {(row["structure"], row["metric"], row["unit"]): row for row in summary.rows}
    structures = list(dict.fromkeys(row["structure"] for row in summary.rows if row["metric"] == "dice"))
    main, below = [], []
    for structure in structures:
        lines = [by_key.get((structure, *kind)) for kind in kinds]
        digits = [2 if unit else 3 for _, unit in kinds]
        pairs = list(zip(lines, digits, strict=True))
        missed = by_key[(structure, "dice", "")]["missed"]
        cells = [f"{r['mean']:.{d}f} ± {r['sd']:.{d}f}" if r else "–" for r, d in pairs]
        main.append([structure, *cells, str(missed)])
        below.append([f"[{r['lo']:.{d}f}, {r['hi']:.{d}f}]" if r else "" for r, d in pairs])
    return ["Structure", *heads, "Missed"], main, below


def listing(names: Sequence[str], limit: int = 6) -> str:
    """Names for a line of text: the first ones, and how many more there are."""
    rest = f" and {len(names) - limit} more" if len(names) > limit else ""
    return (", ".join(names[:limit]) or "none") + rest


def draw_summary_table(ax: Axes, summary: Summary, labels: Mapping[int, str]) -> None:
    """The summary as a ruled table: mean and sd, the bootstrap interval in grey below, notes on what was missed."""
    ax.set_axis_off()
    ax.set_title(f"Summary over {summary.cases} cases")
    heads, main, below = _table_cells(summary)
    hidden = max(0, len(main) - MAX_TABLE_ROWS)
    main, below = main[hidden:], below[hidden:]
    colours = {name: structure_colour(value) for value, name in labels.items()}
    columns = [0.03, *np.linspace(0.36, 0.895, len(heads) - 2), 0.99]
    step = min(0.14, 0.74 / (len(main) + 1))
    top = 0.97
    ax.set(xlim=(0, 1), ylim=(0, 1))
    for x, head in zip(columns, heads, strict=True):
        ax.text(
            x,
            top - step / 2,
            head,
            fontsize=7,
            fontweight="bold",
            va="center",
            ha="left" if x == columns[0] else "right",
        )
    ax.axhline(top, color="0.2", linewidth=1.0)
    ax.axhline(top - step, color="0.2", linewidth=0.6)
    for index, (cells, intervals) in enumerate(zip(main, below, strict=True)):
        y = top - step * (index + 1.5)
        if cells[0] == MEAN_STRUCTURE:
            ax.axhline(y + step / 2, color="0.7", linewidth=0.5)
        if cells[0] in colours:
            ax.plot(0.01, y, "s", color=colours[cells[0]], markersize=4.5, markeredgecolor="0.25", markeredgewidth=0.3)
        for x, cell in zip(columns, cells, strict=True):
            left = x == columns[0]
            lift = 0.0 if left or x == columns[-1] else step * 0.2
            colour = "#C00000" if x == columns[-1] and cell != "0" else "0.1"
            text = cell if len(cell) <= 20 or not left else cell[:19] + "…"
            text = "mean" if cell == MEAN_STRUCTURE else text
            ax.text(x, y + lift, text, va="center", ha="left" if left else "right", fontsize=7, color=colour)
        for x, interval in zip(columns[1:-1], intervals, strict=True):
            ax.text(x, y - step * 0.26, interval, va="center", ha="right", fontsize=5.6, color="0.45")
    bottom = top - step * (len(main) + 1)
    ax.axhline(bottom, color="0.2", linewidth=1.0)
    notes = "\n".join(_table_notes(summary, hidden))
    ax.text(0.0, bottom - 0.03, notes, va="top", fontsize=6.3, color="0.3", linespacing=1.4)


def _table_notes(summary: Summary, hidden: int) -> list[str]:
    """The lines under the table."""
    errors = {row["metric"]: row for row in summary.rows if row["metric"] in metrics_shown("note")}
    lines = ["Mean ± sd over cases; in brackets, bootstrap 95% interval of the mean."]
    if errors:
        parts = [f"{METRICS[m].title} {r['mean']:.4f} [{r['lo']:.4f}, {r['hi']:.4f}]" for m, r in errors.items()]
        lines.append("Per case: " + ", ".join(parts) + ".")
    lines.append(f"Missed (distance counted as the image's diagonal): {listing(summary.missed)}.")
    if summary.spurious:
        lines.append(f"Spurious (likewise): {listing(summary.spurious)}.")
    if hidden:
        lines.append(f"The first {hidden} structures are in the CSV file only.")
    return lines
