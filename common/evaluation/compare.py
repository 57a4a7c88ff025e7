"""Command line: ``python -m common.evaluation.compare RUN_A RUN_B``, two evaluations of the same cases, case by case.

Two means whose intervals overlap can still differ for certain, as hard cases are hard for both methods. The interval
of the *difference* within each case tells.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import fire

from .metrics import METRICS, Row, Summary, metric_name, read_rows, summarise


def paired_differences(first: Sequence[Row], second: Sequence[Row]) -> Summary:
    """Summary of second minus first within each case; intervals by bootstrap over cases.

    Args:
        first: one row a case and structure, as :func:`common.evaluation.metrics.read_rows` gives them.
        second: rows of the same cases and structures, in any order.

    Raises:
        ValueError: when the two hold different cases, structures or units.
    """
    differences: list[Row] = []
    for row, other in zip(*_matched(first, second), strict=True):
        change = {name: None if row[name] is None else other[name] - row[name] for name in METRICS}
        differences.append({**row, **change, "missed": False, "spurious": False})
    return summarise(differences)


def _matched(first: Sequence[Row], second: Sequence[Row]) -> tuple[list[Row], list[Row]]:
    """The rows of both in one order; a metric that one of them lacks in a row, the other lacks there too.

    Raises:
        ValueError: as :func:`paired_differences`.
    """
    tables = [{(row["case"], row["structure"]): row for row in rows} for rows in (first, second)]
    if lonely := sorted(tables[0].keys() ^ tables[1].keys()):
        case, structure = lonely[0]
        raise ValueError(
            f"{len(lonely)} structures of cases are in one table only, the first is {structure} of {case}. "
            "Fix: evaluate both on the same cases."
        )
    matched: tuple[list[Row], list[Row]] = ([], [])
    for key, row in tables[0].items():
        other = tables[1][key]
        if row["unit"] != other["unit"]:
            raise ValueError(f"{key[1]} of {key[0]} is measured in {row['unit']} and in {other['unit']}.")
        lacking = [name for name in METRICS if row.get(name) is None or other.get(name) is None]
        for rows, own in zip(matched, (row, other), strict=True):
            rows.append({**own, **dict.fromkeys(lacking)})
    return matched


def main(first: str, second: str) -> None:
    """Print the means of two evaluations and their difference within cases, with its bootstrap 95% interval.

    Args:
        first: folder of an evaluation, or its metrics.csv.
        second: the same of another run on the same cases.
    """
    try:
        tables = [read_rows(_table(place)) for place in (first, second)]
        change = paired_differences(*tables)
    except (OSError, ValueError) as error:
        sys.exit(str(error))
    means = [
        {(row["structure"], metric_name(row)): row["mean"] for row in summarise(table).rows}
        for table in _matched(*tables)
    ]
    width = max((len(row["structure"]) for row in change.rows), default=0)
    wide = max([14, *(len(metric_name(row)) for row in change.rows)])
    print(f"{change.cases} cases; second minus first, with its bootstrap 95% interval; better or worse: it is not 0")
    print(f"{'structure':<{width}}  {'metric':<{wide}} {'first':>9} {'second':>9} {'difference':>11}  95% interval")
    for row in change.rows:
        a, b = (mean[row["structure"], metric_name(row)] for mean in means)
        gain = 1 if METRICS[row["metric"]].better == "higher" else -1
        mark = " better" if min(gain * row["lo"], gain * row["hi"]) > 0 else ""
        mark = " worse" if max(gain * row["lo"], gain * row["hi"]) < 0 else mark
        print(
            f"{row['structure']:<{width}}  {metric_name(row):<{wide}} {a:9.4f} {b:9.4f} {row['mean']:+11.4f}  "
            f"[{row['lo']:+.4f}, {row['hi']:+.4f}]{mark}"
        )


def _table(place: str) -> Path:
    path = Path(str(place))  # a folder may be called 1
    if not path.exists():
        raise ValueError(f"{path}: there is no such folder or file. Fix: give an evaluation's folder or metrics.csv.")
    table = path / "metrics.csv" if path.is_dir() else path
    if not table.is_file():
        raise ValueError(f"{path}: holds no metrics.csv. Fix: run `evaluating` first, or give its results_dir.")
    return table


if __name__ == "__main__":
    fire.Fire(main)
