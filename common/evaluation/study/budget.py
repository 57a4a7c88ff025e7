"""What more labels would bring: a learning curve for each group of rows, with its uncertainty.

The curve is the power law that learning curves of networks follow, error(n) = a n^-b + c (Hestness et al., Deep
Learning Scaling is Predictable, Empirically, 2017), of the error 1 - Dice with n
labels; b in [0, 2], a and c at least 0.
"""

from __future__ import annotations

import csv
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy.optimize import least_squares

from ...files import atomic_path
from .recipe import Study
from .table import Measured, case_means

RESAMPLES = 200
POINT = 0.01  # of Dice
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#AA4499", "#997700", "#44AADD")
FARTHEST = 64  # a prediction beyond so many times the most labels tried is none


@dataclass
class Curve:
    """A learning curve.

    Attributes:
        name: of the method or kind of label.
        labels: (K,) numbers of labels, rising.
        dice: (K,) mean Dice with each.
        samples: (R, K) the same for R resamplings of cases, drawn once for all K, and of seeds.
    """

    name: str
    labels: NDArray[np.float64]
    dice: NDArray[np.float64]
    samples: NDArray[np.float64]

    def more_for_a_point(self) -> tuple[float, float, float]:
        """Further labels, beyond the most that were tried, for one more point of Dice.

        Returns:
            best estimate and 95% interval over the resamplings; infinite where the curve never gets there.
        """
        best = _more(fit_curve(self.labels, self.dice), float(self.labels[-1]))
        drawn = [_more(fit_curve(self.labels, sample), float(self.labels[-1])) for sample in self.samples]
        low, high = np.quantile(drawn, (0.025, 0.975), method="nearest")
        return best, float(low), float(high)


def fit_curve(labels: NDArray[np.float64], dice: NDArray[np.float64]) -> NDArray[np.float64]:
    """Fit a, b, c of 1 - Dice = a n^-b + c by least squares.

    Args:
        labels: (K,), at least 1 each, K at least 2 different ones.
        dice: (K,), in [0, 1].

    Returns:
        (3,): a, b, c.

    Example:
        >>> n = np.array([2.0, 4.0, 8.0, 16.0, 64.0])
        >>> fit_curve(n, 1 - (0.5 * n**-0.7 + 0.08)).round(3).tolist()
        [0.5, 0.7, 0.08]
    """
    error = 1.0 - dice
    start = np.clip([error[0] * labels[0] ** 0.5, 0.5, 0.5 * error.min()], [1e-6, 1e-6, 0.0], [99.0, 1.99, 0.99])
    found = least_squares(
        lambda p: p[0] * labels ** -p[1] + p[2] - error, start, bounds=([0.0, 0.0, 0.0], [100.0, 2.0, 1.0])
    )
    return np.asarray(found.x)


def curve_dice(parameters: NDArray[np.float64], labels: NDArray[np.float64]) -> NDArray[np.float64]:
    """Dice of a fitted curve with these numbers of labels."""
    a, b, c = parameters
    return np.asarray(1.0 - (a * labels**-b + c))


def _more(parameters: NDArray[np.float64], most: float) -> float:
    a, b, c = parameters
    wanted = a * most**-b + c - POINT
    if b <= 0 or a <= 0 or wanted <= c:
        return float("inf")
    needed = ((wanted - c) / a) ** (-1.0 / b)
    return float(needed - most) if needed < FARTHEST * most else float("inf")


