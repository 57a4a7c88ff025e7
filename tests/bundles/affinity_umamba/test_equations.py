"""Eqs. 3-9 of AffinityUMamba (MICCAI 2025) by loops over voxels, written from the paper and its readings alone.

They share no code with the bundle: what the losses and the method give is compared with them.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from bundles.affinity_umamba.scripts.losses import (
    entropy,
    local_suspicion,
    margin_loss,
    refine_labels,
    suspicious_voxels,
)
from bundles.affinity_umamba.scripts.method import AffinityUMamba
from bundles.affinity_umamba.scripts.network import Branches
from common.ops.affinity import local_affinity_loss
from common.training.method import Progress

CASES = pytest.mark.parametrize(
    ("classes", "size"),
    [(2, (5, 4)), (4, (5, 4)), (2, (3, 4, 2)), (4, (3, 4, 2))],
    ids=["2-2D", "4-2D", "2-3D", "4-3D"],
)
SMOOTH = 1e-5  # of MONAI's Dice
AFTER_WARM_UP = Progress(5, 10)

Voxel = tuple[int, ...]


def voxels(size: tuple[int, ...]) -> Iterator[Voxel]:
    return itertools.product(*(range(length) for length in size))


def window(voxel: Voxel, size: tuple[int, ...]) -> list[Voxel]:
    """N(3): the voxels at most one away along each axis, inside the image, the centre among them."""
    return [j for j in voxels(size) if all(abs(a - b) <= 1 for a, b in zip(voxel, j, strict=True))]


def vector(maps: Tensor, voxel: Voxel) -> list[float]:
    """Class vector at a voxel of (C, *S)."""
    return [at(maps, c, *voxel) for c in range(maps.shape[0])]


def at(tensor: Tensor, *index: int) -> float:
    return float(tensor[index])


def dot(first: list[float], second: list[float]) -> float:
    return sum(a * b for a, b in zip(first, second, strict=True))


def largest(values: list[float]) -> int:
    return max(range(len(values)), key=lambda c: values[c])


def some_logits(classes: int, size: tuple[int, ...], scale: float = 3.0) -> Tensor:
    return scale * torch.randn(2, classes, *size)


def some_labels(classes: int, size: tuple[int, ...]) -> Tensor:
    return torch.randint(classes, (2, 1, *size))


# --- the paper by loops, each of one image: maps (C, *S), labels (*S)


def naive_noise(decoders: list[Tensor], label: Tensor, rule: str, require_support: bool, centre: str) -> Tensor:
    """Eqs. 3-5."""
    size = tuple(label.shape)
    noise = torch.zeros(size, dtype=torch.bool)
    for i in voxels(size):
        found = []
        for maps in decoders:
            own = vector(maps, i)
            own_class = int(label[i]) if centre == "label" else largest(own)
            positive: list[float] = []
            negative: list[float] = []
            for j in window(i, size):
                other = vector(maps, j)
                cosine = dot(own, other) / (math.sqrt(dot(own, own)) * math.sqrt(dot(other, other)) + 1e-8)
                other_class = largest(other) if centre == "label" else int(label[j])
                (positive if other_class == own_class else negative).append(cosine)
            a_positive = sum(positive) / len(positive) if positive else 0.0
            a_negative = sum(negative) / len(negative) if negative else 0.0
            found.append(a_positive < 0.5 and a_negative > 0.5 and (bool(positive) or not require_support))
        noise[i] = any(found) if rule == "union" else all(found)
    return noise


def naive_refined(label: Tensor, noise: Tensor, cnn: Tensor, am: Tensor, surer_cnn: str) -> Tensor:
    """Eq. 6; what the printed form makes background is the CNN's class."""
    refined = label.clone()
    for i in voxels(tuple(label.shape)):
        if not bool(noise[i]):
            continue
        unsure = [-sum(p * math.log(p) for p in vector(maps, i) if p > 0.0) for maps in (cnn, am)]
        if unsure[0] > unsure[1]:
            refined[i] = largest(vector(am, i))
        else:
            choices = {"prediction": largest(vector(cnn, i)), "label": int(label[i]), "background": 0}
            refined[i] = choices[surer_cnn]
    return refined


