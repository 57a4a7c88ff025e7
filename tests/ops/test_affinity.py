from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from common.ops import affinity
from common.ops.affinity import LocalAffinity, local_affinity, local_affinity_loss, neighbour_counts, noisy_labels
from tests.ops.window_cases import EVERY, SHAPES, at, classes, normal, voxels, window


def naive_affinity(p: torch.Tensor, predicted: torch.Tensor, labels: torch.Tensor, radius: int) -> list[torch.Tensor]:
    """Eqs. 3 to 5, word by word."""
    shape = tuple(p.shape[2:])
    positive, negative, support = (torch.zeros(len(p), 1, *shape, dtype=p.dtype) for _ in range(3))
    for b in range(len(p)):
        for i in voxels(shape):
            sums, numbers = [0.0, 0.0], [0, 0]
            for j in window(i, shape, radius):
                here, there = p[at(b, EVERY, i)], p[at(b, EVERY, j)]
                cosine = float(here @ there / (here.norm() * there.norm() + 1e-8))
                same = bool(labels[at(b, 0, j)] == predicted[at(b, 0, i)])
                sums[same] += cosine
                numbers[same] += 1
            positive[at(b, 0, i)] = sums[1] / max(numbers[1], 1)
            negative[at(b, 0, i)] = sums[0] / max(numbers[0], 1)
            support[at(b, 0, i)] = numbers[1]
    return [positive, negative, support]


def naive_loss(p: torch.Tensor, labels: torch.Tensor, radius: int) -> torch.Tensor:
    """Eq. 7 as a double sum, m_pos of the decoder soft; the mean over voxels of a known class."""
    shape, total, number = tuple(p.shape[2:]), torch.zeros((), dtype=p.dtype), 0
    known = [(b, i) for b in range(len(p)) for i in voxels(shape) if 0 <= int(labels[at(b, 0, i)]) < p.shape[1]]
    for b, i in known:
        parts = {True: torch.zeros((), dtype=p.dtype), False: torch.zeros((), dtype=p.dtype)}
        numbers = {True: 0, False: 0}
        for j in window(i, shape, radius):
            if (b, j) not in known:
                continue
            own, other = int(labels[at(b, 0, i)]), int(labels[at(b, 0, j)])
            share = p[at(b, other, i)]
            parts[own == other] = parts[own == other] + (1 - share if own == other else share)
            numbers[own == other] += 1
        total = total + sum(parts[same] / math.sqrt(numbers[same]) for same in parts if numbers[same])
        number += 1
    return total / max(number, 1)


