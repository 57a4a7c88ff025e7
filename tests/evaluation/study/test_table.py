"""The numbers of a study's table, against slow ways to come to them."""

from __future__ import annotations

import csv
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common.evaluation.metrics import CaseTable
from common.evaluation.samples import read_set_rows, set_rows, write_set_rows
from common.evaluation.study import budget
from common.evaluation.study.budget import Curve, curve_dice, fit_curve, read_curves, write_budget
from common.evaluation.study.recipe import Row, Run, Study
from common.evaluation.study.runner import State
from common.evaluation.study.table import (
    Measured,
    format_markdown,
    paired_test,
    read_measured,
    summarise_rows,
    write_tables,
)

MAKER = "commit abc; some versions; a device"
ROWS = (
    Row("plain", "alc", curve="plain", labels=4),
    Row("better", "alc", curve="better", labels=4),
    Row("more", "alc", curve="plain", labels=16),
)


def study(**changes: Any) -> Study:
    arguments: dict[str, Any] = {
        **{"title": "A study", "rows": ROWS, "seeds": (0, 1), "folds": 0, "section": "test", "weights": "model.pt"},
        **{"measure_settings": {}, "reference": "plain", "metrics": ("dice", "hd95"), "file": Path("study.yaml")},
    }
    return Study(**{**arguments, **changes})


def measured(row: Row, seed: int, dice: dict[str, tuple[float, ...]], missed: str = "") -> Measured:
    """Cases with a value for each of their structures."""
    rows = [
        {
            **{"case": case, "structure": f"structure {number}", "unit": "mm", "dice": value, "hd95": 10 * (1 - value)},
            "missed": missed == case and number == 0,
        }
        for case, values in dice.items()
        for number, value in enumerate(values)
    ]
    return Measured(Run(row, seed), tuple(rows), State("done", 60.0 * (seed + 1), 100.0 * (seed + 1), MAKER))


RUNS = [
    measured(ROWS[0], 0, {"a": (0.5, 0.7), "b": (0.8, 0.8), "c": (0.4, 0.2)}),
    measured(ROWS[0], 1, {"a": (0.7, 0.7), "b": (0.6, 0.8), "c": (0.1, 0.3)}, missed="c"),
    measured(ROWS[1], 0, {"a": (0.7, 0.9), "b": (0.9, 0.9), "c": (0.5, 0.3)}),
]


def test_means_seeds_and_differences() -> None:
    plain, better = summarise_rows(study(), RUNS)
    cases = {"a": (0.6 + 0.7) / 2, "b": (0.8 + 0.7) / 2, "c": (0.3 + 0.2) / 2}
    cell = plain.cells["dice"]
    assert cell.mean == pytest.approx(np.mean(list(cases.values())))
    assert cell.seeds == pytest.approx(((0.7 + 0.7 + 0.2) / 3, (0.6 + 0.8 + 0.3) / 3))
    assert cell.interval[0] < cell.mean < cell.interval[1]
    assert (plain.seeds, plain.cases, plain.missed, plain.minutes, plain.peak_mib) == (2, 3, 1, 1.5, 200.0)
    assert cell.difference is None, "nothing is compared with itself"
    differences = [0.8 - 0.6, 0.9 - 0.8, 0.4 - 0.3]  # of seed 0, the only one that both have
    assert better.cells["dice"].difference == pytest.approx(np.mean(differences))
    assert better.cells["dice"].p == pytest.approx(2 / 8), "of 2^3 patterns of signs two are as far from 0"


def test_rows_of_other_cases_are_not_compared() -> None:
    other = measured(ROWS[1], 0, {"a": (0.7,), "z": (0.9,)})
    _, better = summarise_rows(study(), [*RUNS[:2], other])
    assert better.cells["dice"].difference is None and better.cases == 2


def test_only_runs_that_both_have_are_compared() -> None:
    """A hard draw of seed 2 in one row says nothing of the rows."""
    runs = [*RUNS, measured(ROWS[1], 2, {"a": (0.1,), "b": (0.1,), "c": (0.1,)})]
    _, better = summarise_rows(study(), runs)
    assert better.cells["dice"].difference == pytest.approx((0.2 + 0.1 + 0.1) / 3)
    assert better.cells["dice"].mean == pytest.approx((0.45 + 0.5 + 0.25) / 3)
    text = format_markdown(study(), summarise_rows(study(), runs), runs, "")
    assert "Runs: plain: 2 seeds, 3 cases, better: 2 seeds, 3 cases (1 of 2 runs compared)." in text
    assert "better: 1 seeds, 3 cases." in format_markdown(study(), summarise_rows(study(), RUNS), RUNS, "")
    assert "Rows differ in their runs" in format_markdown(study(), summarise_rows(study(), RUNS), RUNS, "")
    equal = [RUNS[0], RUNS[2]]
    assert "Rows differ" not in format_markdown(study(), summarise_rows(study(), equal), equal, "")
    _, elsewhere = summarise_rows(study(), [*RUNS[1:2], runs[2]])
    assert elsewhere.cells["dice"].difference is None, "seed 1 and seed 0"


