"""STAPLE: against expectation maximisation written plainly, and at the edges."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Compose, EnsureTyped

from common.errors import ExpectedError
from common.evaluation import consensus
from common.evaluation.consensus import StapleConsensusd, staple
from common.evaluation.sampling import sample_postprocessing


@pytest.fixture
def installed() -> None:
    pytest.importorskip("SimpleITK")


def raters(shape: tuple[int, ...], errors: tuple[float, ...] = (0.05, 0.1, 0.2, 0.4), seed: int = 0) -> np.ndarray:
    """Masks that fill the image to its corners, so that STAPLE's box is all of it."""
    rng = np.random.default_rng(seed)
    truth = rng.random(shape) > 0.7
    masks = np.stack([truth ^ (rng.random(shape) < error) for error in errors])
    masks[0].flat[[0, -1]] = True
    return masks


def naive(masks: np.ndarray, steps: int = 100) -> np.ndarray:
    """Eqs. of Warfield et al., voxel by voxel and rater by rater."""
    decisions = masks.reshape(len(masks), -1)
    sensitivity, specificity, prior = [0.99999] * len(masks), [0.99999] * len(masks), decisions.mean()
    weights: list[float] = []
    for _ in range(steps):
        weights = []
        for voxel in range(decisions.shape[1]):
            yes, no = prior, 1.0 - prior
            for rater in range(len(masks)):
                marked = decisions[rater, voxel]
                yes *= sensitivity[rater] if marked else 1.0 - sensitivity[rater]
                no *= 1.0 - specificity[rater] if marked else specificity[rater]
            weights.append(yes / (yes + no))
        for rater in range(len(masks)):
            hits = sum(weight for weight, marked in zip(weights, decisions[rater], strict=True) if marked)
            passed = sum(1.0 - weight for weight, marked in zip(weights, decisions[rater], strict=True) if not marked)
            sensitivity[rater] = hits / sum(weights)
            specificity[rater] = passed / (len(weights) - sum(weights))
    return np.array(weights).reshape(masks.shape[1:])


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize("shape", [(9, 11), (5, 6, 4)])
def test_equals_expectation_maximisation_by_loops(shape: tuple[int, ...]) -> None:
    masks = raters(shape)
    np.testing.assert_allclose(staple(masks), naive(masks), atol=1e-3)


@pytest.mark.usefixtures("installed")
def test_good_raters_count_more_than_the_majority() -> None:
    """Three who err alike at random against two who are right: the majority is wrong more often."""
    masks = raters((40, 40), (0.02, 0.02, 0.45, 0.45, 0.45))
    truth = raters((40, 40), (0.0,))[0]
    wrong = [np.mean(found != truth) for found in (staple(masks) > 0.5, masks.mean(0) > 0.5)]
    assert wrong[0] < 0.03 < 0.06 < wrong[1]


@pytest.mark.usefixtures("installed")
def test_background_around_the_structure_changes_nothing() -> None:
    masks = np.pad(raters((12, 12)), ((0, 0), (1, 1), (1, 1)))
    alone, inside = staple(masks), staple(np.pad(masks, ((0, 0), (30, 5), (7, 90))))
    np.testing.assert_array_equal(inside[30:44, 7:21], alone)
    inside[30:44, 7:21] = 0
    assert not inside.any()


@pytest.mark.usefixtures("installed")
def test_edges() -> None:
    one = raters((6, 6))[:1]
    np.testing.assert_array_equal(staple(one), one[0])
    np.testing.assert_array_equal(staple(np.repeat(one, 3, 0)), one[0])
    assert not staple(np.zeros((3, 4, 5, 6))).any() and staple(np.ones((3, 4, 4))).all()
    no_background = np.stack([np.ones((3, 3)), np.ones((3, 3)), np.eye(3)])
    np.testing.assert_allclose(staple(no_background), no_background.mean(0))
    for wrong in (np.zeros((0, 4, 4)), np.zeros((4, 4))):
        with pytest.raises(ValueError, match="masks must be"):
            staple(wrong)


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize("classes", [2, 4])
def test_classes_one_against_the_rest(classes: int) -> None:
    samples = torch.randint(
        0, classes - 1, (5, 8, 7), generator=torch.Generator().manual_seed(1)
    )  # the last is nobody's
    samples[:, 2:5] = 1
    case: dict[Any, Any] = {"pred": MetaTensor(torch.zeros(1, 8, 7), meta={"case": "a"}), "samples": samples.byte()}
    found = StapleConsensusd("pred", classes)(case)["pred"]
    expected = np.stack([staple(samples.numpy() == number) for number in range(classes)]).argmax(0)
    assert found.shape == (1, 8, 7) and found.dtype == torch.uint8 and found.meta["case"] == "a"
    np.testing.assert_array_equal(found[0].numpy(), expected)
    assert bool((found[0, 2:5] == 1).all()) and int(found.max()) < max(classes - 1, 2)


@pytest.mark.usefixtures("installed")
def test_postprocessing_takes_it_in_the_place_of_the_mean(tmp_path: Any) -> None:
    """One answer is surer than the others together: the mean follows it, STAPLE does not."""
    second = torch.full((3, 6, 6), 0.4)
    second[0, 1:4, 1:4], second[1:, 1:4, 1:4] = 1.0, 0.45
    second[:, 2, 2] = 0.9
    preprocessing = Compose([EnsureTyped("image")])
    meta = {"filename_or_obj": "a.nii.gz", "affine": torch.eye(4)}
    case = preprocessing({"image": MetaTensor(torch.rand(1, 6, 6), meta=meta)})
    case["pred"] = MetaTensor(torch.stack((1 - second, second), 1).flatten(0, 1), meta=meta)
    found = {
        name: sample_postprocessing(preprocessing, tmp_path, 2, measured=False, consensus=name)(dict(case))
        for name in ("mean", "staple")
    }
    assert int(found["mean"]["pred"].sum()) == 9 and int(found["staple"]["pred"].sum()) == 1
    torch.testing.assert_close(found["mean"]["uncertainty"], found["staple"]["uncertainty"])


def test_refusals(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="consensus must be one of mean, staple, got 'vote'"):
        sample_postprocessing(Compose([]), tmp_path, 2, consensus="vote")
    monkeypatch.setattr(consensus, "optional_import", lambda name: (None, False))
    with pytest.raises(ExpectedError, match=r"SimpleITK, which is not installed. Fix: pip install SimpleITK\.$"):
        sample_postprocessing(Compose([]), tmp_path, 2, consensus="staple")
