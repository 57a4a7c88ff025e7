"""What AmbiSSL and its baselines share: the posterior and learning from several raters (Sec. 3.3, Eq. 14)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import nn

from common.settings import switch
from common.training.method import LossTerm, Method, MethodOutput
from common.training.schedules import gaussian_ramp_up

from .latents import KL, Latent
from .losses import bound_loss, dice_loss, norm_sum, one_hot, pick, posterior_channels
from .network import Head, LatentEncoder, ProbabilisticUNet, crop

POSTERIORS = ("set", "stacked")
ORDERS = ("area", "given")
_ACTIVE = 0.01  # variance of the prior's mean over images above which a latent axis is in use (Burda et al., ICLR 2016)


class Labelled(NamedTuple):
    """The labelled images of a batch.

    Attributes:
        image: (B, channels, *S).
        masks: (B, R, C, *S), one-hot.
        raters: (B,), how many of the R masks there are, the first ones.
    """

    image: torch.Tensor
    masks: torch.Tensor
    raters: torch.Tensor


class Branch(NamedTuple):
    """Features of one decoder and the head that belongs to it."""

    features: torch.Tensor
    head: Head


class RaterMethod(Method):
    """Base: a network that answers with a set, its posterior, and the supervised loss.

    Args:
        network: what ships.
        raters: A, pseudo-labels of an image, and places of a stacked posterior.
        posterior: ``set``: statistics over any number of masks in any order; ``stacked``: masks as channels, as in the
            paper, for data in which every case has the same number of raters.
        rater_order: of stacked masks: area or given.
        supervised_kl: alpha_l, weight of the divergence on labelled images (Eq. 14).
        bound: beta, weight of the bound loss (Eq. 14); 0: left out.
        bound_samples: samples of the prior for the bound loss.
        unsupervised: final weight of the losses on unlabelled images; mu is this times the ramp-up (Eq. 21).
        l2: weight of the L2 term on posterior, prior and heads.
        free_nats: divergence of each latent axis that costs nothing, so that the posterior does not collapse onto the
            prior (Kingma et al., NeurIPS 2016); 0 is the paper's loss.
        printed_kl: KL(prior || posterior), as Eqs. 4-6 print it, instead of KL(posterior || prior), the term of the
            evidence lower bound.

    Raises:
        ValueError: when an argument is outside its range.
    """

    network: ProbabilisticUNet

    def __init__(
        self,
        network: ProbabilisticUNet,
        raters: int = 4,
        posterior: str = "set",
        rater_order: str = "area",
        supervised_kl: float = 1.0,
        bound: float = 0.5,
        bound_samples: int = 10,
        unsupervised: float = 1.0,
        l2: float = 1e-5,
        free_nats: float = 0.0,
        printed_kl: bool = False,
    ) -> None:
        super().__init__(network)
        for name, value, allowed in (("posterior", posterior, POSTERIORS), ("rater_order", rater_order, ORDERS)):
            if value not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {value!r}.")
        check_weights(supervised_kl=supervised_kl, bound=bound, unsupervised=unsupervised, l2=l2, free_nats=free_nats)
        for name, number in {"raters": raters, "bound_samples": bound_samples}.items():
            if number < 1:
                raise ValueError(f"{name} must be at least 1, got {number}.")
        self.raters, self.form, self.rater_order = raters, posterior, rater_order
        self.supervised_kl, self.bound, self.bound_samples = supervised_kl, bound, bound_samples
        self.unsupervised, self.l2, self.free_nats = unsupervised, l2, free_nats
        self.printed_kl = switch(printed_kl, "printed_kl")
        self.posterior = self.new_posterior(network)

    def new_posterior(self, network: ProbabilisticUNet) -> LatentEncoder:
        """An encoder for the image beside a set of masks."""
        channels = (3 if self.form == "set" else self.raters) * (network.out_channels - 1)
        return LatentEncoder(
            network.spatial_dims, network.in_channels + channels, network.prior.channels, network.latent_size
        )

    def mu(self, fraction: float) -> float:
        """Weight of the losses on unlabelled images (Eq. 21)."""
        return self.unsupervised * gaussian_ramp_up(fraction)

    def labelled(self, batch: Mapping[str, Any]) -> Labelled:
        """The images that have raters; there may be none."""
        chosen = batch["rater_count"] > 0
        masks = one_hot(batch["raters"][chosen], self.network.out_channels)
        return Labelled(batch["image"][chosen], masks, batch["rater_count"][chosen])

    def encode_set(
        self, image: torch.Tensor, masks: torch.Tensor, count: torch.Tensor, posterior: LatentEncoder | None = None
    ) -> Latent:
        """D^post of an image and a set of masks (B, R, C, *S) (Eqs. 1-3)."""
        channels = posterior_channels(masks, count, self.form, self.raters, self.rater_order)
        return Latent(*(posterior or self.posterior)(torch.cat((image, channels.to(image.dtype)), 1)))

    def divergence(self, prior: Latent, posterior: Latent, family: str) -> torch.Tensor:
        """KL, the mean over the images and the sum over the latent's axes (Eqs. 4-6), above the free nats."""
        pair = (prior, posterior) if self.printed_kl else (posterior, prior)
        return KL[family](*pair).mean(0).clamp(min=self.free_nats).sum()

    def noise(self, like: torch.Tensor, count: int) -> torch.Tensor:
        """Standard-normal noise (B, count, D) for the images of ``like``."""
        return torch.randn(len(like), count, self.network.latent_size, device=like.device)

    def answers(self, branch: Branch, codes: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
        """F^seg: probabilities (B, n, C, *S) of latent codes (B, n, D), float32."""
        return crop(branch.head(branch.features, codes), image).float().softmax(2)

    def supervise(
        self, data: Labelled, prior: Latent, posterior: Latent, branches: Mapping[str, Branch]
    ) -> tuple[dict[str, LossTerm], torch.Tensor]:
        """Eq. 14 for each of the decoders ``branches``.

        One latent code of the posterior and one rater an image, drawn at random, serve all decoders. The divergence
        is the same for each: the sum over the decoders counts it as often as there are decoders.

        Returns:
            the terms, and probabilities (B, bound_samples, C, *S) of the first decoder's answers to prior codes.
        """
        codes = posterior.sample(self.noise(data.image, 1))
        codes = torch.cat((codes, prior.sample(self.noise(data.image, self.bound_samples))), 1)
        rater = pick(data.masks, random_member(data.raters))
        valid = torch.arange(data.masks.shape[1], device=rater.device) < data.raters[:, None]
        terms = {"kl": LossTerm(self.divergence(prior, posterior, "normal"), len(branches) * self.supervised_kl)}
        spread = torch.empty(0)
        for name, branch in branches.items():
            probabilities = self.answers(branch, codes if self.bound > 0.0 else codes[:, :2], data.image)
            terms[f"seg_{name}"] = LossTerm(dice_loss(probabilities[:, 0], rater), 1.0)
            if self.bound > 0.0:
                terms[f"bound_{name}"] = LossTerm(bound_loss(probabilities[:, 1:], data.masks, valid), self.bound)
            spread = probabilities[:, 1:].detach() if len(spread) == 0 else spread
        return terms, spread

    def finish(
        self, terms: dict[str, LossTerm], prediction: torch.Tensor, prior: Latent, samples: torch.Tensor
    ) -> MethodOutput:
        """Add the L2 term and the monitors of a collapse.

        ``active``: latent axes whose prior mean varies over the batch; ``spread``: mean 1 - IoU between neighbouring
        samples of an image.
        """
        encoders = [module for module in self.modules() if isinstance(module, LatentEncoder | Head)]
        weights = [weight for module in encoders for weight in module.parameters()]
        terms["l2"] = LossTerm(norm_sum(weights), self.l2)
        monitors = {}
        if len(prior.mean) > 0:
            monitors["active"] = (prior.mean.detach().var(0, unbiased=False) > _ACTIVE).sum().float()
        if samples.numel() > 0 and samples.shape[1] > 1:
            monitors["spread"] = neighbour_distance(samples)
        return MethodOutput(terms=terms, prediction=prediction, monitors=monitors)

    def nothing(self) -> torch.Tensor:
        """0 with a path to every parameter: a batch without labelled images leaves none without a gradient."""
        return torch.stack([parameter.float().sum() for parameter in self.parameters()]).sum() * 0.0


def check_weights(**weights: float) -> None:
    """ValueError for a weight below 0."""
    for name, weight in weights.items():
        if weight < 0.0:
            raise ValueError(f"{name} is a weight, at least 0, got {weight}.")


def random_member(count: torch.Tensor) -> torch.Tensor:
    """A member of each set, drawn evenly: (B,) below ``count``."""
    return (torch.rand(len(count), device=count.device) * count).long().clamp(max=count - 1)


def neighbour_distance(samples: torch.Tensor) -> torch.Tensor:
    """Mean 1 - IoU of the foreground of samples (B, n, C, *S) i and i + 1; two empty ones do not differ."""
    foreground = (samples[:, :, 1:].amax(2) > samples[:, :, 0]).flatten(2)
    first, second = foreground[:, :-1], foreground[:, 1:]
    union = (first | second).sum(2)
    return 1.0 - ((first & second).sum(2) / union.clamp(min=1)).where(union > 0, 1.0).mean()


def split(features: list[torch.Tensor], sizes: list[int]) -> list[list[torch.Tensor]]:
    """Features of every level, of parts of a batch."""
    parts = [level.split(sizes) for level in features]
    return [[level[number] for level in parts] for number in range(len(sizes))]


def split_latent(latent: Latent, sizes: list[int]) -> list[Latent]:
    """Distributions of parts of a batch."""
    return [Latent(*parts) for parts in zip(*(each.split(sizes) for each in latent), strict=True)]


def copy_weights(source: nn.Module, target: nn.Module) -> None:
    """Make ``target`` what ``source`` is, running statistics included."""
    target.load_state_dict(source.state_dict())
