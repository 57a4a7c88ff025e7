"""Metrics against hand arithmetic, naive loops and MONAI's own functions."""

from __future__ import annotations

import csv
import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.metrics import compute_average_surface_distance, compute_hausdorff_distance
from scipy.ndimage import binary_erosion
from scipy.stats import norm

from common.evaluation.metrics import (
    MEAN_STRUCTURE,
    METRICS,
    CaseTable,
    bootstrap_interval,
    csv_columns,
    image_diagonal,
    read_rows,
    structure_metrics,
    summarise,
    surface_distances,
)

LABELS = {1: "atrium", 2: "wall", 3: "vein"}
SPACINGS = {2: (1.5, 0.7), 3: (1.0, 1.5, 2.5)}


def blob_map(rng: np.random.Generator, shape: tuple[int, ...], classes: int) -> np.ndarray:
    """Random rectangles of each structure, the later ones over the earlier."""
    label = np.zeros(shape, dtype=np.int64)
    for value in range(1, classes):
        for _ in range(2):
            corner = [rng.integers(0, n - 2) for n in shape]
            label[tuple(slice(c, c + rng.integers(2, 5)) for c in corner)] = value
    return label


def naive_surface(mask: np.ndarray) -> list[tuple[int, ...]]:
    """Voxels of the mask with a face neighbour that is background or outside the image."""
    points = []
    for place in np.ndindex(mask.shape):
        if not mask[place]:
            continue
        for axis, step in itertools.product(range(mask.ndim), (-1, 1)):
            other = list(place)
            other[axis] += step
            if not 0 <= other[axis] < mask.shape[axis] or not mask[tuple(other)]:
                points.append(place)
                break
    return points


def naive_percentile(values: list[float], percent: int) -> float:
    """With linear interpolation between the sorted values."""
    ordered = sorted(values)
    place = percent / 100 * (len(ordered) - 1)
    low, share = int(place), place - int(place)
    return ordered[low] + share * (ordered[min(low + 1, len(ordered) - 1)] - ordered[low])


def naive_distances(prediction: np.ndarray, reference: np.ndarray, spacing: tuple[float, ...]) -> tuple[float, float]:
    """95HD and ASD with loops over all pairs of surface voxels."""

    def one_way(start: list[tuple[int, ...]], end: list[tuple[int, ...]]) -> list[float]:
        return [min(math.dist(np.multiply(a, spacing), np.multiply(b, spacing)) for b in end) for a in start]

    surfaces = naive_surface(prediction), naive_surface(reference)
    there, back = one_way(*surfaces), one_way(*surfaces[::-1])
    return max(naive_percentile(there, 95), naive_percentile(back, 95)), sum(there + back) / len(there + back)


def random_probabilities(rng: np.random.Generator, classes: int, shape: tuple[int, ...]) -> np.ndarray:
    logits = torch.as_tensor(rng.normal(0, 2, (classes, *shape)), dtype=torch.float32)
    return torch.softmax(logits, dim=0).numpy()


def test_shifted_cubes_have_known_distances() -> None:
    """A 6x6x6 cube moved by 2 voxels of 1.5 mm: of its 152 surface voxels, those off the other surface are known."""
    reference = np.zeros((20, 20, 20), dtype=int)
    reference[5:11, 5:11, 5:11] = 1
    row = structure_metrics(np.roll(reference, 2, axis=1), reference, {1: "cube"}, spacing=(1.0, 1.5, 4.0))[0]
    # overlap 6*4*6 = 144 of 216
    assert row["dice"] == pytest.approx(144 / 216)
    assert row["jaccard"] == pytest.approx(144 / 288)
    # the end face (36 voxels) and the ring before it (20) lie outside the other cube: 36 at 3.0 mm, 20 at 1.5 mm, less
    # none; the hidden end face lies inside it: 16 inner voxels, 1 mm from the side faces at the row next to them
    # (12 of them), 2 mm at most in the middle (4); the other 80 lie on the other cube's sides
    inside = [min(1.0 * min(i, 5 - i), 4.0 * min(k, 5 - k), 3.0) for i in range(1, 5) for k in range(1, 5)]
    distances = [3.0] * 36 + [1.5] * 20 + inside + [0.0] * 80
    assert len(distances) == 6**3 - 4**3
    assert row["hd95"] == pytest.approx(3.0)
    assert row["asd"] == pytest.approx(np.mean(distances), rel=1e-6)
    assert row["unit"] == "mm"


