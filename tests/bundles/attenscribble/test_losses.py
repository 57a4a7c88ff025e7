from __future__ import annotations

import math

import pytest
import torch

from bundles.attenscribble.scripts.losses import entropy, mumford_shah, partial_cross_entropy, partial_dice


@pytest.mark.parametrize("classes", [2, 4])
def test_partial_cross_entropy_equals_loops(classes: int) -> None:
    generator = torch.Generator().manual_seed(classes)
    logits = torch.randn((2, classes, 4, 3), generator=generator)
    target = torch.randint(0, classes, (2, 4, 3), generator=generator)
    labelled = torch.rand((2, 4, 3), generator=generator) < 0.4
    terms = []
    for b, i, j in labelled.nonzero().tolist():
        values = [math.exp(float(v)) for v in logits[b, :, i, j]]
        terms.append(-math.log(values[int(target[b, i, j])] / sum(values)))
    found = partial_cross_entropy(logits, torch.where(labelled, target, -2), labelled)
    assert found.item() == pytest.approx(sum(terms) / len(terms), rel=1e-5)


def test_unlabelled_pixels_have_no_gradient() -> None:
    logits = torch.randn(1, 3, 2, 2).requires_grad_()
    labelled = torch.tensor([[[True, False], [False, True]]])
    partial_cross_entropy(logits, torch.ones(1, 2, 2), labelled).backward()
    assert logits.grad is not None
    moved = logits.grad.abs().sum(1)[0] > 0
    assert torch.equal(moved, labelled[0])


def test_nothing_labelled_is_zero_with_a_gradient() -> None:
    logits = torch.randn(1, 3, 2, 2).requires_grad_()
    loss = partial_cross_entropy(logits, torch.full((1, 2, 2), -1), torch.zeros(1, 2, 2, dtype=torch.bool))
    loss.backward()
    assert loss.item() == 0.0 and logits.grad is not None and float(logits.grad.abs().sum()) == 0.0


@pytest.mark.parametrize("classes", [2, 4])
def test_partial_dice_equals_loops(classes: int) -> None:
    generator = torch.Generator().manual_seed(classes)
    probabilities = torch.randn((2, classes, 4, 3), generator=generator).softmax(1)
    target = torch.randint(0, classes, (2, 4, 3), generator=generator)
    labelled = torch.rand((2, 4, 3), generator=generator) < 0.7
    losses = []
    for k in range(1, classes):
        both = ours = theirs = 0.0
        for b, i, j in labelled.nonzero().tolist():
            p, t = float(probabilities[b, k, i, j]), float(target[b, i, j] == k)
            both, ours, theirs = both + p * t, ours + p, theirs + t
        losses.append(1 - 2 * both / (ours + theirs))
    found = partial_dice(probabilities, torch.where(labelled, target, -2), labelled)
    assert found.item() == pytest.approx(sum(losses) / len(losses), abs=1e-5)


def test_entropy_by_hand() -> None:
    """Pixels (1/2, 1/2), (1, 0) and a masked one: the mean of log 2 and 0."""
    probabilities = torch.tensor([[0.5, 1.0, 0.9], [0.5, 0.0, 0.1]]).reshape(1, 2, 1, 3).requires_grad_()
    mask = torch.tensor([True, True, False]).reshape(1, 1, 1, 3)
    found = entropy(probabilities, mask)
    found.backward()
    assert found.item() == pytest.approx(0.5 * math.log(2), rel=1e-6)
    assert probabilities.grad is not None and bool(probabilities.grad.isfinite().all())


def test_mumford_shah_by_hand() -> None:
    """Intensities 1, 3, 8; class 0 holds the first two (mean 2), class 1 the last: deviations 1 + 1 + 0, one border.

    At the border both classes' probabilities change by 1: total variation 2.
    """
    probabilities = torch.tensor([[1.0, 1.0, 0.0], [0.0, 0.0, 1.0]]).reshape(1, 2, 1, 3)
    image = torch.tensor([1.0, 3.0, 8.0]).reshape(1, 1, 1, 3)
    everywhere = torch.ones(1, 1, 1, 3, dtype=torch.bool)
    assert mumford_shah(probabilities, image, everywhere, length=0.5).item() == pytest.approx((2 + 0.5 * 2) / 3)


def test_mumford_shah_leaves_out_what_is_masked() -> None:
    probabilities = torch.tensor([[1.0, 1.0, 0.0], [0.0, 0.0, 1.0]]).reshape(1, 2, 1, 3)
    image = torch.tensor([1.0, 3.0, 8.0]).reshape(1, 1, 1, 3)
    mask = torch.tensor([True, True, False]).reshape(1, 1, 1, 3)
    assert mumford_shah(probabilities, image, mask, length=0.5).item() == pytest.approx(2 / 2)


@pytest.mark.parametrize("shape", [(5, 4), (3, 4, 2)])
def test_mumford_shah_equals_loops(shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    probabilities = torch.randn((2, 3, *shape), generator=generator).softmax(1)
    image = torch.rand((2, 1, *shape), generator=generator)
    mask = torch.rand((2, 1, *shape), generator=generator) > 0.3
    deviation = 0.0
    for b in range(2):
        inside = mask[b, 0]
        for c in range(3):
            p, i = probabilities[b, c][inside], image[b, 0][inside]
            mean = (p * i).sum() / p.sum()
            deviation += float(((i - mean) ** 2 * p).sum())
    borders = 0.0
    for axis in range(len(shape)):
        for b in range(2):
            for place in torch.ones(shape).nonzero().tolist():
                following = list(place)
                following[axis] += 1
                if following[axis] < shape[axis] and mask[b, 0][tuple(place)] and mask[b, 0][tuple(following)]:
                    for c in range(3):
                        borders += abs(float(probabilities[b, c][tuple(place)] - probabilities[b, c][tuple(following)]))
    expected = (deviation + 0.1 * borders) / int(mask.sum())
    assert mumford_shah(probabilities, image, mask, length=0.1).item() == pytest.approx(expected, rel=1e-4)