def naive_affinity(maps: Tensor, label: Tensor) -> float:
    """Eq. 7 over all pairs, with the decoder's m_pos(j, i) as the probability at i of the label at j."""
    size, total = tuple(label.shape), 0.0
    for i in voxels(size):
        own, places = int(label[i]), window(i, size)
        same = [j for j in places if int(label[j]) == own]
        others = [j for j in places if int(label[j]) != own]
        total += sum(1.0 - at(maps, int(label[j]), *i) for j in same) / math.sqrt(len(same))
        if others:
            total += sum(at(maps, int(label[j]), *i) for j in others) / math.sqrt(len(others))
    return total / label.numel()


def naive_margin(logits: Tensor, printed: bool) -> float:
    """Eq. 8 with means in the spread, the margin at borders as the text or as the formula has it."""
    size = tuple(logits.shape[1:])
    spread: dict[Voxel, float] = {}
    for i in voxels(size):
        near = [vector(logits, j) for j in window(i, size)]
        mean = [sum(column) / len(near) for column in zip(*near, strict=True)]
        spread[i] = math.sqrt(max(sum(dot(p, p) for p in near) / len(near) - dot(mean, mean), 0.0))
    least, most = min(spread.values()), max(spread.values())
    total = 0.0
    for i in voxels(size):
        scaled = (spread[i] - least) / (most - least)
        allowed = 8.0 * (scaled if printed else 1.0 - scaled)
        values = vector(logits, i)
        total += sum(max(max(values) - value - allowed, 0.0) for value in values)
    return total / (len(spread) * logits.shape[0])


def naive_supervision(logits: Tensor, label: Tensor) -> float:
    """Cross entropy over all classes plus Dice loss, mean of the foreground classes, of one image."""
    maps, size = logits.softmax(0), tuple(label.shape)
    cross = -sum(math.log(at(maps, int(label[i]), *i)) for i in voxels(size)) / label.numel()
    dice = 0.0
    for c in range(1, maps.shape[0]):
        both = sum(at(maps, c, *i) for i in voxels(size) if int(label[i]) == c)
        sums = float(maps[c].sum()) + int((label == c).sum())
        dice += 1.0 - (2.0 * both + SMOOTH) / (sums + SMOOTH)
    return cross + dice / (maps.shape[0] - 1)


# --- each equation


@CASES
@pytest.mark.parametrize("rule", ["union", "both"])
@pytest.mark.parametrize("require_support", [False, True])
@pytest.mark.parametrize("centre", ["label", "prediction"])
def test_suspicious_voxels(classes: int, size: tuple[int, ...], rule: str, require_support: bool, centre: str) -> None:
    torch.manual_seed(classes)
    cnn, am = (some_logits(classes, size).softmax(1) for _ in range(2))
    label = some_labels(classes, size)
    label[0] = 0  # somewhere nobody carries the predicted class
    found = suspicious_voxels([cnn, am], label, rule, require_support, centre)
    expected = [naive_noise([cnn[b], am[b]], label[b, 0], rule, require_support, centre) for b in range(2)]
    assert torch.equal(found[:, 0], torch.stack(expected))
    assert rule == "both" or require_support or found.any()
    if rule == "union" and not require_support:
        assert torch.equal(local_suspicion([cnn, am], label, centre) > 0.5, found), (
            "the audit grades what training marks"
        )


@CASES
@pytest.mark.parametrize("surer_cnn", ["prediction", "label", "background"])
def test_refined_labels(classes: int, size: tuple[int, ...], surer_cnn: str) -> None:
    torch.manual_seed(classes)
    cnn, am = (some_logits(classes, size).softmax(1) for _ in range(2))
    label, noise = some_labels(classes, size), torch.rand(2, 1, *size) < 0.6
    refined = refine_labels(label, noise, cnn, am, surer_cnn)
    expected = [naive_refined(label[b, 0], noise[b, 0], cnn[b], am[b], surer_cnn) for b in range(2)]
    assert torch.equal(refined[:, 0], torch.stack(expected))
    assert torch.equal(refined[~noise], label[~noise]) and not torch.equal(refined, label)


def test_entropy_of_certain_and_of_even_predictions() -> None:
    maps = torch.tensor([[1.0, 0.25], [0.0, 0.25], [0.0, 0.25], [0.0, 0.25]]).reshape(1, 4, 1, 2)
    torch.testing.assert_close(entropy(maps).flatten(), torch.tensor([0.0, math.log(4.0)]))


@CASES
def test_affinity_loss(classes: int, size: tuple[int, ...]) -> None:
    torch.manual_seed(classes)
    maps, label = some_logits(classes, size).softmax(1), some_labels(classes, size)
    expected = sum(naive_affinity(maps[b], label[b, 0]) for b in range(2)) / 2
    assert local_affinity_loss(maps, label).item() == pytest.approx(expected, rel=1e-5)


