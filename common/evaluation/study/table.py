"""From the runs of a study to its table: means with intervals, paired differences; CSV, Markdown and a figure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy.stats import permutation_test

from ...files import atomic_path
from ..metrics import METRICS, bootstrap_interval, read_rows, write_rows
from ..metrics.table import Row as CaseRow
from ..samples import read_set_rows
from .recipe import Run, Study
from .runner import State

PERMUTATIONS = 10_000
# numbers without a unit that are no fractions, which are shown in percent
_PLAIN = ("ged", "ged_unbiased", "spread", "rater_spread", "spread_correlation")
_COLUMNS = (
    *("row", "metric", "unit", "mean", "lo", "hi", "seed_lo", "seed_hi", "seeds", "cases", "missed"),
    *("difference", "difference_lo", "difference_hi", "p", "minutes", "peak_mib"),
)


@dataclass
class Cell:
    """One metric of one row.

    Attributes:
        mean: over cases, each the mean of its structures and of the seeds that measured it.
        interval: bootstrap 95% interval of that mean, over cases.
        seeds: smallest and largest mean over cases of a single seed.
        difference: row minus reference, mean within cases over the runs (seeds, folds) that both have; None for the
            reference, where they have no run in common or its cases differ.
        difference_interval: its bootstrap 95% interval.
        p: two-sided p value of the difference, by permutation of signs.
    """

    mean: float
    interval: tuple[float, float]
    seeds: tuple[float, float]
    difference: float | None = None
    difference_interval: tuple[float, float] | None = None
    p: float | None = None


@dataclass
class RowResult:
    """What a row of a study came to.

    Attributes:
        name: of the row.
        cells: by metric; without those of which cases in different units have no mean.
        unit: of its distances.
        seeds: runs that are complete, by seed.
        cases: cases measured.
        missed: structures missed, over all seeds.
        minutes: mean time of a run.
        peak_mib: largest memory of a run.
    """

    name: str
    cells: dict[str, Cell] = field(default_factory=dict)
    unit: str = "mm"
    seeds: int = 0
    cases: int = 0
    missed: int = 0
    minutes: float = 0.0
    peak_mib: float = 0.0


@dataclass(frozen=True)
class Measured:
    """A complete run with its rows of metrics, and what is known of it: time, memory, what it was made by."""

    run: Run
    rows: tuple[CaseRow, ...]
    state: State


def case_means(rows: Sequence[CaseRow], metric: str) -> dict[str, float]:
    """Mean over structures of one metric, by case; cases without it are left out.

    Args:
        rows: one a case and structure, as :func:`~common.evaluation.metrics.read_rows` gives them.
        metric: column.

    Example:
        >>> case_means([{"case": "a", "dice": 0.5}, {"case": "a", "dice": 1.0}], "dice")
        {'a': 0.75}
    """
    values: dict[str, list[float]] = {}
    for row in rows:
        if row.get(metric) is not None:
            values.setdefault(row["case"], []).append(float(row[metric]))
    return {case: float(np.mean(found)) for case, found in values.items()}


def paired_test(differences: NDArray[np.float64], seed: int = 0) -> float:
    """Two-sided p value of a mean difference within cases: signs are permuted (exactly, where there are few cases).

    Args:
        differences: (N,), one a case.
        seed: of the permutations.

    Example:
        >>> round(paired_test(np.array([1.0, 2.0, 1.5, 0.5, 1.0])), 4)  # 2 of 2^5 sign patterns are as far from 0
        0.0625
    """
    if len(differences) < 2 or not np.any(differences):
        return 1.0
    result = permutation_test(
        (differences,), lambda x, axis: np.mean(x, axis=axis), permutation_type="samples", vectorized=True,
        n_resamples=PERMUTATIONS, rng=np.random.default_rng(seed),
    )  # fmt: skip
    return float(result.pvalue)


def summarise_rows(study: Study, measured: Sequence[Measured], seed: int = 0) -> list[RowResult]:
    """One result a row that has a complete run.

    Args:
        study: what was compared.
        measured: its complete runs.
        seed: of bootstrap and permutations.
    """
    reference = [entry for entry in measured if entry.run.row.name == study.reference]
    mixed = _mixed(study, measured)
    results = []
    for row in study.rows:
        own = [entry for entry in measured if entry.run.row.name == row.name]
        if not own:
            continue
        per_case = {metric: _over_seeds(own, metric) for metric in study.metrics}
        result = RowResult(
            name=row.name,
            unit=own[0].rows[0]["unit"],
            seeds=len({entry.run.seed for entry in own}),
            cases=len(per_case[study.metrics[0]]),
            missed=sum(bool(line["missed"]) for entry in own for line in entry.rows),
            minutes=float(np.mean([entry.state.seconds for entry in own])) / 60,
            peak_mib=max(entry.state.peak_mib for entry in own),
        )
        for metric, values in per_case.items():
            if values and metric not in mixed:
                result.cells[metric] = _cell(values, own, metric, seed)
                if row.name != study.reference:
                    _compare(result.cells[metric], _differences(own, reference, metric), seed)
        results.append(result)
    return results


def _over_seeds(own: Sequence[Measured], metric: str) -> dict[str, float]:
    """Mean over runs of each case's value; folds measure other cases, and pool."""
    found: dict[str, list[float]] = {}
    for entry in own:
        for case, value in case_means(entry.rows, metric).items():
            found.setdefault(case, []).append(value)
    return {case: float(np.mean(values)) for case, values in found.items()}


