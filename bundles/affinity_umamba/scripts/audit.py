"""Suspicion of labels by both decoders, for the collection's label audit."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from .losses import local_suspicion
from .network import AffinityUMamba


class BothDecoders(nn.Module):
    """A trained network that answers with both of its decoders.

    Args:
        network: trained.

    Shape:
        image (B, channels, *S) to (B, 2 C, *S): logits of the Affinity-Mamba decoder, probabilities of the CNN decoder.

    Raises:
        ValueError: when the network has a single output.
    """

    def __init__(self, network: AffinityUMamba) -> None:
        super().__init__()
        if not hasattr(network, "branches"):
            raise ValueError(f"The audit takes a network with two decoders, {type(network).__name__} has one.")
        self.network = network

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Maps (B, 2 C, *S) of an image (B, channels, *S)."""
        cnn, am = self.network.branches(image)
        return torch.cat([am.float(), cnn.float().softmax(1)], dim=1)


def suspect(maps: np.ndarray, label: np.ndarray) -> np.ndarray:
    """How much the local affinity of both decoders speaks against a label (Eqs. 3-5).

    Args:
        maps: (2 C, *S), probabilities of the Affinity-Mamba and of the CNN decoder.
        label: (*S), class numbers.

    Returns:
        (*S), float32 in [0, 1]; above 1/2 where Eq. 5 finds the label noisy.
    """
    decoders = torch.from_numpy(maps)[None].chunk(2, dim=1)
    found: np.ndarray = local_suspicion(decoders, torch.from_numpy(label)[None, None])[0, 0].numpy()
    return found
