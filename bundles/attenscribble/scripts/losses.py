"""Losses of the method and of its baselines as pure functions; the two window losses stand in ``common.ops``."""

from __future__ import annotations

import torch
from monai.losses import DiceLoss
from torch.nn import functional

_IGNORED = -1
_DICE = DiceLoss(include_background=False, to_onehot_y=True, batch=True, ignore_index=_IGNORED)


def partial_cross_entropy(logits: torch.Tensor, target: torch.Tensor, labelled: torch.Tensor) -> torch.Tensor:
    """Mean cross entropy over the labelled pixels of a batch (Eq. 1 of AttenScribble, arXiv 2312.06614).

    Args:
        logits: (B, C, H, W[, D]).
        target: (B, H, W[, D]), class numbers; of no meaning where nothing is labelled.
        labelled: (B, H, W[, D]), bool.

    Returns:
        scalar, at least 0; 0, with a gradient path, when nothing is labelled.

    Example:
        >>> logits = torch.zeros(1, 2, 1, 2)
        >>> labelled = torch.tensor([[[True, False]]])
        >>> round(partial_cross_entropy(logits, torch.zeros(1, 1, 2), labelled).item(), 4)
        0.6931
    """
    target = torch.where(labelled, target.long(), 0)
    loss = functional.cross_entropy(logits.float(), target, reduction="none")
    return (loss * labelled).sum() / labelled.sum().clamp_min(1)


def partial_dice(probabilities: torch.Tensor, target: torch.Tensor, labelled: torch.Tensor) -> torch.Tensor:
    """Soft Dice loss over the labelled pixels of a batch, mean over the foreground classes.

    For dense labels: of a scribble it would be the Dice of strokes.

    Args:
        probabilities: (B, C, H, W[, D]).
        target: (B, H, W[, D]), class numbers; of no meaning where nothing is labelled.
        labelled: (B, H, W[, D]), bool.

    Returns:
        scalar in [0, 1].

    Example:
        >>> probabilities = torch.tensor([[0.2, 0.5], [0.8, 0.5]]).reshape(1, 2, 1, 2)
        >>> labelled = torch.tensor([[[True, False]]])
        >>> round(partial_dice(probabilities, torch.ones(1, 1, 2), labelled).item(), 3)  # 1 - 2 * 0.8 / (0.8 + 1)
        0.111
    """
    loss: torch.Tensor = _DICE(probabilities.float(), torch.where(labelled, target.long(), _IGNORED)[:, None])
    return loss


def entropy(probabilities: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Mean entropy of the masked pixels, in nats: entropy minimisation as a regulariser.

    Source: Grandvalet and Bengio, Semi-supervised Learning by Entropy Minimization, NeurIPS 2004.

    Args:
        probabilities: (B, C, H, W[, D]).
        mask: (B, 1, H, W[, D]), bool.

    Returns:
        scalar in [0, log C]; 0, with a gradient path, for an empty mask.

    Example:
        >>> round(entropy(torch.full((1, 2, 1, 1), 0.5), torch.ones(1, 1, 1, 1, dtype=torch.bool)).item(), 4)
        0.6931
    """
    # without the clamp the gradient at exactly 0 would be infinite
    clamped = probabilities.float().clamp_min(torch.finfo(torch.float32).tiny)
    per_pixel = -(clamped * clamped.log()).sum(1, keepdim=True)
    return (per_pixel * mask).sum() / mask.sum().clamp_min(1)


def mumford_shah(
    probabilities: torch.Tensor, image: torch.Tensor, mask: torch.Tensor, length: float = 1e-3
) -> torch.Tensor:
    """Mean squared deviation from each class's mean intensity, plus ``length`` times the total variation.

    Source: Kim and Ye, Mumford-Shah Loss Functional for Image Segmentation With Deep Learning, IEEE TIP 2020.

    Args:
        probabilities: (B, C, H, W[, D]).
        image: (B, channels, H, W[, D]).
        mask: (B, 1, H, W[, D]), bool: pixels that count.
        length: weight of the borders' length.

    Returns:
        scalar, at least 0; 0, with a gradient path, for an empty mask.

    Example:
        >>> split = torch.tensor([[1.0, 0.0], [0.0, 1.0]]).reshape(1, 2, 1, 2)
        >>> everywhere = torch.ones(1, 1, 1, 2, dtype=torch.bool)
        >>> mumford_shah(split, torch.tensor([3.0, 7.0]).reshape(1, 1, 1, 2), everywhere, length=0.0).item()
        0.0
    """
    inside = (probabilities.float() * mask)[:, :, None]  # (B, C, 1, *S)
    values = image.float()[:, None]
    axes = tuple(range(3, inside.ndim))
    mean = (inside * values).sum(axes, keepdim=True) / inside.sum(axes, keepdim=True).clamp_min(1e-6)
    deviation = ((values - mean).square() * inside).sum()
    borders = sum(
        (torch.diff(probabilities.float(), dim=axis).abs() * _both(mask, axis)).sum()
        for axis in range(2, probabilities.ndim)
    )
    return (deviation + length * borders) / mask.sum().clamp_min(1)


def _both(mask: torch.Tensor, axis: int) -> torch.Tensor:
    """Where a pixel and the next one along the axis are both masked."""
    size = mask.shape[axis] - 1
    return mask.narrow(axis, 0, size) & mask.narrow(axis, 1, size)