def _mixed(study: Study, measured: Sequence[Measured]) -> list[str]:
    """Metrics that cases have in different units (mm, and voxels where no spacing is known)."""
    lines = [line for entry in measured for line in entry.rows]
    known = [metric for metric in study.metrics if metric in METRICS]
    return [metric for metric in known if len({METRICS[metric].unit_in(line) for line in lines}) > 1]


def _cell(values: dict[str, float], own: Sequence[Measured], metric: str, seed: int) -> Cell:
    numbers = list(values.values())
    per_seed: dict[int, list[float]] = {}
    for entry in own:
        per_seed.setdefault(entry.run.seed, []).extend(case_means(entry.rows, metric).values())
    means = [float(np.mean(found)) for found in per_seed.values() if found]
    return Cell(float(np.mean(numbers)), bootstrap_interval(numbers, seed), (min(means), max(means)))


def _differences(own: Sequence[Measured], reference: Sequence[Measured], metric: str) -> NDArray[np.float64]:
    """Row minus reference, one number a case: mean over the runs that both have, since a seed moves both alike.

    Empty where they have no run in common, or where the cases of one differ.
    """
    others = {entry.run.name: case_means(entry.rows, metric) for entry in reference}
    found: dict[str, list[float]] = {}
    for entry in own:
        if entry.run.name not in others:
            continue
        values, expected = case_means(entry.rows, metric), others[entry.run.name]
        if values.keys() != expected.keys():
            return np.array([])
        for case, value in values.items():
            found.setdefault(case, []).append(value - expected[case])
    return np.array([np.mean(values) for values in found.values()])


def _compare(cell: Cell, differences: NDArray[np.float64], seed: int) -> None:
    """Enter the paired difference, where there is one."""
    if not len(differences):
        return
    cell.difference = float(differences.mean())
    cell.difference_interval = bootstrap_interval(differences, seed)
    cell.p = paired_test(differences, seed)


def write_tables(
    study: Study, results: Sequence[RowResult], measured: Sequence[Measured], output: Path, command: str
) -> None:
    """Write ``table.csv``, ``table.md``, ``cases.csv`` and ``figure.png``.

    Args:
        study: what was compared.
        results: its rows.
        measured: its runs.
        output: folder to write to.
        command: that was typed.
    """
    write_rows([line for result in results for line in _csv_rows(result)], output / "table.csv", _COLUMNS)
    cases = [{"row": entry.run.row.name, "run": entry.run.name, **line} for entry in measured for line in entry.rows]
    write_rows(cases, output / "cases.csv", list(dict.fromkeys(key for line in cases for key in line)))
    with atomic_path(output / "table.md") as temporary:
        temporary.write_text(format_markdown(study, results, measured, command), encoding="utf-8")
    draw_study(study, results, measured, output / "figure.png")


