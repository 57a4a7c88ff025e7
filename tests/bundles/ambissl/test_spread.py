"""After a training on the phantom answers differ, and the latent code is what they differ by."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

import nibabel as nib
import numpy as np
import pytest
import torch

from bundles.ambissl.scripts.method import AmbiSSL
from common.data import make_phantom
from common.data.loading.raters import collate_raters
from common.evaluation.samples import set_measures
from common.training.method import Progress

from .small import small_network

pytestmark = pytest.mark.slow
STEPS, LABELLED, UNLABELLED, CLASSES = 120, 3, 3, 4
SHAPE = (48, 48, 16)


class Case(NamedTuple):
    """An image (H, W, D) and its raters' masks (R, H, W, D)."""

    image: torch.Tensor
    raters: torch.Tensor


def read(folder: Path, section: str) -> list[Case]:
    cases = []
    for record in json.loads((folder / "dataset.json").read_text())[section]:
        image = np.asarray(nib.Nifti1Image.from_filename(folder / record["image"]).dataobj, dtype=np.float32)
        masks = [np.asarray(nib.Nifti1Image.from_filename(folder / path).dataobj) for path in record.get("labels", [])]
        raters = torch.from_numpy(np.stack(masks)) if masks else torch.zeros((0, *SHAPE), dtype=torch.uint8)
        cases.append(Case(torch.from_numpy((image - image.min()) / np.ptp(image)), raters))
    return cases


def make_batch(cases: list[Case], generator: np.random.Generator) -> dict[str, torch.Tensor]:
    """Slices of labelled and unlabelled cases, turned by right angles; the strong view is brighter or darker."""
    kinds = [[case for case in cases if (len(case.raters) > 0) == labelled] for labelled in (True, False)]
    items = []
    for kind, count in zip(kinds, (LABELLED, UNLABELLED), strict=True):
        for _ in range(count):
            case = kind[generator.integers(len(kind))]
            place, turns = int(generator.integers(3, SHAPE[2] - 3)), int(generator.integers(4))
            image = torch.rot90(case.image[None, ..., place], turns, (1, 2))
            strong = (image * float(generator.uniform(0.7, 1.3)) + 0.05 * torch.randn(image.shape)).clamp(0, 1)
            raters = torch.rot90(case.raters[..., place], turns, (1, 2))
            items.append({"image": image, "strong": strong, "raters": raters, "rater_count": torch.tensor(len(raters))})
    batch: dict[str, torch.Tensor] = collate_raters(items)
    return batch


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    cases = {"training": 10, "validation": 1, "test": 2}
    return make_phantom(tmp_path_factory.mktemp("spread") / "data", "raters", shape=SHAPE, cases=cases)


@pytest.fixture(scope="module")
def trained(folder: Path) -> AmbiSSL:
    torch.manual_seed(0)
    network = small_network(CLASSES, decoder_channels=(32, 16, 16, 16, 16), prior_channels=(8, 16, 16), latent_size=6)
    method = AmbiSSL(network, raters=5, bound=4.0, free_nats=0.1).train()  # as in train.yaml
    optimizer = torch.optim.Adam(method.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    cases, generator = read(folder, "training"), np.random.default_rng(0)
    for step in range(STEPS):
        optimizer.zero_grad()
        method(make_batch(cases, generator), Progress(iteration=step, total=STEPS)).total.backward()
        optimizer.step()
        schedule.step()
    return method.eval()


@torch.no_grad()
def test_answers_differ_and_fit_better_than_their_mean_alone(trained: AmbiSSL, folder: Path) -> None:
    codes = torch.randn(1, 16, 6, generator=torch.Generator().manual_seed(0))
    rows, alone = [], []
    for case in read(folder, "test"):
        image = case.image.permute(2, 0, 1)[:, None]
        answers = trained.network.samples(image, codes.expand(len(image), -1, -1)).softmax(2)
        volumes = answers.permute(1, 2, 0, 3, 4).numpy()
        masks = case.raters.permute(0, 3, 1, 2).numpy()
        for value in range(1, CLASSES):
            rows.append(set_measures(volumes[:, value], masks == value))
            alone.append(set_measures(volumes[:, value].mean(0, keepdims=True), masks == value))
    spread, of_raters = (np.mean([row[name] for row in rows]) for name in ("spread", "rater_spread"))
    ged, of_one = (np.mean([row["ged"] for row in table]) for table in (rows, alone))
    print(f"spread {spread:.3f}, raters' {of_raters:.3f}; GED {ged:.3f}, of the mean answer alone {of_one:.3f}")
    assert spread > 0.2 * of_raters
    assert ged < of_one


@torch.no_grad()
def test_shuffled_codes_of_the_posterior_change_the_masks(trained: AmbiSSL, folder: Path) -> None:
    cases = [case for case in read(folder, "training") if len(case.raters) > 0]
    middle = [{"image": c.image[None, ..., 8], "raters": c.raters[..., 8]} for c in cases]
    batch = collate_raters([{**item, "rater_count": torch.tensor(len(item["raters"]))} for item in middle])
    data = trained.labelled(batch)
    posterior = trained.encode_set(*data)
    noise = torch.randn(len(cases), 6, generator=torch.Generator().manual_seed(1))
    code = posterior.sample(noise[:, None])
    features = trained.network.decode(trained.network.encode(data.image))

    def masks(codes: torch.Tensor) -> torch.Tensor:
        return trained.network.head(features, codes)[:, 0, :, :48, :48].argmax(1)

    own, shuffled = masks(code), masks(code.roll(1, 0))
    marked = (own > 0) | (shuffled > 0)
    changed = float((own != shuffled)[marked].float().mean())
    print(f"{changed:.3f} of the marked voxels change their class")
    assert changed > 0.03
