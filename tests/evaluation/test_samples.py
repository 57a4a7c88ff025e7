"""Metrics of sets of segmentations: hand values, naive double loops, edges, speed."""

from __future__ import annotations

import csv
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from common.evaluation.samples import (
    MEASURES,
    SET_COLUMNS,
    dice_match,
    dice_max,
    dice_soft,
    generalised_energy_distance,
    set_measures,
    set_rows,
    spread_correlation,
    variance_map,
    write_set_rows,
)

Array = NDArray[Any]


def naive_iou(a: Array, b: Array, empty: float = 1.0) -> float:
    inter = sum(1 for x, y in zip(a.flat, b.flat, strict=True) if x and y)
    union = sum(1 for x, y in zip(a.flat, b.flat, strict=True) if x or y)
    return inter / union if union else empty


def naive_dice(a: Array, b: Array) -> float:
    inter = sum(1 for x, y in zip(a.flat, b.flat, strict=True) if x and y)
    sizes = int(a.sum()) + int(b.sum())
    return 2 * inter / sizes if sizes else 1.0


def naive_ged(samples: Array, raters: Array, unbiased: bool = False, empty: float = 1.0) -> float:
    masks = [sample > 0.5 for sample in samples]

    def mean(first: list[Array], second: list[Array], within: bool) -> float:
        values = [
            1 - naive_iou(a, b, empty)
            for i, a in enumerate(first)
            for j, b in enumerate(second)
            if not (within and unbiased and i == j)
        ]
        return sum(values) / len(values) if values else 0.0

    others = [rater.astype(bool) for rater in raters]
    return 2 * mean(masks, others, False) - mean(masks, masks, True) - mean(others, others, True)


def naive_dice_soft(samples: Array, raters: Array) -> float:
    values = []
    for tau in (0.1, 0.3, 0.5, 0.7, 0.9):
        prediction = np.array([column.mean() > tau for column in samples.reshape(len(samples), -1).T])
        votes = raters.reshape(len(raters), -1).sum(0)
        annotation = np.array([count * 10 > round(10 * tau) * len(raters) for count in votes])
        values.append(naive_dice(prediction, annotation))
    return float(np.mean(values))


def naive_dice_match(samples: Array, raters: Array) -> float:
    dice = np.array([[naive_dice(s > 0.5, r) for r in raters] for s in samples])
    if len(samples) >= len(raters):
        orders = itertools.permutations(range(len(samples)), len(raters))
        return max(np.mean([dice[i, j] for j, i in enumerate(order)]) for order in orders)
    orders = itertools.permutations(range(len(raters)), len(samples))
    return max(np.mean([dice[i, j] for i, j in enumerate(order)]) for order in orders)


def make_sets(n: int, r: int, shape: tuple[int, ...] = (7, 6), seed: int = 0) -> tuple[Array, Array]:
    """Sets of blobs that overlap, and empty masks among them."""
    rng = np.random.default_rng(seed)
    base = rng.random(shape)
    samples = np.clip(base + rng.normal(scale=0.3, size=(n, *shape)), 0, 1)
    raters: Any = (base + rng.normal(scale=0.3, size=(r, *shape))) > 0.5
    if n > 3:
        samples[1] *= 0.4
    if r > 3:
        raters[2] = False
    return samples, raters


@pytest.mark.parametrize(("n", "r"), [(1, 1), (3, 2), (5, 4), (2, 5)])
@pytest.mark.parametrize("shape", [(7, 6), (4, 3, 5)])
def test_equal_to_naive_loops(n: int, r: int, shape: tuple[int, ...]) -> None:
    samples, raters = make_sets(n, r, shape)
    assert generalised_energy_distance(samples, raters) == pytest.approx(naive_ged(samples, raters), abs=1e-6)
    unbiased = generalised_energy_distance(samples, raters, unbiased=True)
    assert unbiased == pytest.approx(naive_ged(samples, raters, unbiased=True), abs=1e-6)
    assert dice_soft(samples, raters) == pytest.approx(naive_dice_soft(samples, raters), abs=1e-6)
    dice = np.array([[naive_dice(s > 0.5, rater) for rater in raters] for s in samples])
    assert dice_max(samples, raters) == pytest.approx(dice.max(0).mean(), abs=1e-6)
    assert dice_match(samples, raters) == pytest.approx(naive_dice_match(samples, raters), abs=1e-6)


def test_a_large_volume_counts_exactly() -> None:
    """More voxels than one matrix product holds."""
    samples, raters = np.zeros((1, 70_000)), np.zeros((1, 70_000), bool)
    samples[0, :60_001], raters[0, 30_000:] = 1.0, True
    assert generalised_energy_distance(samples, raters) == pytest.approx(2 * (1 - 30_001 / 70_000), abs=1e-12)


