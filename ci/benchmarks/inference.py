"""Time sliding-window inference as shipped against the literature's, and compare the Dice of both.

``python -m ci.benchmarks.inference --weights model.pt --dataset_dir DIR --section validation`` prints a table. The
literature's way (stride 18 x 18 x 4 voxels, one window at a time, plain mean) is the reference; a fraction of its
stride keeps the same share of the patch where patches are smaller than its 112 x 112 x 80.
"""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from typing import Any

import fire
import torch
from monai.bundle import ConfigParser
from monai.metrics import DiceMetric
from monai.networks.utils import one_hot

from common.evaluation.inferers import ProbabilityWindowInferer

LITERATURE_PATCH = (112, 112, 80)
LITERATURE_STRIDE = (18, 18, 4)


def main(
    configs: str = "bundles/alc/configs",
    overlay: str | None = None,
    weights: str = "bundles/alc/models/model.pt",
    dataset_dir: str | None = None,
    section: str = "validation",
    cases: int = 4,
) -> None:
    """Print the table.

    Args:
        configs: folder of a bundle's configs.
        overlay: config that goes on top.
        weights: trained weights.
        dataset_dir: data set; None: the phantom.
        section: which of its cases.
        cases: how many of them.
    """
    parser = ConfigParser()
    folder = Path(configs)
    parser.read_config(
        [str(folder / "train.yaml"), *([] if overlay is None else [overlay]), str(folder / "evaluate.yaml")]
    )
    parser["dataset_dir"] = dataset_dir
    dataset = parser.get_parsed_content("validate#preprocessing")
    records = parser.get_parsed_content("data").section(section, "label")[:cases]
    network = parser.get_parsed_content("network_def")
    network.load_state_dict(torch.load(weights, weights_only=True))
    network.to(parser.get_parsed_content("device")).eval()
    patch = tuple(parser.get_parsed_content("patch_size"))
    stride = [
        max(1, round(s * p / full)) for s, p, full in zip(LITERATURE_STRIDE, patch, LITERATURE_PATCH, strict=True)
    ]
    methods = {
        "shipped": parser.get_parsed_content("evaluate#inferer"),
        "literature": ProbabilityWindowInferer(
            patch, 1, [1 - s / p for s, p in zip(stride, patch, strict=True)], "constant"
        ),
    }
    seconds: dict[str, list[float]] = {name: [] for name in methods}
    dice: dict[str, list[float]] = {name: [] for name in methods}
    for record in records:
        item = dataset(record)
        for name, inferer in methods.items():
            elapsed, value = _measure(network, inferer, item)
            seconds[name].append(elapsed)
            dice[name].append(value)
    print(f"{parser.get_parsed_content('device')}, torch {torch.__version__}, {torch.get_num_threads()} threads")
    print(
        f"{len(records)} {section} cases, patch {list(patch)}, literature's stride {stride} (same share of the patch)"
    )
    print(f"{'inference':<12}{'s / case':>10}{'Dice':>10}")
    for name in methods:
        print(f"{name:<12}{statistics.mean(seconds[name]):>10.2f}{statistics.mean(dice[name]):>10.4f}")
    ratio = statistics.median(b / a for a, b in zip(seconds["shipped"], seconds["literature"], strict=True))
    points = 100 * (statistics.mean(dice["shipped"]) - statistics.mean(dice["literature"]))
    print(f"literature / shipped: {ratio:.1f} times the time, Dice difference {points:+.2f} points")


@torch.no_grad()
def _measure(network: torch.nn.Module, inferer: Any, item: dict[str, Any]) -> tuple[float, float]:
    device = next(network.parameters()).device
    image = item["image"].as_tensor()[None].to(device)
    start = time.perf_counter()
    prediction = inferer(image, network).argmax(1, keepdim=True)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elapsed = time.perf_counter() - start
    classes = int(max(prediction.max(), item["label"].max())) + 1
    metric = DiceMetric(include_background=False, ignore_empty=False)
    metric(one_hot(prediction.cpu(), classes), one_hot(item["label"].as_tensor()[None], classes))
    return elapsed, metric.aggregate().item()


if __name__ == "__main__":
    fire.Fire(main)
