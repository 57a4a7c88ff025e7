"""What training does to the set of answers: they stay apart, and go by the latent code. Minutes."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch
from monai.bundle import ConfigParser

from bundles.ambissl.scripts.supervised import Branch
from common.evaluation.samples import set_measures
from tests.bundles.conftest import Bundle

pytestmark = pytest.mark.slow
SAMPLES = 16


class Trained(NamedTuple):
    """A method after its training on the phantom, and a batch of it."""

    method: Any
    batch: dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    bundle = Bundle("ambissl", tmp_path_factory.mktemp("ambissl"))
    config = ConfigParser(bundle.load("train"))
    # as it is typed: networks smaller or trained for less do not find the structures that raters disagree about
    folder = tmp_path_factory.mktemp("run")
    folders = {"data#phantom_dir": "phantom", "ckpt_dir": "models", "output_dir": "eval"}
    config.update({key: str(folder / name) for key, name in folders.items()})
    config.update({"device": "$torch.device('cpu')", "precision": "float32", "val_interval": 10})
    with bundle.imported():
        config.get_parsed_content("initialize")
        config.get_parsed_content("settings")
        config.get_parsed_content("train#trainer").run()
        batch = next(iter(config.get_parsed_content("train#dataloader")))
        plain = {key: torch.as_tensor(value).as_subclass(torch.Tensor) for key, value in batch.items()}
        return Trained(config.get_parsed_content("method").eval(), plain)


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
def test_codes_of_other_images_give_other_answers(trained: Trained) -> None:
    """Codes drawn from the posterior, then shuffled over the images: decoder and head go by them."""
    method, data = trained.method, trained.method.labelled(trained.batch)
    posterior = method.encode_set(*data)
    noise = torch.randn(len(data.image), SAMPLES, method.network.latent_size, generator=torch.manual_seed(0))
    codes = posterior.sample(noise, "normal")
    features = method.network.decode(method.network.encode(data.image))
    own, others = (
        method.answers(Branch(features, method.network.head), each, data.image).argmax(2)
        for each in (codes, codes.roll(1, 0))
    )
    changed = (own != others).float().mean().item()
    structures = (own > 0).float().mean().item()
    print(f"voxels changed by another image's codes: {changed:.4f} of the image, structures {structures:.4f}")
    assert changed > 0.05 * structures
