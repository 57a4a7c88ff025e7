"""The page about sets of answers: what it reads, which cases and masks it shows, and that it is written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from matplotlib.image import imread

from common.evaluation.ambiguity import ambiguity_row, write_ambiguity
from common.evaluation.metrics import CaseTable
from common.evaluation.report import samples as page
from common.evaluation.report.page import write_report
from common.evaluation.report.samples import load_set, spread_choice, write_samples_page
from common.evaluation.samples import set_rows, write_set_rows

SHAPE, SPACING = (20, 16, 6), (1.0, 1.5, 3.0)


def balls(radius: float, number: int, rng: np.random.Generator) -> np.ndarray:
    """Class numbers (number, *SHAPE): two half balls whose radius differs from mask to mask."""
    grid = np.indices(SHAPE) - np.reshape([10, 8, 3], (3, 1, 1, 1))
    distance = np.sqrt((grid**2).sum(0))
    half = np.where(grid[0] > 0, 2, 1)
    return np.stack([np.where(distance < radius + each, half, 0) for each in rng.uniform(-0.8, 0.8, number)])


def write_evaluation(folder: Path, cases: int, pictures: bool = True) -> None:
    """The files of an evaluation of a network that answers with sets: the further on, the worse."""
    table, measured, ambiguity = CaseTable({1: "left", 2: "right"}), [], []
    for number in range(cases):
        rng, case = np.random.default_rng(number), f"case_{number}"
        raters, answers = balls(6.0, 3 + number % 2, rng), balls(6.0 - 1.2 * number, 8, rng)
        probabilities = np.stack([answers == value for value in range(3)], 1).astype(np.float32)
        mean, label = probabilities.mean(0), raters[0]
        maps: dict[str, Any] = {"image": 100.0 * (label > 0) + rng.normal(size=SHAPE), "label": label}
        maps |= {"pred": mean.argmax(0), "uncertainty": mean.var(0), "raters": np.moveaxis(raters, 0, -1)}
        maps["samples"] = np.moveaxis(answers, 0, -1)
        (folder / case).mkdir(parents=True)
        for name, volume in maps.items() if pictures else ():
            image = nib.Nifti1Image(volume.astype(np.float32), np.diag([*SPACING, 1.0]))
            nib.save(image, folder / case / f"{case}_{name}.nii.gz")
        table.add(case, maps["pred"], label, SPACING, mean)
        measured += set_rows(case, probabilities, raters, ["left", "right"])
        ambiguity.append(ambiguity_row(case, probabilities, raters, None))
    table.write_csv(folder / "metrics.csv")
    write_set_rows(folder / "samples.csv", measured)
    write_ambiguity(folder / "ambiguity.csv", ambiguity)


def test_masks_from_the_smallest_to_the_largest() -> None:
    masks = np.zeros((7, 4, 4), int)
    for number, size in enumerate((3, 0, 9, 16, 1, 12, 5)):
        masks[number].flat[:size] = 1
    assert spread_choice(masks) == [1, 0, 6, 2, 3]
    assert spread_choice(masks, most=3) == [1, 6, 3]
    assert spread_choice(masks[:2]) == [1, 0] and spread_choice(masks[:1]) == [0]


def test_a_set_is_read_in_one_slice(tmp_path: Path) -> None:
    write_evaluation(tmp_path, 2)
    shown = load_set(tmp_path, "case_1")
    assert shown is not None and shown.picture.where == "axial slice 2 of 6"
    shape = shown.picture.image.shape
    assert shown.raters.shape == (4, *shape) and shown.samples.shape == (8, *shape)
    assert shown.disagreement.shape == shape and 0.4 < shown.disagreement.max() <= 1.0
    # all are turned alike: where all raters agree that there is something, the image is bright
    inside = (shown.raters > 0).all(0)
    assert (
        inside.any() and shown.picture.image[inside].min() > 50 > shown.picture.image[~(shown.raters > 0).any(0)].max()
    )
    assert shown.picture.in_mm
    in_voxels = load_set(tmp_path, "case_1", in_mm=False)
    assert in_voxels is not None and not in_voxels.picture.in_mm
    (tmp_path / "case_1" / "case_1_samples.nii.gz").unlink()
    assert load_set(tmp_path, "case_1") is None


@pytest.mark.parametrize(
    ("cases", "kinds"), [(1, ["only"]), (2, ["worst", "best"]), (4, ["worst", "median", "best"])], ids=str
)
def test_cases_by_ged(cases: int, kinds: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_evaluation(tmp_path, cases)
    asked: list[str] = []

    def asking(folder: Path, case: str, in_mm: bool) -> page.SetPicture | None:
        assert in_mm
        asked.append(case)
        return load_set(folder, case, in_mm)

    monkeypatch.setattr(page, "load_set", asking)
    write_report(tmp_path, tmp_path / "history.csv")
    pixels = imread(tmp_path / "report_samples.png")
    assert pixels.shape[1] == int(8.27 * 180) and pixels.shape[0] > 900 and float(pixels[..., :3].std()) > 0.1
    worst_first = [f"case_{number}" for number in reversed(range(cases))]
    assert asked == [worst_first[place] for place in {1: [0], 2: [0, 1], 4: [0, 1, 3]}[cases]]
    assert len(asked) == len(kinds)


def test_without_pictures_and_without_sets(tmp_path: Path) -> None:
    write_evaluation(tmp_path, 3, pictures=False)
    assert write_samples_page(tmp_path, "a title " * 20, []) == tmp_path / "report_samples.png"
    (tmp_path / "report_samples.png").unlink()
    (tmp_path / "samples.csv").unlink()
    write_report(tmp_path, tmp_path / "history.csv")
    assert not (tmp_path / "report_samples.png").exists() and (tmp_path / "report.png").is_file()
