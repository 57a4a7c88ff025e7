"""Aggregation over the neighbours that a guide selects."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch.autograd.function import once_differentiable
from torch.nn import functional

from .autocast import no_autocast
from .threads import map_blocks
from .windows import WindowBlock, box_sum, runs_plain, window_blocks, window_offsets, window_sizes

_ELEMENTS = 2**16  # of a block; on a CPU its buffers should stay in the cache


def affinity_gate(
    features: torch.Tensor, guide: torch.Tensor, radius: int = 1, normalise: bool = True, plain: bool = False
) -> torch.Tensor:
    """Add to every voxel its neighbours that the guide selects: implicit affinity enhancement.

    Source: Eq. 1 of Zhang et al., AffinityUMamba, MICCAI 2025. A neighbour j in the window of i, its centre included,
    is selected where guide_j reaches the guide's mean over the window, channel by channel. The printed indicator jumps
    there, and turns the rounding of a guide into another answer: two ways to compute the same convolutions then differ
    by a tenth of the logits in some places. Here it falls from 1 at the mean to 0 a fiftieth of the channel's root
    mean square below it, in a straight line. So a constant region is selected whole.
    Places outside the image are neither selected nor part of the mean.

    Args:
        features: (B, C, H, W[, D]), of the state-space decoder.
        guide: the same shape, of the CNN decoder; no gradient flows to it.
        radius: of the window, in voxels.
        normalise: divide the sum by the number selected, so that features grow about twofold; False: the sum as
            printed, which grows them about 14 times in 3D.
        plain: by ordinary operations that autograd records; taken by itself where PyTorch traces, scripts, exports or
            compiles.

    Returns:
        (B, C, H, W[, D]), float32 (float64 for float64 input).

    Raises:
        ValueError: when shapes differ, radius is below 1 or there are not 2 or 3 spatial axes.

    Example:
        >>> affinity_gate(torch.tensor([[[[1.0, 3.0, 8.0]]]]), torch.tensor([[[[0.0, 0.0, 3.0]]]])).tolist()
        [[[[3.0, 11.0, 16.0]]]]
    """
    if radius < 1:
        raise ValueError(f"radius must be at least 1 voxel, got {radius}.")
    if not torch.jit.is_tracing() and features.shape != guide.shape:
        raise ValueError(f"features {list(features.shape)} and guide {list(guide.shape)} must have one shape.")
    dtype = torch.float64 if features.dtype == torch.float64 else torch.float32
    if torch.jit.is_scripting():
        return _plain_gate(features.to(dtype), guide.detach().to(dtype), radius, normalise)
    with no_autocast(features):
        features, guide = features.to(dtype), guide.detach().to(dtype)
        if plain or runs_plain():
            return _plain_gate(features, guide, radius, normalise)
        gated: torch.Tensor = _Gate.apply(features, guide, radius, normalise)
        return gated


class _Gate(torch.autograd.Function):
    """Block by block, on a CPU channel by channel; keeps its inputs' guide and the sums of what is selected."""

    @staticmethod
    def forward(ctx: Any, features: torch.Tensor, guide: torch.Tensor, radius: int, normalise: bool) -> torch.Tensor:
        result = torch.empty_like(features, memory_format=torch.contiguous_format)
        counts = torch.empty_like(result) if normalise else None
        scale = _inverse_band(guide)
        ctx.save_for_backward(guide, counts, scale)
        ctx.radius = radius
        value, reference, target = (_images(tensor) for tensor in (features, guide, result))
        number = None if counts is None else _images(counts)
        scales, centre = _images(scale).flatten(2), (0,) * (features.ndim - 2)
        sizes = window_sizes(features.shape[2:], radius, features)

        def gate(block: WindowBlock) -> None:
            inner = block.at(_edges(block, reference, sizes, scales), centre)
            guides, own = block.cut(reference, -torch.inf).mul_(scales[block.image]), block.cut(value, 0.0)
            total, count, selected = torch.zeros_like(inner), torch.zeros_like(inner), torch.empty_like(inner)
            for offset in (*window_offsets(radius, len(centre)), centre):
                torch.sub(block.at(guides, offset), inner, out=selected).clamp_(0.0, 1.0)
                total.addcmul_(selected, block.at(own, offset))
                if number is not None:
                    count.add_(selected)
            if number is not None:
                block.write(count, number)
                total.div_(count)
            block.write(total.add_(block.at(own, centre)), target)

        map_blocks(gate, window_blocks(value, radius, _ELEMENTS), features.device)
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        guide, counts, scale = ctx.saved_tensors
        radius, centre = ctx.radius, (0,) * (grad.ndim - 2)
        result = torch.empty_like(grad, memory_format=torch.contiguous_format)
        flow, reference, target = (_images(tensor) for tensor in (grad, guide, result))
        number = None if counts is None else _images(counts)
        scales, sizes = _images(scale).flatten(2), window_sizes(grad.shape[2:], radius, grad)

        def adjoint(block: WindowBlock) -> None:
            edges = _edges(block, reference, sizes, scales)
            own = block.at(block.cut(reference, -torch.inf).mul_(scales[block.image]), centre)
            shares = whole = block.cut(flow, 0.0)
            if number is not None:
                shares = whole / block.cut(number, 1)
            total, selected = block.at(whole, centre).clone(), torch.empty_like(own)
            for offset in (*window_offsets(radius, len(centre)), centre):
                # this voxel as the neighbour of the one at the offset
                torch.sub(own, block.at(edges, offset), out=selected).clamp_(0.0, 1.0)
                total.addcmul_(selected, block.at(shares, offset))
            block.write(total, target)

        map_blocks(adjoint, window_blocks(flow, radius, _ELEMENTS), grad.device)
        return result, None, None, None