def test_shifted_points_are_as_far_as_the_shift() -> None:
    reference, prediction = np.zeros((2, 7, 9, 11), dtype=int)
    reference[3, 2, 5] = prediction[3, 4, 5] = 1
    row = structure_metrics(prediction, reference, {1: "point"}, spacing=(0.5, 1.5, 9.0))[0]
    assert (row["hd95"], row["asd"], row["dice"], row["jaccard"]) == (3.0, 3.0, 0.0, 0.0)
    assert not row["missed"] and not row["spurious"]


def test_percentile_is_taken_per_direction_then_the_larger() -> None:
    """One of 21 prediction voxels is 10 away: the 95th percentile is the 20th of 21 values, 0, in both directions."""
    reference = np.zeros((4, 40), dtype=int)
    reference[1, :20] = 1
    prediction = reference.copy()
    prediction[1, 29] = 1
    assert structure_metrics(prediction, reference, {1: "line"})[0]["hd95"] == 0.0
    prediction[1, 30] = 1
    # now 22 values: place 0.95 * 21 = 19.95, between 0 (19th) and 10 (20th)
    assert structure_metrics(prediction, reference, {1: "line"})[0]["hd95"] == pytest.approx(9.5)
    assert structure_metrics(reference, prediction, {1: "line"})[0]["hd95"] == pytest.approx(9.5)


@pytest.mark.parametrize("shape", [(9, 10), (7, 6, 8)])
@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize("with_spacing", [True, False])
def test_distances_equal_naive_loops_and_monai(shape: tuple[int, ...], classes: int, with_spacing: bool) -> None:
    rng = np.random.default_rng(len(shape) * 10 + classes)
    spacing = SPACINGS[len(shape)] if with_spacing else None
    labels = {value: LABELS[value] for value in range(1, classes)}
    compared = 0
    for _ in range(4):
        prediction, reference = blob_map(rng, shape, classes), blob_map(rng, shape, classes)
        for row in structure_metrics(prediction, reference, labels, spacing):
            masks = prediction == row["label"], reference == row["label"]
            assert row["unit"] == ("mm" if with_spacing else "voxel")
            if not (masks[0].any() and masks[1].any()):
                continue
            compared += 1
            hd95, asd = naive_distances(*masks, spacing or (1.0,) * len(shape))
            assert row["hd95"] == pytest.approx(hd95, rel=1e-5)
            assert row["asd"] == pytest.approx(asd, rel=1e-5)
            tensors = [torch.as_tensor(mask)[None, None] for mask in masks]
            options: dict[str, Any] = {"include_background": True, "spacing": spacing}
            monai_hd = compute_hausdorff_distance(*tensors, percentile=95, **options).item()
            monai_asd = compute_average_surface_distance(*tensors, symmetric=True, **options).item()
            assert row["hd95"] == pytest.approx(monai_hd, rel=1e-5)
            assert row["asd"] == pytest.approx(monai_asd, rel=1e-5)
    assert compared >= 3


def test_surfaces_on_the_crop_equal_those_of_the_whole_image() -> None:
    """Masks that touch the image's border and masks that do not: the crop of both together changes no surface."""
    rng = np.random.default_rng(3)
    for _ in range(10):
        masks = [blob_map(rng, (8, 9, 7), 2) == 1 for _ in range(2)]
        whole = [np.argwhere(mask & ~binary_erosion(mask)) * SPACINGS[3] for mask in masks]
        pairs = np.linalg.norm(whole[0][:, None] - whole[1][None], axis=-1)
        there, back = surface_distances(masks[0], masks[1], SPACINGS[3])
        assert np.allclose(there, pairs.min(axis=1), rtol=1e-6)
        assert np.allclose(back, pairs.min(axis=0), rtol=1e-6)
        # and as far from the border as one likes
        padded = surface_distances(np.pad(masks[0], 3), np.pad(masks[1], 3), SPACINGS[3])
        assert np.array_equal(there, padded[0]) and np.array_equal(back, padded[1])


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_an_image_of_one_slice_is_a_2d_image(axis: int) -> None:
    rng = np.random.default_rng(4)
    prediction, reference = (blob_map(rng, (24, 20), 3) for _ in range(2))
    reference[reference == 2] = 0  # a spurious structure, whose distance is the diagonal
    spacing = list(SPACINGS[2])
    flat = structure_metrics(prediction, reference, LABELS, spacing)
    spacing.insert(axis, 7.0)
    thick, true = (np.expand_dims(labels, axis) for labels in (prediction, reference))
    assert structure_metrics(thick, true, LABELS, spacing) == flat
    assert flat[0]["asd"] > 0 and flat[1]["spurious"]


