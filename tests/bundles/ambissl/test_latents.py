"""Latent distributions: sampling, divergences against Monte Carlo and torch, precision."""

from __future__ import annotations

import math

import pytest
import torch
from torch import distributions

from bundles.ambissl.scripts.latents import KL, Latent, laplace_kl, laplace_noise, normal_kl

TORCH = {"normal": distributions.Normal, "laplace": distributions.Laplace}


def latents(seed: int = 0, images: int = 4, size: int = 6) -> tuple[Latent, Latent]:
    generator = torch.Generator().manual_seed(seed)
    values = [torch.randn(images, size, generator=generator) for _ in range(4)]
    return Latent(values[0], 0.5 * values[1]), Latent(values[2], 0.5 * values[3])


@pytest.mark.parametrize("family", ["normal", "laplace"])
def test_kl_is_that_of_torch(family: str) -> None:
    first, second = latents()
    pair = [TORCH[family](each.mean, each.log_scale.exp()) for each in (first, second)]
    torch.testing.assert_close(KL[family](first, second), distributions.kl_divergence(*pair), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("family", ["normal", "laplace"])
def test_kl_against_monte_carlo(family: str) -> None:
    first, second = latents(images=1, size=3)
    noise = torch.randn(1, 200_000, 3)
    samples = first.sample(noise, family)[0]
    log_ratio = [TORCH[family](each.mean, each.log_scale.exp()).log_prob(samples) for each in (first, second)]
    estimate = (log_ratio[0] - log_ratio[1]).mean(0)
    torch.testing.assert_close(KL[family](first, second)[0], estimate, rtol=0.03, atol=0.01)


@pytest.mark.parametrize("family", ["normal", "laplace"])
def test_kl_is_zero_for_equals_and_smooth_there(family: str) -> None:
    latent = Latent(torch.zeros(1, 1, requires_grad=True), torch.zeros(1, 1))
    other = Latent(torch.zeros(1, 1), torch.zeros(1, 1))
    divergence = KL[family](latent, other)
    assert divergence.item() == 0.0
    divergence.sum().backward()
    assert latent.mean.grad is not None and latent.mean.grad.item() == 0.0


def test_kl_by_hand() -> None:
    first = Latent(torch.tensor([[1.0]]), torch.tensor([[0.0]]))
    second = Latent(torch.tensor([[0.0]]), torch.tensor([[math.log(2.0)]]))
    assert normal_kl(first, second).item() == pytest.approx(math.log(2) + 2 / 8 - 0.5)
    assert laplace_kl(first, second).item() == pytest.approx(math.log(2) + 0.5 + 0.5 * math.exp(-1) - 1)


@pytest.mark.parametrize("family", ["normal", "laplace"])
def test_samples_follow_the_distribution(family: str) -> None:
    latent = Latent(torch.tensor([[2.0, -1.0]]), torch.tensor([[0.5, -0.7]]))
    samples = latent.sample(torch.randn(1, 100_000, 2), family)[0]
    exact = TORCH[family](latent.mean[0], latent.log_scale[0].exp())
    for share in (0.05, 0.3, 0.5, 0.9):
        found = samples.quantile(share, dim=0)
        torch.testing.assert_close(found, exact.icdf(torch.tensor(share)), rtol=0.05, atol=0.05)


def test_laplace_noise_is_the_formula_of_uniform_noise() -> None:
    noise = torch.linspace(-4, 4, 81, dtype=torch.float64)
    uniform = torch.special.ndtr(noise) - 0.5
    expected = -uniform.sign() * torch.log1p(-2 * uniform.abs())
    torch.testing.assert_close(laplace_noise(noise), expected, rtol=1e-9, atol=1e-9)
    assert torch.isfinite(laplace_noise(torch.tensor([-50.0, 0.0, 50.0]))).all()


@pytest.mark.parametrize("family", ["normal", "laplace"])
def test_reparameterised(family: str) -> None:
    mean, log_scale = torch.zeros(1, 2, requires_grad=True), torch.zeros(1, 2, requires_grad=True)
    noise = torch.tensor([[[1.0, -2.0]]])
    Latent(mean, log_scale).sample(noise, family).sum().backward()
    unit = noise if family == "normal" else laplace_noise(noise)
    assert mean.grad is not None and log_scale.grad is not None
    torch.testing.assert_close(mean.grad, torch.ones(1, 2))
    torch.testing.assert_close(log_scale.grad, unit[0])


@pytest.mark.parametrize("family", ["normal", "laplace"])
def test_float32_under_autocast_and_finite_at_the_ends(family: str) -> None:
    ends = Latent(torch.tensor([[50.0, -50.0]]), torch.tensor([[10.0, -10.0]]))
    other = Latent(torch.tensor([[0.0, 0.0]]), torch.tensor([[10.0, 10.0]]))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = KL[family](ends, other), ends.sample(torch.randn(1, 3, 2), family)
    assert all(each.dtype is torch.float32 and bool(torch.isfinite(each).all()) for each in found)
    torch.testing.assert_close(found[0], KL[family](ends, other))
