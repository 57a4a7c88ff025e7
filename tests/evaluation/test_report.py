"""The report page: what it reads, which cases and slices it picks, and that absent parts are said, not hidden."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import matplotlib
import nibabel as nib
import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.image import imread
from matplotlib.text import Text

from common.evaluation.metrics import CaseTable
from common.evaluation.report.cases import grey_window, load_case, pick_slice
from common.evaluation.report.drawing import _line_styles, case_legend, draw_case
from common.evaluation.report.errors import largest_error
from common.evaluation.report.page import SUMMARY_COLUMNS, write_report
from common.evaluation.report.panels import draw_reliability, read_history, read_reliability, structure_colour
from common.evaluation.report.rows import shown_cases

LABELS = {0: "background", 1: "core", 2: "shell", 3: "vessel"}
SPACING = (1.0, 1.0, 2.0)


def write_case(folder: Path, case: str, affine: np.ndarray | None = None, **volumes: np.ndarray) -> None:
    (folder / case).mkdir(parents=True, exist_ok=True)
    for kind, volume in volumes.items():
        image = nib.Nifti1Image(volume, np.diag([*SPACING, 1.0]) if affine is None else affine)
        nib.save(image, folder / case / f"{case}_{kind}.nii.gz")


def make_evaluation(folder: Path, cases: int = 4, classes: int = 4) -> None:
    """An evaluation's files: cases whose label is shifted by 0, 1, 2, ... voxels."""
    rng = np.random.default_rng(0)
    table = CaseTable({value: LABELS[value] for value in range(classes)})
    for index in range(cases):
        label = np.zeros((24, 20, 10), dtype=np.uint8)
        for value in range(1, classes):
            label[4 * value : 4 * value + 4, 6:14, 3:7] = value
        prediction = np.roll(label, index, axis=1)
        probabilities = np.full((classes, *label.shape), 0.1 / (classes - 1), dtype=np.float32)
        np.put_along_axis(probabilities, prediction[None].astype(np.int64), 0.9, axis=0)
        name = f"case_{index}"
        table.add(name, prediction, label, SPACING, probabilities)
        image = (label * 50 + rng.normal(0, 5, label.shape)).astype(np.float32)
        uncertainty = rng.random(label.shape).astype(np.float32)
        write_case(folder, name, image=image, label=label, pred=prediction, uncertainty=uncertainty)
    table.write_csv(folder / "metrics.csv")
    table.write_reliability_csv(folder / "reliability.csv")
    lines = ["iteration,epoch,name,value"]
    for step in range(60):
        lines += [f"{step},0,loss/clean,{1 / (step + 1)}", f"{step},0,loss/total,{2 / (step + 1)}", f"{step},0,lr,0.1"]
    lines += ["30,1,validation/mean_dice,0.5", "60,2,validation/mean_dice,0.8"]
    (folder / "history.csv").write_text("\n".join(lines) + "\n")


def run_report(folder: Path, monkeypatch: pytest.MonkeyPatch | None = None, **changes: Any) -> tuple[Path, list[str]]:
    """Write the report and return it with all texts on the page."""
    texts: list[str] = []
    real = FigureCanvasAgg.print_figure

    def spy(self: FigureCanvasAgg, *args: Any, **options: Any) -> Any:
        texts.extend(text.get_text() for text in self.figure.findobj(Text) if text.get_text())
        return real(self, *args, **options)

    if monkeypatch is not None:
        monkeypatch.setattr(FigureCanvasAgg, "print_figure", spy)
    arguments: dict[str, Any] = {
        "results_dir": str(folder),
        "history_csv": folder / "history.csv",
        "title": "Phantom",
        "dpi": 50,
    }
    return write_report(**{**arguments, **changes}), texts


