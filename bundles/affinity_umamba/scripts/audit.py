"""What the collection's label audit asks of this network: both decoders, and the suspicion of LALR."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import nn

from common.evaluation.audit import suspicion
from common.evaluation.ensemble import Ensemble, log_probability

from .losses import local_suspicion
from .network import AffinityUMamba


class BothDecoders(nn.Module):
    """A trained network that answers with both of its decoders.

    Args:
        network: trained, or an ensemble, whose mean answers.

    Shape:
        image (B, channels, *S) to (B, 2 C, *S): logits of the Affinity-Mamba decoder, probabilities of the CNN decoder.

    Raises:
        ValueError: when the network has a single output.
    """

    def __init__(self, network: AffinityUMamba | Ensemble) -> None:
        super().__init__()
        for member in network.networks if isinstance(network, Ensemble) else [network]:
            if not hasattr(member, "branches"):
                raise ValueError(f"The audit takes a network with two decoders, {type(member).__name__} has one.")
        self.network = network

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Maps (B, 2 C, *S) of an image (B, channels, *S)."""
        if isinstance(self.network, Ensemble):
            am, cnn = self.network.mean(image, _both_probabilities).chunk(2, dim=1)
            return torch.cat([log_probability(am), cnn], dim=1)
        cnn, am = self.network.branches(image)
        return torch.cat([am.float(), cnn.float().softmax(1)], dim=1)


def _both_probabilities(network: nn.Module, image: torch.Tensor) -> torch.Tensor:
    cnn, am = network.branches(image)  # type: ignore[operator]
    return torch.cat([am.float().softmax(1), cnn.float().softmax(1)], dim=1)


def local_affinity_suspicion(maps: np.ndarray, label: np.ndarray, centre: str) -> np.ndarray:
    """How much the local affinity of both decoders speaks against a label (Eqs. 3-5).

    Args:
        maps: (2 C, *S), probabilities of the Affinity-Mamba and of the CNN decoder.
        label: (*S), class numbers.
        centre: see :func:`~.losses.affinity_of`.

    Returns:
        (*S), float32 in [0, 1]; above 1/2 where Eq. 5 finds the label noisy.
    """
    decoders = torch.from_numpy(maps)[None].chunk(2, dim=1)
    found: np.ndarray = local_suspicion(decoders, torch.from_numpy(label)[None, None], centre)[0, 0].numpy()
    return found


SUSPICIONS = ("probability", "local_affinity")


def suspicion_by(name: str, centre: str = "label") -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """What the audit suspects labels by.

    Args:
        name: ``probability``, 1 - p(class of the label) by the decoder that ships; ``local_affinity``, which
            refines labels in training.
        centre: of the latter, see :func:`~.losses.affinity_of`.

    Raises:
        ValueError: for another name.
    """
    if name not in SUSPICIONS:
        raise ValueError(f"suspicion must be one of {', '.join(SUSPICIONS)}, got {name!r}.")
    return suspicion if name == "probability" else partial(local_affinity_suspicion, centre=centre)