def read_curves(study: Study, measured: Sequence[Measured], seed: int = 0) -> list[Curve]:
    """Curves of the rows that name one, each with two numbers of labels or more.

    Args:
        study: what was compared.
        measured: its complete runs.
        seed: of the resamplings: of the seeds that ran, and of the cases.
    """
    rng = np.random.default_rng(seed)
    curves = []
    for name in dict.fromkeys(row.curve for row in study.rows if row.curve is not None):
        found: dict[int, dict[int, dict[str, float]]] = {}  # labels, seed, case; folds are pooled
        for entry in measured:
            row = entry.run.row
            if row.curve == name and row.labels is not None:
                of_seed = found.setdefault(row.labels, {}).setdefault(entry.run.seed, {})
                of_seed.update(case_means(entry.rows, "dice"))
        if len(found) < 2:
            continue
        labels = sorted(found)
        cases = sorted(set.intersection(*({*itertools.chain(*found[n].values())} for n in labels)))
        if not cases:
            continue
        tables = [_table(list(found[n].values()), cases) for n in labels]
        samples = np.empty((RESAMPLES, len(labels)))
        for number in range(RESAMPLES):
            # the same cases measure every seed and number of labels: they are drawn once for all
            drawn = rng.integers(0, len(cases), len(cases))
            for place, table in enumerate(tables):
                samples[number, place] = table[rng.integers(0, len(table), len(table))][:, drawn].mean()
        means = np.array([table.mean() for table in tables])
        curves.append(Curve(str(name), np.array(labels, dtype=float), means, samples))
    return curves


def _table(seeds: Sequence[dict[str, float]], cases: Sequence[str]) -> NDArray[np.float64]:
    """Dice (seeds, cases); what a seed has not measured yet is the mean of the others."""
    table = np.array([[values.get(case, np.nan) for case in cases] for values in seeds])
    return np.where(np.isnan(table), np.nanmean(table, 0), table)


def write_budget(study: Study, measured: Sequence[Measured], output: Path) -> None:
    """Write ``budget.csv``, ``budget.md`` and ``budget.png`` where the study has learning curves.

    Args:
        study: what was compared.
        measured: its complete runs.
        output: folder to write to.
    """
    curves = read_curves(study, measured)
    if not curves:
        return
    with atomic_path(output / "budget.csv") as temporary, temporary.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("curve", "labels", "dice", "lo", "hi"))
        for curve in curves:
            low, high = np.quantile(curve.samples, (0.025, 0.975), axis=0)
            writer.writerows(zip([curve.name] * len(low), curve.labels, curve.dice, low, high, strict=True))
    lines = [f"# {study.title}: what more labels would bring", ""]
    for curve in curves:
        best, low, high = curve.more_for_a_point()
        most = int(curve.labels[-1])
        head = f"- {curve.name}: Dice {100 * curve.dice[-1]:.1f} with {most} labels; one more point takes "
        if np.isfinite(best):
            lines.append(head + f"about {best:.0f} more of them ({_range(low, high)}).")
        else:
            least = f", {low:.0f} more at the least" if np.isfinite(low) else ""
            lines.append(head + f"more than {FARTHEST} times as many by the fitted curve{least}.")
    with atomic_path(output / "budget.md") as temporary:
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")
    _draw(study, curves, output / "budget.png")


def _range(low: float, high: float) -> str:
    return f"95% interval {low:.0f} to {high:.0f}" if np.isfinite(high) else f"95% interval {low:.0f} to no end"


def _draw(study: Study, curves: Sequence[Curve], path: Path) -> None:
    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    canvas = FigureCanvasAgg(figure)
    ax = figure.add_subplot()
    for index, curve in enumerate(curves):
        colour = _COLOURS[index % len(_COLOURS)]
        grid = np.geomspace(curve.labels[0], 2 * curve.labels[-1], 100)
        drawn = np.array([curve_dice(fit_curve(curve.labels, sample), grid) for sample in curve.samples])
        low, high = np.quantile(drawn, (0.025, 0.975), axis=0)
        ax.fill_between(grid, low, high, color=colour, alpha=0.15, linewidth=0)
        ax.plot(grid, curve_dice(fit_curve(curve.labels, curve.dice), grid), color=colour, linewidth=1.2)
        ax.plot(curve.labels, curve.dice, "o", color=colour, markersize=4, label=curve.name)
    ax.set_xscale("log", base=2)
    numbers = sorted({int(n) for curve in curves for n in curve.labels})
    ax.set_xticks(numbers, [str(n) for n in numbers])
    ax.set(xlabel="labelled cases", ylabel="Dice", title=study.title)
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(frameon=False, fontsize=8)
    with atomic_path(path) as temporary:
        canvas.print_figure(temporary, dpi=160, format="png")
