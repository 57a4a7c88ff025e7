"""Masks of several raters: loading, majority, collation."""

from __future__ import annotations

from collections.abc import Hashable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import DataLoader, MetaTensor

from common.data.loading.raters import LoadRatersd, collate_raters, majority


def write(folder: Path, name: str, values: list[int]) -> str:
    path = folder / f"{name}.nii.gz"
    nib.save(nib.Nifti1Image(np.array(values, dtype=np.uint8).reshape(-1, 1, 1), np.eye(4)), path)
    return str(path)


def test_all_raters_are_loaded(tmp_path: Path) -> None:
    paths = [write(tmp_path, f"r{number}", [0, number, 1]) for number in range(3)]
    loaded = LoadRatersd()({"labels": paths, "image": torch.zeros(1, 3, 1, 1), "reference": "x", "group": "g"})
    assert loaded["raters"].flatten(1).tolist() == [[0, 0, 1], [0, 1, 1], [0, 2, 1]]
    assert int(loaded["rater_count"]) == 3 and set(loaded) == {"image", "group", "raters", "rater_count"}


def test_a_label_is_one_rater_and_nothing_is_none(tmp_path: Path) -> None:
    image = MetaTensor(torch.ones(2, 3, 1, 1))
    loaded = LoadRatersd()({"label": write(tmp_path, "l", [2, 0, 1]), "image": image})
    assert loaded["raters"].flatten().tolist() == [2, 0, 1] and int(loaded["rater_count"]) == 1
    loaded = LoadRatersd()({"image": image})
    assert loaded["raters"].shape == (1, 3, 1, 1) and int(loaded["rater_count"]) == 0 and "label" not in loaded


def test_raters_come_before_a_label_and_consensus_is_that_label(tmp_path: Path) -> None:
    label, rater = write(tmp_path, "l", [1, 1, 1]), write(tmp_path, "r", [0, 2, 0])
    loaded = LoadRatersd(consensus=True)({"label": label, "labels": [rater], "image": torch.zeros(1, 3, 1, 1)})
    assert loaded["raters"].flatten().tolist() == [0, 2, 0] and loaded["label"].flatten().tolist() == [1, 1, 1]
    loaded = LoadRatersd(consensus=True)({"labels": [rater, label, label], "image": torch.zeros(1, 3, 1, 1)})
    assert loaded["label"].flatten().tolist() == [1, 1, 1] and loaded["label"].shape == (1, 3, 1, 1)


def test_true_probabilities_come_along_to_measure_with(tmp_path: Path) -> None:
    maps = np.random.default_rng(0).random((3, 2, 4, 2)).astype(np.float32)
    nib.save(nib.Nifti1Image(maps, np.eye(4)), tmp_path / "p.nii.gz")
    record: dict[Hashable, Any] = {"label": write(tmp_path, "l", [1, 1, 1]), "probability": str(tmp_path / "p.nii.gz")}
    loaded = LoadRatersd(consensus=True)(dict(record))
    np.testing.assert_array_equal(loaded["probability"].numpy(), np.moveaxis(maps, -1, 0))
    assert "probability" not in LoadRatersd()(dict(record))


def test_majority_of_each_voxel() -> None:
    raters = torch.tensor([[0, 1, 2, 2], [0, 1, 2, 1], [1, 0, 2, 0], [1, 1, 0, 2]], dtype=torch.uint8)
    # of 0 0 1 1 the lowest; three of four; three of four; two of four
    assert majority(raters).tolist() == [[0, 1, 2, 2]]


def case(raters: int, count: int | None = None) -> dict[str, Any]:
    return {
        "image": torch.rand(1, 4, 4),
        "raters": torch.ones(raters, 4, 4, dtype=torch.uint8),
        "rater_count": torch.tensor(raters if count is None else count),
    }


@pytest.mark.parametrize("workers", [0, 1])
def test_collation_fills_up(workers: int) -> None:
    loader = DataLoader([case(3), case(1, 0), case(5)], batch_size=3, collate_fn=collate_raters, num_workers=workers)
    batch = next(iter(loader))
    assert batch["image"].shape == (3, 1, 4, 4) and batch["raters"].shape == (3, 5, 4, 4)
    assert batch["rater_count"].tolist() == [3, 0, 5]
    assert batch["raters"].flatten(2).amax(2).tolist() == [[1, 1, 1, 0, 0], [1, 0, 0, 0, 0], [1] * 5]
