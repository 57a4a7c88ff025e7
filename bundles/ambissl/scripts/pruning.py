"""Decoders pruned at random: Eqs. 7 and 8 of AmbiSSL (CVPR 2025)."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn
from torch.func import functional_call


class PruningMasks(nn.Module):
    """Masks of one decoder's weights, and the decoder seen through them.

    The masked weight M * W enters the forward pass, so the gradient of a pruned weight is 0. The weight is set to 0
    when it is pruned, and stays 0 under momentum and weight decay; where masks are drawn again, the optimiser may still
    have momentum for it, and :meth:`zero_pruned` follows each step. It is 0 in checkpoints and in the exported network,
    which needs no masks.

    Args:
        decoder: whose convolutions to prune, with ``blocks``, the deepest first.
        first_block: L, the first block to prune, from 0.
    """

    def __init__(self, decoder: nn.Module, first_block: int) -> None:
        super().__init__()
        blocks = len(decoder.blocks)  # type: ignore[arg-type]
        if not 0 <= first_block < blocks:
            raise ValueError(f"prune_from must be 0 to {blocks - 1}, the decoder's blocks, got {first_block}.")
        self.names = [
            name
            for name, weight in decoder.named_parameters()
            if weight.ndim > 2 and int(name.split(".")[1]) >= first_block  # no biases, no norms
        ]
        for name, weight in decoder.named_parameters():
            if name in self.names:
                self.register_buffer(_buffer(name), torch.ones_like(weight, dtype=torch.bool))

    def masks(self) -> dict[str, torch.Tensor]:
        """Mask of each weight that may be pruned: True where it is kept."""
        return {name: self.get_buffer(_buffer(name)) for name in self.names}

    def forward(self, decoder: nn.Module, features: list[torch.Tensor], skips: int) -> torch.Tensor:
        """Features of the masked decoder."""
        weights = dict(decoder.named_parameters())
        masked = {name: weights[name] * mask for name, mask in self.masks().items()}
        decoded: torch.Tensor = functional_call(decoder, masked, (features, skips))
        return decoded

    @torch.no_grad()
    def prune(self, decoder: nn.Module, drawn: list[bool], keep: float) -> None:
        """Of the tensors that are drawn keep the share ``keep`` of largest magnitude, of the others everything."""
        weights = dict(decoder.named_parameters())
        for (name, mask), chosen in zip(self.masks().items(), drawn, strict=True):
            mask.copy_(largest(weights[name], keep) if chosen else torch.ones_like(mask))
        self.zero_pruned(decoder)

    @torch.no_grad()
    def zero_pruned(self, decoder: nn.Module) -> None:
        """Set the pruned weights to 0."""
        weights = dict(decoder.named_parameters())
        for name, mask in self.masks().items():
            weights[name].mul_(mask)


def largest(weight: torch.Tensor, keep: float) -> torch.Tensor:
    """Top a(W) of Eq. 8: True at the round(keep * number) weights of largest magnitude."""
    number = round(keep * weight.numel())
    order = weight.detach().abs().flatten().argsort(descending=True, stable=True)
    mask = torch.zeros(weight.numel(), dtype=torch.bool, device=weight.device)
    mask[order[:number]] = True
    return mask.reshape(weight.shape)


def draw_layers(layers: int, probability: float, generator: np.random.Generator) -> tuple[list[bool], list[bool]]:
    """Which layers of decoders phi and xi are pruned: each with probability q_k (Eq. 8).

    Drawn again until the two differ and each has a pruned layer: magnitudes alone would make two copies of one decoder
    the same.

    Args:
        layers: number of weight tensors, at least 2.
        probability: q_k, in (0, 1).
        generator: source of everything random.
    """
    while True:
        phi, xi = (list(map(bool, generator.random(layers) < probability)) for _ in range(2))
        if phi != xi and any(phi) and any(xi):
            return phi, xi


def _buffer(name: str) -> str:
    return name.replace(".", "_")
