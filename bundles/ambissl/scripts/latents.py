"""Distributions of the latent code, Normal and Laplace: reparameterised samples and divergences (Eqs. 4-6)."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch

from common.ops.autocast import no_autocast

FAMILIES = ("normal", "laplace")


class Latent(NamedTuple):
    """Diagonal distribution of the latent code; float32.

    Attributes:
        mean: (B, D).
        log_scale: (B, D), of the Normal's standard deviation or the Laplace distribution's b.
    """

    mean: torch.Tensor
    log_scale: torch.Tensor

    def sample(self, noise: torch.Tensor, family: str = "normal") -> torch.Tensor:
        """Latent codes of this distribution, see :func:`sample_latent`."""
        return sample_latent(self.mean, self.log_scale, noise, family == "laplace")


def sample_latent(
    mean: torch.Tensor, log_scale: torch.Tensor, noise: torch.Tensor, laplace: bool = False
) -> torch.Tensor:
    """Latent codes by the reparameterisation trick, with a gradient to mean and scale.

    Standard-normal noise serves both families, so that one rater's noise means the same to both: the Laplace sample is
    the quantile at the noise's own probability.

    Args:
        mean: (B, D).
        log_scale: (B, D).
        noise: (B, n, D), in standard-normal units.
        laplace: of a Laplace distribution instead of a Normal one.

    Returns:
        (B, n, D), float32.
    """
    unit = noise.float()
    if laplace:
        unit = laplace_noise(unit)
    return mean.unsqueeze(1) + log_scale.unsqueeze(1).exp() * unit


def laplace_noise(noise: torch.Tensor) -> torch.Tensor:
    """Standard Laplace noise from standard-normal noise: -sign(u) log(1 - 2 |u|) at u = Phi(noise) - 1/2."""
    share = torch.erf(noise.abs() * math.sqrt(0.5)).clamp(max=1.0 - 1e-7)  # finite: within 16 scales of the mean
    return -noise.sign() * torch.log1p(-share)


def normal_kl(first: Latent, second: Latent) -> torch.Tensor:
    """KL(first || second) of diagonal Normal distributions (Eq. 4), for each axis of the latent.

    log(s2 / s1) + (s1^2 + (m1 - m2)^2) / (2 s2^2) - 1/2

    Returns:
        (B, D), nats, float32.
    """
    with no_autocast(first.mean):
        shift = (first.mean - second.mean).float()
        log_ratio = (first.log_scale - second.log_scale).float()
        distance = (shift * (-second.log_scale.float()).exp()).square()
        return -log_ratio + 0.5 * ((2.0 * log_ratio).exp() + distance - 1.0)


def laplace_kl(first: Latent, second: Latent) -> torch.Tensor:
    """KL(first || second) of diagonal Laplace distributions (Eqs. 5 and 6), for each axis of the latent.

    log(b2 / b1) + |m1 - m2| / b2 + (b1 / b2) exp(-|m1 - m2| / b1) - 1

    Returns:
        (B, D), nats, float32.
    """
    with no_autocast(first.mean):
        shift = (first.mean - second.mean).float().abs()
        log_ratio = (first.log_scale - second.log_scale).float()
        far = (-shift * (-first.log_scale.float()).exp()).exp()
        near = shift * (-second.log_scale.float()).exp()
        return -log_ratio + near + log_ratio.exp() * far - 1.0


KL = {"normal": normal_kl, "laplace": laplace_kl}
