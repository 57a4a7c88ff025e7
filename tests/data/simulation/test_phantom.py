"""The built-in data set: seeded, complete, varied, and never in place of somebody's data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from common.data import DataError, make_phantom, open_data
from common.data.simulation.phantom import KINDS, Ambiguity, make_case
from common.data.simulation.phantom_labels import apply_scribble, sample_scribble

SMALL: dict[str, Any] = {"cases": {"training": 6, "validation": 1, "test": 1}, "shape": (20, 20, 14)}
NEEDS = {
    "dense": ["label", "clean"],
    "noisy": ["clean", "noisy"],
    "unlabelled": ["clean", "unlabelled"],
    "scribbles": ["scribble"],
    "raters": ["raters", "unlabelled"],
    "boundary": ["noisy", "reference"],
}


def load(path: str | Path) -> np.ndarray:
    image: Any = nib.load(path)
    return np.asarray(image.dataobj)


def arrays(root: Path) -> dict[str, np.ndarray]:
    return {str(path.relative_to(root)): load(path) for path in sorted(root.rglob("*.nii.gz"))}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_sound_and_meets_its_needs(tmp_path: Path, kind: str) -> None:
    root = make_phantom(tmp_path / kind, kind, **SMALL)
    data = open_data(root, needs=[*NEEDS[kind], "validation"], num_classes=4, in_channels=1)
    assert [len(data.section(name)) for name in ("training", "validation", "test")] == [6, 1, 1]
    assert not [note for note in data.notes if "does not know" in note]
    assert sorted(path.name for path in tmp_path.iterdir()) == [kind]  # no temporary folder is left


@pytest.mark.parametrize("kind", ["noisy", "scribbles", "raters", "boundary"])
def test_same_seed_gives_the_same_voxels(tmp_path: Path, kind: str) -> None:
    first, second, other = (
        arrays(make_phantom(tmp_path / name, kind, seed=seed, **SMALL)) for name, seed in (("a", 3), ("b", 3), ("c", 4))
    )
    assert first.keys() == second.keys()
    for name, voxels in first.items():
        assert voxels.dtype == second[name].dtype and np.array_equal(voxels, second[name]), name
    assert not np.array_equal(first["images/case_000.nii.gz"], other["images/case_000.nii.gz"])


def test_images_do_not_depend_on_the_kind(tmp_path: Path) -> None:
    dense, noisy = (arrays(make_phantom(tmp_path / kind, kind, **SMALL)) for kind in ("dense", "noisy"))
    for name in (name for name in dense if name.startswith("images/")):
        assert np.array_equal(dense[name], noisy[name])
    assert np.array_equal(dense["labels/case_005.nii.gz"], noisy["references/case_005.nii.gz"])


def test_cases_differ_and_look_alikes_fool_intensity() -> None:
    first, second = (make_case(np.random.default_rng(seed), (32, 32, 24)) for seed in (1, 2))
    assert first[0].dtype == np.int16 and first[1].dtype == np.uint8
    assert set(np.unique(first[1])) == {0, 1, 2, 3}
    assert np.mean(first[1] != second[1]) > 0.02
    # structures touch: all foreground is one component; bright voxels outside it are the look-alikes
    image, label = first
    assert ndimage.label(label > 0)[1] == 1
    bright = ndimage.gaussian_filter(image.astype(float), 1) > np.median(image[label == 2])
    assert np.count_nonzero(bright & ~ndimage.binary_dilation(label > 0, iterations=3)) > 20


def test_noisy_labels_are_off_and_their_recipe_is_written(tmp_path: Path) -> None:
    root = make_phantom(tmp_path / "noisy", "noisy", **SMALL)
    data = open_data(root)
    noisy = [record for record in data.training if record["label_quality"] == "noisy"]
    assert len(noisy) == 2
    for record in noisy:
        label, truth = load(record["label"]), load(record["reference"])
        overlap = 2 * np.count_nonzero((label == truth) & (truth > 0))
        assert overlap / (np.count_nonzero(label) + np.count_nonzero(truth)) < 0.95
    corruption = json.loads((root / "dataset.json").read_text())["corruption"]
    assert corruption["parameters"].keys() == {record["group"] for record in noisy}


def test_boundary_labels_are_off_near_borders_alone(tmp_path: Path) -> None:
    root = make_phantom(tmp_path / "boundary", "boundary", cases=SMALL["cases"], shape=(32, 32, 24))
    data = open_data(root)
    assert [record["label_quality"] for record in data.training] == ["noisy"] * 6
    inwards, outwards = 0, 0
    for record in data.training:
        label, truth = load(record["label"]), load(record["reference"])
        off = label != truth
        assert 0.005 < off.mean() < 0.1
        edge = ndimage.grey_dilation(truth, size=3) != ndimage.grey_erosion(truth, size=3)
        assert ndimage.distance_transform_edt(~edge)[off].max() <= 6.0
        inwards += np.count_nonzero(off & (label == 0))
        outwards += np.count_nonzero(off & (truth == 0))
    assert min(inwards, outwards) > 0.1 * max(inwards, outwards), "borders shift both ways"
    assert {record["label_quality"] for record in data.validation + data.test} == {"clean"}
    assert all("reference" not in record for record in data.validation + data.test)
    corruption = json.loads((root / "dataset.json").read_text())["corruption"]
    assert corruption["kind"] == "boundary" and len(corruption["parameters"]) == 6


def test_a_present_phantom_is_left_alone_and_another_recipe_replaces_it(tmp_path: Path) -> None:
    root = make_phantom(tmp_path / "p", "dense", **SMALL)
    written = (root / "dataset.json").stat().st_mtime_ns
    make_phantom(root, "dense", **SMALL)
    assert (root / "dataset.json").stat().st_mtime_ns == written
    make_phantom(root, "unlabelled", **SMALL)
    assert json.loads((root / "dataset.json").read_text())["phantom"]["kind"] == "unlabelled"


def test_a_folder_with_other_data_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("years of work")
    with pytest.raises(DataError, match="holds no phantom, so it is left alone"):
        make_phantom(tmp_path, "dense", **SMALL)
    assert (tmp_path / "mine.txt").read_text() == "years of work"
    with pytest.raises(DataError, match="unknown kind 'sparse'"):
        make_phantom(tmp_path / "new", "sparse")


def test_scribbles_never_lie_and_reach_every_structure() -> None:
    _, label = make_case(np.random.default_rng(5), (32, 32, 24))
    scribble = apply_scribble(label, sample_scribble(np.random.default_rng(6)))
    drawn = scribble != 255
    assert np.array_equal(scribble[drawn], label[drawn])
    assert set(np.unique(scribble)) == {0, 1, 2, 3, 255}
    assert 0 < drawn.mean() < 0.1


def test_raters_phantom_tells_how_likely_each_voxel_is(tmp_path: Path) -> None:
    root = make_phantom(tmp_path / "raters", "raters", **SMALL)
    content = json.loads((root / "dataset.json").read_text())
    counts = [len(record["labels"]) for record in content["training"] if "labels" in record]
    assert len(counts) == 4 and all(3 <= count <= 5 for count in counts)
    (record,) = content["test"]
    assert len(record["labels"]) == 5
    probability, label = load(root / record["probability"]), load(root / record["label"])
    masks = np.stack([load(root / path) for path in record["labels"]])
    assert probability.shape == (*label.shape, 3) and probability.min() >= 0 and probability.max() <= 1
    body = probability[..., 0]
    assert body[label == 1].mean() > 0.7 > 0.1 > body[label != 1].mean()
    share = (masks == 1).mean(axis=0)
    assert np.corrcoef(share.ravel(), body.ravel())[0, 1] > 0.9, "five raters are a sample of that population"
    unsure = (body > 0.2) & (body < 0.8)
    assert 0 < unsure.mean() < 0.2


def test_the_faint_structure_shows_in_the_image() -> None:
    clear, faint = (
        make_case(np.random.default_rng(5), (32, 32, 24), Ambiguity(3, visibility)) for visibility in (1.0, 0.0)
    )
    assert np.array_equal(clear[1], faint[1])
    cap = clear[1] == 3
    assert faint[0][cap].mean() < 0.7 * clear[0][cap].mean()
