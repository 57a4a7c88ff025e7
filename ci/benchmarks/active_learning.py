"""Does asking for the right case pay? Labels asked for by a strategy against as many in random order, on the phantom.

    python -m ci.benchmarks.active_learning                     # every bundle, five seeds
    python -m ci.benchmarks.active_learning multicure --seeds 0 1 --output runs/active

For each seed a bundle is trained with few labels; its strategies, as the app for MONAI Label has them, and chance ask
each for the same number of further labels; the bundle is trained anew with those, and measured on test cases.
``audit`` asks for labels to correct, the others for images to label. Networks, images and trainings are small: this is
about the strategies, not the bundles. What is finished is kept in ``--output``, and left out when it is run again.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any, NamedTuple

import monai.bundle
import numpy as np
import torch
from monai.bundle import ConfigParser
from monai.data import MetaTensor
from monai.transforms import LoadImage
from torch.nn import functional

from ci.monai_label.app.lib.scores import epistemic_entropy, let_drop, mean_of
from common.data import make_phantom
from common.evaluation.audit import disagreement
from common.evaluation.sampling import SplitSamplesd
from common.files import atomic_path

ROOT = Path(__file__).resolve().parents[2]
SHAPE = (32, 32, 24)
POOL, START, ASKED, TEST = 12, 1, 2, 6  # cases; for alc the phantom's 4 clean labels are the start
CLASSES = 4
PASSES = 5


class Setup(NamedTuple):
    """One bundle.

    Attributes:
        scores: by which it asks: ``entropy``, ``disagreement`` or ``audit``.
        settings: of its training, smaller than its own.
    """

    scores: tuple[str, ...]
    settings: dict[str, Any]


VOLUMES = {"patch_size": [32, 32, 16], "epoch_length": 10, "val_interval": 5}
MULTICURE = {**VOLUMES, "max_epochs": 10}
ALC = {**VOLUMES, "max_epochs": 20, "network_def#base_filters": 8, "clean_per_batch": 2, "noisy_per_batch": 2}
AMBISSL = {"slice_size": [32, 32], "max_epochs": 12, "epoch_length": 20, "val_interval": 12, "backbone": "resnet10"}
AMBISSL |= {"decoder_channels": [32, 16, 8, 8, 8], "prior_channels": [8, 16, 16, 16], "raters": 3}
AMBISSL |= {"raters_per_batch": 4, "unlabelled_per_batch": 2, "learning_rate": 0.002}
SETUPS = {
    "multicure": Setup(("disagreement", "entropy"), MULTICURE),
    "alc": Setup(("audit",), ALC),
    "ambissl": Setup(("disagreement",), AMBISSL),
}


class Trial:
    """One bundle with one seed.

    Args:
        bundle: its name.
        seed: of the phantom, the trainings and chance.
        folder: empty folder to work in.
    """

    def __init__(self, bundle: str, seed: int, folder: Path) -> None:
        self.bundle, self.seed, self.folder = bundle, seed, folder
        self.setup, self.root = SETUPS[bundle], ROOT / "bundles" / bundle
        self.corrects = "audit" in self.setup.scores
        cases = {"training": POOL + START, "validation": 2, "test": TEST}
        # one phantom for the images and their truth; what the bundle is not told is left out of its own JSON
        self.data = make_phantom(folder / "data", "noisy" if self.corrects else "dense", seed, cases, SHAPE)
        self.content = json.loads((self.data / "dataset.json").read_text())
        order = np.random.default_rng([seed, 7])
        training = self.content["training"]
        if self.corrects:
            self.known = [number for number, record in enumerate(training) if "reference" not in record]
        else:
            self.known = sorted(order.permutation(len(training))[:START].tolist())
        self.pool = [number for number in range(len(training)) if number not in self.known]
        self.chance = sorted(order.permutation(self.pool)[:ASKED].tolist())

    def run(self) -> dict[str, Any]:
        """Mean Dice on the test cases: before any is asked for, with those of each score, and by chance."""
        with self._imported():
            result = {"seed": self.seed, "before": self._train("before", self.known)}
            for score in self.setup.scores:
                inference = self._inference("before", dropping=score == "entropy")
                scores = {number: self._score(inference, score, number) for number in self.pool}
                asked = sorted(self.pool, key=lambda number: (-scores[number], number))[:ASKED]
                result[score] = self._train(score, [*self.known, *asked])
            result["random"] = self._train("random", [*self.known, *self.chance])
        return result

    def _records(self, known: Sequence[int]) -> list[dict[str, Any]]:
        """Training records of which these have a true label; the others are noisy, or have none."""
        records = []
        for number, record in enumerate(self.content["training"]):
            kept = {key: record[key] for key in ("image", "group")}
            if number in known:
                kept["label"] = record.get("reference", record["label"])
            elif self.corrects:
                kept |= {"label": record["label"], "label_quality": "noisy"}
            records.append(kept)
        return records

    def _train(self, name: str, known: Sequence[int]) -> float:
        content = {**self.content, "training": self._records(known)}
        if self.bundle == "ambissl":
            for section in ("training", "validation"):
                content[section] = [_as_rater(record) for record in content[section]]
        (self.data / f"{name}.json").write_text(json.dumps(content))
        with redirect_stdout(StringIO()), redirect_stderr(StringIO()):  # progress bars
            monai.bundle.run(
                run_id="training",
                config_file=str(self.root / "configs" / "train.yaml"),
                logging_file=False,
                ckpt_dir=str(self.folder / name / "models"),
                output_dir=str(self.folder / name / "eval"),
                dataset_dir=str(self.data),
                datalist=f"{name}.json",
                seed=self.seed,
                precision="float32",
                **self.setup.settings,
            )
        return self._dice(self._inference(name))

    def _parser(self, name: str, **changes: Any) -> ConfigParser:
        parser = ConfigParser(ConfigParser.load_config_file(self.root / "configs" / "inference.yaml"))
        given = {key: value for key, value in self.setup.settings.items() if key.split("#")[0] in parser}
        for key, value in {**given, "overlap": 0.25, "samples": 8, **changes}.items():
            if key.split("#")[0] in parser:
                parser[key] = value
        parser["weights"] = str(self.folder / name / "models" / "model.pt")
        return parser

    def _inference(self, name: str, dropping: bool = False) -> Inference:
        parser = self._parser(name, **({"network_def#dropout": 0.2} if dropping else {}))
        network = parser.get_parsed_content("network").eval()
        if dropping and not let_drop(network):
            raise RuntimeError(f"{self.bundle}: its network has no dropout.")
        return Inference(network, parser.get_parsed_content("preprocessing"), parser.get_parsed_content("inferer"))

    def _score(self, inference: Inference, score: str, number: int) -> float:
        record = self.content["training"][number]
        image = inference.image(self.data / record["image"])
        if score == "entropy":
            return epistemic_entropy(lambda: inference.maps(image)[:CLASSES], CLASSES, PASSES, self.seed)
        maps = inference.maps(image)
        if score == "audit":
            label = _label(self.data / record["label"])
            parts = [disagreement(maps[:CLASSES].numpy(), label, value) for value in range(1, CLASSES)]
            return float(np.mean(parts))
        if self.bundle == "ambissl":
            return mean_of(SplitSamplesd("pred", CLASSES)({"pred": MetaTensor(maps)})["disagreement"])
        return mean_of(maps[CLASSES])

    def _dice(self, inference: Inference) -> float:
        values = []
        for record in self.content["test"]:
            image = inference.image(self.data / record["image"])
            maps = inference.maps(image)
            if self.bundle == "ambissl":
                maps = maps.unflatten(0, (-1, CLASSES)).mean(0)
            true = _label(self.data / record["label"])
            # slices are resized; axes and spacing are what the bundles ask for
            found = functional.interpolate(maps[None, :CLASSES], true.shape, mode="trilinear")[0].argmax(0).numpy()
            for value in range(1, CLASSES):
                total = (found == value).sum() + (true == value).sum()
                values.append(2.0 * ((found == value) & (true == value)).sum() / total if total else 1.0)
        return float(np.mean(values))

    @contextmanager
    def _imported(self) -> Iterator[None]:
        """The bundle's package ``scripts`` can be imported inside."""
        sys.path.insert(0, str(self.root))
        try:
            yield
        finally:
            sys.path.remove(str(self.root))
            for module in [name for name in sys.modules if name.split(".")[0] == "scripts"]:
                del sys.modules[module]


