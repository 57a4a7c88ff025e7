"""What each bundle takes: parameters, processor time and memory of a training step and of a case, on the phantom.

``python -m ci.benchmarks.bundles`` prints a table, a row a bundle, as its configs ship it in float32. ``--overlay`` and
``--dataset_dir`` measure one bundle with other data. Time is that of the processor (all threads), which other work on
the machine hardly changes; on CUDA it is the clock's. Memory is what the step or the case needs beyond what was there.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import fire
import torch
from monai.bundle import ConfigParser

from .memory import peak_extra_memory
from .steps import shipped_step

BUNDLES = Path("bundles")
_HEAD = ("bundle", "parameters", "step, s", "step, MB", "batch", "case, s", "case, MB", "image")
_WIDTHS = (16, 11, 9, 9, 18, 9, 9, 18)


def main(
    *names: str, overlay: str | None = None, dataset_dir: str | None = None, datalist: str = "dataset.json"
) -> None:
    """Print the table.

    Args:
        names: of the bundles; none: all.
        overlay: config that goes on top of train.yaml and inference.yaml.
        dataset_dir: data set; None: the phantom.
        datalist: name of the JSON in it.
    """
    if len(names) == 1:
        print(_line(_measure(names[0], overlay, dataset_dir, datalist)))
        return
    print(_line(_HEAD), flush=True)
    for name in names or sorted(path.parts[-3] for path in BUNDLES.glob("*/configs/metadata.json")):
        # a process each: all bundles call their package `scripts`
        command = [sys.executable, "-m", "ci.benchmarks.bundles", name]
        command += [] if overlay is None else ["--overlay", overlay]
        command += [] if dataset_dir is None else ["--dataset_dir", dataset_dir, "--datalist", datalist]
        subprocess.run(command, check=True)


def _line(cells: Sequence[str]) -> str:
    return " ".join(f"{cell:>{width}}" for cell, width in zip(cells, _WIDTHS, strict=True))


def _parser(name: str, config: str, overlay: str | None, changes: dict[str, Any]) -> ConfigParser:
    parser = ConfigParser()
    parser.read_config([str(BUNDLES / name / "configs" / f"{config}.yaml"), *([] if overlay is None else [overlay])])
    for key, value in changes.items():
        parser[key] = value
    return parser


def _measure(name: str, overlay: str | None, dataset_dir: str | None, datalist: str) -> list[str]:
    """The row of a bundle."""
    sys.path.insert(0, str(BUNDLES / name))
    given = {} if dataset_dir is None else {"dataset_dir": dataset_dir, "datalist": datalist}
    parser = _parser(name, "train", overlay, {"cache_rate": 0.0, **given})
    device = parser.get_parsed_content("device")
    method = parser.get_parsed_content("method").to(device)
    found = next(iter(parser.get_parsed_content("train#dataloader")))
    batch = {key: value.to(device) if isinstance(value, torch.Tensor) else value for key, value in found.items()}
    batch = {key: value.as_tensor() if hasattr(value, "as_tensor") else value for key, value in batch.items()}
    step_time, step_memory = _cost(shipped_step(method, batch, torch.float32), device)
    parameters = sum(value.numel() for value in method.network.parameters())

    parser = _parser(name, "inference", overlay, given)
    network = parser.get_parsed_content("network_def").to(device).eval()
    image = parser.get_parsed_content("dataset")[0]["image"][None].to(device)
    inferer = parser.get_parsed_content("inferer")

    def segment() -> None:
        with torch.no_grad(), torch.autocast(device.type, enabled=device.type == "cuda"):
            inferer(image, network)

    case_time, case_memory = _cost(segment, device)
    patch, whole = (" x ".join(map(str, shape[2:])) for shape in (batch["image"].shape, image.shape))
    return [
        name,
        f"{parameters / 1e6:.2f} M",
        f"{step_time:.2f}",
        f"{step_memory / 1e6:.0f}",
        f"{len(batch['image'])} of {patch}",
        f"{case_time:.2f}",
        f"{case_memory / 1e6:.0f}",
        whole,
    ]


def _cost(run: Callable[[], object], device: torch.device) -> tuple[float, int]:
    """Seconds and bytes of a piece of work that has been done once before."""
    run()

    def now() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
            return time.perf_counter()
        return time.process_time()

    start = now()
    memory = peak_extra_memory(run, device)
    return now() - start, memory


if __name__ == "__main__":
    fire.Fire(main)
