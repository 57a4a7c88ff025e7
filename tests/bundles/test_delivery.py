"""What inference and evaluation deliver with every option on, by networks that have learnt nothing."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from skimage.measure import label as components

from tests.bundles.conftest import ROOT
from tests.data.loading.series import SLANTED, write_series

NAMES = ["first", "second", "third"]
VOLUME = np.random.default_rng(0).integers(-900, 900, (22, 21, 18))


def weights(bundle: Any, folder: Path, number: int = 2) -> list[str]:
    """Random weights of the network that inference takes."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{seed}.pt" for seed in range(number)]
    for seed, path in enumerate(paths):
        torch.manual_seed(seed)
        parser = ConfigParser(ConfigParser.load_config_files([ROOT / file for file in bundle.files("inference")]))
        for key, value in bundle.small_network.items():
            parser[key] = value
        with bundle.imported():
            torch.save(parser.get_parsed_content("network_def").state_dict(), path)
    return [str(path) for path in paths]


def options(bundle: Any, *names: str, **given: Any) -> dict[str, Any]:
    few_windows = {"overlap": 0.0} if "overlap" in bundle.load("inference") else {}
    few_samples = {"samples": 3} if "samples" in bundle.load("inference") else {}
    return bundle.tiny(*names) | bundle.small_network | few_windows | few_samples | given


def read(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def voxels(path: Path) -> np.ndarray:
    return np.asarray(nib.Nifti1Image.from_filename(path).dataobj)


def test_options_are_off_and_the_same_in_evaluation_and_inference(bundle: Any) -> None:
    inference, evaluation = bundle.load("inference"), bundle.load("evaluate")
    assert (inference["mirror_axes"], inference["largest_component"]) == ([], False)
    assert all(evaluation[key] == inference[key] for key in ("mirror_axes", "largest_component", "weights"))
    assert inference["dicom_seg"] is False and inference["structures"] is None


def test_all_that_is_delivered_of_a_dicom_series(bundle: Any, tmp_path: Path) -> None:
    write_series(tmp_path / "scan", VOLUME)
    given: dict[str, Any] = {"dataset_dir": str(tmp_path / "scan"), "output_dir": str(tmp_path / "out")}
    given |= {"weights": str(weights(bundle, tmp_path / "models")).replace("'", ""), "mirror_axes": [0]}
    given |= {"largest_component": True, "structures": NAMES}
    bundle.run("inferring", "inference", **options(bundle, "inference", **given))
    case = tmp_path / "out" / "scan"
    pred = nib.Nifti1Image.from_filename(case / "scan_pred.nii.gz")
    assert pred.shape == VOLUME.shape
    np.testing.assert_allclose(pred.affine, SLANTED, atol=1e-5)
    classes = np.asarray(pred.dataobj)
    rows = read(tmp_path / "out" / "volumes.csv")
    assert [(row["case"], row["label"], row["structure"]) for row in rows] == [
        ("scan", str(value), name) for value, name in enumerate(NAMES, start=1)
    ]
    assert classes.any()
    for row in rows:
        mask = classes == int(row["label"])
        assert components(mask).max() <= 1
        assert int(row["predicted_voxels"]) == mask.sum()
        ml = mask.sum() * abs(np.linalg.det(SLANTED[:3, :3])) / 1000
        assert float(row["predicted_ml"]) == pytest.approx(ml, abs=1e-6)
        assert float(row["lower_voxels"]) <= float(row["expected_voxels"]) and row["reference_ml"] == ""
    preview = case / "scan_preview.png"
    assert preview.stat().st_size > 10_000 and preview.read_bytes()[1:4] == b"PNG"


def test_evaluation_measures_what_is_delivered(bundle: Any, tmp_path: Path) -> None:
    (path,) = weights(bundle, tmp_path / "models", number=1)
    files = ("train", "evaluate")
    found = {}
    for active in (False, True):
        out = tmp_path / str(active)
        given = {"weights": path, "output_dir": str(out), "largest_component": active}
        bundle.run("evaluating", *files, **options(bundle, *files, **given))
        (case,) = [folder for folder in (out / "test").iterdir() if folder.is_dir()]
        classes = voxels(case / f"{case.name}_pred.nii.gz")
        measured = {row["structure"]: int(row["prediction_voxels"]) for row in read(out / "test" / "metrics.csv")}
        rows = read(out / "test" / "volumes.csv")
        assert {row["structure"]: int(row["predicted_voxels"]) for row in rows} == measured
        assert sum(measured.values()) == np.count_nonzero(classes)
        assert all(int(row["reference_voxels"]) > 0 for row in rows)
        found[active] = classes
    largest = np.zeros_like(found[False])
    for value in range(1, 4):
        marked = components(found[False] == value, connectivity=3)
        if marked.any():
            largest[marked == 1 + np.bincount(marked.ravel())[1:].argmax()] = value
    np.testing.assert_array_equal(found[True], largest)


@pytest.mark.parametrize("bundle", ["alc"], indirect=True)  # what reads images is the same in every bundle
def test_a_dicom_series_and_its_nifti_file_are_segmented_alike(bundle: Any, tmp_path: Path) -> None:
    write_series(tmp_path / "series" / "scan", VOLUME)
    (tmp_path / "file").mkdir()
    nib.save(nib.Nifti1Image(VOLUME.astype(np.int16), SLANTED), tmp_path / "file" / "scan.nii.gz")
    (path,) = weights(bundle, tmp_path / "models", number=1)
    for source in ("series", "file"):
        folders = {"dataset_dir": str(tmp_path / source), "output_dir": str(tmp_path / f"{source}_out")}
        given = options(bundle, "inference", weights=path, preview=False, **folders)
        bundle.run("inferring", "inference", **given)
        assert not list((tmp_path / f"{source}_out").rglob("*.png"))
    first, second = (tmp_path / f"{source}_out" / "scan" / "scan_pred.nii.gz" for source in ("series", "file"))
    np.testing.assert_array_equal(voxels(first), voxels(second))
    assert voxels(first).any()
