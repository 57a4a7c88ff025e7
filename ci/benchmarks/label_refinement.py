"""What the readings of AffinityUMamba's label refinement (Eqs. 3-6) do to labels whose truth is known.

    python -m ci.benchmarks.label_refinement --weights MODEL --dataset_dir DIR --overlay la_quarter

takes a network that ``affinity_umamba`` trained and training labels with a ``reference`` (as ``corrupt`` keeps it), and
prints for each reading: voxels that change, how many of the changes are right, how many of the wrong labels become
right, and the Dice of the labels as given, as refined, and of the network itself.
"""

from __future__ import annotations

import itertools
import json
import sys
from pathlib import Path
from typing import Any

import fire
import torch
from monai.bundle import ConfigParser
from monai.inferers import sliding_window_inference
from monai.transforms import Compose

from bundles.affinity_umamba.scripts.losses import AFFINITY_CENTRES, refine_labels, suspicious_voxels
from common.ops.likeliest import likeliest

CONFIGS = Path("bundles") / "affinity_umamba" / "configs"


def main(weights: str, dataset_dir: str, datalist: str = "dataset.json", overlay: str = "", cases: int = 8) -> None:
    """Print the table.

    Args:
        weights: of the network.
        dataset_dir: folder of the data set.
        datalist: its JSON.
        overlay: config of the data set, without .yaml.
        cases: the first so many with a reference.
    """
    sys.path.insert(0, str(CONFIGS.parent))
    files = [CONFIGS / f"{name}.yaml" for name in ("train", overlay) if name]
    parser = ConfigParser(ConfigParser.load_config_files(files))
    network = parser.get_parsed_content("network_def").eval()
    network.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    load = Compose(parser.get_parsed_content("train#deterministic_transforms"))
    records = json.loads((Path(dataset_dir) / datalist).read_text())["training"]
    records = [record for record in records if "reference" in record][:cases]
    if not records:
        sys.exit(f"{dataset_dir}: no training record has a reference. Fix: make labels with `common.data corrupt`.")

    readings = list(itertools.product(AFFINITY_CENTRES, ("union", "both"), (False, True)))
    sums = {reading: torch.zeros(6, dtype=torch.float64) for reading in readings}
    for record in records:
        image, label, truth = _read(record, Path(dataset_dir), load)
        cnn, am = _decoders(network, image, parser["patch_size"])
        own = likeliest(am, 1, keepdim=True)
        for centre, rule, support in readings:
            noisy = suspicious_voxels((cnn, am), label, rule, support, centre)
            refined = refine_labels(label, noisy, cnn, am)
            changed, wrong = refined != label, label != truth
            counts = [float(voxels.sum()) for voxels in (changed, changed & (refined == truth), wrong)]
            counts += [_dice(masks, truth) for masks in (label, refined, own)]
            sums[centre, rule, support] += torch.tensor(counts, dtype=torch.float64)
    print(f"{len(records)} labels; Dice: mean over cases of the foreground's, all structures together")
    head = f"{'class of the centre':<21}{'rule':<7}{'support':<9}{'changes right':>14}{'wrong found':>13}"
    print(f"{head}{'Dice given':>12}{'refined':>9}{'network':>9}")
    for (centre, rule, support), (changed, right, wrong, *dice) in sums.items():
        row = f"{centre:<21}{rule:<7}{'yes' if support else 'no':<9}"
        row += f"{right / changed.clamp_min(1):>14.3f}{right / wrong.clamp_min(1):>13.3f}"
        given, refined, own = (value / len(records) for value in dice)
        print(f"{row}{given:>12.3f}{refined:>9.3f}{own:>9.3f}")


def _read(record: dict[str, Any], folder: Path, load: Compose) -> list[torch.Tensor]:
    """Image (1, channels, *S), label and truth (1, 1, *S), as training sees them."""
    image = str(folder / record["image"])
    given, true = (load({"image": image, "label": str(folder / record[key])}) for key in ("label", "reference"))
    arrays = (given["image"].float(), given["label"].long(), true["label"].long())
    return [torch.as_tensor(array)[None] for array in arrays]


@torch.no_grad()
def _decoders(network: Any, image: torch.Tensor, patch_size: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Probabilities of both decoders, window by window."""

    def both(window: torch.Tensor) -> torch.Tensor:
        return torch.cat([logits.float().softmax(1) for logits in network.branches(window)], 1)

    maps = sliding_window_inference(image, patch_size, 8, both, overlap=0.0)
    cnn, am = torch.as_tensor(maps).chunk(2, dim=1)
    return cnn, am


def _dice(masks: torch.Tensor, truth: torch.Tensor) -> float:
    common = ((masks == truth) & (truth > 0)).sum()
    return float(2 * common / ((masks > 0).sum() + (truth > 0).sum()).clamp_min(1))


if __name__ == "__main__":
    fire.Fire(main)
