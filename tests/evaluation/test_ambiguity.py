"""Entropy of a set of answers against the raters: by hand, against loops, at the edges."""

from __future__ import annotations

import csv
import itertools
import math
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import rankdata

from common.evaluation.ambiguity import (
    AMBIGUITY_COLUMNS,
    ambiguity_row,
    ambiguity_summary,
    entropy,
    entropy_correlation,
    pairs_that_differ,
    rank_correlation,
    shares,
    write_ambiguity,
)


def softmax(values: np.ndarray, axis: int) -> np.ndarray:
    powers = np.exp(values - values.max(axis=axis, keepdims=True))
    return np.asarray(powers / powers.sum(axis=axis, keepdims=True))


def test_entropy_by_hand() -> None:
    found = entropy(np.array([[1.0, 0.5, 0.25], [0.0, 0.5, 0.75]]))
    assert found == pytest.approx([0.0, 1.0, -(0.25 * math.log2(0.25) + 0.75 * math.log2(0.75))])
    assert entropy(np.full((4, 2), 0.25)) == pytest.approx([1.0, 1.0])


def test_shares_and_pairs() -> None:
    raters = np.array([[0, 1, 2], [0, 1, 1], [0, 2, 0]])
    np.testing.assert_allclose(shares(raters, 3), np.array([[3, 0, 1], [0, 2, 1], [0, 1, 1]]) / 3)
    assert pairs_that_differ(raters, 3) == pytest.approx([0.0, 2 / 3, 1.0])
    assert pairs_that_differ(raters[:1], 3).tolist() == [0.0, 0.0, 0.0]
    many = np.random.default_rng(0).integers(0, 4, (7, 5, 6))
    expected = np.mean([a != b for a, b in itertools.permutations(many, 2)], axis=0)
    np.testing.assert_allclose(pairs_that_differ(many, 4), expected)


def test_correlation_is_pearsons_of_the_ranks_of_rounded_probabilities() -> None:
    rng = np.random.default_rng(1)
    first, second = softmax(4 * rng.normal(size=(3, 9, 8)), 0), softmax(4 * rng.normal(size=(3, 9, 8)), 0)
    ranks = [rankdata(entropy(each.round(2)).ravel()) for each in (first, second)]
    assert entropy_correlation(first, second) == pytest.approx(np.corrcoef(*ranks)[0, 1])
    assert entropy_correlation(first, first) == pytest.approx(1.0)


def test_certain_voxels_are_ties() -> None:
    """What differs in the fourth digit alone has no order; unrounded ranks of it would hide that the map is right."""
    rng = np.random.default_rng(2)
    foreground = np.where(np.arange(1000) < 100, 0.5, 0.0)
    noisy = np.abs(foreground - 1e-4 * rng.random(1000))
    assert entropy_correlation(np.stack((1 - noisy, noisy)), np.stack((1 - foreground, foreground))) == pytest.approx(1)
    certain = np.stack((np.ones(5), np.zeros(5)))
    assert math.isnan(entropy_correlation(certain, np.full((2, 5), 0.5)))


def test_a_row_by_hand() -> None:
    # two answers and two raters of two voxels that are marked, and one that nobody marks
    second = np.array([[0.9, 0.8, 0.0], [0.9, 0.2, 0.0]])
    samples, raters = np.stack((1 - second, second), 1), np.array([[1, 0, 0], [1, 1, 0]])
    row = ambiguity_row("a", samples, raters, np.array([[1.0, 0.5, 0.0]]))
    assert tuple(row) == AMBIGUITY_COLUMNS and (row["case"], row["samples"], row["raters"]) == ("a", 2, 2)
    assert row["entropy"] == pytest.approx((-(0.9 * math.log2(0.9) + 0.1 * math.log2(0.1)) + 1.0) / 2)
    assert row["rater_disagreement"] == pytest.approx(0.5)
    # ranks of the entropies 0.47, 1, 0 against those of 0, 1, 0
    assert row["rater_correlation"] == row["ambiguity_correlation"] == pytest.approx(math.sqrt(3) / 2)


@pytest.mark.parametrize("classes", [2, 4])
def test_what_is_not_known_is_empty(classes: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    samples = softmax(rng.normal(size=(3, classes, 4, 4)), 1)
    alone = ambiguity_row("a", samples, rng.integers(0, classes, (1, 4, 4)), None)
    assert alone["rater_disagreement"] == 0.0 and 0.0 < alone["entropy"] <= 1.0
    known = ambiguity_row("b", samples, rng.integers(0, classes, (3, 4, 4)), samples[0, 1:])
    write_ambiguity(tmp_path / "table.csv", [alone, known])
    with (tmp_path / "table.csv").open() as file:
        first, second = csv.DictReader(file)
    assert first["rater_correlation"] == first["ambiguity_correlation"] == ""
    assert float(second["ambiguity_correlation"]) == known["ambiguity_correlation"]
    assert "true probabilities" not in ambiguity_summary([alone])
    assert f"{known['ambiguity_correlation']:.4f}  Spearman with that of the true" in ambiguity_summary([alone, known])
    nothing = np.zeros((2, 2, 3, 3))
    nothing[:, 0] = 1.0
    assert ambiguity_row("c", nothing, np.zeros((2, 3, 3), int), None)["entropy"] == 0.0


def test_correlation_over_cases() -> None:
    rows = [{"entropy": e, "rater_disagreement": d} for e, d in ((0.1, 0.5), (0.2, 0.6), (0.3, 0.9), (0.4, 0.7))]
    assert rank_correlation(rows) == pytest.approx(0.8)
    assert math.isnan(rank_correlation(rows[:2])) and math.isnan(rank_correlation([rows[0]] * 4))
