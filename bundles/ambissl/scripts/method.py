"""AmbiSSL: one training step of Kumari and Singh, CVPR 2025."""

from __future__ import annotations

import copy
from typing import Any, NamedTuple

import numpy as np
import torch

from common.settings import switch
from common.training.method import LossTerm, MethodOutput, Progress

from .latents import Latent
from .losses import dice_loss, harden, pick
from .network import ProbabilisticUNet
from .pruning import PruningMasks, draw_layers
from .supervised import Branch, RaterMethod, check_weights, copy_weights, random_member, split, split_latent


class PseudoLabels(NamedTuple):
    """Sets of pseudo-labels (B, A, C, *S): decoders phi and xi alone, and each together with theta.

    ``codes`` (B, A, D) are the latent codes that they answer to.
    """

    codes: torch.Tensor
    phi: torch.Tensor
    xi: torch.Tensor
    phi_theta: torch.Tensor
    xi_theta: torch.Tensor


class View(NamedTuple):
    """A view of unlabelled images: the images, their priors, the decoder's features."""

    image: torch.Tensor
    prior: Latent
    features: torch.Tensor


class AmbiSSL(RaterMethod):
    """Three decoders, two of them pruned at random, that learn from raters and from each other's sets of answers.

    Source: Kumari and Singh, "Annotation Ambiguity Aware Semi-Supervised Medical Image Segmentation", CVPR 2025,
    Eqs. 1-21. Decoder phi is the network's own, the one that ships; theta and xi belong to the method.

    Args:
        network: what ships: encoder, decoder phi and its head, prior.
        prune_from: L, first decoder block to prune, from 0 (Eq. 7).
        keep_fraction: a, share of weights that a pruned layer keeps, in (0, 1]; 1: no pruning.
        prune_probability: q_k, that a layer is pruned (Eq. 8), in (0, 1): at 1 both pruned copies would be the same.
        prune_interval: steps after which the pruning is drawn anew; 0: once, when the training starts.
        unsupervised_kl: alpha_u, weight of the divergences on unlabelled images (Eqs. 19 and 20).
        unlabelled_family: laplace or normal, of latent codes of unlabelled images.
        soft_pseudo_labels: pseudo-labels are probabilities instead of the likeliest class.
        paired_codes: a decoder learns the other's answer to its own latent code, which is ours; in the paper code and
            answer are drawn apart from each other (Eqs. 15-18), and the loss is least where all answers are one.
        seed: of the pruning.
        settings: as for :class:`RaterMethod`.

    Raises:
        ValueError: when an argument is outside its range.
    """

    pruned: torch.Tensor

    def __init__(
        self,
        network: ProbabilisticUNet,
        prune_from: int = 2,
        keep_fraction: float = 0.5,
        prune_probability: float = 0.5,
        prune_interval: int = 0,
        unsupervised_kl: float = 0.5,
        unlabelled_family: str = "laplace",
        soft_pseudo_labels: bool = False,
        paired_codes: bool = False,
        seed: int = 0,
        **settings: Any,
    ) -> None:
        super().__init__(network, **settings)
        check_weights(unsupervised_kl=unsupervised_kl)
        if not 0.0 < keep_fraction <= 1.0 or not 0.0 < prune_probability < 1.0:
            raise ValueError(
                "keep_fraction must be in (0, 1] and prune_probability in (0, 1), "
                f"got {keep_fraction} and {prune_probability}."
            )
        if prune_interval < 0:
            raise ValueError(f"prune_interval is a number of steps, at least 0, got {prune_interval}.")
        if unlabelled_family not in ("laplace", "normal"):
            raise ValueError(f"unlabelled_family must be laplace or normal, got {unlabelled_family!r}.")
        self.keep_fraction, self.prune_probability, self.prune_interval = (
            keep_fraction,
            prune_probability,
            prune_interval,
        )
        self.unsupervised_kl, self.family = unsupervised_kl, unlabelled_family
        self.soft_pseudo_labels = switch(soft_pseudo_labels, "soft_pseudo_labels")
        self.paired_codes, self.seed = switch(paired_codes, "paired_codes"), seed
        self.theta, self.xi = copy.deepcopy(network.decoder), copy.deepcopy(network.decoder)
        self.theta_head, self.xi_head = copy.deepcopy(network.head), copy.deepcopy(network.head)
        self.phi_masks, self.xi_masks = (PruningMasks(network.decoder, prune_from) for _ in range(2))
        self.register_buffer("pruned", torch.zeros((), dtype=torch.bool))

    def forward(self, batch: dict[str, Any], progress: Progress) -> MethodOutput:
        """Loss terms of a batch.

        Args:
            batch: ``image`` (B, channels, *S), weakly augmented; ``strong``, the same images with changed intensities;
                ``raters`` (B, R, *S) class numbers; ``rater_count`` (B,), how many of the R there are: 0 for an
                unlabelled image.
            progress: where the training stands.

        Returns:
            for the three decoders ``kl`` (Eq. 4), ``seg_<decoder>``, ``bound_<decoder>`` (Eq. 14); ``kl_phi`` (Eq. 5),
            ``kl_xi`` (Eq. 6), ``cross_phi`` (Eq. 17), ``cross_xi`` (Eq. 18); ``l2``.
        """
        data, unlabelled = self.labelled(batch), batch["rater_count"] == 0
        weak, strong = batch["image"][unlabelled], batch["strong"][unlabelled]
        sizes = [len(data.image), len(weak), len(weak)]
        views = torch.cat((data.image, weak, strong))
        # the three kinds of images share the encoder's pass, and with it batch statistics
        features = self.network.encode(views)
        of_labelled, of_weak, of_strong = split(features, sizes)
        prior = Latent(*self.network.prior(views))
        prior_l, prior_weak, prior_strong = split_latent(prior, sizes)

        phi_features = self._phi([level[: sizes[0] + sizes[1]] for level in features])
        xi_features = self._xi([torch.cat(pair) for pair in zip(of_labelled, of_strong, strict=True)])
        phi_l, phi_weak = phi_features.split(sizes[:2])
        xi_l, xi_strong = xi_features.split([sizes[0], sizes[2]])

        terms: dict[str, LossTerm] = {}
        samples = torch.empty(0)
        if sizes[0] > 0:
            branches = {
                "phi": Branch(phi_l, self.network.head),
                "theta": Branch(self.theta(of_labelled, self.network.skips), self.theta_head),
                "xi": Branch(xi_l, self.xi_head),
            }
            posterior = self.encode_set(*data)
            supervised, samples = self.supervise(data, prior_l, posterior, branches)
            terms |= supervised
        else:
            terms["kl"] = LossTerm(self.nothing(), 0.0)
        if sizes[1] > 0:
            pseudo = self._pseudo_labels(of_weak, prior_weak, phi_weak, weak)
            terms |= self._cross_supervise(
                View(weak, prior_weak, phi_weak),
                View(strong, prior_strong, xi_strong),
                pseudo,
                self.mu(progress.fraction),
            )
        with torch.no_grad():  # to monitor: the answer at the prior's mean
            codes = prior.mean[: sizes[0] + sizes[1], None]
            shown = self.answers(Branch(phi_features, self.network.head), codes, views)[:, 0].log()
            shown = shown[torch.cat((unlabelled.logical_not().nonzero(), unlabelled.nonzero()))[:, 0].argsort()]
        return self.finish(terms, shown, prior, samples)

    def before_step(self, progress: Progress) -> None:
        """Eqs. 7 and 8, when the training starts, and again every ``prune_interval`` steps."""
        iteration = progress.iteration
        first = not bool(self.pruned)
        again = self.prune_interval > 0 and iteration > 0 and iteration % self.prune_interval == 0
        if not first and not again:
            return
        if first:  # weights may have been loaded since: copies of one decoder
            for target in (self.theta, self.xi):
                copy_weights(self.network.decoder, target)
            for head in (self.theta_head, self.xi_head):
                copy_weights(self.network.head, head)
            self.pruned.fill_(True)
        if self.keep_fraction < 1.0:
            generator = np.random.default_rng((self.seed, iteration))
            phi, xi = draw_layers(len(self.phi_masks.names), self.prune_probability, generator)
            self.phi_masks.prune(self.network.decoder, phi, self.keep_fraction)
            self.xi_masks.prune(self.xi, xi, self.keep_fraction)

    def after_step(self) -> None:
        """The optimiser may have momentum for weights that a redraw has pruned: they become 0 again."""
        if self.prune_interval > 0:
            self.phi_masks.zero_pruned(self.network.decoder)
            self.xi_masks.zero_pruned(self.xi)

    def _pseudo_labels(
        self, features: list[torch.Tensor], prior: Latent, phi_features: torch.Tensor, weak: torch.Tensor
    ) -> PseudoLabels:
        """Eqs. 9-13: the same latent codes of the prior through the three decoders; no gradient."""
        with torch.no_grad():
            codes = prior.sample(self.noise(weak, self.raters), self.family)
            theta = Branch(self.theta(features, self.network.skips), self.theta_head)
            xi = Branch(self._xi(features), self.xi_head)
            of_theta = self.answers(theta, codes, weak)  # Eq. 9
            of_phi = self.answers(Branch(phi_features, self.network.head), codes, weak)  # Eq. 10
            of_xi = self.answers(xi, codes, weak)  # Eq. 11
            # a sum of two probabilities is their mean: pair j shares its latent code
            sets = (of_phi, of_xi, (of_phi + of_theta) / 2, (of_xi + of_theta) / 2)  # Eqs. 12 and 13
            return PseudoLabels(codes, *(each if self.soft_pseudo_labels else harden(each) for each in sets))

    def _cross_supervise(self, phi: View, xi: View, pseudo: PseudoLabels, mu: float) -> dict[str, LossTerm]:
        """Eqs. 2, 3, 5, 6 and 15-20: each decoder learns from a random member of the other's set.

        Decoder phi sees the weak view, xi the strong one; the pseudo-labels are those of the weak view, and fit both.
        """
        count = torch.full((len(phi.image),), self.raters, device=phi.image.device)
        terms = {}
        for name, view, ensemble, target, head in (
            ("phi", phi, pseudo.phi_theta, pseudo.xi, self.network.head),
            ("xi", xi, pseudo.xi_theta, pseudo.phi, self.xi_head),
        ):
            posterior = self.encode_set(view.image, ensemble, count)  # Eqs. 2 and 3
            code = posterior.sample(self.noise(view.image, 1), self.family)
            member = random_member(count)
            if self.paired_codes:
                code = pick(pseudo.codes, member)[:, None]
            answer = self.answers(Branch(view.features, head), code, view.image)[:, 0]  # Eqs. 15 and 16
            divergence = self.divergence(view.prior, posterior, self.family)  # Eqs. 5 and 6
            terms[f"kl_{name}"] = LossTerm(divergence, mu * self.unsupervised_kl)
            terms[f"cross_{name}"] = LossTerm(dice_loss(answer, pick(target, member)), mu)  # Eqs. 17, 18
        return terms

    def _phi(self, features: list[torch.Tensor]) -> torch.Tensor:
        decoded: torch.Tensor = self.phi_masks(self.network.decoder, features, self.network.skips)
        return decoded

    def _xi(self, features: list[torch.Tensor]) -> torch.Tensor:
        decoded: torch.Tensor = self.xi_masks(self.xi, features, self.network.skips)
        return decoded