def _csv_rows(result: RowResult) -> list[CaseRow]:
    lines: list[CaseRow] = []
    for metric, cell in result.cells.items():
        low, high = cell.difference_interval or (None, None)
        lines.append(
            {
                **{"row": result.name, "metric": metric, "unit": _unit(metric, result.unit)},
                **{"mean": cell.mean, "lo": cell.interval[0], "hi": cell.interval[1]},
                **{"seed_lo": cell.seeds[0], "seed_hi": cell.seeds[1], "seeds": result.seeds, "cases": result.cases},
                **{"missed": result.missed, "difference": cell.difference, "difference_lo": low},
                **{"difference_hi": high, "p": cell.p, "minutes": result.minutes, "peak_mib": result.peak_mib},
            }
        )
    return lines


def format_markdown(study: Study, results: Sequence[RowResult], measured: Sequence[Measured], command: str) -> str:
    """The table for people: a row a method; fractions in percent, distances with two digits."""
    metrics = [metric for metric in study.metrics if any(metric in result.cells for result in results)]
    unit = results[0].unit if results else "mm"
    heads = [_head(metric, unit) for metric in metrics]
    first = metrics[0] if metrics else ""
    columns = ["row", *heads, f"{first} over seeds", f"{first} minus {study.reference}", "p", "missed", "min", "MiB"]
    lines = [
        f"# {study.title}", "", "| " + " | ".join(columns) + " |", "|" + "---|" * len(columns),
    ]  # fmt: skip
    for result in results:
        cells = [_shown(result.cells.get(metric), metric) for metric in metrics]
        lines.append("| " + " | ".join([result.name, *cells, *_difference(result, first), *_costs(result)]) + " |")
    text = (
        f"Mean over cases (of structures, then of seeds) [bootstrap 95% interval]; range over seeds; difference within "
        f"cases to {study.reference} [interval], over the runs that both have, p by permutation of signs. Section "
        f"{study.section}, weights {study.weights}. A missed structure counts as Dice 0 and the image's diagonal."
    )
    runs = {each.name: {entry.run.name for entry in measured if entry.run.row.name == each.name} for each in results}
    if any(names != runs[results[0].name] for names in runs.values()):
        text += " Rows differ in their runs: the differences say how they stand to each other, not the means."
    if mixed := _mixed(study, measured):
        text += f" Cases differ in the unit of {', '.join(mixed)}: there is no mean, cases.csv has each."
    counts = ", ".join(_counts(result, runs[result.name], runs.get(study.reference, set())) for result in results)
    return "\n".join([*lines, "", text, "", f"Runs: {counts}.", "", *_made_by(measured), f"`{command}`", ""])


def _counts(result: RowResult, own: set[str], reference: set[str]) -> str:
    """Seeds and cases of a row, and how many of its runs the reference has too, where that is not all."""
    text, compared = f"{result.name}: {result.seeds} seeds, {result.cases} cases", len(own & reference)
    return text if compared == len(own) else f"{text} ({compared} of {len(own)} runs compared)"


def _made_by(measured: Sequence[Measured]) -> list[str]:
    """What the runs were made by; where that differs, a line each with its runs."""
    runs: dict[str, list[str]] = {}
    for entry in measured:
        runs.setdefault(entry.state.made_by, []).append(f"{entry.run.row.name} {entry.run.name}")
    if len(runs) == 1:
        return [f"Made by {next(iter(runs))}.", ""]
    return [*(f"- Made by {maker}: {', '.join(names)}." for maker, names in runs.items()), ""]


def _unit(metric: str, length: str) -> str:
    """Of the values as they are stored: fractions have none, distances that of the run."""
    return METRICS[metric].unit_in({"unit": length}) if metric in METRICS else ""


