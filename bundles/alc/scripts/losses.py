"""Equations 4 to 10 of Qian et al., "Adaptive Label Correction", arXiv 2503.12218, as pure functions.

Letters: M teacher passes, B images, C classes, S spatial sizes (two or three of them). ``passes`` are probabilities.
"""

from __future__ import annotations

import torch

from common.ops.likeliest import likeliest


def mean_probability(passes: torch.Tensor) -> torch.Tensor:
    """Mean teacher probability (Eq. 4).

    Args:
        passes: (M, B, C, *S), probabilities.

    Returns:
        (B, C, *S), probabilities.

    Example:
        >>> mean_probability(torch.tensor([0.2, 0.6]).reshape(2, 1, 1, 1, 1)).item()
        0.4000000059604645
    """
    return passes.mean(0)


def kl_uncertainty(passes: torch.Tensor) -> torch.Tensor:
    """How far each pass is from the mean, KL(mean || pass), per voxel (Eq. 5).

    The sum over classes, which the printed equation leaves out, makes it one scalar per voxel and pass.

    Args:
        passes: (M, B, C, *S), probabilities.

    Returns:
        (M, B, *S), in nats, at least 0.

    Example:
        >>> kl_uncertainty(torch.full((3, 1, 2, 1, 1), 0.5)).abs().max().item()
        0.0
    """
    mean = mean_probability(passes)
    # xlogy makes 0 log 0 = 0; the clamp keeps a pass that is sure of another class finite
    smallest = torch.finfo(passes.dtype).tiny
    entropy = torch.xlogy(mean, mean).sum(1)
    cross = (mean * passes.clamp_min(smallest).log()).sum(2)
    return (entropy - cross).clamp_min(0.0)


def refine_labels(passes: torch.Tensor) -> torch.Tensor:
    """Refined labels: argmax of the passes weighted by exp(-uncertainty) (Eq. 6).

    The weights are normalised over the passes; the printed factor 1/m changes nothing under the argmax.

    Args:
        passes: (M, B, C, *S), probabilities.

    Returns:
        (B, 1, *S), class numbers, int64.

    Example:
        >>> passes = torch.tensor([[0.9, 0.1], [0.2, 0.8], [0.2, 0.8]]).reshape(3, 1, 2, 1, 1)
        >>> refine_labels(passes).item()
        1
    """
    weights = torch.softmax(-kl_uncertainty(passes), dim=0)
    return likeliest((weights.unsqueeze(2) * passes).sum(0), 1, keepdim=True)


def sample_uncertainty(passes: torch.Tensor) -> torch.Tensor:
    """Uncertainty of each image: mean over voxels and classes of the variance over the passes (Eq. 7).

    As printed the equation squares a sum minus a mean, which is no variance; this is the variance it describes.

    Args:
        passes: (M, B, C, *S), probabilities.

    Returns:
        (B,), in [0, 0.25].

    Example:
        >>> sample_uncertainty(torch.tensor([0.0, 1.0]).reshape(2, 1, 1, 1, 1)).item()
        0.25
    """
    return passes.var(0, correction=0).flatten(1).mean(1)


def select_most_certain(uncertainty: torch.Tensor, k: int) -> torch.Tensor:
    """The k images of lowest uncertainty (Algorithm 1, line 11).

    Args:
        uncertainty: (B,).
        k: how many, 0 to B.

    Returns:
        (B,), bool: True where selected.

    Raises:
        ValueError: when k is out of range.

    Example:
        >>> select_most_certain(torch.tensor([0.3, 0.1, 0.2]), 2)
        tensor([False,  True,  True])
    """
    if not 0 <= k <= len(uncertainty):
        raise ValueError(f"k must be between 0 and the {len(uncertainty)} images, got {k}.")
    selected = torch.zeros_like(uncertainty, dtype=torch.bool)
    selected[uncertainty.argsort(stable=True)[:k]] = True
    return selected


def consistency_loss(teacher_mean: torch.Tensor, student: torch.Tensor) -> torch.Tensor:
    """Distance of teacher and student probabilities, mean over voxels (Eq. 10).

    The printed sum over the passes is read as their mean: a sum of m probabilities cannot be matched by one. The norm,
    which the paper leaves open, is half the sum over classes of |p - q|, the total variation distance: the probability
    mass that the two place differently. With two classes it is |p - q| of the foreground. A mean over classes would
    fall with their number, though teacher and student disagree as much.

    Args:
        teacher_mean: (B, C, *S), probabilities, without gradient.
        student: (B, C, *S), probabilities.

    Returns:
        scalar in [0, 1].

    Example:
        >>> consistency_loss(torch.tensor([[[[0.5]], [[0.5]]]]), torch.tensor([[[[1.0]], [[0.0]]]])).item()
        0.5
    """
    return 0.5 * (teacher_mean - student).abs().sum(1).mean()