def test_an_image_of_one_voxel() -> None:
    one = np.ones((1, 1, 1), dtype=int)
    assert structure_metrics(one, one, {1: "a"}, (1.0, 1.0, 2.0))[0]["hd95"] == 0
    assert structure_metrics(0 * one, one, {1: "a"}, (1.0, 2.0, 2.0))[0]["hd95"] == 3


@pytest.mark.parametrize("shape", [(6, 8), (6, 8, 10)])
def test_empty_masks(shape: tuple[int, ...]) -> None:
    spacing = SPACINGS[len(shape)]
    diagonal = math.sqrt(sum((n * s) ** 2 for n, s in zip(shape, spacing, strict=True)))
    assert image_diagonal(shape, spacing) == pytest.approx(diagonal)
    reference, prediction = np.zeros((2, *shape), dtype=int)
    reference[2, 3], prediction[4, 4] = 1, 2
    missed, spurious, neither = structure_metrics(prediction, reference, LABELS, spacing)
    assert (missed["missed"], missed["spurious"]) == (True, False)
    assert (spurious["missed"], spurious["spurious"]) == (False, True)
    assert (neither["missed"], neither["spurious"]) == (False, False)
    for row in (missed, spurious):
        assert (row["dice"], row["jaccard"]) == (0.0, 0.0)
        assert row["hd95"] == row["asd"] == row["hd95_medpy"] == row["asd_medpy"] == pytest.approx(diagonal)
        assert row["hd95_medpy_voxels"] == row["asd_medpy_voxels"] == pytest.approx(math.hypot(*shape))
    assert [neither[m] for m in ("dice", "jaccard")] == [1.0, 1.0]
    assert {neither[m] for m, metric in METRICS.items() if metric.unit and metric.of == "structure"} == {0.0}


def test_arguments_that_do_not_fit_are_refused() -> None:
    square = np.zeros((4, 4), dtype=int)
    with pytest.raises(ValueError, match="same 2D or 3D shape"):
        structure_metrics(square, np.zeros((4, 5), dtype=int), LABELS)
    with pytest.raises(ValueError, match="same 2D or 3D shape"):
        structure_metrics(square[None, None], square[None, None], LABELS)
    for spacing in [(1.0,), (1.0, 0.0), (1.0, float("nan"))]:
        with pytest.raises(ValueError, match="spacing must be 2 positive numbers"):
            structure_metrics(square, square, LABELS, spacing)
    with pytest.raises(ValueError, match="at least one structure"):
        CaseTable({0: "background"})
    with pytest.raises(ValueError, match="each differently"):
        CaseTable({1: "lung", 2: "lung"})


def filled_table(classes: int = 4, dims: int = 3, cases: int = 5) -> CaseTable:
    rng = np.random.default_rng(7)
    shape = (8, 9, 7)[:dims]
    table = CaseTable({0: "background", **{v: LABELS[v] for v in range(1, classes)}})
    for index in range(cases):
        reference, probabilities = blob_map(rng, shape, classes), random_probabilities(rng, classes, shape)
        prediction = blob_map(rng, shape, classes)
        if index == 1:
            prediction[prediction == 1] = 0
        table.add(f"case{index}", prediction, reference, SPACINGS[dims], probabilities)
    return table


