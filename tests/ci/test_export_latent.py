"""TorchScript and ONNX of a set-valued network: the same logits as its own, for any batch, number of codes and size."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from bundles.ambissl.scripts.network import ProbabilisticUNet
from ci.export import ROOT, ExportError, export_bundle
from ci.export.latent import Answers, run_onnx, write_onnx, write_samples

SMALL: dict[str, Any] = {"backbone": "resnet18", "decoder_channels": [16, 8, 8, 8, 8], "prior_channels": [4, 8, 8, 8]}
SIZES = [(1, 5, (40, 33)), (3, 1, (100, 130))]  # batch, latent codes, pixels; other than traced


def small_network() -> ProbabilisticUNet:
    """Of a wide prior, so that answers differ, and with running statistics of their own."""
    torch.manual_seed(0)
    network = ProbabilisticUNet(out_channels=4, head_channels=32, **SMALL)
    with torch.no_grad():
        network.prior.output.bias[6:] = 0.5
        network(torch.rand(4, 1, 64, 64))
    return network.eval()


def check(found: torch.Tensor, expected: torch.Tensor) -> None:
    assert found.shape == expected.shape and float(expected.std()) > 0.05
    assert float((found - expected).abs().max()) < 1e-4 * float(expected.abs().max())


@pytest.mark.slow
@torch.no_grad()
def test_image_to_mean_logits_as_onnx_at_other_sizes(tmp_path: Path) -> None:
    network = small_network()
    write_onnx(network, {"image": torch.rand(2, 1, 64, 96)}, {"image": (0, 2, 3)}, tmp_path / "mean.onnx")
    for batch, _, size in SIZES:
        image = torch.rand(batch, 1, *size)
        check(run_onnx(tmp_path / "mean.onnx", {"image": image}), network(image))


@torch.no_grad()
def test_torchscript_at_other_sizes() -> None:
    network = small_network()
    mean, samples = torch.jit.script(network), torch.jit.script(Answers(network))
    for batch, codes, size in SIZES:
        image, latent = torch.rand(batch, 1, *size), torch.randn(batch, codes, 6)
        check(mean(image), network(image))
        check(mean(image, latent[:, 0]), network(image, latent[:, 0]))
        check(samples(image, latent), network.samples(image, latent))


@pytest.mark.slow
@torch.no_grad()
def test_an_export_writes_image_and_latent_to_logits(tmp_path: Path) -> None:
    """From the command line; the files in the zip serve a process that knows torch and onnxruntime alone."""
    network = small_network()
    torch.save(network.state_dict(), tmp_path / "model.pt")
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(SMALL))
    command = [sys.executable, "ci/export_bundle.py", "ambissl", "--output", str(tmp_path / "out"), "--latent"]
    command += ["--weights", str(tmp_path / "model.pt"), "--overlay", str(tmp_path / "small.yaml")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    with zipfile.ZipFile(next((tmp_path / "out").glob("*.zip"))) as archive:
        archive.extractall(tmp_path / "unpacked")
    models = tmp_path / "unpacked" / "ambissl" / "models"
    script = torch.jit.load(models / "samples.ts").eval()
    for batch, codes, size in SIZES:
        inputs = {"image": torch.rand(batch, 1, *size), "latent": torch.randn(batch, codes, 6)}
        expected = network.samples(**inputs)
        check(script(**inputs), expected)
        check(run_onnx(models / "samples.onnx", inputs), expected)
        one_by_one = torch.stack([network(inputs["image"], inputs["latent"][:, n]) for n in range(codes)], 1)
        torch.testing.assert_close(expected, one_by_one, rtol=1e-4, atol=1e-4)


def test_what_takes_no_latent_code_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ExportError, match="--latent writes trained networks"):
        export_bundle("ambissl", tmp_path, without_weights=True, latent=True)
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "inference.yaml").write_text(
        "network_def: {_target_: torch.nn.Linear, in_features: 2, out_features: 1}"
    )
    with pytest.raises(ExportError, match="^--latent: Linear takes no latent code. Fix: leave it out.$"):
        write_samples(tmp_path)
