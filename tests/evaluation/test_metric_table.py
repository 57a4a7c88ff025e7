"""The table of metrics: medpy's distances, and what follows from a row."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from common.evaluation.compare import paired_differences
from common.evaluation.metrics import (
    METRICS,
    Case,
    CaseTable,
    MaskPair,
    Metric,
    csv_columns,
    read_rows,
    structure_metrics,
    summarise,
    write_rows,
)
from common.evaluation.report.panels import _table_cells, _table_notes
from tests.evaluation.test_metrics import SPACINGS, blob_map, filled_table, naive_percentile, naive_surface


@pytest.mark.parametrize("shape", [(9, 10), (7, 6, 8)])
def test_distances_as_medpy_has_them_equal_naive_loops(shape: tuple[int, ...]) -> None:
    """Both directions pooled under one percentile; the mean from the prediction alone; in mm and in voxels."""
    rng = np.random.default_rng(11)
    compared = 0
    for _ in range(4):
        prediction, reference = blob_map(rng, shape, 3), blob_map(rng, shape, 3)
        for row in structure_metrics(prediction, reference, {1: "a", 2: "b"}, SPACINGS[len(shape)]):
            masks = prediction == row["label"], reference == row["label"]
            if not (masks[0].any() and masks[1].any()):
                continue
            compared += 1
            for suffix, spacing in (("", SPACINGS[len(shape)]), ("_voxels", (1.0,) * len(shape))):
                points = [naive_surface(mask) for mask in masks]
                there, back = (
                    [min(math.dist(np.multiply(p, spacing), np.multiply(q, spacing)) for q in others) for p in own]
                    for own, others in (points, points[::-1])
                )
                assert row[f"hd95_medpy{suffix}"] == pytest.approx(naive_percentile([*there, *back], 95), rel=1e-6)
                assert row[f"asd_medpy{suffix}"] == pytest.approx(sum(there) / len(there), rel=1e-6)
    assert compared >= 3


def test_distances_equal_what_medpy_gave() -> None:
    """A box and the same box longer by 6, thinner and with a spur: numbers of medpy 0.5.2 (hd95, asd; both ways)."""
    first, second = np.zeros((2, 12, 14, 16), dtype=int)
    first[3:8, 4:9, 2:9] = 1
    second[4:8, 4:10, 2:15] = 1
    second[9, 10, 3] = 1
    golden = {
        ("", "forth"): (15.0, 0.3261538461538462),
        ("", "back"): (15.0, 4.464380364792753),
        ("_voxels", "forth"): (6.0, 0.4076923076923077),
        ("_voxels", "back"): (6.0, 1.930214287124204),
    }
    for (unit, way), expected in golden.items():
        pair = (first, second) if way == "forth" else (second, first)
        row = structure_metrics(*pair, {1: "box"}, (0.8, 1.0, 2.5))[0]
        assert (row[f"hd95_medpy{unit}"], row[f"asd_medpy{unit}"]) == pytest.approx(expected, rel=1e-6)


def test_a_table_from_before_a_metric_existed_is_read(tmp_path: Path) -> None:
    table = filled_table()
    old = [name for name in csv_columns() if "medpy" not in name]
    rows = [{name: row[name] for name in old} for row in table.rows]
    write_rows(rows, tmp_path / "metrics.csv", old)
    found = read_rows(tmp_path / "metrics.csv")
    assert found[0]["dice"] == table.rows[0]["dice"] and found[0]["hd95_medpy"] is None
    assert not any("medpy" in row["metric"] for row in summarise(found).rows)


def test_a_new_metric_is_a_function_and_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is in the CSV file, the summary, the comparison, and where it says on the report's page."""

    def volume_error(masks: MaskPair) -> float:
        return abs(masks.sizes[0] - masks.sizes[1]) * float(np.prod(masks.spacing)) / 1000

    def foreground_share(case: Case) -> float | None:
        return float((np.asarray(case.prediction) > 0).mean())

    row = Metric("volume error", "ml", "lower", "structure", "table", volume_error)
    monkeypatch.setitem(METRICS, "volume_error", row)
    monkeypatch.setitem(METRICS, "share", Metric("share", "", "higher", "case", "note", foreground_share))
    reference, prediction = np.zeros((2, 6, 8), dtype=int)
    reference[2, 3:6], prediction[2, 3:5] = 1, 1
    for name, mask in (("first", prediction), ("second", reference)):
        table = CaseTable({1: "atrium"})
        table.add("a", mask, reference, (10.0, 20.0))
        (tmp_path / name).mkdir()
        table.write_csv(tmp_path / name / "metrics.csv")
    tables = [read_rows(tmp_path / name / "metrics.csv") for name in ("first", "second")]
    assert [rows[0]["volume_error"] for rows in tables] == [0.2, 0.0]
    summary = summarise(tables[0])
    assert "volume_error [ml]" in summary.format()
    assert {r["metric"]: r["mean"] for r in summary.rows}["share"] == pytest.approx(2 / 48)
    heads, cells, _ = _table_cells(summary)
    assert cells[0][heads.index("volume error (ml)")] == "0.20 ± 0.00"
    assert any("share 0.0417" in line for line in _table_notes(summary, 0))
    change = {r["metric"]: r["mean"] for r in paired_differences(*tables).rows}
    assert change["volume_error"] == pytest.approx(-0.2) and change["share"] == pytest.approx(1 / 48)


def test_the_table_says_what_each_metric_is() -> None:
    rows = filled_table().rows
    for name, metric in METRICS.items():
        assert metric.title and metric.unit_in(rows[0]) in ("", "mm", "voxel", "nat")
        assert metric.better == ("higher" if name in ("dice", "jaccard") else "lower")
