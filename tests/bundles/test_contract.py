"""What every bundle does at the front door: train, evaluate, infer, audit, and MONAI's own verifications.

Each bundle is trained once, through the command line as it is typed; what follows uses those weights.
"""

from __future__ import annotations

import csv
import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import monai.bundle
import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigWorkflow
from monai.bundle.scripts import _get_fake_spatial_shape

from tests.tiny import PRECISIONS

ROOT = Path(__file__).resolve().parents[2]
SCHEMA = ROOT / "tests" / "data_schema" / "meta_schema_20240725.json"
NOT_TRAINING = ("train", "evaluate", "inference", "audit", "multi_gpu_train")
DATA_SETS = {
    "spacing",
    "patch_size",
    "slice_size",
}  # what the overlay of a data set gives, and a tiny run does not take


def variants() -> list[Any]:
    """Every overlay of a training; of those of data sets the first of each bundle in every run, the others slow."""
    found: list[Any] = []
    seen: set[str] = set()
    for path in sorted(ROOT.glob("bundles/*/configs/*.yaml")):
        name = path.parents[1].name
        if path.stem in NOT_TRAINING:
            continue
        of_data = bool(DATA_SETS & set(monai.bundle.ConfigParser.load_config_file(path)))
        slow = of_data and name in seen
        seen |= {name} if of_data else set()
        found.append(pytest.param(name, path.stem, marks=[pytest.mark.slow] if slow else []))
    return found


@pytest.fixture(scope="session")
def trained(bundle: Any) -> Any:
    """The bundle after one step of training from the command line."""
    overrides = bundle.tiny("train") | {"train#trainer#max_epochs": 1}
    command = [sys.executable, "-m", "monai.bundle", "run", "training", "--config_file", *bundle.files("train")]
    for key, value in overrides.items():
        command += [f"--{key}", str(value)]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    return bundle


def network_of(bundle: Any, weights: Path) -> torch.nn.Module:
    """The network of inference.yaml with these weights, ready to predict."""
    with bundle.imported():
        parser = monai.bundle.ConfigParser(monai.bundle.ConfigParser.load_config_files(bundle.files("inference")))
        network = parser.get_parsed_content("network_def")
    network.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    return network.eval()


def fake_image(bundle: Any) -> torch.Tensor:
    """A random image of a size that the metadata allows: (1, channels, *spatial)."""
    metadata = json.loads((bundle.configs / "metadata.json").read_text())
    image = metadata["network_data_format"]["inputs"]["image"]
    shape = (1, image["num_channels"], *_get_fake_spatial_shape(image["spatial_shape"], n=2))
    return torch.rand(shape, generator=torch.Generator().manual_seed(0))


def test_training_leaves_weights_and_history(trained: Any) -> None:
    network_of(trained, trained.folder / "models" / "model.pt")
    with (trained.folder / "eval" / "history.csv").open() as file:
        history = list(csv.DictReader(file))
    names = {row["name"] for row in history}
    assert any(name.startswith("loss/") for name in names) and any(name.startswith("validation/") for name in names)
    assert all(math.isfinite(float(row["value"])) for row in history)
    assert list((trained.folder / "eval").glob("events.out.tfevents.*")), "no TensorBoard log"


def test_run_trains_the_same_weights(trained: Any, tmp_path: Path) -> None:
    folders = {"ckpt_dir": str(tmp_path / "models"), "output_dir": str(tmp_path / "eval")}
    trained.run("run", "train", **trained.tiny("train", **folders), **{"train#trainer#max_epochs": 1})
    first = torch.load(trained.folder / "models" / "model.pt", weights_only=True)
    second = torch.load(tmp_path / "models" / "model.pt", weights_only=True)
    torch.testing.assert_close(first, second)
    shutil.rmtree(tmp_path)  # a hundred megabytes


@pytest.mark.parametrize("run_id", ["evaluating", "run"])
def test_evaluation_writes_results(trained: Any, run_id: str, tmp_path: Path) -> None:
    files = ("train", "evaluate")
    trained.run(run_id, *files, **trained.tiny(*files, output_dir=str(tmp_path)))
    metrics = next(tmp_path.rglob("metrics.csv"))
    with metrics.open() as file:
        rows = list(csv.DictReader(file))
    structures = set(json.loads((trained.dataset / "dataset.json").read_text())["labels"].values()) - {"background"}
    assert {row["structure"] for row in rows} == structures
    assert all(0.0 <= float(row["dice"]) <= 1.0 for row in rows)
    assert metrics.with_name("summary.txt").read_text().strip()
    assert metrics.with_name("reliability.csv").is_file()
    assert list(tmp_path.rglob("*_pred.nii.gz")) and list(tmp_path.rglob("*_uncertainty.nii.gz"))


