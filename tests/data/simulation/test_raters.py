"""Simulated raters: styles that last, chance that is replayed, probabilities that are those of the population."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from common.data.simulation.raters import (
    ambiguity,
    apply_raters,
    rater_style,
    sample_border,
    sample_boundary,
    sample_raters,
    true_probability,
)

STRUCTURES = (1, 2)


def label(dims: int = 3) -> np.ndarray:
    """A box of two structures."""
    volume = np.zeros((32, 32, 20)[:dims], np.uint8)
    volume[8:18, 8:24] = 1
    volume[18:26, 8:24] = 2
    if dims == 3:
        volume[..., :5] = volume[..., 15:] = 0
    return volume


def draw(seed: int = 0, raters: int = 5, dims: int = 3, **settings: Any) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return apply_raters(label(dims), sample_raters(rng, range(raters), STRUCTURES, sample_border(rng), **settings))


@pytest.mark.parametrize("dims", [2, 3])
def test_styles_last_from_case_to_case(dims: int) -> None:
    quiet: dict[str, Any] = {"missed": 0.0, "added": 0.0, "shift": 3.0}
    sizes = np.array([[np.count_nonzero(mask) for mask in draw(seed, dims=dims, **quiet)] for seed in range(8)])
    true = np.count_nonzero(label(dims))
    assert (sizes[:, 0] < true).all() and (sizes[:, 1] > true).all(), "tight and generous, in every case"
    assert len(np.unique(sizes[:, 2])) > 4, "cases differ"


def test_who_misses_and_who_adds() -> None:
    drawn = [sample_raters(np.random.default_rng(seed), range(5), STRUCTURES, 0, 2.0, 0.3, 0.3) for seed in range(200)]
    missed = np.mean([[len(one["missed"]) / 2 for one in case] for case in drawn], axis=0)
    added = np.mean([[len(one["added"]) / 2 for one in case] for case in drawn], axis=0)
    expected = np.array([rater_style(rater).misses for rater in range(5)]) * 0.3
    assert missed == pytest.approx(expected, abs=0.06)
    assert added == pytest.approx(np.array([rater_style(rater).adds for rater in range(5)]) * 0.3, abs=0.06)


def test_what_is_missed_and_added_is_in_the_masks() -> None:
    rng = np.random.default_rng(3)
    (one,) = sample_raters(rng, [0], STRUCTURES, 7, missed=0.0, added=0.0)
    (missing,) = apply_raters(label(), [one | {"missed": [2]}])
    assert set(np.unique(missing)) == {0, 1}
    quiet = one | {"missed": [1, 2], "added": [2]}
    (more,) = apply_raters(label(), [quiet])
    assert set(np.unique(more)) == {0, 2}, "nothing but the false structure"


def false_structures(shape: tuple[int, ...]) -> list[np.ndarray]:
    """What twenty raters add to an image without structures."""
    (one,) = sample_raters(np.random.default_rng(3), [0], [1], 7, missed=0.0, added=0.0)
    empty = np.zeros(shape, np.uint8)
    return [apply_raters(empty, [one | {"added": [1], "seed": seed}])[0] for seed in range(20)]


@pytest.mark.parametrize("shape", [(64, 64, 1), (1, 64, 64), (64, 64, 2), (64, 64, 8)])
def test_what_is_added_to_slices_is_as_large_as_in_a_2d_image(shape: tuple[int, ...]) -> None:
    """A disc of a twentieth to a tenth of the image; in few slices it is as flat as the image, not a single voxel."""
    thin = shape.index(min(shape))
    for mask in false_structures(shape):
        slices = np.count_nonzero(mask.any(axis=tuple(axis for axis in range(3) if axis != thin)))
        plane = np.count_nonzero(mask.any(axis=thin))
        assert slices == 1 and 9 <= plane <= np.pi * 6.4**2 + 8  # cut by the image's edge, or whole


@pytest.mark.parametrize("shape", [(64, 64), (48, 48, 32), (32, 32, 20), (20, 18, 12), (256, 64, 24)])
def test_what_is_added_elsewhere_is_a_ball_by_the_shortest_axis(shape: tuple[int, ...]) -> None:
    """Recipes of earlier versions replay to the voxel: the ball is drawn anew here, from the seed."""
    (one,) = sample_raters(np.random.default_rng(3), [0], [1], 7, missed=0.0, added=0.0)
    for seed in range(3):
        rng = np.random.default_rng(seed)
        radius = rng.uniform(0.05, 0.1) * min(shape)
        centre = np.unravel_index(rng.integers(np.prod(shape)), shape)
        expected = sum((grid - at) ** 2 for grid, at in zip(np.indices(shape), centre, strict=True)) < radius**2
        (mask,) = apply_raters(np.zeros(shape, np.uint8), [one | {"added": [1], "seed": seed}])
        np.testing.assert_array_equal(mask > 0, expected)


def test_visibility_decides_what_is_missed() -> None:
    def missed(visibility: float) -> float:
        drawn = [
            sample_raters(np.random.default_rng(seed), range(5), [1], 0, missed=0.3, visibility={1: visibility})
            for seed in range(100)
        ]
        return float(np.mean([len(one["missed"]) for case in drawn for one in case]))

    assert missed(1.0) == 0.0 < missed(0.5) < missed(0.0)


def test_no_structure_is_lost_by_a_shift() -> None:
    for mask in draw(shift=30.0, missed=0.0, added=0.0):
        assert {1, 2} <= set(np.unique(mask))


def test_replay_is_exact_and_goes_through_json() -> None:
    rng = np.random.default_rng(1)
    parameters = sample_raters(rng, range(3), STRUCTURES, sample_border(rng))
    again = json.loads(json.dumps(parameters))
    for first, second in zip(apply_raters(label(), parameters), apply_raters(label(), again), strict=True):
        assert np.array_equal(first, second)
    first, second = apply_raters(label(), parameters[:2])
    assert not np.array_equal(first, second)


def test_borders_deviate_where_they_are_ambiguous() -> None:
    """Among many raters, voxels near the border differ more often where the ambiguity is high."""
    flat = np.zeros((48, 48), np.uint8)
    flat[:, 24:] = 1
    border, masks = 13, []
    for seed in range(200):
        rng = np.random.default_rng(seed)
        masks += apply_raters(flat, sample_raters(rng, [2, 4], [1], border, shift=6.0, missed=0.0))
    spread = np.stack(masks).astype(float).std(axis=0)[:, 14:34].sum(axis=1)
    level = ambiguity(flat.shape, border)[:, 22:26].mean(axis=1)
    assert np.corrcoef(spread, level)[0, 1] > 0.8


def test_true_probability_is_that_of_many_raters() -> None:
    settings: dict[str, Any] = {"shift": 3.0, "missed": 0.2, "added": 0.0}
    probability = true_probability(label(), STRUCTURES, 5, draws=50, **settings)
    masks = []
    for seed in range(1, 21):
        drawn = sample_raters(np.random.default_rng([9, seed]), range(5), STRUCTURES, 5, **settings)
        masks += apply_raters(label(), drawn)
    other = np.stack([np.mean([mask == s for mask in masks], axis=0) for s in STRUCTURES])
    assert np.abs(probability - other).mean() < 0.02
    assert np.abs(probability - other).max() < 0.45


def test_unreliable_borders_keep_the_structures() -> None:
    parameters = [sample_boundary(np.random.default_rng(2), 3.0)]
    (mask,) = apply_raters(label(), parameters)
    changed = np.mean(mask != label())
    assert 0.01 < changed < 0.2 and set(np.unique(mask)) == {0, 1, 2}
    far = apply_raters(label(), [sample_boundary(np.random.default_rng(2), 0.0)])[0]
    assert np.array_equal(far, label())
