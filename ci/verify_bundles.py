"""Prove that every bundle stands alone: what the model zoo and MONAI Label will do with it, done here first.

    python ci/verify_bundles.py [NAME ...] [--schema FILE]

For each bundle: export; unpack the zip; then, in fresh processes that start in an empty folder with no repository on
the path: train one step on the phantom and infer, with nothing given but the config's path; load it by
``monai.bundle.load``; export it again with its weights as TorchScript, ONNX and a program of ``torch.export``, whose
logits must be the network's at other sizes than they were made with; segment with onnxruntime alone, and compare with
inference. Then the model zoo's rules: files, metadata, versions, licence, sections of the README, workflow properties,
shapes, TorchScript. No network access is needed.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import yaml
from monai.bundle import verify_metadata

ROOT = Path(__file__).resolve().parents[1]
SCHEMA = ROOT / "tests" / "data_schema" / "meta_schema_20240725.json"
LARGEST = 25 * 10**6  # bytes, of a file in the zoo's repository
SECTIONS = ("Authors", "Tags", "Model Description", "Data", "System Configuration", "Citation Info", "References")
KEYS = {
    "inference": ("bundle_root", "device", "network_def", "inferer", "output_dir"),
    "train": ("bundle_root", "device", "dataset_dir", "output_dir", "train", "validate", "val_interval"),
}
SAME_DICE = 0.999  # of the example without torch and inference
ANSWERS_WITH_SAMPLES = ("ambissl",)  # inference asks for samples, the example's network for their mean
LOAD = """
import sys
from pathlib import Path
from monai.bundle import create_workflow, load
folder = Path(sys.argv[1])
for kind in ("train", "inference"):
    network = load(folder.name, bundle_dir=folder.parent, workflow_type=kind, device="cpu")
    assert hasattr(network, "forward"), f"monai.bundle.load gives a {type(network).__name__}"
    workflow = create_workflow(config_file=str(folder / "configs" / f"{kind}.yaml"), workflow_type=kind)
    missing = workflow.check_properties()
    assert not missing, f"{kind}: properties that are missing or wrong: {missing}"
