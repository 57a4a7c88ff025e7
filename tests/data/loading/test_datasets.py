"""Random transforms that can be replayed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from monai.data import DataLoader
from monai.transforms import Compose, RandFlipd, RandGaussianNoised, RandSpatialCropd

from common.data.loading.datasets import ReplayableDataset
from common.data.loading.samplers import StreamBatchSampler


@pytest.fixture
def dataset() -> ReplayableDataset:
    generator = torch.Generator().manual_seed(0)
    data = [{"image": torch.rand((1, 6, 6), generator=generator)} for _ in range(4)]
    transform = Compose(
        [
            RandSpatialCropd("image", (4, 4), random_size=False),
            RandFlipd("image", prob=0.5),
            RandGaussianNoised("image", prob=0.9),
        ]
    )
    return ReplayableDataset(data, transform, progress=False)


def batches(dataset: ReplayableDataset, workers: int = 0, epoch: int = 1) -> list[torch.Tensor]:
    sampler = StreamBatchSampler(dataset.data, {"clean": 2}, batches=3)
    sampler.set_epoch(epoch)
    loader: Any = DataLoader(dataset, batch_sampler=sampler, num_workers=workers)
    return [batch["image"].as_tensor() for batch in loader]


def test_the_same_seed_replays_the_transforms(dataset: ReplayableDataset) -> None:
    first = dataset[1, 7]["image"]
    dataset[2, 9]  # what came between must not matter
    assert torch.equal(dataset[1, 7]["image"], first)
    assert not torch.equal(dataset[1, 8]["image"], first)


def test_the_cached_image_stays_as_it_is(dataset: ReplayableDataset) -> None:
    before = [item["image"].clone() for item in dataset.data]
    for seed in range(5):
        dataset[0, seed]
    assert all(torch.equal(item["image"], image) for item, image in zip(dataset.data, before, strict=True))


def test_a_plain_index_is_monais(dataset: ReplayableDataset) -> None:
    assert dataset[1]["image"].shape == (1, 4, 4)
    assert len(dataset[1:3]) == 2


def test_the_number_of_workers_does_not_matter(dataset: ReplayableDataset) -> None:
    alone, helped = batches(dataset), batches(dataset, workers=2)
    assert len(alone) == 3
    assert all(torch.equal(one, other) for one, other in zip(alone, helped, strict=True))


def test_a_resumed_epoch_is_the_same(dataset: ReplayableDataset) -> None:
    second = batches(dataset, epoch=2)
    batches(dataset, epoch=1)
    assert all(torch.equal(one, other) for one, other in zip(batches(dataset, epoch=2), second, strict=True))