def test_hand_values() -> None:
    samples = np.array([[1.0, 1.0, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0]])
    raters = np.array([[1, 1, 0, 0], [1, 1, 1, 1]])
    # d(P, A) = 0, 1/2, 1/2, 3/4; d(P, P') = 0, 1/2, 1/2, 0; d(A, A') = 0, 1/2, 1/2, 0
    assert generalised_energy_distance(samples, raters) == pytest.approx(2 * 1.75 / 4 - 0.25 - 0.25)
    assert generalised_energy_distance(samples, raters, unbiased=True) == pytest.approx(2 * 1.75 / 4 - 0.5 - 0.5)
    assert dice_max(samples, raters) == pytest.approx((1.0 + 2 / 3) / 2)
    assert dice_match(samples, raters) == pytest.approx(max(1.0 + 2 / 5, 2 / 3 + 2 / 3) / 2)
    # means (1, 1/2, 0, 0) and (1, 1, 1/2, 1/2): above .1 and .3 two voxels of four, above .5 one of two
    assert dice_soft(samples, raters) == pytest.approx(np.mean([2 * 2 / 6, 2 * 2 / 6, 2 / 3, 2 / 3, 2 / 3]))


def test_thresholds_are_exact_for_ten_raters() -> None:
    """3 of 10 raters is not more than .3."""
    raters = np.zeros((10, 2), bool)
    raters[:, 0], raters[:3, 1] = True, True
    assert dice_soft(raters.astype(float), raters) == 1.0
    only = np.array([[1.0, 0.0]])
    # the second voxel counts at .1 alone
    assert dice_soft(only, raters) == pytest.approx((2 / 3 + 4) / 5)


def test_equal_sets_are_at_distance_zero() -> None:
    _, raters = make_sets(1, 5)
    measures = set_measures(raters.astype(float), raters)
    assert measures["ged"] == pytest.approx(0.0, abs=1e-9)
    assert measures["dice_soft"] == measures["dice_max"] == measures["dice_match"] == 1.0
    assert measures["spread"] == pytest.approx(measures["rater_spread"])
    assert measures["spread_correlation"] == pytest.approx(1.0, abs=1e-5)


def test_empty_masks() -> None:
    empty, full = np.zeros((2, 5)), np.ones((2, 5))
    assert generalised_energy_distance(empty, empty) == 0.0
    assert dice_soft(empty, empty) == dice_max(empty, empty) == dice_match(empty, empty) == 1.0
    assert generalised_energy_distance(full, empty) == 2.0
    assert dice_soft(full, empty) == dice_max(full, empty) == dice_match(full, empty) == 0.0
    # the published tables in which two empty masks are 1 apart, on the diagonal too
    mixed = np.array([[0.0] * 5, [1.0] * 5])
    assert generalised_energy_distance(mixed, empty, empty_iou=0.0) == pytest.approx(naive_ged(mixed, empty, empty=0.0))


def test_dice_max_bounds_dice_match() -> None:
    for seed in range(20):
        samples, raters = make_sets(6, 4, seed=seed)
        assert dice_match(samples, raters) <= dice_max(samples, raters) + 1e-9


def test_spread_maps() -> None:
    samples, raters = make_sets(6, 4)
    np.testing.assert_allclose(variance_map(samples), samples.var(0), atol=1e-6)
    expected = np.corrcoef(samples.var(0).ravel(), raters.var(0).ravel())[0, 1]
    assert spread_correlation(samples, raters) == pytest.approx(expected, abs=1e-5)
    same = np.repeat(samples[:1], 3, axis=0)
    assert spread_correlation(same, raters) == 0.0
    assert spread_correlation(same, np.repeat(raters[:1], 2, axis=0)) == 1.0


def test_rows_and_file(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    samples = rng.random((5, 3, 6, 6))
    raters = rng.integers(0, 3, (4, 6, 6))
    rows = set_rows("case", samples, raters, ["core", "rim"])
    assert [(row["structure"], row["samples"], row["raters"]) for row in rows] == [("core", 5, 4), ("rim", 5, 4)]
    assert {name: rows[1][name] for name in MEASURES} == set_measures(samples[:, 2], raters == 2)
    write_set_rows(tmp_path / "samples.csv", rows)
    with (tmp_path / "samples.csv").open() as file:
        read = list(csv.DictReader(file))
    assert tuple(read[0]) == SET_COLUMNS and float(read[0]["ged"]) == pytest.approx(rows[0]["ged"])


@pytest.mark.parametrize(
    ("samples", "raters"), [((0, 4), (2, 4)), ((2, 4), (0, 4)), ((2, 4), (2, 5)), ((4,), (4,))], ids=str
)
def test_sets_that_do_not_fit(samples: tuple[int, ...], raters: tuple[int, ...]) -> None:
    for measure in (generalised_energy_distance, dice_soft, dice_max, dice_match, set_measures):
        with pytest.raises(ValueError, match="Sets are|differ in their spatial shape"):
            measure(np.zeros(samples), np.zeros(raters))
    with pytest.raises(ValueError, match="need a channel for"):
        set_rows("case", np.zeros((2, 2, 4)), np.zeros((2, 4)), ["core", "rim"])
