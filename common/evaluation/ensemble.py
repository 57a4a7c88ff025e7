"""One answer of several: of networks from several folds, and of the mirror images of what they see."""

from __future__ import annotations

import copy
import functools
import itertools
import os
from collections.abc import Callable, Sequence

import torch
from torch import nn

from ..training.runs import load_weights


class Ensemble(nn.Module):
    """Networks that answer together, each to an image and its mirror images: the mean of their probabilities.

    With m networks and k axes it takes m 2^k times as long as one network. The log of the mean serves as logits, so
    that all that takes a network takes an ensemble.

    Args:
        networks: trained, of one make.
        mirror_axes: spatial axes of the network's input to mirror along, alone and together; none: the image alone.

    Raises:
        ValueError: without a network, or with an axis that is there twice.

    Shape:
        image (B, channels, *S) to (B, C, *S), at most 0.
    """

    def __init__(self, networks: Sequence[nn.Module], mirror_axes: Sequence[int] = ()) -> None:
        super().__init__()
        if not networks or len(set(mirror_axes)) < len(mirror_axes):
            raise ValueError(f"An ensemble takes networks and different axes, got {len(networks)} and {mirror_axes}.")
        self.networks = nn.ModuleList(networks)
        axes = sorted(int(axis) for axis in mirror_axes)
        self.mirrored = [chosen for k in range(len(axes) + 1) for chosen in itertools.combinations(axes, k)]

    @property
    def latent_size(self) -> int:
        """Of networks that draw samples: axes of the latent code."""
        return int(self.networks[0].latent_size)  # type: ignore[arg-type]

    def mean(self, image: torch.Tensor, answer: Callable[[nn.Module, torch.Tensor], torch.Tensor]) -> torch.Tensor:
        """Mean of what each network answers to the image and its mirror images, mirrored back, in float32.

        Args:
            image: (B, channels, *S).
            answer: from a network and an image to maps (B, ..., *S) that may be averaged, such as probabilities.
        """
        return self._mean_of(list(self.networks), image, answer)

    def _mean_of(
        self,
        networks: Sequence[nn.Module],
        image: torch.Tensor,
        answer: Callable[[nn.Module, torch.Tensor], torch.Tensor],
    ) -> torch.Tensor:
        total: torch.Tensor | None = None
        spatial = image.ndim - 2
        for axes in self.mirrored:
            # counted from the last axis, as answers may have more axes before the spatial ones
            places = [axis - spatial for axis in axes]
            seen = image.flip(places) if places else image
            for network in networks:
                found = answer(network, seen).float()
                found = found.flip(places) if places else found
                total = found if total is None else total + found
        assert total is not None
        return total / (len(self.mirrored) * len(networks))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Log of the mean probabilities (B, C, *S) of an image (B, channels, *S)."""
        return log_probability(self.mean(image, lambda network, seen: network(seen).float().softmax(1)))

    def samples(self, image: torch.Tensor, latent: torch.Tensor) -> torch.Tensor:
        """Logs of the answers' probabilities for networks that draw samples: (B, n, C, *S).

        Answer j is that of network j modulo the number of networks, so that the set keeps the networks' differences.

        Args:
            image: (B, channels, *S).
            latent: (B, n, D), in standard-normal units.
        """
        number, answers = len(self.networks), latent.shape[1]
        parts: dict[int, torch.Tensor] = {}
        for place, network in enumerate(self.networks):
            chosen = range(place, answers, number)
            if not chosen:
                continue
            answer = functools.partial(_samples, latent=latent[:, list(chosen)])
            found = self._mean_of([network], image, answer)
            parts |= dict(zip(chosen, log_probability(found).unbind(1), strict=True))
        return torch.stack([parts[j] for j in range(answers)], dim=1)


def _samples(network: nn.Module, image: torch.Tensor, latent: torch.Tensor) -> torch.Tensor:
    logits: torch.Tensor = network.samples(image, latent)  # type: ignore[operator]
    return logits.float().softmax(2)


def log_probability(probabilities: torch.Tensor) -> torch.Tensor:
    """Logarithm of probabilities, finite where they are 0; its softmax gives them back."""
    return probabilities.clamp_min(torch.finfo(probabilities.dtype).tiny).log()


def load_networks(
    network: nn.Module,
    weights: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    mirror_axes: Sequence[int] = (),
) -> nn.Module:
    """A trained network, or an :class:`Ensemble` where there are several weights or axes to mirror along.

    Args:
        network: the network that the weights were trained in.
        weights: a file of weights, or several.
        mirror_axes: see :class:`Ensemble`.

    Raises:
        FileNotFoundError: when there is no such file.
        ValueError: when a file does not hold this network's weights, see
            :func:`~common.training.runs.load_weights`.
    """
    paths = [weights] if isinstance(weights, (str, os.PathLike)) else list(weights)
    others = [copy.deepcopy(network) for _ in paths[1:]]
    networks = [load_weights(each, path) for each, path in zip([network, *others], paths, strict=True)]
    return networks[0] if len(networks) == 1 and not mirror_axes else Ensemble(networks, mirror_axes)
