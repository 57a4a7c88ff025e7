"""What training does to the set of answers: they stay apart, and the posterior's code tells them apart. Minutes."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from monai.bundle import ConfigParser

from bundles.ambissl.scripts.supervised import Branch
from common.evaluation.samples import set_measures
from tests.bundles.conftest import SMALL_NETWORKS, Bundle

pytestmark = pytest.mark.slow
SAMPLES = 16


class Trained(NamedTuple):
    """A method after a short training on the phantom, and a batch of it."""

    method: Any
    batch: dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    bundle = Bundle("ambissl", tmp_path_factory.mktemp("ambissl"))
    config = ConfigParser(bundle.load("train"))
    config.update(SMALL_NETWORKS["scripts.network.ProbabilisticUNet"])
    # the phantom itself: the small one of the other tests is too easy to disagree about
    config.update(phantom_folders(tmp_path_factory.mktemp("run")))
    config.update({"device": "$torch.device('cpu')", "precision": "float32", "max_epochs": 6, "val_interval": 6})
    with bundle.imported():
        for line in (*config.get_parsed_content("initialize"), config.get_parsed_content("settings")):
            assert line is not False
        config.get_parsed_content("train#trainer").run()
        batch = next(iter(config.get_parsed_content("train#dataloader")))
        plain = {key: torch.as_tensor(value).as_subclass(torch.Tensor) for key, value in batch.items()}
        return Trained(config.get_parsed_content("method").eval(), plain)


def phantom_folders(folder: Path) -> dict[str, str]:
    return {
        "data#phantom_dir": str(folder / "phantom"),
        "ckpt_dir": str(folder / "models"),
        "output_dir": str(folder / "eval"),
    }


@torch.no_grad()
def test_answers_of_one_image_do_not_collapse(trained: Trained) -> None:
    labelled = trained.batch["rater_count"] > 0
    images = trained.batch["image"][labelled]
    noise = torch.randn(len(images), SAMPLES, trained.method.network.latent_size, generator=torch.manual_seed(0))
    answers = trained.method.network.samples(images, noise).argmax(2)
    spreads, between = [], []
    for image in range(len(images)):
        raters = trained.batch["raters"][labelled][image, : int(trained.batch["rater_count"][labelled][image])]
        for structure in range(1, 4):
            if not (raters == structure).any():
                continue
            measured = set_measures((answers[image] == structure).numpy(), (raters == structure).numpy())
            spreads.append(measured["spread"])
            between.append(measured["rater_spread"])
    spread, rater_spread = (sum(values) / len(values) for values in (spreads, between))
    print(f"1 - IoU between answers {spread:.3f}, between raters {rater_spread:.3f}")
    assert spread > 0.05


@torch.no_grad()
def test_the_code_of_other_masks_gives_another_answer(trained: Trained) -> None:
    method, data = trained.method, trained.method.labelled(trained.batch)
    posterior = method.encode_set(*data)
    features = method.network.decode(method.network.encode(data.image))
    masks = [
        method.answers(Branch(features, method.network.head), mean[:, None], data.image)[:, 0].argmax(1)
        for mean in (posterior.mean, posterior.mean.roll(1, 0))
    ]
    changed = (masks[0] != masks[1]).float().mean().item()
    structures = (masks[0] > 0).float().mean().item()
    print(f"voxels changed by another image's code: {changed:.4f} of the image, structures {structures:.3f}")
    assert changed > 0.001