def _images(values: torch.Tensor) -> torch.Tensor:
    """What blocks are cut from: on a CPU every channel, (B C, 1, H, W[, D]), elsewhere as it is.

    A block of one channel stays in a CPU's cache; a GPU is better off with few large operations.
    """
    return values.reshape(-1, 1, *values.shape[2:]) if values.device.type == "cpu" else values


def _inverse_band(guide: torch.Tensor) -> torch.Tensor:
    """1 over the width of the indicator's edge, channel by channel: (B, C, 1, 1[, 1])."""
    scale = guide.flatten(2).square().mean(2).sqrt()
    for _ in range(guide.dim() - 2):
        scale = scale.unsqueeze(-1)
    return 1.0 / (0.02 * scale).clamp_min(1e-12)


def _edges(block: WindowBlock, guide: torch.Tensor, sizes: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """Where the indicator leaves 0, in widths of its edge, for a block and its margin, flat: (C, padded size)."""
    radius = block.radius
    inner, outer = block.reach(radius), block.reach(2 * radius)
    sums = box_sum(guide[block.image][:, outer], radius, len(block.shape))
    means = sums[:, inner.start - outer.start : inner.stop - outer.start] / sizes[inner]
    return block.lay_out(means, torch.inf).mul_(scales[block.image]).sub_(1.0)


def _plain_gate(features: torch.Tensor, guide: torch.Tensor, radius: int, normalise: bool) -> torch.Tensor:
    """In the part of Python that TorchScript compiles."""
    guide = guide * _inverse_band(guide)
    margin, places = [radius] * (2 * (features.dim() - 2)), 1
    for _ in range(features.dim() - 2):
        places *= 2 * radius + 1
    # zeros around both: a window may be larger than the image
    sums, inside = functional.pad(guide, margin), functional.pad(torch.ones_like(guide[:1, :1]), margin)
    if features.dim() == 5:
        means = functional.avg_pool3d(sums, 2 * radius + 1, 1) / functional.avg_pool3d(inside, 2 * radius + 1, 1)
    else:
        means = functional.avg_pool2d(sums, 2 * radius + 1, 1) / functional.avg_pool2d(inside, 2 * radius + 1, 1)
    guides, own = functional.pad(guide, margin, value=-math.inf), functional.pad(features, margin)
    total, count = torch.zeros_like(features), torch.zeros_like(features)
    for place in range(places):
        selected = (_neighbour(guides, place, radius) - means + 1.0).clamp(0.0, 1.0)
        total, count = total + selected * _neighbour(own, place, radius), count + selected
    return features + (total / count if normalise else total)


def _neighbour(padded: torch.Tensor, place: int, radius: int) -> torch.Tensor:
    """What lies at a place of every voxel's window, counted row by row: a view without the margin."""
    for axis in range(padded.dim() - 1, 1, -1):
        padded = padded.narrow(axis, place % (2 * radius + 1), padded.shape[axis] - 2 * radius)
        place = place // (2 * radius + 1)
    return padded
