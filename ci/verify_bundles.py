"""Prove that every bundle stands alone: what the model zoo and MONAI Label will do with it, done here first.

    python ci/verify_bundles.py [NAME ...] [--schema FILE]

For each bundle: ``metadata.json`` against the schema; export; unpack the zip; then, in fresh processes that start in an
empty folder with no repository on the path: train one step on the phantom, infer, export to TorchScript and ONNX, and
compare their logits with the network's own. No network access is needed.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import jsonschema
import numpy as np
import onnxruntime
import torch
from monai.bundle.scripts import _get_fake_spatial_shape

ROOT = Path(__file__).resolve().parents[1]
SCHEMA = ROOT / "tests" / "data_schema" / "meta_schema_20240725.json"
RELATIVE_TOLERANCE = 1e-3
# runs in the unpacked bundle, whose `scripts` no other bundle may share a process with
LOGITS = """
import sys, torch
from monai.bundle import ConfigParser
parser = ConfigParser(ConfigParser.load_config_file("configs/inference.yaml"))
network = parser.get_parsed_content("network_def").cpu()
network.load_state_dict(torch.load("models/model.pt", map_location="cpu", weights_only=True))
with torch.no_grad():
    torch.save(network.eval()(torch.load(sys.argv[1])), sys.argv[2])
"""


class VerificationError(RuntimeError):
    """A bundle does not do what it should; the message says what."""


def check_metadata(bundle: Path, schema: Path) -> None:
    """Validate a bundle's metadata against MONAI's schema, read from a file.

    Raises:
        VerificationError: names the offending key.
    """
    metadata = json.loads((bundle / "configs" / "metadata.json").read_text())
    try:
        jsonschema.validate(metadata, json.loads(schema.read_text()))
    except jsonschema.ValidationError as error:
        raise VerificationError(
            f"metadata.json: {'/'.join(map(str, error.path)) or 'top level'}: {error.message}"
        ) from error


def verify(bundle: Path, schema: Path, working: Path) -> None:
    """Verify one bundle of the repository.

    Args:
        bundle: its folder.
        schema: JSON schema of the metadata.
        working: empty folder to work in.

    Raises:
        VerificationError: says which step failed, with what it printed.
    """
    check_metadata(bundle, schema)
    step("export", [str(ROOT / "ci" / "export_bundle.py"), bundle.name, "--output", working, "--without-weights"], ROOT)
    with zipfile.ZipFile(next(working.glob("*.zip"))) as archive:
        archive.extractall(working / "unpacked")
    copy, empty = working / "unpacked" / bundle.name, working / "empty"
    empty.mkdir()

    one_step = ["--max_epochs", "1", "--epoch_length", "1", "--val_interval", "1"]
    root: list[str | Path] = ["--bundle_root", copy]
    run: list[str | Path] = ["-m", "monai.bundle", "run"]
    step("train one step", [*run, "training", "--config_file", copy / "configs/train.yaml", *root, *one_step], empty)
    need(copy / "models" / "model.pt")
    step("infer", [*run, "inferring", "--config_file", copy / "configs/inference.yaml", *root], empty)
    need(*list((copy / "eval").rglob("*_pred.nii.gz")) or [copy / "eval" / "*_pred.nii.gz"])
    if strangers := list(empty.iterdir()):
        raise VerificationError(f"files were left in the working folder: {', '.join(path.name for path in strangers)}")
    compare_exports(copy)


def compare_exports(copy: Path) -> None:
    """TorchScript and ONNX files of a stand-alone bundle against its network, on one random input."""
    metadata = json.loads((copy / "configs" / "metadata.json").read_text())
    description = metadata["network_data_format"]["inputs"]["image"]
    shape = [1, description["num_channels"], *_get_fake_spatial_shape(description["spatial_shape"], n=2)]
    sample = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    torch.save(sample, copy / "input.pt")
    step("logits", ["-c", LOGITS, "input.pt", "logits.pt"], copy)
    expected = torch.load(copy / "logits.pt").numpy()

    files = ["--ckpt_file", "models/model.pt", "--meta_file", "configs/metadata.json"]
    files += ["--config_file", "configs/inference.yaml"]
    script, graph = copy / "models" / "model.ts", copy / "models" / "model.onnx"
    step("TorchScript", ["-m", "monai.bundle", "ckpt_export", "network_def", "--filepath", script, *files], copy)
    extra = ["--input_shape", str(shape), "--use_trace", "True"]
    step("ONNX", ["-m", "monai.bundle", "onnx_export", "network_def", "--filepath", graph, *files, *extra], copy)

    with torch.no_grad():
        compare("TorchScript", torch.jit.load(str(script)).eval()(sample).numpy(), expected)
    session = onnxruntime.InferenceSession(str(graph), providers=["CPUExecutionProvider"])
    compare("ONNX", session.run(None, {session.get_inputs()[0].name: sample.numpy()})[0], expected)


def compare(what: str, logits: np.ndarray, expected: np.ndarray) -> None:
    """Equal up to the relative tolerance; values near 0 are measured against the largest logit."""
    difference = np.abs(logits - expected) / np.maximum(np.abs(expected), 1e-2 * np.abs(expected).max())
    if logits.shape != expected.shape or not difference.max() < RELATIVE_TOLERANCE:
        raise VerificationError(f"{what}: logits differ by {difference.max():.1e}, allowed {RELATIVE_TOLERANCE}")
    print(f"  {what}: largest relative difference {difference.max():.1e}")


def step(what: str, arguments: list[str | Path], folder: Path) -> None:
    """Run Python in a fresh process that knows nothing of this repository."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    command = [sys.executable, *map(str, arguments)]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    if done.returncode != 0:
        raise VerificationError(f"{what} failed in {folder}:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    print(f"  {what}: done")


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