def _scale(metric: str) -> tuple[float, int]:
    """Factor and digits with which a metric is shown."""
    unit = _unit(metric, "mm")
    if metric in _PLAIN or unit == "nat":
        return 1.0, 4
    return (1.0, 2) if unit else (100.0, 1)


def _head(metric: str, length: str) -> str:
    if metric in _PLAIN:
        return metric
    return f"{metric} [{_unit(metric, length) or '%'}]"


def _shown(cell: Cell | None, metric: str) -> str:
    if cell is None:
        return "-"
    factor, digits = _scale(metric)
    numbers = [f"{factor * value:.{digits}f}" for value in (cell.mean, *cell.interval)]
    return f"{numbers[0]} [{numbers[1]}, {numbers[2]}]"


def _difference(result: RowResult, metric: str) -> list[str]:
    cell = result.cells.get(metric)
    if cell is None:
        return ["-", "-", "-"]
    factor, digits = _scale(metric)
    seeds = "-".join(f"{factor * value:.{digits}f}" for value in cell.seeds)
    if cell.difference is None or cell.difference_interval is None or cell.p is None:
        return [seeds, "", ""]
    low, high = (f"{factor * value:+.{digits}f}" for value in cell.difference_interval)
    chance = f"{cell.p:.3f}" if cell.p >= 0.001 else "< 0.001"
    return [seeds, f"{factor * cell.difference:+.{digits}f} [{low}, {high}]", chance]


def _costs(result: RowResult) -> list[str]:
    return [str(result.missed), f"{result.minutes:.1f}", f"{result.peak_mib:.0f}"]


def draw_study(study: Study, results: Sequence[RowResult], measured: Sequence[Measured], path: Path) -> None:
    """Draw the first two metrics: a row's mean and interval, and a faint dot a case and run."""
    metrics = [metric for metric in study.metrics if any(metric in result.cells for result in results)][:2]
    if not metrics:
        return
    figure = Figure(figsize=(4.2 * len(metrics) + 1.6, 0.9 + 0.42 * len(results)), layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.subplots(1, len(metrics), sharey=True, squeeze=False)[0]
    jitter = np.random.default_rng(0)
    for ax, metric in zip(axes, metrics, strict=True):
        for place, result in enumerate(results):
            own = [entry for entry in measured if entry.run.row.name == result.name]
            dots = [value for entry in own for value in case_means(entry.rows, metric).values()]
            ax.scatter(dots, place + jitter.uniform(-0.18, 0.18, len(dots)), s=6, color="0.75", linewidths=0)
            if metric in result.cells:
                cell = result.cells[metric]
                ax.plot(cell.interval, (place, place), color="#0072B2", linewidth=2.2, solid_capstyle="butt")
                ax.plot(cell.mean, place, "o", color="#0072B2", markersize=4.5)
        unit = _unit(metric, results[0].unit)
        ax.set_xlabel(f"{metric} [{unit}]" if unit else metric)
        ax.spines[["top", "right"]].set_visible(False)
        ax.grid(axis="x", color="0.92", linewidth=0.6)
        ax.set_axisbelow(True)
    axes[0].set_yticks(range(len(results)), [result.name for result in results])
    axes[0].invert_yaxis()
    figure.suptitle(study.title, fontsize=10, x=0.01, ha="left")
    with atomic_path(path) as temporary:
        canvas.print_figure(temporary, dpi=160, format="png")


def read_measured(runs: Sequence[tuple[Run, Path, State]]) -> list[Measured]:
    """Read the metrics of complete runs: (run, metrics.csv, what is known of it) each.

    Where samples.csv lies beside, a set's measures join the rows of their case and structure.
    """
    return [Measured(run, tuple(_read_cases(path)), state) for run, path, state in runs]


def _read_cases(path: Path) -> list[CaseRow]:
    rows = read_rows(path)
    if (sets := path.with_name("samples.csv")).is_file():
        measures = {(row.pop("case"), row.pop("structure")): row for row in read_set_rows(sets)}
        rows = [{**row, **measures.get((row["case"], row["structure"]), {})} for row in rows]
    return rows