def test_folds_pool_their_cases() -> None:
    tables: list[dict[str, tuple[float, ...]]] = [{"a": (0.2,)}, {"b": (0.6,), "c": (0.7,)}]
    folds = [
        Measured(Run(ROWS[0], 0, fold), measured(ROWS[0], 0, dice).rows, State("done"))
        for fold, dice in enumerate(tables)
    ]
    (row,) = summarise_rows(study(folds=2), folds)
    assert row.cases == 3 and row.cells["dice"].mean == pytest.approx(0.5)
    assert row.cells["dice"].seeds == pytest.approx((0.5, 0.5)), "one seed, all of its folds"


@pytest.mark.parametrize("differences", [(1.0, 2.0, 1.5, 0.5, 1.0), (1.0, -2.0, 1.5, 0.5, 0.1, -0.2), (0.0, 0.0)])
def test_permutation_test_against_all_patterns_of_signs(differences: tuple[float, ...]) -> None:
    observed = abs(np.mean(differences))
    patterns = [np.mean(np.multiply(signs, differences)) for signs in product((1, -1), repeat=len(differences))]
    expected = np.mean([abs(mean) >= observed - 1e-12 for mean in patterns])
    assert paired_test(np.array(differences)) == pytest.approx(expected)


def test_files(tmp_path: Path) -> None:
    results = summarise_rows(study(), RUNS)
    write_tables(study(), results, RUNS, tmp_path, "the command")
    text = (tmp_path / "table.md").read_text()
    assert "| plain | 55.0 [" in text and "dice minus plain" in text
    assert text.endswith(f"Made by {MAKER}.\n\n`the command`\n")
    with (tmp_path / "table.csv").open() as file:
        table = list(csv.DictReader(file))
    assert [(row["row"], row["metric"]) for row in table] == [
        *(("plain", "dice"), ("plain", "hd95"), ("better", "dice"), ("better", "hd95"))
    ]
    assert table[0]["difference"] == "" and float(table[2]["difference"]) == pytest.approx(0.4 / 3)
    with (tmp_path / "cases.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 18
    assert (tmp_path / "figure.png").stat().st_size > 2000


def test_units_are_those_of_the_metrics(tmp_path: Path) -> None:
    """Voxels and nats are no percent."""
    more = {"hd95_medpy_voxels": 7.5, "nll": 0.0625}
    runs = [replace(run, rows=tuple({**line, **more} for line in run.rows)) for run in RUNS[:1]]
    recipe = study(metrics=("dice", "hd95", *more))
    results = summarise_rows(recipe, runs)
    text = format_markdown(recipe, results, runs, "")
    assert "| row | dice [%] | hd95 [mm] | hd95_medpy_voxels [voxel] | nll [nat] |" in text
    assert "| 7.50 [7.50, 7.50] | 0.0625 [0.0625, 0.0625] |" in text
    write_tables(recipe, results, runs, tmp_path, "")
    with (tmp_path / "table.csv").open() as file:
        assert [line["unit"] for line in csv.DictReader(file)] == ["", "mm", "voxel", "nat"]


def test_mm_and_voxels_have_no_mean() -> None:
    """Neither within a row nor between rows; what has no length is as it was."""
    within = [replace(run, rows=({**run.rows[0], "unit": "voxel"}, *run.rows[1:])) for run in RUNS]
    between = [*RUNS[:2], replace(RUNS[2], rows=tuple({**line, "unit": "voxel"} for line in RUNS[2].rows))]
    for runs in (within, between):
        results = summarise_rows(study(), runs)
        assert [list(result.cells) for result in results] == [["dice"], ["dice"]]
        assert results[0].cells == {"dice": summarise_rows(study(), RUNS)[0].cells["dice"]}
        text = format_markdown(study(), results, runs, "")
        assert "Cases differ in the unit of hd95: there is no mean" in text and "| row | dice [%] | dice over" in text
    assert "differ in the unit" not in format_markdown(study(), summarise_rows(study(), RUNS), RUNS, "")


def test_runs_of_other_versions_are_told() -> None:
    runs = [*RUNS[:2], replace(RUNS[2], state=State("done", 60.0, 100.0, "commit def"))]
    text = format_markdown(study(), summarise_rows(study(), runs), runs, "the command")
    assert f"- Made by {MAKER}: plain seed_0, plain seed_1.\n- Made by commit def: better seed_0.\n" in text


def test_a_small_p_is_not_nought() -> None:
    cases: dict[str, tuple[float, ...]] = {name: (0.5 + 0.01 * number,) for number, name in enumerate("abcdefghijkl")}
    better: dict[str, tuple[float, ...]] = {case: (values[0] + 0.1,) for case, values in cases.items()}
    runs = [measured(ROWS[0], 0, cases), measured(ROWS[1], 0, better)]
    assert "| < 0.001 |" in format_markdown(study(), summarise_rows(study(), runs), runs, "")


def test_curve_is_found_again() -> None:
    labels = np.array([2.0, 4.0, 8.0, 16.0, 64.0])
    for wanted in ((0.6, 0.5, 0.1), (0.3, 1.0, 0.05)):
        fitted = fit_curve(labels, curve_dice(np.array(wanted), labels))
        assert fitted == pytest.approx(wanted, abs=1e-3)


def test_labels_for_a_point() -> None:
    """On 1 - 0.5 n^-0.5 a point more than with 64 labels takes 0.0625 - 0.01 = 0.5 n^-0.5, n = 90.7."""
    labels = np.array([4.0, 16.0, 64.0])
    dice = 1 - 0.5 * labels**-0.5
    best, low, high = Curve("one", labels, dice, np.stack([dice] * 3)).more_for_a_point()
    assert best == pytest.approx((0.5 / 0.0525) ** 2 - 64, rel=0.02) and low == high == pytest.approx(best)
    flat = np.array([0.8, 0.8, 0.8])
    assert Curve("flat", labels, flat, np.stack([flat] * 3)).more_for_a_point()[0] == np.inf


def test_budget_needs_two_points_of_a_curve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budget, "RESAMPLES", 10)
    write_budget(study(), RUNS, tmp_path)
    assert not (tmp_path / "budget.md").exists()
    runs = [*RUNS, measured(ROWS[2], 0, {"a": (0.9, 0.9), "b": (0.9, 0.9), "c": (0.8, 0.8)})]
    (curve,) = read_curves(study(), runs)
    assert curve.name == "plain" and curve.labels.tolist() == [4.0, 16.0]
    assert curve.dice == pytest.approx([(1.6 + 1.7) / 6, 2.6 / 3])
    write_budget(study(), runs, tmp_path)
    assert "plain: Dice 86.7 with 16 labels" in (tmp_path / "budget.md").read_text()
    assert (tmp_path / "budget.png").is_file() and (tmp_path / "budget.csv").is_file()


