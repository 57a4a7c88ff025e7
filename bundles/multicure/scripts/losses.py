"""Equations 2 to 5 of Karimijafarbigloo et al., MIDL 2024, and what stands around them, as pure functions.

Letters: B images, C classes, S spatial sizes (two or three of them), F features of a voxel, N voxels.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from monai.losses import DiceLoss
from monai.networks.utils import one_hot
from torch import distributed
from torch.nn import functional

from common.ops.autocast import no_autocast
from common.ops.likeliest import likeliest

_DICE = DiceLoss(reduction="none")
_ABSENT = -1e4  # similarity over temperature of a class that has no prototype


def pseudo_label_loss(logits: torch.Tensor, pseudo_label: torch.Tensor, confident: torch.Tensor) -> torch.Tensor:
    """Cross entropy plus soft Dice on confident voxels, mean over the images (Eq. 2, first two terms).

    Dice is the mean over those foreground classes that an image's confident pseudo-label has: for a class without a
    voxel its gradient would be noise. An image without a confident voxel counts 0.

    Args:
        logits: (B, C, *S).
        pseudo_label: (B, 1, *S), class numbers.
        confident: (B, 1, *S), bool.

    Returns:
        scalar, at least 0, in float32; 0 with a gradient path when B is 0.

    Example:
        >>> logits = torch.tensor([[[[20.0, -20.0]], [[-20.0, 20.0]]]])
        >>> label, confident = torch.tensor([[[[0, 0]]]]), torch.tensor([[[[True, False]]]])
        >>> pseudo_label_loss(logits, label, confident).item()  # the second voxel is wrong, yet does not count
        0.0
    """
    if len(logits) == 0:
        return logits.float().sum() * 0.0
    logits = logits.float()
    target = one_hot(pseudo_label, logits.shape[1]) * confident
    cross_entropy = functional.cross_entropy(logits, pseudo_label[:, 0].long(), reduction="none") * confident[:, 0]
    cross_entropy = cross_entropy.flatten(1).sum(1) / confident.flatten(1).sum(1).clamp_min(1)
    dice = _DICE((logits.softmax(1) * confident)[:, 1:], target[:, 1:]).flatten(2).mean(2)
    return (cross_entropy + _mean_where(dice, target[:, 1:].flatten(2).any(2), dim=1)).mean()


def xor_regularisation(first: torch.Tensor, second: torch.Tensor, confident: torch.Tensor) -> torch.Tensor:
    """L1 distance of two networks' probabilities, mean over the voxels where their predictions differ (L_reg, Eq. 2).

    With two classes: where exactly one of them predicts foreground (XOR), |p - q| of the foreground. With more, half
    the sum over classes of |p - q|, which is the same for two.

    Args:
        first: (B, C, *S), probabilities.
        second: (B, C, *S), probabilities.
        confident: (B, 1, *S), bool; other voxels do not count.

    Returns:
        scalar in [0, 1]; 0 where nothing differs.

    Example:
        >>> first = torch.tensor([[[[0.9, 0.9]], [[0.1, 0.1]]]])
        >>> second = torch.tensor([[[[0.2, 0.8]], [[0.8, 0.2]]]])
        >>> round(xor_regularisation(first, second, torch.ones(1, 1, 1, 2, dtype=torch.bool)).item(), 4)
        0.7
    """
    differ = (likeliest(first, 1) != likeliest(second, 1)) & confident[:, 0]
    distance = 0.5 * (first - second).abs().sum(1)
    return _mean_where(distance.flatten(), differ.flatten(), dim=0)


def prototypes(
    features: torch.Tensor, predicted: torch.Tensor, confident: torch.Tensor, num_classes: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean feature of the voxels confidently predicted as each class (Eq. 4).

    Where several processes train, the mean is over the batches of all of them and its gradient reaches each one's
    share. Every process must call it, and run backward through its result, equally often.

    Args:
        features: (B, F, *S).
        predicted: (B, 1, *S), class numbers.
        confident: (B, 1, *S), bool.
        num_classes: C.

    Returns:
        prototypes (C, F), 0 for a class without a confident voxel; present (C,), bool. In float32.

    Example:
        >>> features = torch.tensor([[[[1.0, 3.0, 9.0]]]])
        >>> certain = torch.tensor([[[[True, True, False]]]])
        >>> prototypes(features, torch.zeros(1, 1, 1, 3), certain, num_classes=2)
        (tensor([[2.],
                [0.]]), tensor([ True, False]))
    """
    members = (one_hot(predicted, num_classes) * confident).flatten(2)
    # in float32 even under autocast: thousands of voxels are summed
    with no_autocast(features):
        sums = torch.bmm(members, features.flatten(2).float().transpose(1, 2)).sum(0)
    totals = _sum_over_processes(torch.cat([sums, members.sum((0, 2)).unsqueeze(1)], 1))
    counts = totals[:, -1:].detach()
    return totals[:, :-1] / counts.clamp_min(1.0), counts[:, 0] > 0


