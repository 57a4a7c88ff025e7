"""Simulated scribbles: shapes worked out by hand, what must hold for any label, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from scipy import ndimage
from skimage.measure import euler_number

from common.data.simulation.scribbles import apply_scribbles, sample_scribbles, skeleton

NONE = 255


def whole(*structures: int) -> list[dict[str, Any]]:
    """Parameters that trace every skeleton in full."""
    return sample_scribbles(np.random.default_rng(0), structures)


def stroke(structure: int, share: float, direction: tuple[float, float, float]) -> dict[str, Any]:
    return {"structure": structure, "share": share, "direction": list(direction)}


def parts(mask: np.ndarray) -> int:
    return int(ndimage.label(mask, np.ones((3,) * mask.ndim))[1])


def blobs(structures: int, shape: tuple[int, ...] = (30, 26, 8), seed: int = 0) -> np.ndarray:
    """Smooth random structures, several parts each, with the first and the last slice of the third axis empty."""
    rng = np.random.default_rng(seed)
    fields = [ndimage.gaussian_filter(rng.normal(size=shape), (2.5, 2.5, 1)) for _ in range(structures + 1)]
    label = np.argmax(np.stack(fields), axis=0).astype(np.uint8)
    label[..., 0] = label[..., -1] = 0
    label[:3] = label[-3:] = 0
    return label


def planes(*arrays: np.ndarray) -> Iterator[tuple[np.ndarray, ...]]:
    for index in range(arrays[0].shape[2]):
        yield tuple(array[..., index] for array in arrays)


# the skeleton


def test_a_line_is_its_own_skeleton() -> None:
    line = np.zeros((7, 7), dtype=bool)
    line[1:6, 1] = line[5, 1:6] = True  # an L of one voxel's width
    thin = skeleton(line)
    assert not (thin & ~line).any() and parts(thin) == 1
    assert thin[1, 1] and thin[5, 5] and thin.sum() >= line.sum() - 1  # the corner may be cut


def test_a_thick_l_keeps_both_arms() -> None:
    """Both arms are 5 wide, so their middle lines lie at index 2 of each."""
    shape = np.zeros((25, 25), dtype=bool)
    shape[:, :5] = shape[20:, :] = True
    thin = skeleton(shape)
    assert parts(thin) == 1
    np.testing.assert_array_equal(np.argwhere(thin[5:18]), [[row, 2] for row in range(13)])
    np.testing.assert_array_equal(np.argwhere(thin[:, 7:20]).T[0], [22] * 13)


def test_a_ring_stays_a_ring() -> None:
    rows, columns = np.indices((31, 31)) - 15
    distance = np.hypot(rows, columns)
    ring = (distance >= 7) & (distance <= 12)
    thin = skeleton(ring)
    assert parts(thin) == 1 and parts(~thin & (distance < 7)) == 1
    assert ndimage.label(~thin)[1] == 2  # inside and outside are still apart
    assert np.abs(distance[thin] - 9.5).max() < 1.5


@pytest.mark.parametrize("seed", range(5))
def test_topology_of_random_shapes_stays(seed: int) -> None:
    mask = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=(40, 40)), 1.2) > 0
    thin = skeleton(mask)
    assert not (thin & ~mask).any() and parts(thin) == parts(mask)
    assert euler_number(thin, 2) == euler_number(mask, 2)
    square = thin[:-1, :-1] & thin[1:, :-1] & thin[:-1, 1:] & thin[1:, 1:]
    assert square.sum() <= 3  # thin: hardly any 2 x 2 square is left


@pytest.mark.parametrize("shape", [(1, 1), (2, 2), (1, 4), (2, 3), (3, 3), (1, 1, 1), (2, 2, 2), (2, 2, 1), (3, 3, 3)])
def test_no_part_vanishes(shape: tuple[int, ...]) -> None:
    """Thinning wipes out blocks of even size in 3D; the array's edge is an edge of the region as well."""
    assert 1 <= skeleton(np.ones(shape, dtype=bool)).sum() <= max(shape)
    two = np.zeros([2 * size + 1 for size in shape], dtype=bool)
    two[tuple(slice(size) for size in shape)] = True
    two[tuple(slice(size + 1, None) for size in shape)] = True
    assert parts(skeleton(two)) == 2


# whole scribbles


