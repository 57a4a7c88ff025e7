from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from common.ops import gate
from common.ops.gate import affinity_gate
from tests.ops.window_cases import SHAPES, at, normal, voxels, window


def naive(features: torch.Tensor, guide: torch.Tensor, radius: int, normalise: bool) -> torch.Tensor:
    """Eq. 1, word by word, its indicator with an edge of a fiftieth of the channel's root mean square."""
    shape, found = tuple(features.shape[2:]), []
    for b in range(len(features)):
        for c in range(features.shape[1]):
            band = 0.02 * math.sqrt(sum(float(guide[at(b, c, j)]) ** 2 for j in voxels(shape)) / math.prod(shape))
            for i in voxels(shape):
                near = window(i, shape, radius)
                mean = sum(float(guide[at(b, c, j)]) for j in near) / len(near)
                chosen = {j: min(max(1 + (float(guide[at(b, c, j)]) - mean) / band, 0.0), 1.0) for j in near}
                total = torch.stack([share * features[at(b, c, j)] for j, share in chosen.items()]).sum()
                found.append(total / (sum(chosen.values()) if normalise else 1) + features[at(b, c, i)])
    return torch.stack(found).reshape(features.shape)


@pytest.mark.parametrize(("plain", "elements"), [(False, 1), (False, 10**6), (True, 1)])
@pytest.mark.parametrize(("radius", "normalise"), [(1, True), (1, False), (2, True)])
@pytest.mark.parametrize("shape", SHAPES)
def test_values_and_gradients_equal_the_equation(
    shape: tuple[int, ...],
    radius: int,
    normalise: bool,
    plain: bool,
    elements: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(gate, "_ELEMENTS", elements)
    features, guide, flow = (normal(2, 2, *shape, seed=seed) for seed in range(3))
    features.requires_grad_()
    results = [naive(features, guide, radius, normalise), affinity_gate(features, guide, radius, normalise, plain)]
    torch.testing.assert_close(results[1], results[0], rtol=1e-10, atol=1e-12)
    by_hand, ours = (torch.autograd.grad(result, features, flow)[0] for result in results)
    torch.testing.assert_close(ours, by_hand, rtol=1e-10, atol=1e-12)
    single = affinity_gate(features.float(), guide.float(), radius, normalise, plain)
    torch.testing.assert_close(single.double(), results[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("normalise", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_blocks_of_whole_images_give_the_same(
    shape: tuple[int, ...], normalise: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a GPU takes them."""
    features, guide, flow = (normal(2, 3, *shape, seed=seed) for seed in range(3))
    features.requires_grad_()
    results = [affinity_gate(features, guide, normalise=normalise)]
    monkeypatch.setattr(gate, "_images", lambda values: values)
    results.append(affinity_gate(features, guide, normalise=normalise))
    assert torch.equal(*results)
    assert torch.equal(*(torch.autograd.grad(result, features, flow)[0] for result in results))


@pytest.mark.parametrize("shape", [(3, 4), (3, 2, 3)])
def test_gradient_is_that_of_finite_differences(shape: tuple[int, ...]) -> None:
    features, guide = normal(2, 2, *shape).requires_grad_(), normal(2, 2, *shape, seed=1)
    assert torch.autograd.gradcheck(lambda f: affinity_gate(f, guide), (features,))


@pytest.mark.parametrize("level", [0.0, 0.1, -0.3, 1e4])
@pytest.mark.parametrize("plain", [False, True])
def test_a_constant_region_is_selected_whole(level: float, plain: bool) -> None:
    features = normal(1, 1, 5, 5, 5, dtype=torch.float32)
    guide = torch.full_like(features, level)
    found = affinity_gate(features, guide, normalise=False, plain=plain)
    everything = torch.nn.functional.avg_pool3d(features, 3, 1, 1, divisor_override=1) + features
    torch.testing.assert_close(found, everything, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("plain", [False, True])
def test_rounding_of_the_guide_is_no_other_answer(plain: bool) -> None:
    """A hard indicator changes by a whole neighbour wherever rounding carries one over the mean."""
    features, guide = (normal(1, 4, 24, 24, 24, seed=s, dtype=torch.float32) for s in range(2))
    rounded = guide * (1 + 1e-5 * normal(1, 4, 24, 24, 24, seed=2, dtype=torch.float32))
    change = affinity_gate(features, rounded, plain=plain) - affinity_gate(features, guide, plain=plain)
    assert 0 < float(change.abs().max()) < 1e-3


def test_no_gradient_to_the_guide() -> None:
    features, guide = (torch.rand(1, 2, 4, 4, requires_grad=True) for _ in range(2))
    affinity_gate(features, guide).sum().backward()
    assert guide.grad is None and features.grad is not None and float(features.grad.abs().sum()) > 0


def test_autocast_and_half_precision_give_float32() -> None:
    features, guide = (normal(1, 2, 5, 5, seed=s, dtype=torch.float32).bfloat16() for s in range(2))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = affinity_gate(features, guide)
    assert found.dtype is torch.float32
    torch.testing.assert_close(found, affinity_gate(features.float(), guide.float()))


def test_threads_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate, "_ELEMENTS", 50)
    features, guide = (normal(2, 3, 9, 8, 7, seed=s, dtype=torch.float32) for s in range(2))
    before = torch.get_num_threads()
    found = []
    for threads in (1, 6):
        torch.set_num_threads(threads)
        own = features.clone().requires_grad_()
        result = affinity_gate(own, guide)
        result.square().sum().backward()
        found.append((result.detach(), own.grad))
        assert torch.get_num_threads() == threads
    torch.set_num_threads(before)
    assert torch.equal(found[0][0], found[1][0])
    assert found[0][1] is not None and found[1][1] is not None and torch.equal(found[0][1], found[1][1])


def test_a_batch_without_images_and_layouts_that_are_not_contiguous() -> None:
    assert affinity_gate(torch.zeros(0, 2, 3, 4), torch.zeros(0, 2, 3, 4)).shape == (0, 2, 3, 4)
    features, guide = (normal(2, 3, 4, 5, 6, seed=s, dtype=torch.float32) for s in range(2))
    last = [tensor.to(memory_format=torch.channels_last_3d) for tensor in (features, guide)]
    torch.testing.assert_close(affinity_gate(last[0], last[1]), affinity_gate(features, guide))


class Gate(torch.nn.Module):
    def forward(self, features: torch.Tensor, guide: torch.Tensor) -> torch.Tensor:
        return affinity_gate(features, guide)


def test_traces_with_free_sizes() -> None:
    def tensors(*shape: int) -> tuple[torch.Tensor, torch.Tensor]:
        return normal(*shape, dtype=torch.float32), normal(*shape, seed=1, dtype=torch.float32)

    traced = torch.jit.trace(Gate(), tensors(1, 2, 4, 5, 6), check_trace=False)
    for shape in ((2, 2, 6, 4, 7), (1, 2, 3, 3, 3)):
        torch.testing.assert_close(traced(*tensors(*shape)), affinity_gate(*tensors(*shape)))


@pytest.mark.parametrize(
    ("change", "message"), [({"radius": 0}, "radius"), ({"guide": torch.zeros(1, 1, 3, 4)}, "must have one shape")]
)
@pytest.mark.parametrize("plain", [False, True])
def test_what_does_not_fit_is_refused(change: dict[str, Any], message: str, plain: bool) -> None:
    arguments: dict[str, Any] = {"features": torch.zeros(1, 1, 3, 3), "guide": torch.zeros(1, 1, 3, 3), **change}
    with pytest.raises(ValueError, match=message):
        affinity_gate(**arguments, plain=plain)
