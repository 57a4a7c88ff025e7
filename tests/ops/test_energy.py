from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch

from common.ops.energy import pairwise_window_energy


def naive(
    probabilities: torch.Tensor,
    image: torch.Tensor,
    radius: int,
    sigma_position: float,
    sigma_intensity: float,
    mask: torch.Tensor,
    neighbour_mask: torch.Tensor,
) -> torch.Tensor:
    """Eq. 4 with Eq. 5, word by word."""
    total = torch.zeros((), dtype=probabilities.dtype)
    voxels = list(itertools.product(*map(range, probabilities.shape[2:])))
    for b, p, q in itertools.product(range(len(probabilities)), voxels, voxels):
        if p == q or max(abs(i - j) for i, j in zip(p, q, strict=True)) > radius:
            continue
        here: Any = (b, slice(None), *p)
        there: Any = (b, slice(None), *q)
        kernel = math.exp(-sum((i - j) ** 2 for i, j in zip(p, q, strict=True)) / (2 * sigma_position**2))
        kernel *= math.exp(-float((image[here] - image[there]).square().sum()) / (2 * sigma_intensity**2))
        different = sum(
            probabilities[here][i] * probabilities[there][j]
            for i, j in itertools.permutations(range(probabilities.shape[1]), 2)
        )
        total = total + mask[here][0] * neighbour_mask[there][0] * kernel * different
    return total / mask.sum()


def case(
    shape: tuple[int, ...], classes: int, channels: int = 1, dtype: torch.dtype = torch.float64
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(len(shape) + classes)
    probabilities = (2 * torch.randn((2, classes, *shape), generator=generator, dtype=dtype)).softmax(1)
    image = torch.rand((2, channels, *shape), generator=generator, dtype=dtype)
    masks = (torch.rand((2, 2, 1, *shape), generator=generator) > 0.3).to(dtype)
    return probabilities.requires_grad_(), image, masks[0], masks[1]


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize(("shape", "classes", "channels"), [((4, 5), 2, 1), ((3, 6), 4, 3), ((3, 2, 4), 3, 1)])
def test_equals_the_equation(shape: tuple[int, ...], classes: int, channels: int, plain: bool) -> None:
    probabilities, image, mask, neighbour_mask = case(shape, classes, channels)
    settings = (2, 1.5, 0.4, mask, neighbour_mask)
    expected = naive(probabilities, image, *settings)
    found = pairwise_window_energy(probabilities, image, *settings, plain=plain)
    assert found.item() == pytest.approx(expected.item(), rel=1e-10)
    # the naive form differs by what cancels in a softmax's gradient: compare after a projection
    by_hand, ours = (torch.autograd.grad(value, probabilities)[0] for value in (expected, found))
    torch.testing.assert_close(ours - ours.mean(1, keepdim=True), by_hand - by_hand.mean(1, keepdim=True))


@pytest.mark.parametrize("which", ["none", "mask", "neighbour_mask"])
def test_absent_masks_are_ones(which: str) -> None:
    probabilities, image, mask, _ = case((4, 4), 3)
    ones = torch.ones_like(mask)
    given: dict[str, Any] = {} if which == "none" else {which: mask}
    full: dict[str, Any] = {"mask": ones, "neighbour_mask": ones} | given
    found = pairwise_window_energy(probabilities, image, 1, 1.0, 0.5, **given)
    assert found.item() == pytest.approx(naive(probabilities, image, 1, 1.0, 0.5, **full).item(), rel=1e-10)


def test_two_pixels_by_hand() -> None:
    """Intensities 0 and 0.2, one pixel apart; P = (1, 0) and (0.25, 0.75): 1 - P_p . P_q = 0.75 for each of the two."""
    probabilities = torch.tensor([[1.0, 0.25], [0.0, 0.75]]).reshape(1, 2, 1, 2)
    image = torch.tensor([0.0, 0.2]).reshape(1, 1, 1, 2)
    found = pairwise_window_energy(probabilities, image, radius=3, sigma_position=2.0, sigma_intensity=0.1)
    assert found.item() == pytest.approx(0.75 * math.exp(-1 / 8 - 2), rel=1e-6)


@pytest.mark.parametrize("shape", [(3, 4), (2, 3, 2)])
def test_gradient_is_that_of_finite_differences(shape: tuple[int, ...]) -> None:
    probabilities, image, mask, neighbour_mask = case(shape, 2)

    def energy(p: torch.Tensor) -> torch.Tensor:
        return pairwise_window_energy(p, image, 2, 1.5, 0.4, mask, neighbour_mask)

    assert torch.autograd.gradcheck(energy, (probabilities,))


def test_streamed_equals_plain_in_float32() -> None:
    probabilities, image, mask, _ = case((24, 20), 4, dtype=torch.float32)
    energies = [pairwise_window_energy(probabilities, image, mask=mask, plain=plain) for plain in (False, True)]
    assert energies[0].item() == pytest.approx(energies[1].item(), rel=1e-5)
    gradients = [torch.autograd.grad(energy, probabilities)[0] for energy in energies]
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-4 * float(gradients[1].abs().max()))


def test_small_energies_stay_exact() -> None:
    """Nearly certain and alike: the energy is 10^-6 of the kernel's sum, in float32."""
    certain = torch.full((1, 2, 16, 16), 5e-7)
    certain[:, 0] = 1 - certain[:, 1]
    image = torch.zeros(1, 1, 16, 16)
    exact = pairwise_window_energy(certain.double(), image.double(), plain=True)
    assert pairwise_window_energy(certain, image).item() == pytest.approx(exact.item(), rel=1e-4)


def test_autocast_and_half_precision_give_float32() -> None:
    probabilities, image, _, _ = case((6, 6), 2, dtype=torch.float32)
    expected = pairwise_window_energy(probabilities.bfloat16().float(), image.bfloat16().float())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = pairwise_window_energy(probabilities.bfloat16(), image.bfloat16())
    assert found.dtype is torch.float32 and found.item() == pytest.approx(expected.item(), rel=1e-6)


def test_nothing_to_sum_is_zero_with_a_gradient() -> None:
    probabilities, image, mask, _ = case((4, 4), 2)
    found = pairwise_window_energy(probabilities, image, mask=torch.zeros_like(mask))
    found.backward()
    assert found.item() == 0.0 and probabilities.grad is not None and float(probabilities.grad.abs().sum()) == 0.0


def test_one_voxel_has_no_pairs() -> None:
    assert pairwise_window_energy(torch.ones(1, 2, 1, 1) / 2, torch.zeros(1, 1, 1, 1)).item() == 0.0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"radius": 0}, "radius"),
        ({"sigma_position": 0.0}, "sigma"),
        ({"image": torch.zeros(2, 1, 4, 5)}, "image"),
        ({"mask": torch.zeros(2, 2, 4, 4)}, "mask"),
    ],
)
def test_what_does_not_fit_is_refused(change: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {"probabilities": torch.ones(2, 2, 4, 4) / 2, "image": torch.zeros(2, 1, 4, 4)}
    with pytest.raises(ValueError, match=message):
        pairwise_window_energy(**(arguments | change))
