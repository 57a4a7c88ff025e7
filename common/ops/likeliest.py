"""The class of the largest value, fast on a CPU."""

from __future__ import annotations

import torch


def likeliest(values: torch.Tensor, axis: int, keepdim: bool = False) -> torch.Tensor:
    """What ``values.argmax(axis)`` gives: the first of equal values, a NaN before all.

    ``argmax`` along an axis that is not the last one takes ten times as long as ``max`` on a CPU.

    Args:
        values: probabilities or logits, the classes along ``axis``.
        axis: of the classes.
        keepdim: keep that axis, of length 1.

    Returns:
        class numbers, int64, without gradient.

    Example:
        >>> likeliest(torch.tensor([[0.1, 0.5], [0.9, 0.5]]), 0)
        tensor([1, 0])
    """
    classes: torch.Tensor = values.detach().max(axis, keepdim=keepdim).indices
    return classes
