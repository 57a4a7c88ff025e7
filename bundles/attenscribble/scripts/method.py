"""AttenScribble: one training step, Eq. 7 of arXiv 2312.06614."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional

from common.networks.attention import SpatialSelfAttention, recorded_scores
from common.ops.energy import pairwise_window_energy
from common.ops.similarity import attentive_similarity_loss
from common.settings import switch
from common.training.method import LossTerm, Method, MethodOutput, Progress

from .losses import entropy, mumford_shah, partial_cross_entropy, partial_dice
from .transforms import FIRST_CLASS, OUTSIDE, UNLABELLED


class AttenScribble(Method):
    """Learn from scribbles: partial cross entropy, masked CRF and attentive similarity.

    Source: Tian et al., "AttenScribble: Attentive Similarity Learning for Scribble-Supervised Medical Image
    Segmentation", Eqs. 1-7. A term of weight 0 is not computed; with other weights the same class is the baselines.

    Args:
        network: what ships; with an attention block if ``attentive_weight`` is above 0.
        crf_weight: lambda_mcrf, weight of the masked CRF (Eq. 4).
        attentive_weight: lambda_atn, weight of the attentive similarity loss (Eq. 6).
        dice_weight: weight of the soft Dice over labelled pixels, for dense labels.
        entropy_weight: weight of entropy minimisation over unlabelled pixels, a baseline.
        mumford_shah_weight: weight of the Mumford-Shah loss, a baseline.
        radius: of both losses' windows, in pixels (of the feature map for the attentive one).
        sigma_position: of the CRF's kernel and of the distance map, in pixels.
        sigma_intensity: of the CRF's kernel, for images in [0, 1].
        crf_mask: ``unlabelled``: pixels without a scribble, with the margins that rotations bring in (the paper);
            ``image``: all pixels of the image proper and no margins (Gated CRF, arXiv 1906.04651).
        mask_neighbours: leave out scribbled neighbours as well, as Eq. 4 prints it.
        scaled_similarity: divide the scores behind S by the square root of a head's channels, as Sec. 2.3 prints A;
            otherwise S is formed from plain products of queries and keys. The attended feature is scaled either way.

    Raises:
        ValueError: when an argument is outside its range, or there is no attention to learn similarity from.
    """

    def __init__(
        self,
        network: nn.Module,
        crf_weight: float = 0.1,
        attentive_weight: float = 0.1,
        dice_weight: float = 0.0,
        entropy_weight: float = 0.0,
        mumford_shah_weight: float = 0.0,
        radius: int = 5,
        sigma_position: float = 6.0,
        sigma_intensity: float = 0.1,
        crf_mask: str = "unlabelled",
        mask_neighbours: bool = False,
        scaled_similarity: bool = False,
    ) -> None:
        super().__init__(network)
        self.weights = {
            "crf": crf_weight,
            "attentive": attentive_weight,
            "dice": dice_weight,
            "entropy": entropy_weight,
            "mumford_shah": mumford_shah_weight,
        }
        for name, weight in self.weights.items():
            if weight < 0.0:
                raise ValueError(f"{name}_weight must be at least 0, got {weight}.")
        if crf_mask not in ("unlabelled", "image"):
            raise ValueError(f"crf_mask must be unlabelled or image, got {crf_mask!r}.")
        self.radius, self.sigma_position, self.sigma_intensity = radius, sigma_position, sigma_intensity
        self.crf_mask, self.mask_neighbours = crf_mask, switch(mask_neighbours, "mask_neighbours")
        self.scaled_similarity = switch(scaled_similarity, "scaled_similarity")
        self.similarity: nn.Linear | None = None
        if attentive_weight > 0.0:
            blocks = [module for module in network.modules() if isinstance(module, SpatialSelfAttention)]
            if len(blocks) != 1:
                raise ValueError(
                    f"attentive_weight above 0 needs a network with one attention block, this one has {len(blocks)}: "
                    "set attention_level, or attentive_weight to 0."
                )
            # the 1x1 convolution over heads and layers of Sec. 2.4
            self.similarity = nn.Linear(blocks[0].heads * blocks[0].depth, 1)

    def forward(self, batch: dict[str, Any], progress: Progress) -> MethodOutput:
        """Loss terms of a batch.

        Args:
            batch: ``image`` (B, channels, H, W[, D]) in [0, 1]; ``scribble`` (B, 1, H, W[, D]), codes: 0 outside the
                image, 1 unlabelled, 2 + class.
            progress: not used, no weight changes during the training.

        Returns:
            term ``partial`` (Eq. 1), and of ``crf`` (Eq. 4), ``attentive`` (Eq. 6), ``dice``, ``entropy`` and
            ``mumford_shah`` those whose weight is above 0; monitor ``labelled``, the share of pixels with a label.
        """
        image, scribble = batch["image"], batch["scribble"].long()
        labelled = scribble >= FIRST_CLASS
        if self.similarity is None:
            logits = self.network(image)
        else:
            with recorded_scores(self.network) as scores:
                logits = self.network(image)
        probabilities = logits.float().softmax(1)
        target = scribble[:, 0] - FIRST_CLASS
        terms = {"partial": partial_cross_entropy(logits, target, labelled[:, 0])}  # Eq. 1
        if self.weights["crf"] > 0.0:
            terms["crf"] = self._crf(probabilities, image, scribble)
        if self.similarity is not None:
            terms["attentive"] = self._attentive(probabilities, scribble, scores.queries, scores.keys, scores.shape)
        if self.weights["dice"] > 0.0:
            terms["dice"] = partial_dice(probabilities, target, labelled[:, 0])
        if self.weights["entropy"] > 0.0:
            terms["entropy"] = entropy(probabilities, scribble == UNLABELLED)
        if self.weights["mumford_shah"] > 0.0:
            terms["mumford_shah"] = mumford_shah(probabilities, image, scribble != OUTSIDE)
        weighted = {name: LossTerm(value, self.weights.get(name, 1.0)) for name, value in terms.items()}  # Eq. 7
        return MethodOutput(terms=weighted, prediction=logits, monitors={"labelled": labelled.float().mean()})

    def _crf(self, probabilities: torch.Tensor, image: torch.Tensor, scribble: torch.Tensor) -> torch.Tensor:
        """Eq. 4 with the kernel of Eq. 5, or Gated CRF."""
        proper = self.crf_mask == "image"
        mask = scribble != OUTSIDE if proper else scribble < FIRST_CLASS
        neighbours = mask if proper or self.mask_neighbours else None
        return pairwise_window_energy(
            probabilities, image, self.radius, self.sigma_position, self.sigma_intensity, mask, neighbours
        )

    def _attentive(
        self,
        probabilities: torch.Tensor,
        scribble: torch.Tensor,
        queries: torch.Tensor,
        keys: torch.Tensor,
        shape: tuple[int, ...],
    ) -> torch.Tensor:
        """Eq. 6 at the attention's resolution, over the slices whose scribbles hold several classes."""
        assert self.similarity is not None
        if self.scaled_similarity:
            queries = queries.float() / queries.shape[-1] ** 0.5
        chosen = _several_classes(scribble)
        small = functional.interpolate(probabilities, shape, mode="area")
        share = functional.interpolate((scribble >= FIRST_CLASS).float(), shape, mode="area")
        mask = share == 0.0
        return attentive_similarity_loss(
            queries[chosen],
            keys[chosen],
            self.similarity.weight[0],
            self.similarity.bias,
            small[chosen],
            self.radius,
            self.sigma_position,
            mask[chosen],
            mask[chosen] if self.mask_neighbours else None,
        )


def _several_classes(scribble: torch.Tensor) -> torch.Tensor:
    """Which samples have scribbles of more than one class, (B,) bool."""
    codes = scribble.flatten(1)
    least = codes.where(codes >= FIRST_CLASS, codes.max() + 1).amin(1)
    return codes.amax(1) > least