@pytest.mark.parametrize("classes", [2, 4])
def test_complete_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, classes: int) -> None:
    make_evaluation(tmp_path, classes=classes)
    style = dict(matplotlib.rcParams)
    page, texts = run_report(tmp_path, monkeypatch)
    assert dict(matplotlib.rcParams) == style
    pixels = imread(page)
    assert pixels.shape[1] == 413 and pixels[..., :3].std() > 0.1
    everything = "\n".join(texts)
    assert "Phantom" in texts and not [text for text in texts if text.startswith("no ")]
    for heading in ("Worst case:  case_3", "Median case:  case_2", "Best case:  case_0"):
        assert heading in texts
    assert "best 0.800\nat iteration 60" in texts and "ECE " in everything and "mm" in everything
    with (tmp_path / "report.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == SUMMARY_COLUMNS
    best = [row for row in rows if row["structure"] == "core" and row["metric"] == "dice"]
    assert len(best) == 1 and best[0]["n"] == "4" and best[0]["missed"] == "0"
    # shifts of 0 to 3 voxels of an 8 voxel wide box
    assert float(best[0]["mean"]) == pytest.approx(1 - 6 / 8 / 4)
    assert sorted(path.name for path in tmp_path.glob("*report*")) == ["report.csv", "report.png"]


def test_absent_parts_are_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_evaluation(tmp_path)
    for name in ("history.csv", "reliability.csv"):
        (tmp_path / name).unlink(missing_ok=True)
    page, texts = run_report(tmp_path, monkeypatch)
    assert page.is_file()
    assert "no training history" in texts and "no reliability table" in texts


def test_without_an_evaluation_there_is_no_report(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="metrics.csv: no evaluation here. Fix: run `evaluating` first"):
        run_report(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_absent_pictures_are_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_evaluation(tmp_path)
    (tmp_path / "case_3" / "case_3_uncertainty.nii.gz").unlink()
    (tmp_path / "case_2" / "case_2_pred.nii.gz").unlink()
    (tmp_path / "case_2" / "case_2_label.nii.gz").unlink()
    (tmp_path / "case_0" / "case_0_image.nii.gz").unlink()
    _, texts = run_report(tmp_path, monkeypatch)
    for message in ("no uncertainty map", "no prediction", "no label", "no pictures of case_0"):
        assert message in texts


def test_shown_cases_are_worst_median_and_best() -> None:
    def rows(**dice: float) -> list[dict[str, Any]]:
        return [{"case": case, "dice": value + shift} for shift in (-0.1, 0.1) for case, value in dice.items()]

    shown = shown_cases
    assert shown([]) == []
    assert shown(rows(a=0.5)) == [("only", "a")]
    assert shown(rows(a=0.5, b=0.2)) == [("worst", "b"), ("best", "a")]
    assert shown(rows(a=0.5, b=0.2, c=0.4, d=0.3)) == [("worst", "b"), ("median", "d"), ("best", "a")]


def test_missed_structures_and_other_units_are_on_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = CaseTable(LABELS)
    label = np.arange(4 * 4).reshape(4, 4) % 4
    table.add("lost", np.where(label == 3, 0, label), label)
    table.write_csv(tmp_path / "metrics.csv")
    _, texts = run_report(tmp_path, monkeypatch)
    everything = "\n".join(texts)
    assert "no pictures of lost" in texts and "Only case:  lost" in texts
    assert "lost: vessel" in everything and "missed vessel" in everything and "95HD (voxel)" in texts


def test_tables_that_lack_columns_are_refused(tmp_path: Path) -> None:
    make_evaluation(tmp_path)
    (tmp_path / "history.csv").write_text("step,loss\n1,2\n")
    with pytest.raises(ValueError, match="history.csv: columns missing: iteration, name, value"):
        run_report(tmp_path)
    assert not (tmp_path / "out" / "report.png").exists()


def test_a_line_that_is_being_written_is_left_out(tmp_path: Path) -> None:
    """A training appends an epoch's rows; a report may look meanwhile, or after a kill."""
    path = tmp_path / "history.csv"
    path.write_bytes(b"iteration,epoch,name,value\r\n1,1,loss/total,0.5\r\n2,1,loss/to")
    (iterations, values) = read_history(path)["loss/total"]
    assert (iterations.tolist(), values.tolist()) == ([1.0], [0.5])


def test_history_is_ordered_finite_and_the_last_word_counts(tmp_path: Path) -> None:
    path = tmp_path / "history.csv"
    path.write_text("iteration,epoch,name,value\n2,0,a,3\n1,0,a,2\n2,0,a,4\n3,0,a,nan\n1,0,b,nan\n")
    history = read_history(path)
    assert list(history) == ["a"]
    assert history["a"][0].tolist() == [1, 2] and history["a"][1].tolist() == [2, 4]


def test_reliability_is_read_back(tmp_path: Path) -> None:
    table = CaseTable({1: "core"}, bins=5)
    ones = np.ones((2, 2), dtype=int)
    table.add("a", ones, ones, None, np.stack([ones * 0.3, ones * 0.7]))
    table.write_reliability_csv(tmp_path / "reliability.csv")
    bins = read_reliability(tmp_path / "reliability.csv")
    assert bins.shape == (5, 8) and np.isnan(bins[0, 3])
    assert bins[3, :6] == pytest.approx([0.6, 0.8, 4, 0.7, 1.0, 0], rel=1e-6)
    (tmp_path / "earlier.csv").write_text("lower,upper,count,confidence,accuracy\n0.6,0.8,4,0.7,1.0\n")
    np.testing.assert_allclose(read_reliability(tmp_path / "earlier.csv"), bins[3:4], rtol=1e-6)
    table.add("b", ones, ones, None, np.stack([ones * 0.3, ones * 0.7]), np.stack([ones * 0.1, ones * 0.9]))
    table.write_reliability_csv(tmp_path / "reliability.csv")
    assert read_reliability(tmp_path / "reliability.csv")[4, 5:] == pytest.approx([4, 0.9, 1.0], rel=1e-6)


@pytest.mark.parametrize("tempered", [False, True])
def test_reliability_shows_calibration(tempered: bool) -> None:
    table = CaseTable({1: "core"}, bins=5)
    ones, half = np.ones((2, 2), dtype=int), np.array([[1, 1], [0, 0]])
    table.add(
        "a",
        ones,
        half,
        None,
        np.stack([ones * 0.1, ones * 0.9]),
        np.stack([ones * 0.4, ones * 0.6]) if tempered else None,
    )
    bins = np.array([[np.nan if value is None else value for value in row.values()] for row in table.reliability])
    ax, counts = Figure().subplots(2)
    draw_reliability(ax, counts, bins)
    assert len(ax.lines) == 1 + tempered, "the diagonal, and the line of the tempered probabilities"
    said = ax.get_title(loc="right")
    assert said == ("ECE 0.4000, calibrated 0.1000, foreground" if tempered else "ECE 0.4000, foreground")


def test_slice_shows_structures_and_disagreement() -> None:
    label, prediction = np.zeros((2, 6, 6, 9), dtype=int)
    assert pick_slice(label, prediction, 2, 9) == 4
    label[1:3, 1:3, 2:6] = 1
    label[4, 4, 5] = 2
    # slice 5 is the only one with both structures, each at its largest
    assert pick_slice(label, label, 2, 9) == 5
    assert pick_slice(None, label, 2, 9) == 5
    prediction[...] = label
    prediction[..., 3] = 0
    # half of the structures and all of the disagreement there: 0.5 + 1, against 1 + 0 in slice 5
    assert pick_slice(label, prediction, 2, 9) == 3


def test_case_is_turned_and_cut_by_its_affine(tmp_path: Path) -> None:
    """Front left of the patient is at the upper right of an axial picture, in whatever order the axes are stored."""
    volume = np.zeros((8, 10, 6), dtype=np.float32)
    volume[0, 9, 2] = 1.0
    label = (volume > 0).astype(np.uint8)
    for flip in (False, True):
        affine = np.diag([*SPACING, 1.0])
        stored: dict[str, np.ndarray] = {"image": volume, "label": label}
        if flip:
            affine = affine @ np.array([[0, -1, 0, 7], [1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]])
            stored = {kind: array[::-1].transpose(1, 0, 2) for kind, array in stored.items()}
        write_case(tmp_path, f"case{flip}", affine=affine, **stored)
        picture = load_case(tmp_path, f"case{flip}")
        assert picture is not None and picture.label is not None and picture.prediction is None
        assert picture.where == "axial slice 3 of 6" and picture.spacing == (1.0, 1.0) and picture.marks == "RLAP"
        rows, columns = picture.label.shape
        assert np.argwhere(picture.label).tolist() == [[0, columns - 1]] and rows <= 10
    assert load_case(tmp_path, "nobody") is None


def test_case_of_thick_sagittal_slices_flat_images_and_other_shapes(tmp_path: Path) -> None:
    image = np.random.default_rng(0).random((5, 12, 14)).astype(np.float32)
    write_case(tmp_path, "thick", affine=np.diag([5.0, 1.0, 0.5, 1.0]), image=image, label=image[:4])
    picture = load_case(tmp_path, "thick")
    assert picture is not None and picture.where == "sagittal slice 3 of 5" and picture.spacing == (0.5, 1.0)
    assert picture.marks == "APSI"
    unstated = load_case(tmp_path, "thick", in_mm=False)
    assert unstated is not None and (unstated.in_mm, unstated.marks) == (False, "")
    assert picture.problems == ["label has another shape"] and picture.image.shape == (14, 12)
    write_case(tmp_path, "flat", image=image[0])
    flat = load_case(tmp_path, "flat")
    assert flat is not None and flat.image.shape == (14, 12) and flat.where == "axial slice 1 of 1"
    write_case(tmp_path, "channels", image=np.stack([image, image * 0], axis=-1))
    channels = load_case(tmp_path, "channels")
    assert channels is not None and channels.image.max() > 0


def outline_colours(ax: Axes) -> list[tuple[float, ...]]:
    return [tuple(np.ravel(artist.get_edgecolor())[:4]) for artist in ax.collections]


def test_draw_case_colours_styles_and_aspect() -> None:
    ax = Figure().add_subplot()
    label, other = np.zeros((2, 8, 6), dtype=int)
    label[2:5, 2:5], other[1:3, 1:3] = 1, 2
    overlay = np.full((8, 6), 0.5)
    overlay[0, 0] = np.nan
    masks = {"label": label, "proposed": other}
    colours = draw_case(ax, np.ones((8, 6)), masks, overlay, 2.0, "case 1", LABELS, overlay_range=(0.0, 2.0))
    assert colours is not None and colours.get_clim() == (0.0, 2.0)
    assert ax.get_aspect() == 2.0 and ax.get_title() == "case 1" and ax.get_ylim() == (7.5, -0.5)
    drawn = outline_colours(ax)
    assert to_rgba(structure_colour(1)) in drawn and to_rgba(structure_colour(2)) in drawn
    assert to_rgba(structure_colour(3)) not in drawn
    # opacity follows the value and NaN is transparent
    alpha = np.asarray(ax.images[-1].get_array())[..., 3]
    assert alpha[0, 0] == 0 and 0 < alpha[1, 1] < 0.9
    assert draw_case(Figure().add_subplot(), np.ones((8, 6)), {}) is None
    white = Figure().add_subplot()
    draw_case(white, np.ones((8, 6)), {"label": label}, filled=("label",), outlines={"label": "white"})
    assert to_rgba("white") in outline_colours(white)
    with pytest.raises(ValueError, match=r"label \(8, 5\) and image \(8, 6\)"):
        draw_case(ax, np.ones((8, 6)), {"label": label[:, :5]})


def test_legend_and_colours_are_consistent() -> None:
    handles = case_legend(LABELS, ("label", "proposed", "something else"))
    assert [handle.get_label() for handle in handles] == [
        "core",
        "shell",
        "vessel",
        "label",
        "proposed",
        "something else",
    ]
    colours = [structure_colour(value) for value in range(1, 9)]
    assert len(set(colours)) == 8 and structure_colour(9) == colours[0]
    assert [to_rgba(handle.get_color()) for handle in handles[:3]] == [to_rgba(colour) for colour in colours[:3]]
    styles = _line_styles(["label", "a", "b"])
    assert styles["label"] == "solid" and styles["a"] != styles["b"]


def test_window_clips_neither_the_image_nor_its_structures() -> None:
    image = np.random.default_rng(0).normal(100, 10, (20, 20, 20))
    label = np.zeros(image.shape, int)
    label[:2, :2, :5] = 1
    image[label == 1] = 900.0  # 20 of 8000 voxels, above the 99.5th percentile
    image[-1, -1, -1] = np.nan
    low, high = grey_window(image)
    assert 60 < low < 90 and 110 < high < 150
    assert grey_window(image, [label]) == (low, 900.0)
    scan = np.where(np.arange(8000).reshape(image.shape) % 3, 40.0, -1000.0)
    assert grey_window(scan) == (-160.0, 240.0)
    assert grey_window(scan, [(scan < 0).astype(int)]) == (-1000.0, 240.0)  # a lung
    flat = grey_window(np.full((4, 4, 1), 7.0))
    assert flat[0] == 7.0 and flat[1] > flat[0]
    assert grey_window(np.full((2, 2), np.nan)) == (0.0, 1.0)


def test_largest_error_is_where_the_95hd_comes_from() -> None:
    label, prediction = np.zeros((2, 20, 20, 12), dtype=int)
    label[4:8, 4:8, 2:10] = 1
    assert largest_error(label, label, SPACING, 2) is None and largest_error(label * 0, label * 0, SPACING, 2) is None
    prediction[...] = label
    prediction[16:18, 4:8, 3:5] = 1  # 9 voxels of 1 mm from the label, in slices 3 and 4
    prediction[16, 4, 5] = 1
    prediction[4:8, 14, 9] = 1  # 7 mm off
    error = largest_error(label, prediction, SPACING, 2)
    assert error is not None and (error.structure, error.distance, error.kind) == (1, 10.0, "")
    assert error.voxel[0] == 17 and 4 <= error.voxel[1] < 8 and error.voxel[2] in (3, 4)
    # a second structure is off by less
    label[12:14, 12:18, 2:10] = 2
    prediction[12:15, 12:18, 2:10] = 2
    assert largest_error(label, prediction, SPACING, 2) == error
    # one that is missed counts more, in the slice in which it is largest
    label[0, 0, 10], label[0:3, 0, 11] = 3, 3
    missed = largest_error(label, prediction, SPACING, 2)
    assert missed is not None and (missed.structure, missed.voxel, missed.kind) == (3, (1, 0, 11), "missed")
    spurious = largest_error(label * (label != 3), np.where(label == 3, 3, prediction), SPACING, 2)
    assert spurious is not None and spurious.kind == "spurious" and spurious.distance is None


def test_largest_error_of_a_flat_image() -> None:
    label = np.zeros((16, 16, 1), dtype=int)
    label[4:8, 4:8] = 1
    prediction = label.copy()
    prediction[4:8, 8:13] = 1
    error = largest_error(label, prediction, (2.0, 2.0, 5.0), 2)
    assert error is not None and error.distance == 10.0 and error.voxel[1] == 12 and error.voxel[2] == 0


def test_the_slice_of_the_largest_error_is_beside_the_one_that_shows_most(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A blob far from the structure, in a slice that holds little else."""
    make_evaluation(tmp_path, cases=1, classes=2)
    label = np.zeros((24, 20, 10), dtype=np.uint8)
    label[8:14, 6:14, 3:7] = 1
    prediction = label.copy()
    prediction[1:3, 8:12, 9] = 1
    table = CaseTable({1: "core"})
    table.add("case_0", prediction, label, SPACING)
    table.write_csv(tmp_path / "metrics.csv")
    write_case(tmp_path, "case_0", label=label, pred=prediction)
    picture = load_case(tmp_path, "case_0")
    assert picture is not None and picture.worst is not None and picture.worst.error_place is not None
    assert picture.where != "axial slice 10 of 10" and picture.worst.where == "axial slice 10 of 10"
    row, column = picture.worst.error_place
    assert picture.worst.prediction is not None and picture.worst.prediction[row, column] == 1
    assert picture.worst.error is not None and picture.worst.error.distance == pytest.approx(np.hypot(7, 6))
    _, texts = run_report(tmp_path, monkeypatch)
    assert "largest error: 9.2 mm off\ncore\naxial slice 10 of 10" in texts
    assert {"R", "L", "A", "P"} <= set(texts)


def test_page_is_as_high_as_its_cases_and_tensorboard_has_its_pictures(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    heights = []
    for cases in (1, 4):
        folder = tmp_path / str(cases)
        make_evaluation(folder, cases)
        heights.append(imread(run_report(folder)[0]).shape[0])
    assert heights[0] < heights[1] - 60
    page = imread(run_report(folder)[0])
    assert len(list(folder.glob("events.out.tfevents.*"))) == 1  # the second replaces the first
    board = EventAccumulator(str(folder))
    board.Reload()
    tags = board.Tags()["images"]
    assert tags == ["report/page", "cases/worst case", "cases/median case", "cases/best case"]
    shown = board.Images("report/page")[0]
    assert (shown.height, shown.width) == page.shape[:2]
    assert all(0 < board.Images(tag)[0].height < page.shape[0] / 4 for tag in tags[1:])
