from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from common.ops import bilateral
from common.ops.bilateral import bilateral_enhancement
from tests.ops.window_cases import EVERY, at, normal, voxels, window


def naive(logits: torch.Tensor, image: torch.Tensor, windows: tuple[int, ...], sigma: float | None) -> torch.Tensor:
    """Eq. 2, word by word, sigma the image's variance in the window."""
    shape, found = tuple(logits.shape[2:]), []
    for b in range(len(logits)):
        for i in voxels(shape):
            result = logits[at(b, EVERY, i)]
            for side in windows:
                near = window(i, shape, side // 2)
                values = torch.stack([image[at(b, EVERY, j)] for j in near])
                spread = float((values - values.mean(0)).square().mean(0).sum()) if sigma is None else sigma
                distances = (values - image[at(b, EVERY, i)]).square().sum(1)
                weights = torch.exp(-distances / (spread + 1e-6))
                maps = torch.stack([logits[at(b, EVERY, j)] for j in near])
                share = (1 / math.sqrt(side)) / sum(1 / math.sqrt(k) for k in windows)
                result = result + share * (weights[:, None] * maps).sum(0) / weights.sum()
            found.append(result)
    return torch.stack(found).reshape(len(logits), *shape, -1).movedim(-1, 1)


@pytest.mark.parametrize(("plain", "elements"), [(False, 1), (False, 10**6), (True, 1)])
@pytest.mark.parametrize(("windows", "sigma", "channels"), [((3, 5, 7), None, 1), ((3, 5), 0.5, 1), ((3,), None, 2)])
@pytest.mark.parametrize("shape", [(5, 4), (1, 6), (4, 3, 5), (5, 1, 1)])
def test_values_and_gradients_equal_the_equation(
    shape: tuple[int, ...],
    windows: tuple[int, ...],
    sigma: float | None,
    channels: int,
    plain: bool,
    elements: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(bilateral, "_ELEMENTS", elements)
    logits, image = normal(2, 3, *shape).requires_grad_(), normal(2, channels, *shape, seed=1)
    flow = normal(2, 3, *shape, seed=2)
    results = [
        naive(logits, image, windows, sigma),
        bilateral_enhancement(logits, image, windows, sigma, plain=plain),
    ]
    torch.testing.assert_close(results[1], results[0], rtol=1e-9, atol=1e-10)
    by_hand, ours = (torch.autograd.grad(result, logits, flow)[0] for result in results)
    torch.testing.assert_close(ours, by_hand, rtol=1e-9, atol=1e-10)
    single = bilateral_enhancement(logits.float(), image.float(), windows, sigma, plain=plain)
    torch.testing.assert_close(single.double(), results[0], rtol=1e-5, atol=1e-5)


def test_shares_of_the_windows() -> None:
    assert bilateral._shares([1, 2, 3]) == pytest.approx([0.412, 0.319, 0.269], abs=1e-3)


@pytest.mark.parametrize("plain", [False, True])
def test_one_intensity_doubles_constant_logits_and_average_does_not(plain: bool) -> None:
    logits, image = torch.full((1, 2, 5, 5, 5), 3.0), torch.full((1, 1, 5, 5, 5), 700.0)
    torch.testing.assert_close(bilateral_enhancement(logits, image, plain=plain), 2 * logits)
    torch.testing.assert_close(bilateral_enhancement(logits, image, average=True, plain=plain), logits)


def test_an_edge_of_the_image_keeps_two_sides_apart() -> None:
    """Sides of 0 and 1000 under a small constant sigma: nothing crosses the edge, everything mixes within a side."""
    logits = torch.zeros(1, 1, 8, 8)
    logits[..., 4:] = 1.0
    found = bilateral_enhancement(logits, 1000 * logits, sigma=1.0)
    torch.testing.assert_close(found, 2 * logits)


@pytest.mark.parametrize("shape", [(3, 4), (3, 2, 3)])
def test_gradient_is_that_of_finite_differences(shape: tuple[int, ...]) -> None:
    logits, image = normal(1, 2, *shape).requires_grad_(), normal(1, 1, *shape, seed=1)
    assert torch.autograd.gradcheck(lambda f: bilateral_enhancement(f, image, (3, 5)), (logits,))


def test_no_gradient_to_the_image() -> None:
    logits, image = (torch.rand(1, 1, 4, 4, requires_grad=True) for _ in range(2))
    bilateral_enhancement(logits, image).sum().backward()
    assert image.grad is None and logits.grad is not None


def test_autocast_and_half_precision_give_float32() -> None:
    logits, image = (normal(1, 2, 5, 5, seed=s, dtype=torch.float32).bfloat16() for s in range(2))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = bilateral_enhancement(logits, image)
    assert found.dtype is torch.float32
    torch.testing.assert_close(found, bilateral_enhancement(logits.float(), image.float()))


def test_an_empty_batch_stays_empty() -> None:
    assert bilateral_enhancement(torch.zeros(0, 2, 3, 4), torch.zeros(0, 1, 3, 4)).shape == (0, 2, 3, 4)


class Enhancement(torch.nn.Module):
    def forward(self, logits: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
        return bilateral_enhancement(logits, image, (3, 5))


@pytest.mark.parametrize("dims", [2, 3])
def test_traces_with_free_sizes(dims: int) -> None:
    def tensors(*shape: int) -> tuple[torch.Tensor, torch.Tensor]:
        return normal(1, 2, *shape, dtype=torch.float32), normal(1, 1, *shape, dtype=torch.float32)

    traced = torch.jit.trace(Enhancement(), tensors(*(4, 5, 6)[:dims]), check_trace=False)
    for shape in ((7, 4, 5)[:dims], (3, 9, 3)[:dims]):
        torch.testing.assert_close(traced(*tensors(*shape)), Enhancement()(*tensors(*shape)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"windows": (3, 4)}, "windows must be odd"),
        ({"windows": ()}, "windows must be odd"),
        ({"sigma": 0.0}, "sigma must be positive"),
        ({"image": torch.zeros(1, 1, 3, 4)}, "does not match"),
    ],
)
def test_what_does_not_fit_is_refused(change: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {"logits": torch.zeros(1, 1, 3, 3), "image": torch.zeros(1, 1, 3, 3), **change}
    with pytest.raises(ValueError, match=message):
        bilateral_enhancement(**arguments)
