"""Bilateral filtering of a map by an image, over nested windows."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.autograd.function import once_differentiable
from torch.nn import functional

from .autocast import no_autocast
from .spread import local_variance
from .threads import map_blocks
from .windows import WindowBlock, runs_plain, shifted, window_blocks

_ELEMENTS = 2**15  # of a block; on a CPU its buffers should stay in the cache
_EPSILON = 1e-6


def bilateral_enhancement(
    logits: torch.Tensor,
    image: torch.Tensor,
    windows: Sequence[int] = (3, 5, 7),
    sigma: float | None = None,
    average: bool = False,
    plain: bool = False,
) -> torch.Tensor:
    """Add to every voxel the mean of its neighbours that look like it: pixel neighbourhood enhancement.

    Source: Eq. 2 of Zhang et al., AffinityUMamba, MICCAI 2025. Weights of the neighbours j in the window of i, its
    centre included: exp(-|x_j - x_i|^2 / (sigma + 1e-6)), normalised over the places inside the image; windows of side
    k count in proportion to 1 / sqrt(k). The paper leaves sigma open: here the variance of the image in the window.
    Channels of the image: the sum of squares over the sum of variances.

    All windows are filtered in one pass over the offsets of the largest. The filter is linear in the logits;
    backward is its adjoint.

    Args:
        logits: (B, C, H, W[, D]).
        image: (B, channels, H, W[, D]); no gradient flows to it.
        windows: sides of the windows, odd, at least 3, in voxels.
        sigma: constant, in squared units of the image; None: the local variance.
        average: halve the result: as printed a mean is added to the value, which doubles logits in regions of one
            intensity.
        plain: by ordinary operations that autograd records; taken by itself where PyTorch traces, exports or compiles.

    Returns:
        (B, C, H, W[, D]), float32 (float64 for float64 input).

    Raises:
        ValueError: when shapes differ, a window is even or below 3, or sigma is not positive.

    Example:
        >>> logits, image = torch.tensor([[[[1.0, 3.0]]]]), torch.zeros(1, 1, 1, 2)
        >>> bilateral_enhancement(logits, image, average=True).tolist()
        [[[[1.5, 2.5]]]]
    """
    if not torch.jit.is_tracing():
        _check(logits, image, windows, sigma)
    dtype = torch.float64 if logits.dtype is torch.float64 else torch.float32
    radii = sorted(side // 2 for side in windows)
    with no_autocast(logits):
        logits, image = logits.to(dtype), image.detach().to(dtype)
        filtered = _plain_filter if plain or runs_plain() else _Filter.apply
        result: torch.Tensor = logits + filtered(logits, image, radii, sigma)
        return 0.5 * result if average else result


class _Filter(torch.autograd.Function):
    """sum_k w_k sum_j p_j e_k(j, i) / sum_j e_k(j, i), with e_k(j, i) = 2^(-rate_k(i) |x_j - x_i|^2)."""

    @staticmethod
    def forward(
        ctx: Any, logits: torch.Tensor, image: torch.Tensor, radii: list[int], sigma: float | None
    ) -> torch.Tensor:
        rates = _rates(image, radii, sigma)
        scales = torch.empty_like(rates)  # w_k over the sum of weights
        result = torch.empty_like(logits, memory_format=torch.contiguous_format)
        shares, centre = _shares(radii), (0,) * (logits.ndim - 2)

        def smooth(block: WindowBlock) -> None:
            images, maps = block.cut(image, torch.inf), block.cut(logits, 0.0)
            maps = torch.cat([maps, torch.ones_like(maps[:1])])  # filters the sum of weights along
            rate, own = block.at(block.cut(rates, -1.0), centre).unbind(), block.at(images, centre)
            sums = [maps.new_zeros((len(maps), block.length)) for _ in radii]
            for offset, first in _rings(radii, len(centre)):
                distance = _distance(block.at(images, offset), own)
                near = block.at(maps, offset)
                for k in range(first, len(radii)):
                    sums[k].addcmul_((distance * rate[k]).exp2_(), near)
            scale = torch.stack([share / total[-1] for share, total in zip(shares, sums, strict=True)])
            block.write(scale, scales)
            smoothed = torch.zeros_like(sums[0][:-1])
            for total, share in zip(sums, scale, strict=True):
                smoothed.addcmul_(total[:-1], share)
            block.write(smoothed, result)

        map_blocks(smooth, window_blocks(logits, radii[-1], _ELEMENTS), logits.device)
        ctx.save_for_backward(image, rates, scales)
        ctx.radii = radii
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        image, rates, scales = ctx.saved_tensors
        radii, centre = ctx.radii, (0,) * (grad.ndim - 2)
        result = torch.empty_like(grad, memory_format=torch.contiguous_format)

        def adjoint(block: WindowBlock) -> None:
            images, rate = block.cut(image, torch.inf), block.cut(rates, -1.0)
            flow, scale = block.cut(grad, 0.0), block.cut(scales, 0.0)
            flows = [flow * own for own in scale]
            own, total = block.at(images, centre), flow.new_zeros((len(flow), block.length))
            for offset, first in _rings(radii, len(centre)):
                # this voxel as the neighbour of the one at the offset
                distance, theirs = _distance(block.at(images, offset), own), block.at(rate, offset).unbind()
                for k in range(first, len(radii)):
                    total.addcmul_((distance * theirs[k]).exp2_(), block.at(flows[k], offset))
            block.write(total, result)

        map_blocks(adjoint, window_blocks(grad, radii[-1], _ELEMENTS), grad.device)
        return result, None, None, None


def _rings(radii: Sequence[int], dims: int) -> Iterator[tuple[tuple[int, ...], int]]:
    """Offsets of the largest window, centre included, each with the number of the smallest window that has it."""
    for offset in itertools.product(range(-radii[-1], radii[-1] + 1), repeat=dims):
        ring = max(map(abs, offset))
        yield offset, next(k for k, radius in enumerate(radii) if radius >= ring)


def _distance(images: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
    """|x_j - x_i|^2 over the channels (first axis): one row."""
    difference = (images - own).square_()
    return difference[0] if len(difference) == 1 else difference.sum(0)


def _rates(image: torch.Tensor, radii: Sequence[int], sigma: float | None) -> torch.Tensor:
    """-log2(e) / (sigma + epsilon) of every window: (B, windows, H, W[, D])."""
    if sigma is None:
        variances = [local_variance(image, radius) for radius in radii]
    else:
        variances = [torch.full_like(image[:, :1], sigma) for _ in radii]
    return torch.cat(variances, dim=1).add_(_EPSILON).reciprocal_().mul_(-math.log2(math.e))


def _shares(radii: Sequence[int]) -> list[float]:
    """Of the windows, 1 / sqrt(side), summing to 1."""
    parts = [1 / math.sqrt(2 * radius + 1) for radius in radii]
    return [part / sum(parts) for part in parts]


def _plain_filter(logits: torch.Tensor, image: torch.Tensor, radii: Sequence[int], sigma: float | None) -> torch.Tensor:
    dims, largest = logits.ndim - 2, radii[-1]
    margin = [largest] * (2 * dims)
    maps, images = functional.pad(logits, margin), functional.pad(image, margin)
    inside = functional.pad(torch.ones_like(image[:, :1]), margin)
    offsets = list(_rings(radii, dims))
    rates = [
        _plain_rate(images, inside, [o for o, k in offsets if k <= own], largest, sigma) for own in range(len(radii))
    ]
    totals = [torch.zeros_like(logits) for _ in radii]
    weights = [torch.zeros_like(image[:, :1]) for _ in radii]
    for offset, first in offsets:
        distance = (shifted(images, offset, largest) - image).square().sum(1, keepdim=True)
        near, there = shifted(maps, offset, largest), shifted(inside, offset, largest)
        for k in range(first, len(radii)):
            weight = torch.exp(distance * rates[k]) * there
            totals[k], weights[k] = totals[k] + weight * near, weights[k] + weight
    parts = zip(_shares(radii), totals, weights, strict=True)
    return sum((share * total / weight for share, total, weight in parts), torch.zeros_like(logits))


def _plain_rate(
    images: torch.Tensor, inside: torch.Tensor, offsets: Sequence[tuple[int, ...]], margin: int, sigma: float | None
) -> torch.Tensor | float:
    """-1 / (sigma + epsilon) by ordinary operations, the variance from differences to the window's centre."""
    if sigma is not None:
        return -1 / (sigma + _EPSILON)
    centre = shifted(images, (0,) * len(offsets[0]), margin)
    mean, square, size = torch.zeros_like(centre), torch.zeros_like(centre), torch.zeros_like(centre[:, :1])
    for offset in offsets:
        there = shifted(inside, offset, margin)
        difference = (shifted(images, offset, margin) - centre) * there
        mean, square, size = mean + difference, square + difference.square(), size + there
    mean, square = mean / size, square / size
    return -1 / ((square - mean.square()).clamp_min(0).sum(1, keepdim=True) + _EPSILON)


def _check(logits: torch.Tensor, image: torch.Tensor, windows: Sequence[int], sigma: float | None) -> None:
    if image.ndim != logits.ndim or image.shape[2:] != logits.shape[2:] or len(image) != len(logits):
        raise ValueError(f"image {tuple(image.shape)} does not match logits {tuple(logits.shape)}.")
    if not windows or any(side < 3 or side % 2 == 0 for side in windows):
        raise ValueError(f"windows must be odd sides of at least 3 voxels, got {tuple(windows)}.")
    if sigma is not None and sigma <= 0:
        raise ValueError(f"sigma must be positive, got {sigma}.")
