"""Weights that change during training."""

from __future__ import annotations

import math


def gaussian_ramp_up(fraction: float) -> float:
    """Gaussian ramp-up exp(-5 (1 - fraction)^2), from 0.0067 to 1.

    Source: Laine and Aila, Temporal Ensembling, ICLR 2017.

    Args:
        fraction: share of the training that is done; clipped to [0, 1].

    Example:
        >>> round(gaussian_ramp_up(0.0), 4), gaussian_ramp_up(1.0)
        (0.0067, 1.0)
    """
    rest = 1.0 - min(max(fraction, 0.0), 1.0)
    return math.exp(-5.0 * rest * rest)