def test_a_curve_draws_cases_once_for_all_seeds_and_numbers_of_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seeds that measure the same say no more than one of them; a gain that is equal in all cases is certain."""
    monkeypatch.setattr(budget, "RESAMPLES", 400)
    rng = np.random.default_rng(0)
    dice = {f"case_{number}": float(value) for number, value in enumerate(rng.uniform(0.3, 0.8, 12))}
    rows = [(ROWS[0], 0.0), (ROWS[2], 0.1)]
    one, five = (
        read_curves(
            study(),
            [
                measured(row, seed, {case: (d + gain,) for case, d in dice.items()})
                for row, gain in rows
                for seed in seeds
            ],
        )[0]
        for seeds in (range(1), range(5))
    )
    assert one.dice == pytest.approx(five.dice)
    assert five.samples.std(0) == pytest.approx(one.samples.std(0), rel=0.15)
    assert np.diff(five.samples, axis=1) == pytest.approx(0.1)


def test_a_curve_takes_the_cases_that_every_number_of_labels_has() -> None:
    runs = [
        measured(ROWS[0], 0, {"a": (0.2,), "b": (0.4,)}),
        measured(ROWS[0], 1, {"a": (0.4,)}),  # a run whose folds are not all done
        measured(ROWS[2], 0, {"b": (0.8,), "a": (0.6,), "c": (1.0,)}),
    ]
    (curve,) = read_curves(study(), runs)
    assert curve.dice == pytest.approx([(0.3 + 0.4) / 2, 0.7])


def test_measures_of_sets_join_the_rows_of_their_case(tmp_path: Path) -> None:
    table, sets = CaseTable({1: "lesion"}), []
    mask = np.zeros((8, 8, 4), dtype=np.uint8)
    mask[2:6, 2:6] = 1
    for case in ("a", "b"):
        table.add(case, mask, mask, (1.0, 1.0, 1.0))
        answers = np.stack([np.stack([1.0 - mask, mask])] * 2)
        sets += set_rows(case, answers, np.stack([mask, np.zeros_like(mask)]), ["lesion"])
    table.write_csv(tmp_path / "metrics.csv")
    write_set_rows(tmp_path / "samples.csv", sets)
    assert read_set_rows(tmp_path / "samples.csv") == sets
    found = read_measured([(Run(ROWS[0], 0), tmp_path / "metrics.csv", State("done"))])
    recipe = study(metrics=("ged", "dice", "dice_soft", "hd95"))
    text = format_markdown(recipe, summarise_rows(recipe, found), found, "")
    # 2 E[d(answer, rater)] - E[d(answers)] - E[d(raters)] = 2 x 1/2 - 0 - 1/2
    assert "| row | ged | dice [%] | dice_soft [%] | hd95 [mm] |" in text
    assert "| plain | 0.5000 [0.5000, 0.5000] | 100.0 [100.0, 100.0] |" in text