@pytest.mark.parametrize("structures", [1, 3])
def test_what_holds_in_every_slice(structures: int) -> None:
    label = blobs(structures)
    before = label.copy()
    scribble = apply_scribbles(label, whole(*range(1, structures + 1)))
    np.testing.assert_array_equal(label, before)
    assert scribble.dtype == label.dtype
    drawn = scribble != NONE
    np.testing.assert_array_equal(scribble[drawn], label[drawn])
    assert 0 < drawn.mean() < 0.5
    for plane, marked in planes(label, scribble):
        present = set(np.unique(plane)) - {0}
        assert set(np.unique(marked)) - {0, NONE} == present
        assert present or (marked == NONE).all()  # slices without structures are left out
        for structure in present:
            assert parts(marked == structure) == parts(plane == structure)
            np.testing.assert_array_equal(marked == structure, skeleton(plane == structure))
    assert (scribble[..., 0] == NONE).all() and (scribble[..., 3] == 0).any()


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_the_slice_axis(axis: int) -> None:
    """The same volume with its slices along another axis gives the same scribbles; a 2D label is one slice."""
    label = blobs(2)
    parameters = whole(1, 2)
    expected = apply_scribbles(label, parameters, slice_axis=2)
    moved = apply_scribbles(np.moveaxis(label, 2, axis), parameters, slice_axis=axis)
    np.testing.assert_array_equal(moved, np.moveaxis(expected, 2, axis))
    np.testing.assert_array_equal(apply_scribbles(label[..., 4], parameters, slice_axis=axis), expected[..., 4])
    if axis != 2:
        assert (apply_scribbles(label, parameters, slice_axis=axis) != expected).any()


def test_the_background_lies_around_a_structure() -> None:
    """A square is its own convex hull: the background's scribble is a closed line at most 5 voxels off."""
    label = np.zeros((40, 40, 1), dtype=np.uint8)
    label[15:25, 15:25] = 1
    line = apply_scribbles(label, whole(1))[..., 0] == 0
    distance = ndimage.distance_transform_edt(label[..., 0] == 0)
    assert distance[line].min() >= 1.5 and distance[line].max() <= 4.5  # the middle of a band of 5
    assert ndimage.label(~line)[1] == 2 and parts(line) == 1
    wider = apply_scribbles(label, whole(1), margin=9)[..., 0] == 0
    assert distance[wider].min() > distance[line].min() and distance[wider].max() <= 9
    none = apply_scribbles(label, whole(1), margin=0)
    assert not (none == 0).any() and (none == 1).any()  # nothing lies between a square and its hull


def test_the_background_is_bounded_by_the_hull_of_all_structures() -> None:
    """Between two squares 20 voxels apart lies background that no square alone would reach; beside them none."""
    label = np.zeros((60, 60, 1), dtype=np.uint8)
    label[25:35, 10:20], label[25:35, 40:50] = 1, 2
    background = apply_scribbles(label, whole(1, 2))[..., 0] == 0
    assert background[20:40, 26:34].any()
    rows, columns = np.nonzero(background)
    assert rows.min() >= 20 and rows.max() <= 39 and columns.min() >= 5 and columns.max() <= 54
    label[25:35, 40:50] = 0
    alone = apply_scribbles(label, whole(1, 2))[..., 0] == 0
    assert alone.any() and not alone[:, 25:].any()


def test_undeclared_values_are_neither_structure_nor_background() -> None:
    label = np.zeros((20, 20), dtype=np.int16)
    label[5:10, 5:10], label[5:10, 10:15] = 1, 7
    scribble = apply_scribbles(label, whole(1))
    assert set(np.unique(scribble)) == {0, 1, NONE} and (label[scribble == 0] == 0).all()


def test_the_share_is_the_end_against_the_direction() -> None:
    """45% of ten voxels are five (rounded up), from the end that the direction leaves behind."""
    label = np.zeros((14, 9, 2), dtype=np.uint8)
    label[2:12, 4, 0] = 1
    for direction, expected in (((1.0, 0.0, 0.0), range(2, 7)), ((-1.0, 0.0, 0.0), range(7, 12))):
        scribble = apply_scribbles(label, [stroke(1, 0.45, direction)])
        assert [tuple(index) for index in np.argwhere(scribble == 1)] == [(row, 4, 0) for row in expected]
        assert not (scribble == 0).any()  # the background was not named
    turned = apply_scribbles(np.moveaxis(label, 2, 0), [stroke(1, 0.45, (0.0, -1.0, 0.0))], slice_axis=0)
    np.testing.assert_array_equal(
        np.moveaxis(turned, 0, 2), apply_scribbles(label, [stroke(1, 0.45, (-1.0, 0.0, 0.0))])
    )
    assert (apply_scribbles(label, [stroke(1, 0.001, (1.0, 0.0, 0.0))]) == 1).sum() == 1