@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize("dims", [2, 3])
def test_summary_has_every_metric_and_no_nan(classes: int, dims: int) -> None:
    summary = filled_table(classes, dims).summary()
    names = [LABELS[v] for v in range(1, classes)] + ([MEAN_STRUCTURE] if classes > 2 else [])
    expected = {(m, n) for m, metric in METRICS.items() if metric.of == "structure" for n in names}
    expected |= {(name, "all classes") for name in ("ece", "classwise_ece", "brier", "nll")}
    assert {(row["metric"], row["structure"]) for row in summary.rows} == expected
    for row in summary.rows:
        assert all(math.isfinite(row[key]) for key in ("mean", "sd", "lo", "hi"))
        assert row["lo"] <= row["mean"] <= row["hi"] and row["n"] == 5
    assert "case1: atrium" in summary.missed


def test_summary_by_hand() -> None:
    """Dice 1 and 0 (missed) of one structure, 1 and 1 of the other (absent from both)."""
    table = CaseTable({1: "atrium", 2: "wall"})
    reference = np.zeros((6, 8), dtype=int)
    reference[2, 3] = 1
    table.add("good", reference, reference, (1.0, 1.0))
    table.add("bad", np.zeros_like(reference), reference, (1.0, 1.0))
    summary = table.summary()
    rows = {(row["metric"], row["structure"]): row for row in summary.rows}
    atrium, mean = rows["dice", "atrium"], rows["dice", MEAN_STRUCTURE]
    assert (atrium["mean"], atrium["n"], atrium["missed"]) == (0.5, 2, 1)
    assert atrium["sd"] == pytest.approx(math.sqrt(0.5))
    assert rows["dice", "wall"]["mean"] == 1.0 and rows["dice", "wall"]["missed"] == 0
    assert mean["mean"] == 0.75 and mean["sd"] == pytest.approx(0.5 * math.sqrt(0.5))
    # the image's diagonal: sqrt(36 + 64) = 10
    assert rows["hd95", "atrium"]["mean"] == 5.0 and rows["hd95", "atrium"]["unit"] == "mm"
    assert summary.missed == ["bad: atrium"] and summary.spurious == []
    text = table.format_summary()
    assert "bad: atrium" in text and "hd95 [mm]" in text and "2 cases" in text
    assert not any(row["metric"] == "ece" for row in summary.rows)


def test_units_are_not_averaged_together() -> None:
    table = CaseTable({1: "atrium"})
    label = np.ones((4, 4), dtype=int)
    table.add("mm", label * 0, label, (2.0, 2.0))
    table.add("voxels", label * 0, label)
    rows = [row for row in table.summary().rows if row["metric"] == "hd95"]
    assert [(row["unit"], row["n"]) for row in rows] == [("mm", 1), ("voxel", 1)]
    assert rows[0]["mean"] == pytest.approx(2 * rows[1]["mean"])
    assert [row["n"] for row in table.summary().rows if row["metric"] == "dice"] == [2]


def test_bootstrap_is_deterministic_and_sensible() -> None:
    values = np.random.default_rng(0).normal(0.8, 0.1, 40)
    low, high = bootstrap_interval(values, seed=3)
    assert (low, high) == bootstrap_interval(values, seed=3) != bootstrap_interval(values, seed=4)
    # close to the normal interval at this size
    half = 1.96 * values.std(ddof=1) / math.sqrt(40)
    assert low == pytest.approx(values.mean() - half, abs=0.01) and high == pytest.approx(
        values.mean() + half, abs=0.01
    )
    assert bootstrap_interval([0.5]) == (0.5, 0.5) == bootstrap_interval([0.5] * 4)
    low, high = bootstrap_interval([0.1, 0.3 - 0.2, 0.1])  # equal but for rounding
    assert low == pytest.approx(0.1) and high == pytest.approx(0.1)


def test_bootstrap_interval_is_bca() -> None:
    """Efron's formulas, written out, over the same kind of draws: long to the side of a skewed sample's tail."""
    values = np.array([1.0, 1.2, 1.5, 1.7, 2.0, 2.1, 2.4, 2.8, 3.1, 4.0, 9.0, 14.0])
    means = values[np.random.default_rng(2).integers(0, 12, (200_000, 12))].mean(axis=1)
    left_out = np.array([np.delete(values, index).mean() for index in range(12)])
    spread = left_out.mean() - left_out
    acceleration = (spread**3).sum() / (6 * (spread**2).sum() ** 1.5)
    bias = norm.ppf((means < values.mean()).mean())
    shares = []
    for share in (0.025, 0.975):
        z = bias + norm.ppf(share)
        shares.append(norm.cdf(bias + z / (1 - acceleration * z)))
    low, high = bootstrap_interval(values, resamples=50_000)
    assert (low, high) == pytest.approx(np.quantile(means, shares), rel=0.01)
    assert high - values.mean() > 1.3 * (values.mean() - low)