"""


class VerificationError(RuntimeError):
    """A bundle does not do what it should; the message says what."""


def check_rules(bundle: Path, schema: Path) -> None:
    """The model zoo's rules for the files of an exported bundle.

    Args:
        bundle: its folder, with weights.
        schema: JSON schema of the metadata.

    Raises:
        VerificationError: names the rule.
    """
    need(*(bundle / name for name in ("LICENSE", "configs/metadata.json", "docs/README.md", "docs/data_license.txt")))
    need(*(bundle / name for name in ("models/model.pt", "configs/inference.json", "configs/logging.conf")))
    try:
        verify_metadata(meta_file=str(bundle / "configs" / "metadata.json"), filepath=schema)  # there: no download
    except ValueError as error:
        raise VerificationError(f"metadata.json: {error}") from error
    metadata = json.loads((bundle / "configs" / "metadata.json").read_text())
    require(metadata["version"] in metadata.get("changelog", {}), "metadata.json: the version is not in the changelog")
    for key in ("eval_metrics", "supported_apps", "references", "name", "data_source", "intended_use"):
        require(bool(metadata.get(key)), f"metadata.json: {key} is empty")
    require("[yyyy]" not in (bundle / "LICENSE").read_text(), "LICENSE: names no year and holder")
    readme = (bundle / "docs" / "README.md").read_text()
    titles = re.findall(r"(?m)^#+ \**(.+?)\**$", readme)
    require(not (absent := [name for name in SECTIONS if name not in titles]), f"README.md: lacks {absent}")
    foreign = re.findall(r"(?<![\w/])(?:ci|common|tests|bundles)/|repository root", readme)
    require(not foreign, f"README.md: speaks of {foreign}, which an export has not")
    for name, keys in KEYS.items():
        config = yaml.safe_load((bundle / "configs" / f"{name}.yaml").read_text())
        require(not (absent := [key for key in keys if key not in config]), f"{name}.yaml: lacks {absent}")
        twin = json.loads((bundle / "configs" / f"{name}.json").read_text())
        require(twin == config, f"{name}.json differs from {name}.yaml")
    large = {p.relative_to(bundle).as_posix() for p in (bundle / "models").iterdir() if p.stat().st_size > LARGEST}
    listed = bundle / "large_files.yml"
    entries: list[dict[str, Any]] = yaml.safe_load(listed.read_text())["large_files"] if listed.is_file() else []
    require({entry["path"] for entry in entries} == large, f"large_files.yml: must name {sorted(large)}")


def verify(bundle: Path, schema: Path, working: Path) -> None:
    """Verify one bundle of the repository.

    Args:
        bundle: its folder.
        schema: JSON schema of the metadata.
        working: empty folder to work in.

    Raises:
        VerificationError: says which step failed, with what it printed.
    """
    export: list[str | Path] = [ROOT / "ci" / "export_bundle.py", bundle.name, "--output"]
    step("export", [*export, working, "--without-weights"], ROOT)
    copy, empty = unpacked(working, bundle.name), working / "empty"
    empty.mkdir()

    one_step = ["--max_epochs", "1", "--epoch_length", "1", "--val_interval", "1"]
    run: list[str | Path] = ["-m", "monai.bundle", "run"]
    step("train one step", [*run, "training", "--config_file", copy / "configs/train.yaml", *one_step], empty)
    weights = copy / "models" / "model.pt"
    need(weights)
    step("infer", [*run, "inferring", "--config_file", copy / "configs/inference.yaml"], empty)
    found = sorted((copy / "eval").rglob("*_pred.nii.gz"))
    need(*found or [copy / "eval" / "*_pred.nii.gz"])
    step("load", ["-c", LOAD, copy], empty)
    if strangers := list(empty.iterdir()):
        raise VerificationError(f"files were left in the working folder: {', '.join(path.name for path in strangers)}")

    formats: list[str | Path] = ["--torchscript", "--onnx", "--program", "--weights", weights]
    step("TorchScript, ONNX and torch.export", [*export, working / "again", *formats], ROOT, shown="model.")
    shipped = unpacked(working / "again", bundle.name)
    check_rules(shipped, schema)
    if bundle.name not in ANSWERS_WITH_SAMPLES:
        check_example(shipped, found[0], next((copy / "data").rglob(found[0].name.replace("_pred", ""))), working)
    files = ["--meta_file", "configs/metadata.json", "--config_file", "configs/inference.json"]
    step("shapes", ["-m", "monai.bundle", "verify_net_in_out", "network_def", *files], shipped)
    files += ["--ckpt_file", "models/model.pt", "--filepath", "models/verify.ts"]
    step("TorchScript by MONAI", ["-m", "monai.bundle", "ckpt_export", "network_def", *files], shipped)


def unpacked(folder: Path, name: str) -> Path:
    """The bundle out of the one zip in a folder."""
    with zipfile.ZipFile(next(folder.glob("*.zip"))) as archive:
        archive.extractall(folder / "unpacked")
    return folder / "unpacked" / name


def check_example(bundle: Path, expected: Path, image: Path, working: Path) -> None:
    """The example without torch and MONAI segments as inference did."""
    written = working / "example.nii.gz"
    step("example", [bundle / "examples" / "segment.py", image, written], working)
    images: list[Any] = [nib.load(path) for path in (expected, written)]
    first, second = (np.asanyarray(image.dataobj).squeeze() for image in images)
    require(first.shape == second.shape, f"example: shape {second.shape}, of inference {first.shape}")
    for value in np.union1d(first, second):
        one, other = first == value, second == value
        dice = 2 * (one & other).sum() / (one.sum() + other.sum())
        require(dice >= SAME_DICE, f"example: class {value} has Dice {dice:.4f} with inference")


def require(holds: bool, message: str) -> None:
    """Raise a VerificationError unless a rule holds."""
    if not holds:
        raise VerificationError(message)


def step(what: str, arguments: list[str | Path], folder: Path, shown: str | None = None) -> None:
    """Run Python in a fresh process that knows nothing of this repository; lines that begin as ``shown`` are shown."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    command = [sys.executable, *map(str, arguments)]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    if done.returncode != 0:
        raise VerificationError(f"{what} failed in {folder}:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    print(f"  {what}: done", flush=True)
    for line in done.stdout.splitlines() if shown is not None else []:
        if line.startswith(shown or ""):
            print(f"    {line}")


def need(*files: Path) -> None:
    """The files are there."""
    for file in files:
        if not file.is_file():
            raise VerificationError(f"{file} was not written")


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="bundles to verify; default: all")
    parser.add_argument("--schema", type=Path, default=SCHEMA, help="schema of metadata.json (default: %(default)s)")
    arguments = parser.parse_args()
    bundles = sorted(path.parents[1] for path in ROOT.glob("bundles/*/configs/metadata.json"))
    if unknown := set(arguments.names) - {bundle.name for bundle in bundles}:
        parser.error(f"no bundle named {', '.join(sorted(unknown))}")
    failed = []
    for bundle in bundles:
        if arguments.names and bundle.name not in arguments.names:
            continue
        print(bundle.name)
        with tempfile.TemporaryDirectory(prefix=f"verify-{bundle.name}-") as working:
            try:
                verify(bundle, arguments.schema, Path(working))
            except VerificationError as error:
                print(f"  FAILED: {error}")
                failed.append(bundle.name)
    print(f"failed: {', '.join(failed)}" if failed else "all verified")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
