"""Gain and cost of mirrored answers, an ensemble of folds and the largest component.

``python -m ci.benchmarks.ensembles --weights "[a.pt, b.pt, c.pt]" --dataset_dir DIR`` prints a table, and how many of
the true volumes lie inside the intervals of ``volumes.csv``.

An ensemble's answer is the mean of its passes' probabilities (:class:`~common.evaluation.ensemble.Ensemble`), so each
network sees each mirror image once, and every row is the mean of some of these maps; its time is that of its passes.
What stands for one network is the mean over all of them.
"""

from __future__ import annotations

import copy
import itertools
import time
from pathlib import Path
from typing import Any

import fire
import numpy as np
import torch
import yaml
from monai.bundle import ConfigParser
from monai.data import MetaTensor
from monai.transforms import Invertd

from common.data.contract.names import voxel_size
from common.data.loading.components import LargestComponentd
from common.data.loading.transforms import SegmentationAndUncertaintyd
from common.evaluation.compare import paired_differences
from common.evaluation.ensemble import load_networks, log_probability
from common.evaluation.metrics import MEAN_STRUCTURE, CaseTable, Summary
from common.evaluation.volumes import structure_volumes

Pass = tuple[int, tuple[int, ...]]  # a network, and the axes along which it saw the image mirrored


class Rows:
    """The rows of the table: which passes each averages, and the cases measured so far.

    Args:
        networks: how many there are.
        axes: spatial axes to mirror along.
        labels: names of the structures by class number.
    """

    def __init__(self, networks: int, axes: list[int], labels: dict[int, str]) -> None:
        every = [chosen for k in range(len(axes) + 1) for chosen in itertools.combinations(axes, k)]
        mirrors: dict[str, list[tuple[int, ...]]] = {"": [()]}
        mirrors |= {f", axis {axis}": [(), (axis,)] for axis in axes}
        mirrors |= {f", axes {axes}": every} if len(axes) > 1 else {}
        self.passes: dict[str, list[list[Pass]]] = {}
        for words, seen in mirrors.items():
            self.passes[f"one network{words}"] = [[(n, flips) for flips in seen] for n in range(networks)]
        for words, seen in mirrors.items():
            self.passes[f"{networks} networks{words}"] = [[(n, flips) for n in range(networks) for flips in seen]]
        self.every = [(n, flips) for n in range(networks) for flips in every]
        self.labels = labels
        self.tables = {
            (name, largest): [CaseTable(labels) for _ in answers]
            for name, answers in self.passes.items()
            for largest in (False, True)
        }
        self.seconds = dict.fromkeys(self.passes, 0.0)
        self.volumes: dict[str, list[dict[str, Any]]] = {name: [] for name in self.passes}

    def add(self, case: str, maps: dict[Pass, Any], times: dict[Pass, float], item: dict[str, Any], undo: Any) -> None:
        """Measure all rows on one case.

        Args:
            case: its name.
            maps: probabilities (C, *S) of each pass.
            times: seconds of each pass.
            item: the case, as the transforms gave it.
            undo: brings ``pred`` back to the label's space.
        """
        label = item["label"]
        reference, spacing = label[0].numpy(), voxel_size(label)
        for name, answers in self.passes.items():
            for place, passes in enumerate(answers):
                mean = torch.stack([maps[each] for each in passes]).mean(0)
                # MONAI's inversion uses up what the image remembers of its transforms
                done = SegmentationAndUncertaintyd("pred")(
                    undo({"image": copy.deepcopy(item["image"]), "pred": MetaTensor(mean)})
                )
                probabilities = done["probabilities"]
                for largest in (False, True):
                    pred = LargestComponentd("pred", largest)(done)["pred"]
                    table = self.tables[name, largest][place]
                    table.add(case, pred[0].numpy(), reference, spacing, probabilities.numpy())
                found = structure_volumes(done["pred"][0], probabilities, self.labels, reference=label[0])
                self.volumes[name] += found
                self.seconds[name] += sum(times[each] for each in passes) / len(answers)

    def print(self, cases: int) -> None:
        """Print the table and the shares of volumes inside their intervals."""
        print(
            "Dice, 95HD and ECE: means over structures and cases; gain over one network with its bootstrap 95% interval"
        )
        head = (
            f"{'answer':<28}{'passes':>7}{'s / case':>10}{'Dice':>8}{'95HD':>8}{'ECE':>8}  {'gain of Dice, points':<24}"
        )
        print(head + "with the largest component: Dice, 95HD")
        base = self.tables["one network", False]
        for name, answers in self.passes.items():
            plain, largest = (self.tables[name, active] for active in (False, True))
            gains = [paired_differences(b.rows, t.rows) for b, t in itertools.product(base, plain)]
            if len(plain) == len(base):
                gains = [paired_differences(b.rows, t.rows) for b, t in zip(base, plain, strict=True)]
            gain, low, high = (100 * float(np.mean([_row(s, "dice")[k] for s in gains])) for k in ("mean", "lo", "hi"))
            words = "" if name == "one network" else f"{gain:+.2f} [{low:+.2f}, {high:+.2f}]"
            print(
                f"{name:<28}{len(answers[0]):>7}{self.seconds[name] / cases:>10.2f}{_mean(plain, 'dice'):>8.4f}"
                f"{_mean(plain, 'hd95'):>8.2f}{_mean(plain, 'ece'):>8.4f}  {words:<24}"
                f"{_mean(largest, 'dice'):.4f}, {_mean(largest, 'hd95'):.2f}"
            )
        for name, rows in self.volumes.items():
            inside = sum(row["lower_voxels"] <= row["reference_voxels"] <= row["upper_voxels"] for row in rows)
            widths = [(row["upper_voxels"] - row["lower_voxels"]) / max(row["reference_voxels"], 1) for row in rows]
            shown = f"{inside} of {len(rows)}, width {100 * float(np.median(widths)):.0f}% of the volume (median)"
            print(f"true volumes inside the 90% interval, {name}: {shown}")