def test_summary_is_seeded() -> None:
    assert filled_table().summary(seed=1) == filled_table().summary(seed=1)


def test_case_without_foreground_has_no_calibration_error_but_all_else() -> None:
    table = CaseTable({1: "atrium"})
    empty = np.zeros((4, 4), dtype=int)
    row = table.add("empty", empty, empty, None, np.stack([np.ones((4, 4)), np.zeros((4, 4))]))[0]
    assert row["ece"] is None and row["classwise_ece"] is None and row["dice"] == 1.0 and row["unit"] == "voxel"
    assert table.add("full", empty + 1, empty + 1, None, np.full((2, 4, 4), 0.5))[0]["ece"] == pytest.approx(0.5)
    counts = {row["metric"]: row["n"] for row in table.summary().rows}
    assert counts["ece"] == 1 and counts["dice"] == 2


def test_csv_round_trip(tmp_path: Path) -> None:
    table = filled_table()
    table.add("plain", np.ones((3, 3)), np.ones((3, 3)))
    table.write_csv(tmp_path / "metrics.csv")
    rows = read_rows(tmp_path / "metrics.csv")
    assert rows == table.rows and list(rows[0]) == list(csv_columns())
    assert summarise(rows, seed=2) == table.summary(seed=2)
    (tmp_path / "other.csv").write_text("case,dice\na,1\n")
    with pytest.raises(ValueError, match="columns missing: label"):
        read_rows(tmp_path / "other.csv")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["metrics.csv", "other.csv"]


def test_reliability_adds_up_over_cases(tmp_path: Path) -> None:
    table = CaseTable({1: "atrium"}, bins=10)
    ones = np.ones((2, 2), dtype=int)
    table.add("a", ones, ones, None, np.stack([ones * 0.25, ones * 0.75]))
    table.add("b", ones, ones * 0, None, np.stack([ones * 0.25, ones * 0.75]))
    filled = [row for row in table.reliability if row["count"]]
    untempered = {"count_calibrated": 0, "confidence_calibrated": None, "accuracy_calibrated": None}
    assert filled == [{"lower": 0.7, "upper": 0.8, "count": 8, "confidence": 0.75, "accuracy": 0.5} | untempered]
    table.write_reliability_csv(tmp_path / "reliability.csv")
    with (tmp_path / "reliability.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 10 and lines[7]["count"] == "8" and lines[0]["accuracy"] == ""


def test_metrics_before_and_after_temperature_scaling() -> None:
    table = CaseTable({1: "atrium"})
    ones, half = np.ones((2, 2), dtype=int), np.array([[1, 1], [0, 0]])
    maps = [np.stack([ones * (1 - p), ones * p]) for p in (0.9, 0.6)]
    (before,) = table.add("a", ones, half, None, maps[0])
    (both,) = table.add("b", ones, half, None, *maps)
    assert before["ece"] == pytest.approx(0.4) and before["ece_calibrated"] is None and before["nll_calibrated"] is None
    (after,) = CaseTable({1: "atrium"}).add("c", ones, half, None, maps[1])
    for name in ("ece", "classwise_ece", "brier", "nll"):
        assert both[name] == before[name] and both[f"{name}_calibrated"] == after[name] < before[name]
    assert "nll_calibrated [nat]" in table.format_summary()


def test_case_table_refuses_a_case_twice_and_too_few_channels() -> None:
    table = CaseTable(LABELS)
    label = np.ones((4, 4), dtype=int)
    table.add("a", label, label)
    with pytest.raises(ValueError, match="added before"):
        table.add("a", label, label)
    with pytest.raises(ValueError, match="2 probability channels for labels up to 3"):
        table.add("b", label, label, None, np.full((2, 4, 4), 0.5))
    assert len(table.rows) == 3
    assert CaseTable(LABELS).format_summary() == "no cases"
