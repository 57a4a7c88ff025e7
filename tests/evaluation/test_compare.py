"""Two evaluations of the same cases against hand arithmetic."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common.evaluation.compare import main, paired_differences
from common.evaluation.metrics import METRICS, bootstrap_interval, csv_columns, write_rows


def table(dice: dict[tuple[str, str], float], unit: str = "mm", ece: float | None = 0.1) -> list[dict[str, Any]]:
    """Rows of an evaluation with these Dice values; distances are ten times what is missing to 1."""
    return [
        {
            **{"case": case, "label": 1, "structure": structure, "dice": value, "jaccard": value / 2},
            **{"hd95": 10 * (1 - value), "asd": 1 - value, "unit": unit, "missed": value == 0, "spurious": False},
            **{"prediction_voxels": 5, "reference_voxels": 5, "ece": ece, "classwise_ece": ece},
        }
        for (case, structure), value in dice.items()
    ]


FIRST = {("a", "atrium"): 0.2, ("b", "atrium"): 0.9, ("a", "wall"): 0.5, ("b", "wall"): 0.5}
SECOND = {("b", "wall"): 0.5, ("a", "atrium"): 0.3, ("b", "atrium"): 1.0, ("a", "wall"): 0.7}  # in another order


def test_differences_are_within_cases() -> None:
    found = {(row["structure"], row["metric"]): row for row in paired_differences(table(FIRST), table(SECOND)).rows}
    atrium = found["atrium", "dice"]
    assert atrium["mean"] == pytest.approx(0.1) and atrium["n"] == 2
    # though the two cases lie far apart, the difference is the same in both
    assert (atrium["lo"], atrium["hi"]) == (pytest.approx(0.1), pytest.approx(0.1))
    assert found["wall", "hd95"]["mean"] == pytest.approx(-1.0)
    low, high = bootstrap_interval([0.2, 0.0])
    assert (found["wall", "dice"]["lo"], found["wall", "dice"]["hi"]) == (pytest.approx(low), pytest.approx(high))
    assert found["mean of structures", "dice"]["mean"] == pytest.approx(np.mean([0.15, 0.05]))


@pytest.mark.parametrize(
    ("second", "words"),
    [
        (table(dict.fromkeys(list(FIRST)[:3], 0.5)), "wall of b"),
        (table(FIRST, unit="voxel"), "mm and in voxel"),
    ],
)
def test_what_cannot_be_compared(second: list[dict[str, Any]], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        paired_differences(table(FIRST), second)


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, rows in (("a", table(FIRST)), ("b", table(SECOND, ece=None))):  # no calibration in the second
        write_rows(rows, tmp_path / name / "metrics.csv", csv_columns())
    main(str(tmp_path / "a"), str(tmp_path / "b" / "metrics.csv"))
    lines = {tuple(line.split()[:2]): line for line in capsys.readouterr().out.splitlines()}
    assert "0.5500    0.6500     +0.1000" in lines["atrium", "dice"] and lines["atrium", "dice"].endswith(" better")
    assert "[mm]" in lines["wall", "hd95"] and lines["wall", "hd95"].endswith("]")
    assert METRICS["hd95"].better == "lower" and lines["atrium", "hd95"].endswith(" better"), "a shorter distance"
    assert not any("ece" in line for line in lines.values())


def test_means_are_of_the_cases_that_the_difference_is_of(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing is in one case, and one of the two predicts nothing there: it has no calibration to compare."""
    first, second = (
        table({("a", "atrium"): 0.5, ("b", "atrium"): 0.5}),
        table({("a", "atrium"): 0.5, ("b", "atrium"): 0.5}),
    )
    first[1] |= {"ece": None}
    second[1] |= {"ece": 0.9}
    for name, rows in (("a", first), ("b", second)):
        write_rows(rows, tmp_path / name / "metrics.csv", csv_columns())
    main(str(tmp_path / "a"), str(tmp_path / "b"))
    (line,) = [line for line in capsys.readouterr().out.splitlines() if " ece " in line]
    assert "0.1000    0.1000     +0.0000" in line


def test_command_names_what_is_missing_and_the_fix(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="nowhere: there is no such folder or file. Fix: give an evaluation's folder"):
        main(str(tmp_path / "nowhere"), str(tmp_path))
    with pytest.raises(SystemExit, match=r"holds no metrics\.csv. Fix: run `evaluating` first"):
        main(str(tmp_path), str(tmp_path))