def _row(summary: Summary, metric: str) -> dict[str, Any]:
    rows = [row for row in summary.rows if row["metric"] == metric]
    return next((row for row in rows if row["structure"] == MEAN_STRUCTURE), rows[0])


def _mean(tables: list[CaseTable], metric: str) -> float:
    return float(np.mean([_row(table.summary(), metric)["mean"] for table in tables]))


def main(
    weights: str,
    configs: str = "bundles/alc/configs",
    overlay: str | None = None,
    dataset_dir: str | None = None,
    datalist: str = "dataset.json",
    section: str = "test",
    cases: int = 4,
    overlap: float = 0.5,
    axes: tuple[int, ...] = (0, 1, 2),
) -> None:
    """Print the table.

    Args:
        weights: trained weights, a list of several.
        configs: folder of a bundle's configs; its inferer works by windows.
        overlay: config that goes on top.
        dataset_dir: data set; None: the phantom.
        datalist: its JSON.
        section: which of its cases.
        cases: how many of them.
        overlap: of windows.
        axes: to mirror along.
    """
    folder = Path(configs)
    parser = ConfigParser()
    parser.read_config(
        [str(folder / "train.yaml"), *([] if overlay is None else [overlay]), str(folder / "evaluate.yaml")]
    )
    parser.update({"dataset_dir": dataset_dir, "datalist": datalist, "overlap": overlap})
    paths = yaml.safe_load(weights) if isinstance(weights, str) else weights
    paths = paths if isinstance(paths, (list, tuple)) else [paths]
    preprocessing, inferer = (parser.get_parsed_content(f"evaluate#{name}") for name in ("preprocessing", "inferer"))
    data, device = parser.get_parsed_content("data"), parser.get_parsed_content("device")
    records = data.section(section, "label")[:cases]
    networks = [load_networks(parser.get_parsed_content("network_def", lazy=False), path) for path in paths]
    networks = [network.to(device).eval() for network in networks]
    labels = {value: name for value, name in data.labels.items() if value != 0}
    rows = Rows(len(networks), list(axes), labels)
    undo = Invertd("pred", transform=preprocessing, orig_keys="image", nearest_interp=False)
    for number, record in enumerate(records):
        item = preprocessing(record)
        maps, times = {}, {}
        for network, flips in rows.every:
            maps[network, flips], times[network, flips] = _answer(
                networks[network], inferer, item["image"], flips, device
            )
        rows.add(str(number), maps, times, item, undo)
    print(f"{device}, torch {torch.__version__}, {torch.get_num_threads()} threads; {len(records)} {section} cases")
    rows.print(len(records))


@torch.no_grad()
def _answer(
    network: torch.nn.Module, inferer: Any, image: Any, flips: tuple[int, ...], device: torch.device
) -> tuple[torch.Tensor, float]:
    """Mean probabilities (C, *S) of the windows, each seen mirrored, and the seconds they took."""
    places = [axis + 2 for axis in flips]

    def mirrored(window: torch.Tensor) -> torch.Tensor:
        seen = network(window.flip(places)).float().softmax(1).flip(places)
        return log_probability(seen)

    batch = image.as_tensor()[None].to(device)
    start = time.perf_counter()
    found = inferer(batch, mirrored)[0].cpu()
    return found, time.perf_counter() - start


if __name__ == "__main__":
    fire.Fire(main)