@CASES
@pytest.mark.parametrize("printed", [False, True])
def test_margin_loss(classes: int, size: tuple[int, ...], printed: bool) -> None:
    torch.manual_seed(classes)
    logits = some_logits(classes, size, scale=8.0)
    expected = sum(naive_margin(logits[b], printed) for b in range(2)) / 2
    assert expected > 0.1
    assert margin_loss(logits, printed=printed).item() == pytest.approx(expected, rel=1e-4)


def test_margin_by_hand() -> None:
    """Inside a region a logit may lie 8 lower, at a border 0; as printed the other way round."""
    inside = torch.full((1, 2, 1, 12), 0.0)
    inside[:, 0] = 10.0
    inside[:, :, :, 6:] = inside[:, [1, 0], :, 6:].clone()  # two flat halves: spread 0 but at the border
    # ten voxels flat: 10 - 8; two at the border: 10 - 0; one of two logits each
    assert margin_loss(inside).item() == pytest.approx((10 * 2.0 + 2 * 10.0) / 24)
    assert margin_loss(inside, printed=True).item() == pytest.approx((10 * 10.0 + 2 * 2.0) / 24)


def test_margin_of_flat_logits_is_the_whole_margin() -> None:
    flat = torch.tensor([0.0, 9.0]).reshape(1, 2, 1, 1).expand(1, 2, 4, 4)
    assert margin_loss(flat).item() == pytest.approx(0.5)
    assert margin_loss(flat, printed=True).item() == pytest.approx(4.5)


def test_each_image_has_its_own_scale_of_spread() -> None:
    torch.manual_seed(0)
    logits = some_logits(3, (6, 6), scale=8.0)
    logits[1] *= 0.2
    each = [margin_loss(logits[b : b + 1]).item() for b in range(2)]
    assert margin_loss(logits).item() == pytest.approx(sum(each) / 2, rel=1e-5)


def test_spread_is_a_constant_for_the_gradient() -> None:
    """Where a logit is too low the gradient is the count of such logits at the largest and -1 at each, over all."""
    torch.manual_seed(0)
    logits = some_logits(3, (4, 4), scale=8.0).requires_grad_()
    (gradient,) = torch.autograd.grad(margin_loss(logits), logits)
    steps = (gradient * logits.numel()).round(decimals=4)
    assert set(steps.flatten().tolist()) <= {-1.0, 0.0, 1.0, 2.0}
    torch.testing.assert_close(gradient.sum(1), torch.zeros(2, 4, 4), atol=1e-6, rtol=0.0)


# --- the whole of Eq. 9


class TwoMaps(nn.Module):
    """Both decoders' logits as parameters."""

    def __init__(self, cnn: Tensor, am: Tensor) -> None:
        super().__init__()
        self.cnn, self.am = nn.Parameter(cnn), nn.Parameter(am)

    def branches(self, image: Tensor) -> Branches:
        return Branches(self.cnn, self.am)


@CASES
def test_total(classes: int, size: tuple[int, ...]) -> None:
    torch.manual_seed(classes)
    cnn, am = (some_logits(classes, size) for _ in range(2))
    label = some_labels(classes, size)
    method = AffinityUMamba(TwoMaps(cnn, am), noise_rule="union", require_support=False)  # small maps have some then
    output = method({"image": torch.zeros(2, 1, *size), "label": label}, AFTER_WARM_UP)
    maps = [cnn.softmax(1), am.softmax(1)]
    expected, changed = 0.0, 0
    for b in range(2):
        truth = label[b, 0]
        noise = naive_noise([maps[0][b], maps[1][b]], truth, "union", False, "label")
        refined = naive_refined(truth, noise, maps[0][b], maps[1][b], "prediction")
        changed += int((refined != truth).sum())
        expected += sum(naive_supervision(logits[b], truth) for logits in (cnn, am))
        expected += 0.1 * sum(naive_supervision(logits[b], refined) for logits in (cnn, am))
        expected += 0.1 * naive_margin(am[b], printed=False) + 0.01 * naive_affinity(maps[1][b], refined)
    assert output.total.item() == pytest.approx(expected / 2, rel=1e-4)
    assert output.monitors["changed_voxels"].item() == pytest.approx(changed / label.numel())
    assert changed > 0
