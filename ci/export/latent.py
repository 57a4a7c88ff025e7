"""TorchScript and ONNX of a set-valued network, (image, latent) to logits: all answers for one pass of the backbone.

    python ci/export_bundle.py ambissl --output exported --latent

writes ``samples.ts`` and ``samples.onnx`` beside the weights in ``models``:

- ``image`` (B, channels, *S) and ``latent`` (B, n, D) in standard-normal units to
- ``logits`` (B, n, classes, *S), one answer for each latent code.

B, n and S are free. Before the files are kept their logits are compared with the network's own, at another size. For
image to the logits of the mean answer there are MONAI's ``ckpt_export`` and ``onnx_export``.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import onnxruntime
import torch
from monai.bundle import ConfigParser
from torch import nn

from .package import ROOT, ExportError

TOLERANCE = 1e-3  # relative to the largest logit
_TRACED, _TRIED = 64, 40  # side of the images that the graph is made of, and of those that it is tried with
_PROGRAM = "import sys; from ci.export.latent import write_samples; write_samples(sys.argv[1])"


class Answers(nn.Module):
    """A set-valued network's ``samples`` as ``forward``.

    Args:
        network: with ``samples(image, latent)``.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network: Any = network
        self.eval()

    def forward(self, image: torch.Tensor, latent: torch.Tensor) -> torch.Tensor:
        """Image (B, channels, *S) and latent (B, n, D) to logits (B, n, classes, *S)."""
        logits: torch.Tensor = self.network.samples(image, latent)
        return logits


def export_latent(folder: Path) -> None:
    """Write both files into a stand-alone bundle, in a process of its own: every bundle's package is ``scripts``.

    Args:
        folder: of the bundle, with its weights.

    Raises:
        ExportError: there are no weights, the network is not set-valued, or a file's logits differ from the network's.
    """
    if not (folder / "models" / "model.pt").is_file():
        raise ExportError("--latent writes trained networks. Fix: leave it or --without-weights out.")
    done = subprocess.run([sys.executable, "-c", _PROGRAM, folder], cwd=ROOT, capture_output=True, text=True)
    if done.returncode != 0:
        said = (done.stderr.strip().splitlines() or ["no reason"])[-1]
        raise ExportError(said.removeprefix(f"{ExportError.__module__}.{ExportError.__name__}: "))


def write_samples(folder: str | os.PathLike[str]) -> None:
    """Both files of the stand-alone bundle in ``folder``; imports its ``scripts``. See :func:`export_latent`."""
    root = Path(folder).resolve()
    sys.path.insert(0, str(root))
    config = ConfigParser(ConfigParser.load_config_file(root / "configs" / "inference.yaml"))
    network = config.get_parsed_content("network_def")
    if not hasattr(network, "samples") or not hasattr(network, "latent_size"):
        raise ExportError(f"--latent: {type(network).__name__} takes no latent code. Fix: leave it out.")
    state = torch.load(root / "models" / "model.pt", map_location="cpu", weights_only=True)
    network.load_state_dict(state.get("model", state))
    image = json.loads((root / "configs" / "metadata.json").read_text())["network_data_format"]["inputs"]["image"]
    shape = (image["num_channels"], len(image["spatial_shape"]))
    module = Answers(network)
    script, graph = root / "models" / "samples.ts", root / "models" / "samples.onnx"
    torch.jit.script(module).save(str(script))
    free = {"image": (0, *range(2, 2 + shape[1])), "latent": (0, 1)}
    write_onnx(module, _inputs(*shape, network.latent_size, batch=2, codes=3, side=_TRACED), free, graph)
    tried = _inputs(*shape, network.latent_size, batch=1, codes=2, side=_TRIED)
    with torch.no_grad():
        expected = module(**tried)
        _compare("TorchScript", torch.jit.load(str(script)).eval()(**tried), expected)
    _compare("ONNX", run_onnx(graph, tried), expected)


def write_onnx(
    module: nn.Module, inputs: Mapping[str, torch.Tensor], free: Mapping[str, Sequence[int]], path: Path
) -> None:
    """Write a module as ONNX.

    Args:
        module: in evaluation mode; its answer is called ``logits``.
        inputs: an example of each argument of ``forward``, by name and in their order; sizes of free axes above 1.
        free: which axes of each argument may have any size.
        path: the file, weights included.
    """
    axes = {name: dict.fromkeys(free.get(name, ()), torch.export.Dim.DYNAMIC) for name in inputs}
    torch.onnx.export(
        module,
        tuple(inputs.values()),
        path,
        input_names=list(inputs),
        output_names=["logits"],
        dynamic_shapes=tuple(axes.values()),
        dynamo=True,
        external_data=False,
        verbose=False,
    )


def run_onnx(path: Path, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """The logits of an ONNX file, on the CPU."""
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return torch.as_tensor(session.run(None, {name: value.numpy() for name, value in inputs.items()})[0])


def _inputs(channels: int, axes: int, latent_size: int, batch: int, codes: int, side: int) -> dict[str, torch.Tensor]:
    """Random image and latent codes; the image's sides differ, so that none is taken for another."""
    generator = torch.Generator().manual_seed(0)
    size = [side + 32 * axis for axis in range(axes)]
    return {
        "image": torch.rand((batch, channels, *size), generator=generator),
        "latent": torch.randn((batch, codes, latent_size), generator=generator),
    }


def _compare(what: str, logits: torch.Tensor, expected: torch.Tensor) -> None:
    error = float((logits - expected).abs().max() / expected.abs().max()) if logits.shape == expected.shape else 1.0
    if not error < TOLERANCE:
        raise ExportError(f"{what}: logits differ from the network's by {error:.1e} of the largest. Fix: report it.")