def sample_voxels(mask: torch.Tensor, most: int) -> torch.Tensor:
    """Places of voxels where the mask is True: all, or ``most`` of them drawn at random without replacement.

    Args:
        mask: any shape, bool.
        most: at least 1.

    Returns:
        (N,), indices into the flattened mask, N <= most.

    Example:
        >>> sample_voxels(torch.tensor([[False, True], [True, False]]), most=5)
        tensor([1, 2])
    """
    places = mask.flatten().nonzero()[:, 0]
    if len(places) > most:
        places = places[torch.randperm(len(places), device=places.device)[:most]]
    return places


def contrastive_loss(
    voxels: torch.Tensor,
    predicted: torch.Tensor,
    class_prototypes: torch.Tensor,
    present: torch.Tensor,
    temperature: float = 0.1,
    printed: bool = False,
) -> torch.Tensor:
    """Pulls uncertain voxels to their class's prototype and away from the others (Eq. 5).

    For each class the mean over its voxels of -log(exp(s_k) / sum_j exp(s_j)), with s the cosine similarity over the
    temperature; then the mean over the classes that have voxels. Voxels of a class without a prototype do not count.

    As printed the sum runs over j != k, which has no lower bound: it pays to push the other prototypes ever further
    away. InfoNCE, which the paper names, sums over all j: the default.

    Args:
        voxels: (N, F), features.
        predicted: (N,), class numbers.
        class_prototypes: (C, F).
        present: (C,), bool: the classes that have a prototype.
        temperature: above 0.
        printed: leave j = k out of the denominator; needs two prototypes, else 0.

    Returns:
        scalar in float32, at least 0 unless printed; 0, with a gradient path, when no voxel counts.

    Example:
        >>> axes = torch.eye(2)
        >>> round(contrastive_loss(axes, torch.tensor([0, 1]), axes, torch.tensor([True, True]), 1.0).item(), 4)
        0.3133
    """
    classes = torch.arange(len(present), device=present.device)
    own = predicted.reshape(-1, 1).long() == classes  # (N, C)
    with no_autocast(voxels):
        similarity = _direction(voxels) @ _direction(class_prototypes).T
    scores = similarity / temperature
    others = present & ~own if printed else present.expand_as(own)
    denominator = torch.where(others, scores, _ABSENT).logsumexp(1)
    loss = denominator - torch.where(own, scores, 0.0).sum(1)
    counted = own & (others.any(1) & (own & present).any(1)).unsqueeze(1)
    per_class = _mean_where(loss.unsqueeze(1).expand_as(own), counted, dim=0)
    return _mean_where(per_class, counted.any(0), dim=0)


def separation_loss(class_prototypes: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
    """How alike the prototypes of different classes are (the term that Sec. 2.2 adds to Eq. 5).

    The paper gives no formula; this is the mean over pairs of classes of (1 + cosine) / 2.

    Args:
        class_prototypes: (C, F).
        present: (C,), bool: the classes that have a prototype.

    Returns:
        scalar in [0, 1], in float32; 0, with a gradient path, when fewer than two are present.

    Example:
        >>> separation_loss(torch.eye(2), torch.tensor([True, True])).item()
        0.5
    """
    with no_autocast(class_prototypes):
        directions = _direction(class_prototypes)
        alike = 0.5 * (1.0 + directions @ directions.T)
    pairs = (present & present.unsqueeze(1)).triu(1)
    return _mean_where(alike.flatten(), pairs.flatten(), dim=0)


def contrastive_weight(fraction: float, scale: float = 0.1, rising: bool = True) -> float:
    """lambda_c at a point of the training: scale e^{-4 (1 - t/T)^2}, or scale e^{+4 (1 - t/T)^2}.

    As printed the exponent is positive and the weight falls from 5.5 to 0.1 for the scale of 0.1. The methods that this
    one follows let it rise instead, from 0.0018 to 0.1: the prototypes of the first steps are worth little.

    Args:
        fraction: t/T, the share of the training that is done, in [0, 1].
        scale: the weight at the end.
        rising: the negative exponent.

    Example:
        >>> [round(contrastive_weight(0.0, rising=rising), 4) for rising in (True, False)]
        [0.0018, 5.4598]
    """
    exponent = 4.0 * (1.0 - fraction) ** 2
    return scale * math.exp(-exponent if rising else exponent)


def _mean_where(values: torch.Tensor, mask: torch.Tensor, dim: int) -> torch.Tensor:
    """Mean of the values where the mask is True; where it never is, 0 with a gradient of exactly 0."""
    return torch.where(mask, values, 0.0).sum(dim) / mask.sum(dim).clamp_min(1)


def _direction(vectors: torch.Tensor) -> torch.Tensor:
    """Vectors (N, F) at length 1; shorter ones than 1e-4 stay shorter, which bounds the gradient."""
    return functional.normalize(vectors.float(), eps=1e-4)


def _sum_over_processes(share: torch.Tensor) -> torch.Tensor:
    if distributed.is_available() and distributed.is_initialized():
        return _AllReduce.apply(share)
    return share


class _AllReduce(torch.autograd.Function):
    """Sum over processes; each one's share gets the sum of their gradients (torch's own is deprecated)."""

    @staticmethod
    def forward(_ctx: Any, share: torch.Tensor) -> torch.Tensor:
        total = share.clone()
        distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(_ctx: Any, *gradients: torch.Tensor) -> torch.Tensor:
        total = gradients[0].contiguous().clone()
        distributed.all_reduce(total)
        return total
