"""Simulated label noise against naive versions with loops, and its rules for collisions and cores."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest

from common.data.simulation.noise import apply_noise, sample_noise, settle_noise


def one(structure: int, operation: str, radius: float) -> list[dict[str, object]]:
    return [{"structure": structure, "operation": operation, "radius": radius}]


def blob(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """An irregular structure: some random boxes."""
    rng = np.random.default_rng(seed)
    label = np.zeros(shape, dtype=np.uint8)
    for _ in range(3):
        start = [int(rng.integers(2, size // 2)) for size in shape]
        label[tuple(slice(a, a + int(rng.integers(3, 6))) for a in start)] = 1
    return label


def naive(label: np.ndarray, operation: str, radius: float) -> np.ndarray:
    """Ball morphology by definition; voxels beyond the edge do not count."""
    offsets = range(-int(radius) - 1, int(radius) + 2)
    ball = [o for o in itertools.product(offsets, repeat=label.ndim) if sum(x * x for x in o) <= radius**2]
    result = np.zeros_like(label)
    for place in np.ndindex(label.shape):
        moved = [tuple(np.add(place, o)) for o in ball]
        values = [label[m] for m in moved if all(0 <= x < n for x, n in zip(m, label.shape, strict=True))]
        result[place] = max(values) if operation == "dilate" else min(values)
    return result


@pytest.mark.parametrize("shape", [(17, 14), (12, 11, 10)])
@pytest.mark.parametrize("operation, radius", [("dilate", 1.0), ("dilate", 2.5), ("erode", 1.0)])
def test_equals_the_naive_ball(shape: tuple[int, ...], operation: str, radius: float) -> None:
    label = blob(shape)
    if operation == "erode":
        label = naive(label, "dilate", 2.0)  # deep enough for the erosion to stay below the limit
    expected = naive(label, operation, radius)
    assert 0 < expected.sum() != label.sum()
    np.testing.assert_array_equal(apply_noise(label, one(1, operation, radius)), expected)


def test_one_voxel_becomes_a_ball_of_known_size() -> None:
    label = np.zeros((9, 9, 9), dtype=np.int16)
    label[4, 4, 4] = 3
    grown = apply_noise(label, one(3, "dilate", 1.0))
    assert (grown == 3).sum() == 7 and grown.dtype == np.int16
    assert (apply_noise(label, one(3, "dilate", 2.0)) == 3).sum() == 33
    assert label.sum() == 3  # the input is left alone


def test_erosion_stops_at_the_core_and_says_so() -> None:
    label = np.zeros((15, 15), dtype=np.uint8)
    label[3:12, 3:12] = 1  # greatest depth 5
    parameters = one(1, "erode", 50.0)
    settled = settle_noise(label, parameters)
    assert settled[0]["radius"] == 50.0 and settled[0]["applied_radius"] == 3.75
    eroded = apply_noise(label, parameters)
    assert eroded.sum() == 9 and eroded[6:9, 6:9].all()
    np.testing.assert_array_equal(eroded, apply_noise(label, settled))
    assert settle_noise(label, settled) == settled


def test_a_label_without_outside_and_an_absent_structure() -> None:
    full = np.ones((5, 5), dtype=np.uint8)
    for operation in ("dilate", "erode"):
        np.testing.assert_array_equal(apply_noise(full, one(1, operation, 2.0)), full)
    assert settle_noise(full, one(2, "dilate", 2.0))[0]["applied_radius"] == 0.0
    np.testing.assert_array_equal(apply_noise(full, one(2, "dilate", 2.0)), full)


def test_colliding_structures_share_the_ground_and_order_does_not_matter() -> None:
    label = np.zeros((21,), dtype=np.uint8)
    label[4:7], label[14:17] = 1, 2
    parameters = one(1, "dilate", 6.0) + one(2, "dilate", 6.0)
    grown = apply_noise(label, parameters)
    np.testing.assert_array_equal(grown, apply_noise(label, parameters[::-1]))
    # voxels 7..13 lie between; the middle one is as far from both and goes to the smaller value
    assert grown[7:11].tolist() == [1] * 4 and grown[11:14].tolist() == [2] * 3


def test_every_structure_survives_its_neighbours() -> None:
    label = np.zeros((30, 30), dtype=np.uint8)
    label[5:25, 3:14], label[5:25, 14:19], label[10:13, 19:22] = 1, 2, 3
    parameters = one(1, "dilate", 15.0) + one(2, "erode", 15.0) + one(3, "erode", 1.0)
    assert np.unique(apply_noise(label, parameters)).tolist() == [0, 1, 2, 3]


def test_structures_without_parameters_keep_their_voxels() -> None:
    label = np.zeros((20, 20), dtype=np.uint8)
    label[5:15, 2:9], label[5:15, 9:15] = 1, 2
    grown = apply_noise(label, one(1, "dilate", 4.0))
    np.testing.assert_array_equal(grown == 2, label == 2)
    assert (grown == 1).sum() > (label == 1).sum()


def test_cropping_changes_nothing() -> None:
    label = np.zeros((40, 30, 20), dtype=np.uint8)
    label[2:7, 20:30, 0:6] = 1
    placed = np.pad(label, 10)
    inner = (slice(10, -10),) * 3
    parameters = one(1, "dilate", 5.0)
    np.testing.assert_array_equal(apply_noise(label, parameters), apply_noise(placed, parameters)[inner])


def test_sampling_is_seeded_in_range_and_json() -> None:
    drawn = [item for seed in range(200) for item in sample_noise(np.random.default_rng(seed), (3, 15), [1, 2])]
    assert sample_noise(np.random.default_rng(7), (3, 15), [1, 2]) == drawn[14:16]
    radii = np.array([item["radius"] for item in drawn])
    assert radii.min() >= 3 and radii.max() <= 15 and abs(radii.mean() - 9) < 0.7
    share = np.mean([item["operation"] == "dilate" for item in drawn])
    assert 0.4 < share < 0.6
    assert {item["structure"] for item in drawn} == {1, 2}
    assert json.loads(json.dumps(drawn)) == drawn


@pytest.mark.parametrize("radius, structures", [((5, 3), [1]), ((-1, 3), [1]), ((1, np.inf), [1]), ((1, 2), [0])])
def test_sampling_refuses(radius: tuple[float, float], structures: list[int]) -> None:
    with pytest.raises(ValueError):
        sample_noise(np.random.default_rng(0), radius, structures)


@pytest.mark.parametrize(
    "parameters, message",
    [
        (one(1, "melt", 1.0), "operation"),
        (one(1, "erode", -1.0), "radius"),
        (one(0, "erode", 1.0), "positive"),
        (one(1, "erode", 1.0) * 2, "once"),
    ],
)
def test_applying_refuses(parameters: list[dict[str, object]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        apply_noise(np.ones((3, 3), dtype=np.uint8), parameters)


def test_applying_refuses_labels_of_floats() -> None:
    with pytest.raises(ValueError, match="integers"):
        apply_noise(np.ones((3, 3)), one(1, "dilate", 1.0))
