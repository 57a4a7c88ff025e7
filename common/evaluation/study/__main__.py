"""Command line: ``python -m common.evaluation.study STUDY.yaml --dataset_dir DIR --output DIR``."""

from __future__ import annotations

import signal
import sys
from typing import Any

import fire

from ...data.contract.faults import DataError, Fault
from ...training.lock import FolderInUseError
from .budget import write_budget
from .provenance import command
from .recipe import Study, read_study
from .runner import Runner
from .table import read_measured, summarise_rows, write_tables


def main(
    study: str,
    output: str,
    dataset_dir: str | None = None,
    rows: Any = None,
    seeds: Any = None,
    jobs: int = 1,
) -> None:
    """Run a study and write its tables; what is complete is not run again, what was killed goes on.

    Args:
        study: study file, for example bundles/multicure/studies/la_4.yaml.
        output: folder for data, runs, table.md, table.csv, cases.csv and figure.png.
        dataset_dir: folder of the data set; without it every row trains on its bundle's phantom.
        rows: only these rows, separated by commas.
        seeds: only these seeds, separated by commas.
        jobs: runs at a time; cores or GPUs are shared out among them.
    """
    recipe = read_study(str(study))
    names = tuple(str(name) for name in _listed(rows))
    numbers = tuple(_listed(seeds))
    _check(recipe, names, numbers, jobs)
    runner = Runner(recipe, None if dataset_dir is None else str(dataset_dir), str(output), jobs)
    complete = runner.run(list(recipe.runs(names, numbers)))
    write_results(recipe, runner)
    if not complete:
        sys.exit(1)


def write_results(recipe: Study, runner: Runner) -> None:
    """Write the tables of all runs that are complete, those of earlier calls included."""
    found = []
    for run in recipe.runs():
        state = runner.known_state(run)
        if state.word == "done":
            found.append((run, runner.results(run), state))
    if not found:
        print("No run is complete yet: no table.")
        return
    measured = read_measured(found)
    results = summarise_rows(recipe, measured)
    write_tables(recipe, results, measured, runner.output, command())
    write_budget(recipe, measured, runner.output)
    print((runner.output / "table.md").read_text(encoding="utf-8"))


def _check(recipe: Study, rows: tuple[str, ...], seeds: tuple[Any, ...], jobs: Any) -> None:
    faults = []
    known = [row.name for row in recipe.rows]
    if strange := [name for name in rows if name not in known]:
        faults.append(Fault("--rows", f"{', '.join(strange)}: no such row", f"use some of {', '.join(known)}"))
    if strange := [str(seed) for seed in seeds if seed not in recipe.seeds]:
        usable = ", ".join(map(str, recipe.seeds))
        faults.append(Fault("--seeds", f"{', '.join(strange)}: no such seed", f"use some of {usable}"))
    if not isinstance(jobs, int) or jobs < 1:
        faults.append(Fault("--jobs", f"is {jobs!r}", "use a whole number of 1 or more"))
    if faults:
        raise DataError(faults)


def _listed(value: Any) -> list[Any]:
    if value is None:
        return []
    if isinstance(value, str):
        return [part.strip() for part in value.split(",")]
    return list(value) if isinstance(value, tuple | list) else [value]


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # what runs is to stop with the study
    try:
        fire.Fire(main, name="python -m common.evaluation.study")
    except (DataError, FolderInUseError, OSError) as error:
        print(error, file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("\nStopped. The same command goes on from here.", file=sys.stderr)
        sys.exit(130)