def _label(path: Path) -> np.ndarray:
    """Class numbers of a file."""
    label: np.ndarray = LoadImage(image_only=True)(path).numpy().astype(np.uint8)
    return label


def _as_rater(record: dict[str, Any]) -> dict[str, Any]:
    """A record whose label is that of one rater."""
    kept = {key: value for key, value in record.items() if key not in ("label", "label_quality")}
    return kept | ({"labels": [record["label"]]} if "label" in record else {})


class Inference(NamedTuple):
    """A trained network and what belongs to it."""

    network: torch.nn.Module
    preprocessing: Any
    inferer: Any

    def image(self, path: Path) -> torch.Tensor:
        """The preprocessed image (channels, *S)."""
        return torch.as_tensor(self.preprocessing({"image": str(path)})["image"])

    @torch.no_grad()
    def maps(self, image: torch.Tensor) -> torch.Tensor:
        """What the network says, (K, *S)."""
        return torch.as_tensor(self.inferer(image[None], self.network)[0]).float()


def summary(bundle: str, rows: Sequence[dict[str, Any]]) -> str:
    """One bundle: mean Dice, and each score's paired difference to chance with its range over the seeds."""
    lines = []
    for score in SETUPS[bundle].scores:
        means = [float(np.mean([row[key] for row in rows])) for key in ("before", score, "random")]
        gains = [row[score] - row["random"] for row in rows]
        better = sum(gain > 0 for gain in gains)
        lines.append(
            f"{bundle + ' ' + score:<24}{means[0]:>8.4f}{means[1]:>8.4f}{means[2]:>8.4f}{float(np.mean(gains)):>+9.4f}"
            f"  {min(gains):+.4f} to {max(gains):+.4f}, better in {better} of {len(gains)}"
        )
    return "\n".join(lines)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundles", nargs="*", metavar="NAME", help=f"of {', '.join(SETUPS)}; default: all")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(5)), help="default: 0 to 4")
    parser.add_argument("--output", type=Path, default=Path("runs/active_learning"), help="default: %(default)s")
    arguments = parser.parse_args()
    if unknown := set(arguments.bundles) - set(SETUPS):
        parser.error(f"no strategy for {', '.join(sorted(unknown))}")
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    lines = []
    for bundle in arguments.bundles or SETUPS:
        rows = []
        for seed in arguments.seeds:
            kept = arguments.output / bundle / f"seed_{seed}.json"
            if not kept.is_file():
                started = time.perf_counter()
                with tempfile.TemporaryDirectory(prefix="active-") as folder:
                    row = Trial(bundle, seed, Path(folder)).run()
                print(f"{bundle}, seed {seed}: {time.perf_counter() - started:.0f} s, {row}", flush=True)
                with atomic_path(kept) as temporary:
                    temporary.write_text(json.dumps(row))
            rows.append(json.loads(kept.read_text()))
        lines.append(summary(bundle, rows))
    print(f"Dice on {TEST} cases; {START} labels (alc: 4 clean) before, {ASKED} more asked for or by chance")
    print(f"{'strategy':<24}{'before':>8}{'asked':>8}{'chance':>8}{'gain':>9}  range over the seeds")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
