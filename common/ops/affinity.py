"""How alike neighbours are: local affinity as a detector of noisy labels and as a loss."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch.autograd.function import once_differentiable

from .autocast import no_autocast
from .threads import map_blocks
from .windows import WindowBlock, box_sum, window_blocks, window_offsets, window_sizes

_ELEMENTS = 2**15  # of a block; on a CPU its buffers should stay in the cache


class LocalAffinity(NamedTuple):
    """Of every voxel, each (B, 1, H, W[, D]), float32 (float64 for float64 input).

    Attributes:
        positive: a_pos, mean cosine with the neighbours of the voxel's class; 0 for none.
        negative: a_neg, mean cosine with the others; 0 for none.
        support: number of the former.
    """

    positive: torch.Tensor
    negative: torch.Tensor
    support: torch.Tensor


@torch.no_grad()
def local_affinity(
    probabilities: torch.Tensor, own: torch.Tensor, others: torch.Tensor, radius: int = 1, epsilon: float = 1e-8
) -> LocalAffinity:
    """Mean cosine of class vectors between a voxel and its neighbours of the same and of another class.

    Source: Eqs. 3 to 5 of Zhang et al., AffinityUMamba, MICCAI 2025. With c(j, i) = p_j . p_i / (|p_j| |p_i| + epsilon)
    and m_pos(j, i) = [class of j = class of i], over the window of i, its centre included as the paper's map of 27 has
    it; one of the classes is a label, the other a prediction. Places outside the image are neither. No gradient: it
    marks labels.

    A cosine serves both of its voxels, so half of the offsets are formed, block by block.

    Args:
        probabilities: (B, C, H, W[, D]); a vector of zeros has cosine 0.
        own: (B, 1, H, W[, D]), class of each voxel as the centre of its window, integer.
        others: the same of each voxel as a neighbour; one below 0 belongs to no class.
        radius: of the window, in voxels.
        epsilon: added to the product of norms.

    Raises:
        ValueError: when shapes differ or radius is below 1.

    Example:
        >>> p = torch.tensor([[1.0, 0.0], [0.0, 1.0]]).reshape(1, 2, 1, 2)
        >>> found = local_affinity(p, torch.tensor([[[[0, 1]]]]), torch.tensor([[[[0, 0]]]]))
        >>> found.positive.flatten().tolist(), found.negative.flatten().tolist(), found.support.flatten().tolist()
        ([0.5, 0.0], [0.0, 0.5], [2.0, 0.0])
    """
    _check(probabilities, own=own, others=others)
    values = probabilities.to(torch.float64 if probabilities.dtype is torch.float64 else torch.float32)
    sizes = window_sizes(values.shape[2:], radius, values)
    positive, negative, support = (torch.empty_like(values[:, :1]) for _ in range(3))

    def affinity(block: WindowBlock) -> None:
        same, total, count = _sums(block, values, own, others, epsilon)
        for sums, target in ((same, positive), (total.sub_(same), negative), (count, support)):
            block.write(sums, target)
        near = support[block.image, 0, block.planes]
        far = sizes[block.planes] - near
        positive[block.image, 0, block.planes].div_(near.clamp_min(1))
        # the difference of two sums is not exactly 0 where no others are
        negative[block.image, 0, block.planes].div_(far.clamp_min(1)).mul_(far > 0)

    map_blocks(affinity, window_blocks(values, radius, _ELEMENTS), values.device)
    return LocalAffinity(positive, negative, support)


def _sums(
    block: WindowBlock, values: torch.Tensor, own: torch.Tensor, others: torch.Tensor, epsilon: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Sum of cosines with neighbours of the class, with all neighbours, and number of the former: (1, length)."""
    padded = block.cut(values, 0.0)
    norms = padded.square().sum(0, keepdim=True).sqrt_()
    classes = block.cut(others.to(values.dtype), -1.0)
    centre = (0,) * len(block.shape)
    own_class, own_norm = (block.at(block.cut(own.to(values.dtype), 0.0), centre), block.at(norms, centre))
    total = own_norm.square() / (own_norm.square() + epsilon)
    count = (block.at(classes, centre) == own_class).to(values.dtype)
    same = total * count
    begin, length = block.first, block.length
    mask = torch.empty_like(total)
    offsets = window_offsets(block.radius, len(block.shape))
    for offset in offsets[len(offsets) // 2 :]:
        step = block.flat(offset)
        # pairs (i, i + step) whose first or second end is a voxel of the block
        first, second = slice(begin - step, begin + length), slice(begin, begin + length + step)
        cosine = padded[0, first] * padded[0, second]
        for channel in padded[1:]:
            cosine.addcmul_(channel[first], channel[second])
        cosine.div_((norms[0, first] * norms[0, second]).add_(epsilon))
        for start, place in ((step, begin + step), (0, begin - step)):
            part = cosine[None, start : start + length]
            torch.eq(classes[:, place : place + length], own_class, out=mask)
            total.add_(part)
            count.add_(mask)
            same.addcmul_(mask, part)
    return same, total, count


def noisy_labels(
    affinities: Sequence[LocalAffinity], rule: str = "union", require_support: bool = False
) -> torch.Tensor:
    """Voxels whose label affinity speaks against: a_pos < 1/2 and a_neg > 1/2.

    Source: Eq. 5 of AffinityUMamba. The formula prints the union over the decoders, the text says both.

    Args:
        affinities: one a decoder.
        rule: "union", as printed: of any decoder; "both": of every decoder.
        require_support: at least one neighbour must be of the voxel's class. Without, a_pos is 0 where none is.

    Returns:
        (B, 1, H, W[, D]), bool.

    Raises:
        ValueError: for no affinities or another rule.
    """
    if not affinities or rule not in ("union", "both"):
        raise ValueError(f"rule must be 'union' or 'both', of at least one decoder; got {rule!r}, {len(affinities)}.")
    marked = torch.stack([(a.positive < 0.5) & (a.negative > 0.5) & (a.support >= require_support) for a in affinities])
    return marked.any(0) if rule == "union" else marked.all(0)


@torch.no_grad()
def neighbour_counts(labels: torch.Tensor, classes: int, radius: int = 1) -> torch.Tensor:
    """How many voxels of each class a window holds, its centre included.

    Args:
        labels: (B, 1, H, W[, D]), integer; one outside of 0 to classes - 1 counts nowhere.
        classes: C.
        radius: of the window, in voxels.

    Returns:
        (B, C, H, W[, D]), float32.

    Example:
        >>> neighbour_counts(torch.tensor([[[[0, 1, 1]]]]), 2).flatten(1).tolist()
        [[1.0, 1.0, 0.0, 1.0, 2.0, 2.0]]
    """
    counts = torch.empty((len(labels), classes, *labels.shape[2:]), device=labels.device)

    def count(block: WindowBlock) -> None:
        counts[block.image, :, block.planes] = _block_counts(block, labels, classes)

    map_blocks(count, window_blocks(labels, radius, _ELEMENTS), labels.device)
    return counts


def _block_counts(block: WindowBlock, labels: torch.Tensor, classes: int) -> torch.Tensor:
    """Counts of a block's planes: (C, planes, W[, D]), float32."""
    reach = block.reach(block.radius)
    numbers = torch.arange(classes, device=labels.device).reshape(-1, *(1 for _ in block.shape))
    one_hot = (labels[block.image][:, reach] == numbers).float()
    start = block.planes.start - reach.start
    return box_sum(one_hot, block.radius, len(block.shape)).narrow(1, start, block.planes.stop - block.planes.start)


def local_affinity_loss(probabilities: torch.Tensor, labels: torch.Tensor, radius: int = 1) -> torch.Tensor:
    """Mean over voxels of what a prediction gives to the classes of neighbours that its own label does not share.

    Source: Eq. 7 of AffinityUMamba, with the decoder's m_pos(j, i) soft: the probability at i of the label at j. With
    n_c labels of class c in the window of i, y its own label and n_neg the number of the others, the two sums over the
    window are exactly sqrt(n_y) (1 - p[y]) + sum over c != y of n_c p[c] / sqrt(n_neg), and the second is 0 where
    n_neg is 0. Sums over voxels are means here. Linear in p: the gradient is formed with the value.

    Args:
        probabilities: (B, C, H, W[, D]), in [0, 1].
        labels: (B, 1, H, W[, D]), integer; voxels outside of 0 to C - 1 are no one's neighbour and left out of the
            mean.
        radius: of the window, in voxels.

    Returns:
        scalar, at least 0, in float32 (float64 for float64 input); 0, with a gradient path, without voxels.

    Raises:
        ValueError: when shapes differ or radius is below 1.

    Example:
        >>> local_affinity_loss(torch.tensor([[[[0.75, 0.5]], [[0.25, 0.5]]]]), torch.tensor([[[[0, 1]]]])).item()
        0.75
    """
    _check(probabilities, labels=labels)
    with no_autocast(probabilities):
        values = probabilities.to(torch.float64 if probabilities.dtype is torch.float64 else torch.float32)
        loss: torch.Tensor = _AffinityLoss.apply(values, labels, radius)
        return loss


class _AffinityLoss(torch.autograd.Function):
    """Mean of Eq. 7; keeps its gradient, which has the size of the probabilities."""

    @staticmethod
    def forward(ctx: Any, probabilities: torch.Tensor, labels: torch.Tensor, radius: int) -> torch.Tensor:
        classes = probabilities.shape[1]
        gradient = torch.empty_like(probabilities)

        def loss(block: WindowBlock) -> tuple[torch.Tensor, torch.Tensor]:
            own = labels[block.image][:, block.planes]
            known = (own >= 0) & (own < classes)
            counts = _block_counts(block, labels, classes).to(probabilities.dtype)
            place = own.clamp(0, classes - 1).long()
            same = counts.gather(0, place)
            others = counts.sum(0, keepdim=True).sub_(same)
            weight = counts.div_(others.sqrt_().clamp_min_(1)).scatter_(0, place, -same.sqrt()).mul_(known)
            gradient[block.image, :, block.planes] = weight
            share = (weight * probabilities[block.image, :, block.planes]).sum(dtype=torch.float64)
            return share + (same.sqrt_() * known).sum(dtype=torch.float64), known.sum()

        total, voxels = probabilities.new_zeros((), dtype=torch.float64), labels.new_zeros((), dtype=torch.long)
        for value, number in map_blocks(loss, window_blocks(probabilities, radius, _ELEMENTS), labels.device):
            total += value
            voxels += number
        voxels.clamp_(min=1)
        ctx.save_for_backward(gradient, voxels)
        return (total / voxels).to(probabilities.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        gradient, voxels = ctx.saved_tensors
        return gradient * (grad / voxels), None, None


def _check(probabilities: torch.Tensor, **maps: torch.Tensor) -> None:
    expected = (len(probabilities), 1, *probabilities.shape[2:])
    for name, values in maps.items():
        if tuple(values.shape) != expected:
            raise ValueError(f"{name} must have shape {expected}, got {tuple(values.shape)}.")
        if values.dtype.is_floating_point:
            raise ValueError(f"{name} must be integers, got {values.dtype}: take .long() or .argmax(1, keepdim=True).")
