"""Any network in a bundle's place: found by its dotted name, its dropout by whatever name it has."""

from __future__ import annotations

import inspect
from pydoc import locate
from typing import Any

from torch import nn

#: what networks call the probability to drop a feature
DROPOUT_NAMES = ("dropout", "dropout_rate", "dropout_prob", "drop_rate")


def build_network(network: str, dropout: float = 0.0, **arguments: Any) -> nn.Module:
    """Build a network from MONAI or elsewhere.

    Annotation servers and the configs of this repository call the probability to drop a feature ``dropout``, networks
    call it by one of :data:`DROPOUT_NAMES`.

    Args:
        network: dotted name, such as ``monai.networks.nets.SwinUNETR``.
        dropout: probability to drop a feature, in [0, 1).
        arguments: of the network.

    Raises:
        ValueError: when there is no such network, or it has no dropout to set.

    Example:
        >>> network = build_network("monai.networks.nets.SegResNet", dropout=0.3, spatial_dims=2, init_filters=8)
        >>> next(module.p for module in network.modules() if isinstance(module, nn.Dropout2d))
        0.3
    """
    constructor: Any = locate(network)
    if not callable(constructor):
        raise ValueError(f"network: there is no {network!r}. Fix: give a dotted name such as monai.networks.nets.UNet.")
    known = inspect.signature(constructor).parameters
    name = next((name for name in DROPOUT_NAMES if name in known), None)
    if name is not None:
        arguments[name] = dropout
    elif dropout > 0.0:
        raise ValueError(f"dropout: {network} has none of {', '.join(DROPOUT_NAMES)}. Fix: give dropout 0.")
    built: nn.Module = constructor(**arguments)
    return built
