"""The network of an exported bundle as TorchScript, ONNX and ``torch.export``, each held against the network itself.

Runs in the bundle's folder, in a process that knows nothing of the repository (``scripts`` is the bundle's own):

    python .../ci/export/formats.py model.ts model.onnx model.pt2

All take ``image`` (B, channels, *S), of any batch size and any spatial size that the metadata allow, and give ``pred``,
the logits (B, classes, *S). ``torch.export`` needs at least twice the unit of the spatial size along each axis: at the
unit itself the network's deepest features are single voxels, which it would take for a rule.
"""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import cached_property
from io import StringIO
from pathlib import Path

import torch
from torch.export import Dim

TOLERANCE = 1e-3  # of the largest logit
TRACED = (2, 2, 2)  # units of the spatial size an axis, batch of 2
OTHERS = ((1, (3, 2, 2)), (3, (2, 3, 2)))  # batch size and units an axis at which the files are checked

Predictor = Callable[[torch.Tensor], torch.Tensor]


class FormatError(RuntimeError):
    """A file cannot be written, or does not give the network's logits."""


@dataclass
class Subject:
    """What is exported: a network, and images of several sizes for it.

    Args:
        network: with its weights, ready to predict.
        channels: of an image.
        unit: what spatial sizes are multiples of, an axis.
    """

    network: torch.nn.Module
    channels: int
    unit: tuple[int, ...]

    def image(self, batch: int, units: tuple[int, ...]) -> torch.Tensor:
        """A random image (batch, channels, *S), the same in every run."""
        size = [unit * count for unit, count in zip(self.unit, units, strict=False)]  # of a slice the first two
        generator = torch.Generator().manual_seed(sum(size) + batch)
        return torch.rand((batch, self.channels, *size), generator=generator)

    @cached_property
    def program(self) -> torch.export.ExportedProgram:
        """What ``torch.export`` makes of the network."""
        shapes = {"image": dict.fromkeys((0, *range(2, 2 + len(self.unit))), Dim.AUTO)}
        return torch.export.export(_Named(self.network), (self.image(2, TRACED),), dynamic_shapes=shapes)


def read_subject(folder: Path) -> Subject:
    """The network of a bundle's inference config with its weights; the folder is the first on ``sys.path``."""
    from monai.bundle import ConfigParser

    parser = ConfigParser(ConfigParser.load_config_file(folder / "configs" / "inference.yaml"))
    network = parser.get_parsed_content("network_def").cpu()
    state = torch.load(folder / "models" / "model.pt", map_location="cpu", weights_only=True)
    network.load_state_dict(state.get("model", state))
    metadata = json.loads((folder / "configs" / "metadata.json").read_text())
    image = metadata["network_data_format"]["inputs"]["image"]
    unit = tuple(size if isinstance(size, int) else int(size.split("*")[0]) for size in image["spatial_shape"])
    return Subject(network.eval(), image["num_channels"], unit)


def write_torchscript(subject: Subject, path: Path) -> Predictor:
    """Compile the network; metadata and the inference config are stored with it, as ``load`` wants them."""
    from monai.bundle import ckpt_export

    configs = Path("configs")
    ckpt_export(
        "network_def",
        filepath=str(path),
        ckpt_file=str(Path("models", "model.pt")),
        meta_file=str(configs / "metadata.json"),
        config_file=str(configs / "inference.yaml"),
    )
    return torch.jit.load(str(path)).eval()


def write_onnx(subject: Subject, path: Path) -> Predictor:
    """The program as ONNX, input ``image`` and output ``pred``, with batch and space of any size."""
    import onnxruntime

    with redirect_stdout(StringIO()), torch.no_grad():  # it tells of every step
        torch.onnx.export(
            subject.program, (), str(path), input_names=["image"], output_names=["pred"], external_data=False
        )
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return lambda image: torch.from_numpy(session.run(["pred"], {"image": image.numpy()})[0])


def write_program(subject: Subject, path: Path) -> Predictor:
    """The program itself, which ``torch.export.load`` and the AOT compiler read."""
    torch.export.save(subject.program, str(path))
    module = torch.export.load(str(path)).module()
    return lambda image: module(image)


class _Named(torch.nn.Module):
    """The network with one input, called ``image`` whatever the network calls it, and no optional ones."""

    def __init__(self, network: torch.nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Logits (B, C, *S) of an image (B, channels, *S)."""
        return self.network(image)


FORMATS: dict[str, Callable[[Subject, Path], Predictor]] = {
    ".ts": write_torchscript,
    ".onnx": write_onnx,
    ".pt2": write_program,
}


def differences(subject: Subject, predict: Predictor) -> Iterator[tuple[list[int], float]]:
    """At sizes other than the traced one: shape, and the largest difference as a share of the largest logit.

    Raises:
        FormatError: the network or the file refuses an image, or they give answers of different shapes.
    """
    for batch, units in OTHERS:
        image = subject.image(batch, units)
        try:
            expected, found = subject.network(image), predict(image)
        except Exception as error:
            raise FormatError(f"an image of {list(image.shape)} is refused: {_reason(error)}") from error
        if found.shape != expected.shape:
            raise FormatError(f"{list(image.shape)} gives {list(found.shape)}, the network {list(expected.shape)}")
        yield list(image.shape), ((found - expected).abs().max() / expected.abs().max()).item()


def _reason(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def write(subject: Subject, path: Path) -> None:
    """Write one file and check it; the ending of its name chooses the format.

    Raises:
        FormatError: it cannot be written, or its logits differ.
    """
    try:
        predict = FORMATS[path.suffix](subject, path)
    except Exception as error:
        raise FormatError(f"this network does not become {path.name}: {_reason(error)}") from error
    for shape, largest in differences(subject, predict):
        if not largest < TOLERANCE:
            raise FormatError(f"{path.name}: logits of {shape} differ by {largest:.1e}, allowed {TOLERANCE}")
        print(f"{path.name} {shape}: largest relative difference {largest:.1e}")


def main() -> int:
    """Command line: names of the files to write to ``models``."""
    sys.path[0] = str(Path.cwd())  # the bundle's folder in the place of this file's
    warnings.filterwarnings("ignore")
    with torch.no_grad():
        subject = read_subject(Path())
        for name in sys.argv[1:]:
            try:
                write(subject, Path("models", name))
            except FormatError as error:
                Path("models", name).unlink(missing_ok=True)
                print(error, file=sys.stderr)
                return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
