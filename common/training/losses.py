"""Losses that at least two bundles use."""

from __future__ import annotations

import torch
from monai.losses import DiceLoss
from torch.nn import functional

_DICE = DiceLoss(include_background=False, to_onehot_y=True, softmax=True, reduction="none")


def segmentation_loss(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Half cross entropy, half soft Dice, one value per sample.

    Source: Eq. 2 of Qian et al., Adaptive Label Correction, arXiv 2503.12218. Dice is the mean over the foreground
    classes, as is customary; cross entropy counts every class.

    Args:
        logits: (B, C, H, W[, D]), before the softmax, C >= 2.
        target: (B, 1, H, W[, D]), class numbers 0 to C - 1, of any number type.

    Returns:
        (B,), each at least 0, in float32.

    Raises:
        ValueError: when there is but one class.

    Example:
        >>> logits = torch.tensor([[[[20.0, -20.0]], [[-20.0, 20.0]]]])
        >>> segmentation_loss(logits, torch.tensor([[[[0, 1]]]])).round(decimals=4)
        tensor([0.])
    """
    if logits.shape[1] < 2:
        raise ValueError(f"logits need a channel for the background and each structure, got {logits.shape[1]}.")
    logits = logits.float()
    classes = target.long()
    cross_entropy = functional.cross_entropy(logits, classes[:, 0], reduction="none").flatten(1).mean(1)
    dice = _DICE(logits, classes).flatten(1).mean(1)
    return 0.5 * (cross_entropy + dice)


def mean_segmentation_loss(logits: torch.Tensor, target: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
    """Mean :func:`segmentation_loss` of the chosen samples; 0, with a gradient path, if none is.

    Args:
        logits: (B, C, H, W[, D]), B may be 0.
        target: (B, 1, H, W[, D]); of samples that are not chosen, anything.
        chosen: (B,) bool.
    """
    if not chosen.any():
        return logits.float().sum() * 0.0
    return segmentation_loss(logits[chosen], target[chosen]).mean()