@pytest.mark.parametrize("elements", [1, 10**6])
@pytest.mark.parametrize("radius", [1, 2])
@pytest.mark.parametrize("shape", SHAPES)
def test_affinity_equals_the_equations(
    shape: tuple[int, ...], radius: int, elements: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(affinity, "_ELEMENTS", elements)
    p = (2 * normal(2, 3, *shape)).softmax(1)
    predicted, labels = p.argmax(1, keepdim=True), classes(2, 3, shape)
    found = local_affinity(p, predicted, labels, radius)
    for ours, by_hand in zip(found, naive_affinity(p, predicted, labels, radius), strict=True):
        torch.testing.assert_close(ours, by_hand, rtol=1e-10, atol=1e-12)
    single = local_affinity(p.float(), predicted, labels, radius)
    for ours, exact in zip(single, found, strict=True):
        assert ours.dtype is torch.float32
        torch.testing.assert_close(ours.double(), exact, rtol=1e-5, atol=1e-5)


def test_three_pixels_by_hand() -> None:
    """Vectors (1, 0), (0.6, 0.8), (0, 1): cosines 0.6 and 0.8; the middle is predicted 1, the labels are 0 1 1."""
    p = torch.tensor([[1.0, 0.6, 0.0], [0.0, 0.8, 1.0]]).reshape(1, 2, 1, 3)
    found = local_affinity(p, torch.ones(1, 1, 1, 3).long(), torch.tensor([0, 1, 1]).reshape(1, 1, 1, 3))
    assert found.positive[0, 0, 0].tolist() == pytest.approx([0.6, 0.9, 0.9])
    assert found.negative[0, 0, 0].tolist() == pytest.approx([1.0, 0.6, 0.0])
    assert found.support[0, 0, 0].tolist() == [1, 2, 2]


def test_no_other_class_is_exactly_zero() -> None:
    p = (3 * normal(1, 4, 6, 6, 6, dtype=torch.float32)).softmax(1)
    same = torch.zeros(1, 1, 6, 6, 6).long()
    assert float(local_affinity(p, same, same).negative.abs().max()) == 0.0


def test_labels_of_no_class_and_vectors_of_zero() -> None:
    p = torch.zeros(1, 2, 3, 3)
    found = local_affinity(p, torch.zeros(1, 1, 3, 3).long(), torch.full((1, 1, 3, 3), -1))
    assert all(float(part.abs().sum()) == 0.0 for part in found)


@pytest.mark.parametrize("rule", ["union", "both"])
@pytest.mark.parametrize("require_support", [False, True])
def test_decision(rule: str, require_support: bool) -> None:
    def one(positive: list[float], negative: list[float], support: list[float]) -> LocalAffinity:
        return LocalAffinity(*(torch.tensor(part).reshape(1, 1, 1, -1) for part in (positive, negative, support)))

    cnn = one([0.4, 0.4, 0.5, 0.4, 0.0], [0.6, 0.6, 0.6, 0.5, 0.6], [2, 2, 2, 2, 0])
    other = one([0.4, 0.9, 0.4, 0.4, 0.0], [0.6, 0.6, 0.6, 0.6, 0.6], [2, 2, 2, 2, 1])
    expected = {
        ("union", False): [True, True, True, True, True],
        ("union", True): [True, True, True, True, True],
        ("both", False): [True, False, False, False, True],
        ("both", True): [True, False, False, False, False],
    }
    found = noisy_labels([cnn, other], rule, require_support)
    assert found.shape == (1, 1, 1, 5) and found.flatten().tolist() == expected[rule, require_support]


@pytest.mark.parametrize("affinities", [[], [LocalAffinity(*(torch.zeros(1, 1, 1, 1),) * 3)]])
def test_decision_refuses_what_it_does_not_know(affinities: list[LocalAffinity]) -> None:
    with pytest.raises(ValueError, match="rule must be"):
        noisy_labels(affinities, "union" if not affinities else "any")


@pytest.mark.parametrize("elements", [1, 10**6])
@pytest.mark.parametrize("shape", SHAPES)
def test_counts(shape: tuple[int, ...], elements: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(affinity, "_ELEMENTS", elements)
    labels = classes(2, 4, shape) - (classes(2, 9, shape, seed=1) == 0).long() * 9
    found = neighbour_counts(labels, 4, radius=2)
    assert found.shape == (2, 4, *shape)
    for b in range(2):
        for i in voxels(shape):
            near = [int(labels[at(b, 0, j)]) for j in window(i, shape, 2)]
            assert found[at(b, EVERY, i)].tolist() == [near.count(c) for c in range(4)]


@pytest.mark.parametrize("unknown", [False, True])
@pytest.mark.parametrize("radius", [1, 2])
@pytest.mark.parametrize("shape", SHAPES)
def test_loss_and_gradient_equal_the_equation(shape: tuple[int, ...], radius: int, unknown: bool) -> None:
    logits = normal(2, 3, *shape).requires_grad_()
    labels = classes(2, 3, shape)
    if unknown:
        labels[classes(2, 4, shape, seed=1) == 0] = 255
    losses = [f(logits.softmax(1), labels, radius) for f in (local_affinity_loss, naive_loss)]
    assert losses[0].item() == pytest.approx(losses[1].item(), rel=1e-10)
    torch.testing.assert_close(*(torch.autograd.grad(loss, logits)[0] for loss in losses))


def test_loss_gradient_is_that_of_finite_differences() -> None:
    p, labels = normal(2, 3, 3, 2, 3).softmax(1).requires_grad_(), classes(2, 3, (3, 2, 3))
    assert torch.autograd.gradcheck(lambda q: local_affinity_loss(q, labels), (p,))


def test_loss_under_autocast_is_float32() -> None:
    p, labels = normal(1, 3, 5, 5, dtype=torch.float32).softmax(1).bfloat16(), classes(1, 3, (5, 5))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found, marks = local_affinity_loss(p, labels), local_affinity(p, labels, labels)
    assert found.dtype is marks.positive.dtype is torch.float32
    assert found.item() == pytest.approx(local_affinity_loss(p.float(), labels).item(), rel=1e-6)
    torch.testing.assert_close(marks.positive, local_affinity(p.float(), labels, labels).positive)


@pytest.mark.parametrize("case", ["empty", "unknown"])
def test_nothing_to_sum_is_zero_with_a_gradient(case: str) -> None:
    batch = 0 if case == "empty" else 2
    p, labels = torch.rand(batch, 2, 3, 3, requires_grad=True), torch.full((batch, 1, 3, 3), 255)
    loss = local_affinity_loss(p, labels)
    loss.backward()
    assert loss.item() == 0.0 and p.grad is not None and float(p.grad.abs().sum()) == 0.0
    assert local_affinity(p, labels, labels).positive.shape == labels.shape
    assert neighbour_counts(labels, 2).shape == p.shape


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"radius": 0}, "radius"),
        ({"others": torch.zeros(2, 4, 4).long()}, "others must have shape"),
        ({"own": torch.zeros(2, 2, 4, 4).long()}, "own must have shape"),
        ({"others": torch.zeros(2, 1, 4, 4)}, "others must be integers"),
    ],
)
def test_what_does_not_fit_is_refused(change: dict[str, Any], message: str) -> None:
    labels = torch.zeros(2, 1, 4, 4).long()
    arguments = {"probabilities": torch.ones(2, 2, 4, 4) / 2, "own": labels, "others": labels, **change}
    with pytest.raises(ValueError, match=message):
        local_affinity(**arguments)