def test_report_shows_the_run(trained: Any) -> None:
    files = ("train", "evaluate")
    trained.run("evaluating", *files, **trained.tiny(*files))
    trained.run("reporting", *files, **trained.tiny(*files))
    report = next((trained.folder / "eval").rglob("report.png"))
    assert report.stat().st_size > 10_000 and report.with_suffix(".csv").is_file()


def results(folder: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Maps by the ends of their names, and the first row of the metrics."""
    maps = {
        kind: np.asarray(nib.Nifti1Image.from_filename(next(folder.rglob(f"*_{kind}.nii.gz"))).dataobj)
        for kind in ("pred", "uncertainty")
    }
    with next(folder.rglob("metrics.csv")).open() as file:
        return maps, next(csv.DictReader(file))


def test_calibration_changes_probabilities_and_no_segmentation(bundle: Any, tmp_path: Path) -> None:
    """What `calibrating` finds lies beside the weights; evaluation and inference apply it, or leave it when told to."""
    files, copied = ("train", "evaluate"), {"ckpt_dir": str(tmp_path / "models")} | bundle.small_network
    few_windows = {"overlap": 0.0} if "overlap" in bundle.load("evaluate") else {}
    folders = {**copied, "output_dir": str(tmp_path / "training")}
    bundle.run("training", "train", **bundle.tiny("train", **folders), max_epochs=1)
    found: dict[str, tuple[dict[str, np.ndarray], dict[str, str]]] = {}
    for name, calibration in (("before", True), ("calibrating", True), ("after", True), ("off", False)):
        given = bundle.tiny(*files, **copied, **few_windows, output_dir=str(tmp_path / name), calibration=calibration)
        bundle.run("calibrating" if name == "calibrating" else "evaluating", *files, **given)
        found |= {} if name == "calibrating" else {name: results(tmp_path / name)}
    content = json.loads((tmp_path / "models" / "calibration.json").read_text())
    assert content["nll_after"] <= content["nll_before"] and abs(content["temperature"] - 1.0) > 1e-3
    for maps, _ in found.values():
        np.testing.assert_array_equal(maps["pred"], found["before"][0]["pred"])
    np.testing.assert_array_equal(found["off"][0]["uncertainty"], found["before"][0]["uncertainty"])
    assert not np.array_equal(found["after"][0]["uncertainty"], found["before"][0]["uncertainty"])
    rows = {name: row for name, (_, row) in found.items()}
    assert rows["after"]["ece"] == rows["before"]["ece"] and rows["after"]["nll_calibrated"]
    assert rows["before"]["nll_calibrated"] == rows["off"]["nll_calibrated"] == ""

    inferred = {}
    for calibration in (True, False):
        folders = {**copied, **few_windows, "output_dir": str(tmp_path / f"inference_{calibration}")}
        bundle.run("inferring", "inference", **bundle.tiny("inference", **folders, calibration=calibration))
        case = sorted((tmp_path / f"inference_{calibration}").rglob("*_pred.nii.gz"))[0]
        volumes = (case, case.with_name(case.name.replace("_pred", "_uncertainty")))
        inferred[calibration] = [np.asarray(nib.Nifti1Image.from_filename(path).dataobj) for path in volumes]
    np.testing.assert_array_equal(inferred[True][0], inferred[False][0])
    assert not np.array_equal(inferred[True][1], inferred[False][1])
    shutil.rmtree(tmp_path)


@pytest.mark.parametrize("run_id", ["inferring", "run"])
def test_inference_answers_in_the_images_own_space(trained: Any, run_id: str, tmp_path: Path) -> None:
    """A slanted image of odd size comes back as a label map of that size and place."""
    affine = np.array([[0.0, -1.2, 0.0, 5.0], [1.0, 0.0, 0.1, -7.0], [0.0, 0.0, 1.4, 3.0], [0.0, 0.0, 0.0, 1.0]])
    shape = (27, 23, 18) if trained.train["in_channels"] == 1 else (27, 23, 18, trained.train["in_channels"])
    image = nib.Nifti1Image(np.random.default_rng(0).normal(100.0, 20.0, shape).astype(np.float32), affine)
    source = tmp_path / "images" / "somebody.nii.gz"
    source.parent.mkdir()
    nib.save(image, source)
    folders = {"dataset_dir": str(source.parent), "output_dir": str(tmp_path / "out")}
    trained.run(run_id, "inference", **trained.tiny("inference", **folders))
    prediction = nib.Nifti1Image.from_filename(next((tmp_path / "out").rglob("somebody*_pred.nii.gz")))
    uncertainty = nib.Nifti1Image.from_filename(next((tmp_path / "out").rglob("somebody*_uncertainty.nii.gz")))
    for volume in (prediction, uncertainty):
        assert volume.shape == shape[:3]
        np.testing.assert_allclose(volume.affine, affine, atol=1e-4)
    labels = np.asarray(prediction.dataobj)
    assert set(np.unique(labels)) <= set(range(trained.train["num_classes"]))
    certain = np.asarray(uncertainty.dataobj)
    assert certain.min() >= 0.0 and certain.max() <= 1.0


@pytest.mark.parametrize("run_id", ["auditing", "run"])
def test_audit_ranks_the_cases(trained: Any, run_id: str, tmp_path: Path) -> None:
    if not (trained.configs / "audit.yaml").exists():
        pytest.skip("this bundle audits no labels")
    files = ("train", "audit")
    trained.run(run_id, *files, **trained.tiny(*files, output_dir=str(tmp_path)))
    assert list(tmp_path.rglob("*.csv")) and list(tmp_path.rglob("*.png")) and list(tmp_path.rglob("*.nii.gz"))


@pytest.mark.parametrize("precision", PRECISIONS)
def test_each_precision_trains_and_is_evaluated(bundle: Any, precision: str, tmp_path: Path) -> None:
    """Whatever number type the machine has, not only the one that `auto` chooses."""
    folders = {"ckpt_dir": str(tmp_path / "models"), "output_dir": str(tmp_path / "eval")}
    given = folders | bundle.small_network
    bundle.run("training", "train", **bundle.tiny("train", **given), max_epochs=1, precision=precision)
    with (tmp_path / "eval" / "history.csv").open() as file:
        assert all(math.isfinite(float(row["value"])) for row in csv.DictReader(file))
    files = ("train", "evaluate")
    few_windows = {"overlap": 0.0} if "overlap" in bundle.load("evaluate") else {}
    bundle.run("evaluating", *files, **bundle.tiny(*files, **given), **few_windows)
    assert (tmp_path / "eval" / "test" / "metrics.csv").is_file()
    shutil.rmtree(tmp_path)


@pytest.mark.parametrize(("config", "kind"), [("train", "train"), ("inference", "infer")])
def test_check_properties(trained: Any, config: str, kind: str, tmp_path: Path) -> None:
    folders = {"output_dir": str(tmp_path)} | ({"ckpt_dir": str(tmp_path)} if kind == "train" else {})
    with trained.imported():
        workflow = ConfigWorkflow(
            config_file=trained.files(config),
            workflow_type=kind,
            logging_file=False,
            **trained.tiny(config, **folders),
        )
        workflow.initialize()
        assert workflow.check_properties() == []


def test_verify_metadata(bundle: Any) -> None:
    monai.bundle.verify_metadata(meta_file=str(bundle.configs / "metadata.json"), filepath=str(SCHEMA))


@pytest.mark.parametrize("config", ["train", "inference"])
def test_verify_net_in_out(bundle: Any, config: str) -> None:
    with bundle.imported():
        monai.bundle.verify_net_in_out(
            net_id="network_def",
            meta_file=str(bundle.configs / "metadata.json"),
            config_file=bundle.files(config),
            device="cpu",
            n=2,
        )


def test_network_takes_dropout(bundle: Any) -> None:
    """MONAI Label's epistemic scoring gives ``network_def`` such an argument."""
    with bundle.imported():
        parser = monai.bundle.ConfigParser(monai.bundle.ConfigParser.load_config_files(bundle.files("inference")))
        parser["network_def::dropout"] = 0.2
        network = parser.get_parsed_content("network_def")
    dropouts = [module for module in network.modules() if isinstance(module, torch.nn.modules.dropout._DropoutNd)]
    assert dropouts and all(module.p == 0.2 for module in dropouts)


def test_ckpt_export_gives_the_same_logits(trained: Any, tmp_path: Path) -> None:
    weights, script = trained.folder / "models" / "model.pt", tmp_path / "model.ts"
    with trained.imported():
        monai.bundle.ckpt_export(
            net_id="network_def",
            filepath=str(script),
            ckpt_file=str(weights),
            meta_file=str(trained.configs / "metadata.json"),
            config_file=trained.files("inference"),
        )
    image = fake_image(trained)
    with torch.no_grad():
        expected = network_of(trained, weights)(image)
        found = torch.jit.load(str(script)).eval()(image)
    # values near 0 are measured against the largest logit
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize(("bundle", "variant"), variants(), indirect=["bundle"])
def test_variants_train_and_infer(bundle: Any, variant: str, tmp_path: Path) -> None:
    """Data sets' and ablations' overlays take a step, on the phantom, and what they trained segments an image."""
    folders = {"ckpt_dir": str(tmp_path / "models"), "output_dir": str(tmp_path / "eval")}
    overrides = bundle.tiny("train", variant, **folders) | bundle.small("train", variant)
    bundle.run("training", "train", variant, **overrides, max_epochs=1)
    assert (tmp_path / "models" / "model.pt").is_file()
    if not any("#" in key for key in bundle.load(variant)):  # else it is about training alone
        overrides = bundle.tiny("inference", variant, **folders) | bundle.small("inference", variant)
        overrides |= {"overlap": 0.0} if "overlap" in bundle.load("inference") else {}  # saves minutes
        bundle.run("inferring", "inference", variant, **overrides)
        assert list((tmp_path / "eval").rglob("*_pred.nii.gz"))
    shutil.rmtree(tmp_path)


@pytest.mark.parametrize("bundle", ["multicure"], indirect=True)
def test_any_network_in_the_place_of_the_supervised_ones(bundle: Any, tmp_path: Path) -> None:
    """Swin UNETR on the labels alone, and what annotation servers ask of it: another dropout."""
    names = ("train", "supervised", "swin_unetr")
    folders = {"ckpt_dir": str(tmp_path / "models"), "output_dir": str(tmp_path / "eval")}
    bundle.run("training", *names, **bundle.tiny(*names, **folders) | bundle.small(*names), max_epochs=1)
    with bundle.imported():
        parser = monai.bundle.ConfigParser(
            monai.bundle.ConfigParser.load_config_files(bundle.files("inference", "swin_unetr"))
        )
        parser["network_def::dropout"] = 0.3
        parser["network_def::feature_size"] = 12
        network = parser.get_parsed_content("network_def")
    network.load_state_dict(torch.load(tmp_path / "models" / "model.pt", weights_only=True))
    assert 0.3 in {module.p for module in network.modules() if isinstance(module, torch.nn.Dropout)}


@pytest.fixture(scope="session")
def awkward(bundle: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny data set, its images called otherwise than their labels, with a training image that nobody labelled."""
    folder = tmp_path_factory.mktemp("awkward") / "data"
    shutil.copytree(bundle.dataset, folder)
    content = json.loads((folder / "dataset.json").read_text())
    for record in (record for section in ("training", "validation", "test") for record in content[section]):
        renamed = record["image"].replace(".nii.gz", "_0000.nii.gz")
        (folder / record["image"]).rename(folder / renamed)
        record["image"] = renamed
    first = content["training"][0]
    image = nib.Nifti1Image.from_filename(folder / first["image"])
    nib.save(nib.Nifti1Image(image.get_fdata() + 1.0, image.affine), folder / "images" / "unlabelled.nii.gz")
    content["training"].append(
        {"image": "images/unlabelled.nii.gz", "reference": first["reference" if "reference" in first else "label"]}
    )
    (folder / "dataset.json").write_text(json.dumps(content))
    return folder


def test_awkward_data_go_through(bundle: Any, awkward: Path, tmp_path: Path) -> None:
    """Patches that are not square, a record without label, images and labels of different names."""
    folders: dict[str, Any] = {"dataset_dir": str(awkward), "output_dir": str(tmp_path)}
    folders["ckpt_dir"] = str(tmp_path / "models")
    sizes: dict[str, Any] = {"patch_size": [16, 32, 16], "slice_size": [16, 32]}
    folders |= {key: size for key, size in sizes.items() if key in bundle.train}
    small = bundle.small_network
    bundle.run("training", "train", **bundle.tiny("train", **folders), **small, **{"train#trainer#max_epochs": 1})
    files = ("train", "evaluate")
    bundle.run("evaluating", *files, **bundle.tiny(*files, **folders), **small)
    (case,) = [path for path in (tmp_path / "test").iterdir() if path.is_dir()]
    assert case.name.endswith("_0000")
    kinds = ("image", "label", "pred", "uncertainty")
    assert {path.name for path in case.iterdir()} >= {f"{case.name}_{kind}.nii.gz" for kind in kinds}
    bundle.run("reporting", *files, **bundle.tiny(*files, **folders), **small)
    if (bundle.configs / "audit.yaml").exists():
        files = ("train", "audit")
        bundle.run("auditing", *files, **bundle.tiny(*files, **folders), **small)
        assert (tmp_path / "audit" / "audit.png").is_file() and (tmp_path / "audit" / "audit_measured.csv").is_file()
