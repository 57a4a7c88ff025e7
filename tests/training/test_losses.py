"""The segmentation loss (mean of cross entropy and soft Dice, one value a sample) against hand and loops."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from common.training.losses import mean_segmentation_loss, segmentation_loss

SMOOTH = 1e-5


def at(tensor: Tensor, *index: int) -> float:
    return float(tensor[index])


def naive_segmentation_loss(logits: Tensor, target: Tensor) -> list[float]:
    """0.5 * (cross entropy + Dice over the foreground classes) of each sample, voxel by voxel."""
    samples, classes = logits.shape[:2]
    voxels = list(itertools.product(*(range(size) for size in logits.shape[2:])))
    losses = []
    for b in range(samples):
        cross_entropy = 0.0
        overlap, predicted, present = [0.0] * classes, [0.0] * classes, [0.0] * classes
        for voxel in voxels:
            scores = [math.exp(at(logits, b, c, *voxel)) for c in range(classes)]
            label = int(at(target, b, 0, *voxel))
            cross_entropy -= math.log(scores[label] / sum(scores)) / len(voxels)
            present[label] += 1.0
            for c in range(classes):
                probability = scores[c] / sum(scores)
                predicted[c] += probability
                overlap[c] += probability if c == label else 0.0
        dice = [1.0 - (2.0 * overlap[c] + SMOOTH) / (predicted[c] + present[c] + SMOOTH) for c in range(1, classes)]
        losses.append(0.5 * (cross_entropy + sum(dice) / len(dice)))
    return losses


@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize("size", [(4, 3), (3, 2, 4)])
def test_equals_loops(classes: int, size: tuple[int, ...]) -> None:
    logits = 2.0 * torch.randn(3, classes, *size)
    target = torch.randint(0, classes, (3, 1, *size))
    target[1] = 0  # a sample without foreground: only the smoothing keeps its Dice defined
    value = segmentation_loss(logits, target)
    assert value.shape == (3,)
    assert value.tolist() == pytest.approx(naive_segmentation_loss(logits, target), rel=1e-5)


@pytest.mark.parametrize(
    ("classes", "label", "expected"),
    [
        # p = 1/2 everywhere, all voxels are class 1: CE = ln 2, Dice loss = 1 - 2 * 1/2 / (1/2 + 1) = 1/3
        (2, 1, 0.5 * (0.69314718 + 1.0 / 3.0)),
        # all voxels are background: the only foreground class has no overlap, Dice loss = 1
        (2, 0, 0.5 * (0.69314718 + 1.0)),
        # p = 1/4: CE = ln 4; class 1: 1 - 2 * 1/4 / (1/4 + 1) = 3/5, classes 2 and 3: 1; their mean is 13/15
        (4, 1, 0.5 * (1.38629436 + 13.0 / 15.0)),
    ],
)
def test_hand_computed(classes: int, label: int, expected: float) -> None:
    logits = torch.zeros(2, classes, 4, 4, 4)
    target = torch.full((2, 1, 4, 4, 4), label)
    assert segmentation_loss(logits, target).tolist() == pytest.approx([expected, expected], rel=1e-5)


def test_perfect_prediction_costs_nothing() -> None:
    target = torch.randint(0, 4, (2, 1, 8, 8))
    logits = 50.0 * torch.nn.functional.one_hot(target[:, 0], 4).movedim(-1, 1).float()
    assert segmentation_loss(logits, target).tolist() == pytest.approx([0.0, 0.0], abs=1e-5)


def test_samples_do_not_mix() -> None:
    logits, target = torch.randn(3, 4, 4, 4), torch.randint(0, 4, (3, 1, 4, 4))
    alone = torch.cat([segmentation_loss(logits[i : i + 1], target[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(segmentation_loss(logits, target), alone)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.float32])
def test_labels_of_any_type(dtype: torch.dtype) -> None:
    logits, target = torch.randn(2, 4, 4, 4), torch.randint(0, 4, (2, 1, 4, 4))
    torch.testing.assert_close(segmentation_loss(logits, target.to(dtype)), segmentation_loss(logits, target))


def test_gradient_reaches_every_logit() -> None:
    logits = torch.randn(2, 4, 4, 4, requires_grad=True)
    segmentation_loss(logits, torch.randint(0, 4, (2, 1, 4, 4))).mean().backward()
    assert logits.grad is not None and bool((logits.grad != 0).all())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_logits_are_summed_in_float32(dtype: torch.dtype) -> None:
    logits, target = (2.0 * torch.randn(2, 4, 8, 8, 8)).to(dtype), torch.randint(0, 4, (2, 1, 8, 8, 8))
    value = segmentation_loss(logits, target)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, segmentation_loss(logits.float(), target), rtol=1e-6, atol=0)


def test_one_logit_channel_is_refused() -> None:
    with pytest.raises(ValueError):
        segmentation_loss(torch.zeros(1, 1, 4, 4), torch.zeros(1, 1, 4, 4, dtype=torch.int64))


def test_mean_of_the_chosen() -> None:
    logits = torch.randn(3, 2, 4, 4, requires_grad=True)
    target = torch.randint(0, 2, (3, 1, 4, 4))
    target[1] = 255  # not chosen: not a class
    value = mean_segmentation_loss(logits, target, torch.tensor([True, False, True]))
    target[1] = 0
    torch.testing.assert_close(value, segmentation_loss(logits, target)[[0, 2]].mean())
    (gradient,) = torch.autograd.grad(value, logits)
    assert gradient[0].abs().sum() > 0 and not gradient[1].any()


@pytest.mark.parametrize("samples", [0, 2])
def test_none_chosen_is_zero_with_a_gradient_path(samples: int) -> None:
    logits = torch.randn(samples, 2, 4, 4, requires_grad=True)
    value = mean_segmentation_loss(logits, torch.zeros(samples, 1, 4, 4), torch.zeros(samples, dtype=torch.bool))
    value.backward()
    assert value == 0.0 and logits.grad is not None and not logits.grad.any()
