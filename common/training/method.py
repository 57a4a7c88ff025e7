"""The contract between a paper's method and the trainer.

A *method* owns all that training needs beyond the network that ships (teacher, twin network, memory) and turns a batch
into named loss terms. It knows nothing of engines, devices or checkpoints; the trainer knows nothing of its schedules.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import nn


class Progress(NamedTuple):
    """Where the training stands.

    Attributes:
        iteration: steps done before this one, from 0.
        total: steps of the whole training.
    """

    iteration: int
    total: int

    @property
    def fraction(self) -> float:
        """Share of the training that is done, in [0, 1)."""
        return self.iteration / self.total


class LossTerm(NamedTuple):
    """One term of the loss: its unweighted value (a scalar tensor) and its weight at this step."""

    value: torch.Tensor
    weight: float


@dataclass
class MethodOutput:
    """What a method makes of a batch.

    Attributes:
        terms: the named loss terms.
        prediction: logits (B, C, H, W[, D]) to monitor.
        monitors: further scalars worth watching.
    """

    terms: dict[str, LossTerm]
    prediction: torch.Tensor
    monitors: dict[str, torch.Tensor] = field(default_factory=dict)

    @property
    def total(self) -> torch.Tensor:
        """The loss to minimise: the weighted sum of the terms."""
        return torch.stack([term.weight * term.value for term in self.terms.values()]).sum()


class Method(nn.Module):
    """Base of all methods.

    Args:
        network: exactly what ships after training.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, batch: dict[str, Any], progress: Progress) -> MethodOutput:
        """Loss terms of one batch.

        Args:
            batch: tensors on the method's device; ``image`` is (B, channels, H, W[, D]).
            progress: where the training stands; schedules are computed from it.
        """
        raise NotImplementedError

    def before_step(self, progress: Progress) -> None:
        """What precedes the forward pass and holds even if the step is left out, for example a draw of masks."""

    def after_step(self) -> None:
        """What follows the optimiser's step, for example the update of a teacher."""