def test_the_width_stays_inside() -> None:
    label = np.zeros((9, 15), dtype=np.uint8)
    label[4, 2:13] = 1
    label[5, 2:13] = 2
    bare = apply_scribbles(label, [stroke(1, 1.0, (1.0, 0.0, 0.0))])
    np.testing.assert_array_equal(bare == 1, label == 1)
    np.testing.assert_array_equal(apply_scribbles(label, [stroke(1, 1.0, (1.0, 0.0, 0.0))], width=5), bare)
    label[1:8] = 1
    label[:, :2] = 0
    thin = apply_scribbles(label, [stroke(1, 1.0, (1.0, 0.0, 0.0))]) == 1
    thick = apply_scribbles(label, [stroke(1, 1.0, (1.0, 0.0, 0.0))], width=3) == 1
    np.testing.assert_array_equal(thick, ndimage.binary_dilation(thin) & (label == 1))


def test_in_3d() -> None:
    """A bar along the third axis: one line through it in 3D, a few voxels a slice in 2D."""
    label = np.zeros((30, 30, 24), dtype=np.uint8)
    label[12:17, 12:17, 7:18] = 1
    label[2, 2, 7] = 2  # reached by the hull, so the background spans the volume between the two
    scribble = apply_scribbles(label, whole(1, 2), slice_axis=None)
    drawn = scribble != NONE
    np.testing.assert_array_equal(scribble[drawn], label[drawn])
    line = np.argwhere(scribble == 1)
    assert parts(scribble == 1) == 1 and 5 <= len(line) <= 15
    assert (np.abs(line[:, :2] - 14) <= 2).all() and scribble[2, 2, 7] == 2
    assert (scribble == 0)[..., :7].any() and not (scribble == 0)[..., :2].any() and not (scribble == 0)[..., 23:].any()
    assert (apply_scribbles(label, whole(1, 2))[..., :7] == NONE).all()


def test_a_flat_structure_in_3d() -> None:
    label = np.zeros((20, 20, 20), dtype=np.uint8)
    label[8:12, 8:12, 10] = 1
    scribble = apply_scribbles(label, whole(1), slice_axis=None)
    assert (scribble == 1).any()
    distance = ndimage.distance_transform_edt(label == 0)
    assert 2 <= distance[scribble == 0].max() <= 6.5


def test_an_empty_label_stays_unlabelled() -> None:
    label = np.zeros((6, 5, 4), dtype=np.uint8)
    for axis in (None, 0, 1, 2):
        assert (apply_scribbles(label, whole(1), slice_axis=axis, unlabelled=9) == 9).all()


# chance


def test_sampling_is_seeded_and_applying_has_no_chance() -> None:
    draws = [sample_scribbles(np.random.default_rng(seed), (1, 2, 3), keep=0.5) for seed in (1, 1, 2)]
    assert draws[0] == draws[1] != draws[2]
    assert [item["structure"] for item in draws[0]] == [0, 1, 2, 3]
    assert all(0.5 <= item["share"] <= 1 for item in draws[0])
    assert all(abs(np.linalg.norm(item["direction"]) - 1) < 0.01 for item in draws[0])
    label = blobs(3)
    first = apply_scribbles(label, draws[0])
    np.testing.assert_array_equal(first, apply_scribbles(label, json.loads(json.dumps(draws[0]))))
    assert (first != apply_scribbles(label, draws[2])).any()


def test_less_is_kept_of_the_same_skeletons() -> None:
    label = blobs(3)
    full = apply_scribbles(label, whole(1, 2, 3))
    some = apply_scribbles(label, sample_scribbles(np.random.default_rng(0), (1, 2, 3), keep=0.3))
    np.testing.assert_array_equal(some[some != NONE], full[some != NONE])
    assert 0.3 < (some != NONE).sum() / (full != NONE).sum() < 0.95
    for plane, marked in planes(label, some):
        assert set(np.unique(marked)) - {0, NONE} == set(np.unique(plane)) - {0}


def test_refused() -> None:
    rng = np.random.default_rng(0)
    for keep in (0, 1.1, -1):
        with pytest.raises(ValueError, match="keep must be above 0"):
            sample_scribbles(rng, (1,), keep=keep)
    with pytest.raises(ValueError, match="positive label values"):
        sample_scribbles(rng, (0, 1))
    label = np.zeros((4, 4, 4), dtype=np.uint8)
    refused: list[tuple[np.ndarray, dict[str, Any], str]] = [
        (label.astype(float), {}, "must hold integers"),
        (label[None], {}, "2 or 3 axes, got 4"),
        (label, {"slice_axis": 3}, "slice_axis must be"),
        (label, {"margin": -1}, "margin must be"),
        (label, {"width": 0}, "width 1 or more"),
        (label, {"unlabelled": 0}, "the label holds 0, which is to mark"),
    ]
    for array, settings, message in refused:
        with pytest.raises(ValueError, match=message):
            apply_scribbles(array, whole(1), **settings)
