"""Answers of a set-valued network: one latent code an image, maps of the answers, their files and metrics."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from ignite.engine import Engine
from monai.data import MetaTensor
from monai.transforms import Compose, EnsureTyped
from torch import nn

from common.evaluation.ambiguity import ambiguity_row
from common.evaluation.samples import set_measures
from common.evaluation.sampling import (
    MeasureSetd,
    SampleSliceInferer,
    SampleWindowInferer,
    SetMetrics,
    SplitSamplesd,
    sample_postprocessing,
)


class Style(nn.Module):
    """Answers whose second class grows with image and latent code, each voxel for itself."""

    latent_size = 3

    def samples(self, image: torch.Tensor, latent: torch.Tensor) -> torch.Tensor:
        shape = (*latent.shape[:2], 1, *[1] * (image.ndim - 2))
        score = image[:, None] + latent.sum(2).reshape(shape)
        return torch.cat((torch.zeros_like(score), score), 2)


def split(answers: torch.Tensor, classes: int = 2) -> dict[Any, Any]:
    return SplitSamplesd("pred", classes)({"pred": MetaTensor(answers)})


def test_the_same_answers_in_any_window_and_batch() -> None:
    image = torch.rand(2, 1, 12, 10)
    whole = SampleWindowInferer((12, 10), samples=4, seed=3)(image, Style())
    for size, batch, overlap in (((5, 4), 1, 0.0), ((6, 6), 3, 0.5)):
        inferer = SampleWindowInferer(size, batch, overlap, samples=4, seed=3)
        torch.testing.assert_close(inferer(image, Style()), whole, rtol=0, atol=1e-6)
    assert whole.shape == (2, 8, 12, 10)
    torch.testing.assert_close(whole.unflatten(1, (4, 2)).sum(2), torch.ones(2, 4, 12, 10))
    alone = SampleWindowInferer((12, 10), samples=4, seed=3)(image[1:], Style())
    torch.testing.assert_close(alone[0], whole[1])


def test_one_code_in_all_slices() -> None:
    image = torch.zeros(1, 1, 4, 4, 6)
    answers = SampleSliceInferer((4, 4), 2, samples=5)(image, Style())
    assert answers.shape == (1, 10, 4, 4, 6)
    assert torch.equal(answers, answers[..., :1].expand_as(answers))
    assert len(answers[0, 1::2, 0, 0, 0].unique()) == 5


def test_seed_number_and_temperature() -> None:
    image = torch.rand(1, 1, 4, 4)

    def answers(**settings: float) -> torch.Tensor:
        return SampleWindowInferer((4, 4), **settings)(image, Style())  # type: ignore[arg-type]

    torch.testing.assert_close(answers(samples=8)[:, :6], answers(samples=3))
    assert not torch.equal(answers(samples=3, seed=1), answers(samples=3, seed=0))
    still = answers(samples=3, temperature=0.0)
    torch.testing.assert_close(still[:, :2], still[:, 2:4])
    assert answers(samples=8, temperature=0.5)[:, 1::2].var(1).mean() < answers(samples=8)[:, 1::2].var(1).mean()
    for wrong in ({"samples": 0}, {"temperature": -1.0}):
        with pytest.raises(ValueError, match="samples must be"):
            answers(**wrong)


def test_maps_by_hand() -> None:
    # three answers, two classes, three voxels: class 1 in (3, 2, 0) of the answers
    second = torch.tensor([[0.9, 0.8, 0.1], [0.9, 0.6, 0.2], [0.6, 0.1, 0.3]])
    found = split(torch.stack((1 - second, second), 1).flatten(0, 1)[..., None])
    assert found["samples"].flatten(1).tolist() == [[1, 1, 0], [1, 1, 0], [1, 0, 0]]
    # pairs of answers 1 and 3, 2 and 3 differ at the second voxel
    torch.testing.assert_close(found["disagreement"].flatten().as_tensor(), torch.tensor([0.0, 2 / 3, 0.0]))
    torch.testing.assert_close(found["pred"][1].flatten().as_tensor(), second.mean(0))
    assert split(torch.rand(2, 3, 3))["disagreement"].abs().max() == 0.0


@pytest.mark.parametrize("classes", [2, 4])
def test_disagreement_equals_naive_pairs(classes: int) -> None:
    answers = torch.rand(6, classes, 5, 4)
    found = split(answers.flatten(0, 1), classes)
    labels = answers.argmax(1)
    pairs = [(i, j) for i in range(6) for j in range(6) if i != j]
    expected = sum((labels[i] != labels[j]).float() for i, j in pairs) / len(pairs)
    torch.testing.assert_close(found["disagreement"][0].as_tensor(), expected)
    assert found["sample_probabilities"].shape == (6, classes, 5, 4)


def test_measures_are_means_over_the_structures() -> None:
    answers, raters = torch.rand(5, 3, 6, 6), torch.randint(0, 3, (4, 6, 6))
    found = MeasureSetd()({"sample_probabilities": answers, "raters": raters})["measures"]
    rows = [set_measures(answers[:, number].numpy(), (raters == number).numpy()) for number in (1, 2)]
    assert found == {name: pytest.approx((rows[0][name] + rows[1][name]) / 2) for name in rows[0]}


def test_files_and_table(tmp_path: Path) -> None:
    shape, affine = (6, 5, 4), np.diag([1.0, 2.0, 3.0, 1.0])
    nib.save(nib.Nifti1Image(np.zeros(shape, np.uint8), affine), tmp_path / "image.nii.gz")
    meta = {"filename_or_obj": str(tmp_path / "image.nii.gz"), "affine": torch.as_tensor(affine)}
    preprocessing = Compose([EnsureTyped("image")])
    answers = torch.rand(3, 2, *shape).softmax(1)
    case = preprocessing({"image": MetaTensor(torch.rand(1, *shape), meta=meta)})
    case |= {
        "pred": MetaTensor(answers.flatten(0, 1), meta=meta),
        "shown": case["image"],
        "label": MetaTensor(torch.zeros(1, *shape), meta=meta),
        "raters": MetaTensor(torch.randint(0, 2, (4, *shape)), meta=meta),
        "probability": MetaTensor(torch.rand(1, *shape), meta=meta),
    }
    done = sample_postprocessing(preprocessing, tmp_path / "out", 2)(case)
    read = {
        path.name.removeprefix("image_").split(".")[0]: nib.Nifti1Image.from_filename(path)
        for path in (tmp_path / "out" / "image").iterdir()
    }
    expected = {"pred": (), "probability": (2,), "uncertainty": (), "samples": (3,), "disagreement": ()}
    expected |= {"image": (), "label": (), "raters": (4,)}
    assert {name: image.shape for name, image in read.items()} == {name: shape + e for name, e in expected.items()}
    for image in read.values():
        np.testing.assert_allclose(image.affine, affine)
    np.testing.assert_array_equal(np.moveaxis(np.asarray(read["samples"].dataobj), -1, 0), answers.argmax(1).numpy())
    np.testing.assert_array_equal(np.asarray(read["pred"].dataobj), answers.mean(0).argmax(0).numpy())

    engine = Engine(lambda engine, batch: None)
    engine.state.batch, engine.state.output = [case], [done]
    metrics = SetMetrics(tmp_path / "out", {0: "background", 1: "body"})
    metrics._case(engine)
    metrics._completed()
    text = (tmp_path / "out" / "samples.csv").read_text().splitlines()
    assert text[0].startswith("case,structure,samples,raters,ged") and text[1].startswith("image,body,3,4,")
    with (tmp_path / "out" / "ambiguity.csv").open() as file:
        (row,) = csv.DictReader(file)
    expected_row = ambiguity_row("image", answers, case["raters"], case["probability"])
    assert row == {name: str(value) for name, value in expected_row.items()}
