from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch

from common.ops import similarity
from common.ops.similarity import attentive_similarity_loss

loss_of: Any = attentive_similarity_loss  # called with lists of tensors, which a type checker cannot count


def naive(
    queries: torch.Tensor,
    keys: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    probabilities: torch.Tensor,
    radius: int,
    sigma: float,
    mask: torch.Tensor,
    neighbour_mask: torch.Tensor,
) -> torch.Tensor:
    """Sec. 2.4 and Eq. 6, word by word."""
    voxels = list(itertools.product(*map(range, probabilities.shape[2:])))
    total = torch.zeros((), dtype=probabilities.dtype)
    for b in range(len(queries)):
        attention = []
        for q, k in zip(queries[b], keys[b], strict=True):
            rows = [torch.stack([q[p] @ k[other] for other in range(len(voxels))]) for p in range(len(voxels))]
            attention.append(torch.stack([row.exp() / row.exp().sum() for row in rows]))
        for (i, p), (j, q) in itertools.permutations(enumerate(voxels), 2):
            if max(abs(x - y) for x, y in zip(p, q, strict=True)) > radius:
                continue
            both = sum(w * (a[i, j] + a[j, i]) for w, a in zip(weight, attention, strict=True))
            similar = torch.sigmoid(both + bias[0])
            distance = math.exp(-sum((x - y) ** 2 for x, y in zip(p, q, strict=True)) / (2 * sigma**2))
            here: Any = (b, slice(None), *p)
            there: Any = (b, slice(None), *q)
            unlike = 1 - (probabilities[here] * probabilities[there]).sum()
            total = total + mask[here][0] * neighbour_mask[there][0] * distance * similar * unlike
    return total / mask.sum()


def case(
    shape: tuple[int, ...], heads: int, classes: int, dtype: torch.dtype = torch.float64
) -> tuple[Any, torch.Tensor, torch.Tensor]:
    """The five tensors with gradients, and both masks."""
    generator = torch.Generator().manual_seed(heads + classes)
    voxels = math.prod(shape)

    def normal(*sizes: int) -> torch.Tensor:
        return torch.randn(sizes, generator=generator, dtype=dtype)

    tensors = [normal(2, heads, voxels, 3), normal(2, heads, voxels, 3), 2 * normal(heads), normal(1)]
    tensors.append(normal(2, classes, *shape).softmax(1))
    masks = (torch.rand((2, 2, 1, *shape), generator=generator) > 0.3).to(dtype)
    return [tensor.requires_grad_() for tensor in tensors], masks[0], masks[1]


@pytest.mark.parametrize("block", [1, 40, 10**6])
@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize(("shape", "heads", "classes"), [((3, 4), 1, 2), ((4, 3), 2, 4), ((2, 3, 2), 2, 3)])
def test_equals_the_equation(
    shape: tuple[int, ...], heads: int, classes: int, plain: bool, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(similarity, "_CPU_BLOCK", block)
    tensors, mask, neighbour_mask = case(shape, heads, classes)
    settings = (2, 1.5, mask, neighbour_mask)
    expected = naive(*tensors, *settings)  # type: ignore[call-arg]
    found = loss_of(*tensors, *settings, plain=plain)
    assert found.item() == pytest.approx(expected.item(), rel=1e-10)
    for ours, by_hand in zip(torch.autograd.grad(found, tensors), torch.autograd.grad(expected, tensors), strict=True):
        torch.testing.assert_close(ours, by_hand)


def test_streamed_equals_dense_in_float32() -> None:
    tensors, mask, _ = case((16, 12), 2, 4, dtype=torch.float32)
    losses = [loss_of(*tensors, mask=mask, plain=plain) for plain in (False, True)]
    assert losses[0].item() == pytest.approx(losses[1].item(), rel=1e-5)
    gradients = [torch.autograd.grad(loss, tensors) for loss in losses]
    for ours, dense in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, dense, rtol=1e-4, atol=1e-4 * float(dense.abs().max()))


def test_two_voxels_by_hand() -> None:
    """Equal scores: A = 1/2 everywhere, so S = sigmoid(2 (1/2 + 1/2) - 1) = sigmoid(1); P_p . P_q = 0.3."""
    scores = torch.zeros(1, 1, 2, 4)
    probabilities = torch.tensor([[1.0, 0.3], [0.0, 0.7]]).reshape(1, 2, 1, 2)
    found = loss_of(scores, scores, torch.tensor([2.0]), torch.tensor([-1.0]), probabilities, 1, 0.5)
    assert found.item() == pytest.approx(0.7 * math.exp(-2) / (1 + math.exp(-1)), rel=1e-6)


def test_large_scores_do_not_overflow() -> None:
    tensors, _, _ = case((3, 3), 1, 2, dtype=torch.float32)
    huge = [tensors[0].detach() * 1e3, tensors[1].detach() * 1e3, *(t.detach() for t in tensors[2:])]
    tensors = [tensor.requires_grad_() for tensor in huge]
    loss = loss_of(*tensors)
    assert all(bool(gradient.isfinite().all()) for gradient in torch.autograd.grad(loss, tensors))


def test_autocast_gives_float32() -> None:
    tensors, _, _ = case((4, 4), 1, 2, dtype=torch.float32)
    expected = loss_of(*tensors)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert loss_of(*tensors).item() == expected.item()


@pytest.mark.parametrize("plain", [False, True])
def test_no_images_give_zero_with_a_gradient(plain: bool) -> None:
    tensors, _, _ = case((3, 3), 1, 2)
    empty: Any = [tensors[0][:0], tensors[1][:0], tensors[2], tensors[3], tensors[4][:0]]
    loss = loss_of(*empty, plain=plain)
    loss.backward()
    assert loss.item() == 0.0 and all(tensor.grad is not None for tensor in tensors)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"radius": 0}, "radius"),
        ({"sigma": 0.0}, "sigma"),
        ({"keys": torch.zeros(1, 1, 8, 2)}, "queries"),
        ({"weight": torch.ones(2)}, "weights"),
        ({"probabilities": torch.ones(1, 2, 2, 4) / 2}, "probabilities"),
        ({"mask": torch.ones(1, 1, 9)}, "mask"),
    ],
)
def test_what_does_not_fit_is_refused(change: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {
        "queries": torch.zeros(1, 1, 9, 2),
        "keys": torch.zeros(1, 1, 9, 2),
        "weight": torch.ones(1),
        "bias": torch.zeros(1),
        "probabilities": torch.ones(1, 2, 3, 3) / 2,
    }
    with pytest.raises(ValueError, match=message):
        loss_of(**(arguments | change))
