"""How much a map varies within local windows."""

from __future__ import annotations

import torch

from .threads import map_blocks
from .windows import WindowBlock, box_sum, window_blocks, window_sizes

_ELEMENTS = 2**14  # of a block, in float64; on a CPU its buffers should stay in the cache


def local_spread(values: torch.Tensor, radius: int = 1) -> torch.Tensor:
    """Standard deviation of the vectors in every voxel's window, over all channels together.

    Source: v of Eq. 8 of Zhang et al., AffinityUMamba, MICCAI 2025, with means in the place of its sums, without which
    it is 0 almost everywhere: sqrt(E |p|^2 - |E p|^2), norms over channels, E over the places inside the image.

    Args:
        values: (B, C, H, W[, D]); no gradient flows to it.
        radius: of the window, in voxels.

    Returns:
        (B, 1, H, W[, D]), at least 0, in the units of the values, float32 (float64 for float64 input).

    Raises:
        ValueError: when radius is below 1 or there are not 2 or 3 spatial axes.

    Example:
        >>> local_spread(torch.tensor([[[[1.0, 3.0]]]])).tolist()
        [[[[1.0, 1.0]]]]
    """
    return local_variance(values, radius).sqrt_()


@torch.no_grad()
def local_variance(values: torch.Tensor, radius: int = 1) -> torch.Tensor:
    """The square of :func:`local_spread`, for the same arguments.

    The difference of two large numbers, it is formed in float64.
    """
    dims = values.ndim - 2
    blocks = window_blocks(values, radius, _ELEMENTS)
    variance = torch.empty_like(values[:, :1], dtype=torch.float64 if values.dtype is torch.float64 else torch.float32)
    sizes = window_sizes(values.shape[2:], radius, torch.empty((), dtype=torch.float64, device=values.device))

    def write(block: WindowBlock) -> None:
        reach = block.reach(radius)
        part = values[block.image][:, reach].double()
        planes = slice(block.planes.start - reach.start, block.planes.stop - reach.start)
        inside = sizes[block.planes]
        squares = box_sum(part.square().sum(0, keepdim=True), radius, dims)[:, planes] / inside
        means = box_sum(part, radius, dims)[:, planes] / inside
        variance[block.image, :, block.planes] = squares.sub_(means.square_().sum(0, keepdim=True)).clamp_min_(0)

    map_blocks(write, blocks, values.device)
    return variance
