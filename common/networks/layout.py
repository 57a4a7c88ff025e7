"""The order in memory of a network's weights and features."""

from __future__ import annotations

import torch
from torch import nn


def channels_last(network: nn.Module, spatial_dims: int) -> None:
    """Put a network's convolutions in channels-last order; features follow.

    Convolutions of the sizes used here, with batch normalisation, run faster so on a CPU; no value changes but by
    rounding.

    Args:
        network: changed in place.
        spatial_dims: 2 or 3.
    """
    layout = torch.channels_last_3d if spatial_dims == 3 else torch.channels_last
    network.to(memory_format=layout)  # type: ignore[call-overload]
