"""The losses against naive loops and hand values."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from bundles.ambissl.scripts.losses import (
    bound_loss,
    bounds,
    dice_loss,
    harden,
    norm_sum,
    one_hot,
    pick,
    posterior_channels,
)


def naive_dice_loss(probabilities: Tensor, target: Tensor) -> float:
    """Loops over classes, images and pixels; one ratio a class for the whole batch."""
    values = []
    for number in range(probabilities.shape[1]):
        common = total = 0.0
        for p, t in zip(probabilities[:, number].flatten().tolist(), target[:, number].flatten().tolist(), strict=True):
            common += p * t
            total += p + t
        values.append(1 - (2 * common + 1e-5) / (total + 1e-5))
    return sum(values) / len(values)


def random_masks(*shape: int, classes: int = 3) -> Tensor:
    """(B, R, C, H, W), one-hot."""
    return one_hot(torch.randint(0, classes, shape), classes)


@pytest.mark.parametrize("classes", [2, 4])
def test_dice_equals_loops(classes: int) -> None:
    probabilities = torch.randn(3, classes, 5, 4).softmax(1)
    target = random_masks(3, 1, 5, 4, classes=classes)[:, 0]
    assert dice_loss(probabilities, target).item() == pytest.approx(naive_dice_loss(probabilities, target), rel=1e-5)


def test_dice_by_hand() -> None:
    probabilities = torch.tensor([[0.25, 0.75], [0.75, 0.25]]).reshape(1, 2, 1, 2)
    target = torch.tensor([[0.0, 1.0], [1.0, 0.0]]).reshape(1, 2, 1, 2)
    assert dice_loss(probabilities, target).item() == pytest.approx(0.25, abs=1e-5)
    assert dice_loss(target, target).item() == pytest.approx(0.0, abs=1e-6)
    counted = torch.tensor([True, False]).reshape(1, 1, 1, 2)
    # the first pixel alone: class 0 has no target there, class 1 2 * .75 / 1.75
    expected = (1 - 1e-5 / 0.25 + 1 - 1.5 / 1.75) / 2
    assert dice_loss(probabilities, target, counted).item() == pytest.approx(expected, abs=1e-4)


def test_dice_is_float32_under_autocast() -> None:
    probabilities, target = torch.rand(2, 2, 8, 8).softmax(1), random_masks(2, 1, 8, 8, classes=2)[:, 0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = dice_loss(probabilities.bfloat16(), target)
    assert found.dtype is torch.float32
    torch.testing.assert_close(found, dice_loss(probabilities.bfloat16().float(), target))


def test_bounds_equal_loops() -> None:
    masks, count = random_masks(2, 4, 3, 5), [4, 2]
    valid = torch.arange(4) < torch.tensor(count)[:, None]
    inter, union = bounds(masks, valid)
    for image in range(2):
        for number in (1, 2):
            for row in range(3):
                for column in range(5):
                    drawn = [masks[image, rater, number, row, column].item() for rater in range(count[image])]
                    assert inter[image, number - 1, row, column] == float(all(drawn))
                    assert union[image, number - 1, row, column] == float(any(drawn))


def test_bound_loss_equals_two_dice_losses() -> None:
    samples, raters = torch.randn(2, 6, 3, 4, 4).softmax(2), random_masks(2, 3, 4, 4)
    foreground = samples[:, :, 1:], raters[:, :, 1:]
    expected = 0.0
    for bound in (torch.amin, torch.amax):
        predicted, annotated = (bound(each, 1) for each in foreground)
        pairs = [torch.cat((each, 1 - each), 1) for each in (predicted, annotated)]
        expected += naive_dice_loss(*pairs)
    assert bound_loss(samples, raters).item() == pytest.approx(expected, rel=1e-5)


def test_bound_loss_of_the_raters_themselves_is_zero_and_it_wants_spread() -> None:
    raters = one_hot(torch.tensor([[[[0, 1, 1, 0]], [[0, 1, 0, 0]]]]), 2)
    assert bound_loss(raters, raters).item() == pytest.approx(0.0, abs=1e-5)
    same = raters[:, :1].expand(-1, 3, -1, -1, -1)
    assert bound_loss(same, raters).item() > 0.1


def test_bound_loss_of_two_classes_is_that_before_the_softmax() -> None:
    logits = torch.randn(2, 5, 2, 3, 3)
    score = logits[:, :, 1] - logits[:, :, 0]
    samples = logits.softmax(2)
    torch.testing.assert_close(bounds(samples)[1][:, 0], score.amax(1).sigmoid())
    torch.testing.assert_close(bounds(samples)[0][:, 0], score.amin(1).sigmoid())


# --- what the posterior sees


def test_set_takes_any_order_and_any_number() -> None:
    masks = random_masks(1, 5, 4, 4)
    found = posterior_channels(masks, torch.tensor([5]), "set", 4, "area")
    shuffled = posterior_channels(masks[:, torch.tensor([3, 0, 4, 2, 1])], torch.tensor([5]), "set", 4, "area")
    torch.testing.assert_close(found, shuffled)
    foreground = masks[0, :, 1:]
    expected = torch.cat((foreground.amin(0), foreground.mean(0), foreground.amax(0))) - 0.5
    torch.testing.assert_close(found[0], expected)
    assert found.shape == (1, 6, 4, 4)


@pytest.mark.parametrize("form", ["set", "stacked"])
def test_places_without_a_rater_do_not_count(form: str) -> None:
    masks = random_masks(2, 5, 4, 4)
    other = masks.clone()
    other[0, 2:], other[1, 4:] = 1.0 - other[0, 2:], 0.7
    count = torch.tensor([2, 4])
    torch.testing.assert_close(
        posterior_channels(masks, count, form, 4, "area"), posterior_channels(other, count, form, 4, "area")
    )


def test_stacked_sorts_by_area_and_fills_the_places() -> None:
    sizes = [3, 1, 2]
    classes = torch.stack([(torch.arange(4) < size).long() for size in sizes])[None, :, None]
    masks = one_hot(classes, 2)
    found = posterior_channels(masks, torch.tensor([3]), "stacked", 5, "area") + 0.5
    # places 0, .5, 1, 1.5, 2 rounded to even
    assert found.sum((2, 3)).tolist() == [[1.0, 1.0, 2.0, 3.0, 3.0]]
    given = posterior_channels(masks, torch.tensor([3]), "stacked", 3, "given") + 0.5
    assert given.sum((2, 3)).tolist() == [[3.0, 1.0, 2.0]]
    one = posterior_channels(masks, torch.tensor([1]), "stacked", 3, "area") + 0.5
    assert one.sum((2, 3)).tolist() == [[3.0, 3.0, 3.0]]


def test_pick_harden_and_norms() -> None:
    masks = random_masks(3, 4, 2, 2)
    chosen = torch.tensor([2, 0, 3])
    for image, rater in enumerate(chosen.tolist()):
        assert torch.equal(pick(masks, chosen)[image], masks[image, rater])
    probabilities = torch.rand(2, 3, 4, 5, 5)
    hard = harden(probabilities)
    assert torch.equal(hard.argmax(2), probabilities.argmax(2)) and torch.equal(hard.sum(2), torch.ones(2, 3, 5, 5))
    weights = [torch.tensor([3.0, 4.0]), torch.tensor([[12.0]])]
    assert norm_sum(weights).item() == pytest.approx(5.0 + 12.0)
