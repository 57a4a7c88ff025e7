"""Deformable convolution in 2D and 3D, with memory for a block of output voxels at a time."""

from __future__ import annotations

import math
from typing import Any

import torch
from monai.networks.layers.factories import Conv
from scipy.sparse import csc_array
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from .autocast import no_autocast

# numbers sampled at once: fewer waste time on small operations, of which a GPU can take larger ones; more take memory
_CPU_BLOCK, _GPU_BLOCK = 2**19, 2**26


class DeformableConv(nn.Module):
    """Convolution whose kernel taps each look where a learnt offset points, by linear interpolation.

    A plain convolution of the same geometry predicts the offsets. Its weights start at zero, so at first the module
    equals a plain convolution.

    Source: Dai et al., Deformable Convolutional Networks, ICCV 2017.

    Args:
        spatial_dims: 2 or 3.
        in_channels: of the input.
        out_channels: of the output.
        kernel_size: taps along each axis.
        stride: step between outputs, in voxels.
        padding: zeros around the image, in voxels.
        dilation: step between taps, in voxels.
        groups: of channels that are convolved apart from each other; all share the offsets.
        bias: whether the output has one.

    Shape:
        (B, in_channels, H, W[, D]) to (B, out_channels, *out), sizes as of a plain convolution.

    Raises:
        ValueError: when the channels cannot be shared out among the groups.

    Example:
        >>> DeformableConv(3, 4, 6, stride=2)(torch.zeros(1, 4, 8, 8, 4)).shape
        torch.Size([1, 6, 4, 4, 2])
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 3,
        stride: int = 1,
        padding: int = 1,
        dilation: int = 1,
        groups: int = 1,
        bias: bool = True,
    ) -> None:
        super().__init__()
        if in_channels % groups != 0 or out_channels % groups != 0:
            raise ValueError(f"{in_channels} and {out_channels} channels cannot be shared out among {groups} groups.")
        self.stride, self.padding, self.dilation, self.groups = stride, padding, dilation, groups
        taps = kernel_size**spatial_dims
        self.offset = Conv[Conv.CONV, spatial_dims](
            in_channels, spatial_dims * taps, kernel_size, stride, padding, dilation
        )
        nn.init.zeros_(self.offset.weight)
        nn.init.zeros_(self.offset.bias)
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels // groups, *[kernel_size] * spatial_dims))
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))  # as PyTorch's convolutions
        bound = 1 / math.sqrt(self.weight[0].numel())
        self.bias = nn.Parameter(torch.empty(out_channels).uniform_(-bound, bound)) if bias else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The convolution at the positions that the offsets, taken from ``x`` itself, point to."""
        offset = self.offset(x) if torch.jit.is_scripting() else self._precise_offset(x)
        return deformable_conv(x, offset, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups)

    @torch.jit.unused
    def _precise_offset(self, x: torch.Tensor) -> torch.Tensor:
        """The offsets, in the weights' precision under autocast too: in bfloat16 taps are off by 0.04 voxel.

        On CUDA that is TF32 for PyTorch's convolutions, with three more bits than bfloat16.
        """
        with no_autocast(x):
            return self.offset(x.to(self.offset.weight.dtype))


def deformable_conv(
    x: torch.Tensor,
    offset: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    stride: int = 1,
    padding: int = 0,
    dilation: int = 1,
    groups: int = 1,
) -> torch.Tensor:
    """Convolution with taps moved by offsets; what lies outside the image is 0.

    Worked in blocks of output voxels, in the backward pass again: beyond input, output and gradients memory holds what
    one block samples. TorchScript, tracing and ONNX get the same formula in plain operations; an exported graph samples
    everything at once, which keeps it small and costs memory.

    Args:
        x: (B, channels, H, W[, D]).
        offset: (B, taps x dims, *out), in voxels; channel ``tap * dims + axis``, taps in row-major order.
        weight: (out_channels, channels / groups, *kernel).
        bias: (out_channels,) or None.
        stride: step between outputs, in voxels.
        padding: zeros around the image, in voxels.
        dilation: step between taps, in voxels.
        groups: of channels that are convolved apart from each other.

    Returns:
        (B, out_channels, *out), in float32 (float64 for float64 input), whatever autocast says: positions need it.

    Raises:
        ValueError: when the offset's shape does not belong to the output.

    Example:
        >>> x, right = torch.arange(4.0).reshape(1, 1, 1, 4), torch.tensor([0.0, 0.5]).reshape(1, 2, 1, 1)
        >>> deformable_conv(x, right.expand(1, 2, 1, 4), torch.ones(1, 1, 1, 1))
        tensor([[[[0.5000, 1.5000, 2.5000, 1.5000]]]])
    """
    dims = x.dim() - 2
    size = [
        (x.shape[2 + i] + 2 * padding - dilation * (weight.shape[2 + i] - 1) - 1) // stride + 1 for i in range(dims)
    ]
    taps = weight[0, 0].numel()
    if not torch.jit.is_tracing() and list(offset.shape) != [x.shape[0], taps * dims] + size:
        raise ValueError(f"offset must be {[x.shape[0], taps * dims] + size}, got {list(offset.shape)}.")
    kind = torch.float64 if x.dtype == torch.float64 else torch.float32
    geometry = [stride, padding, dilation, groups]
    if torch.jit.is_scripting():
        out = _gathered(x.to(kind), offset.to(kind), weight.to(kind), size, geometry)
    else:
        out = _sampled(x.to(kind), offset.to(kind), weight.to(kind), size, geometry)
    if bias is not None:
        out = out + bias.to(kind).reshape([1, -1] + [1] * dims)
    return out


@torch.jit.unused
def _sampled(
    x: torch.Tensor, offset: torch.Tensor, weight: torch.Tensor, size: list[int], geometry: list[int]
) -> torch.Tensor:
    with no_autocast(x):
        if torch.jit.is_tracing() or torch.compiler.is_exporting():
            return _gathered(x, offset, weight, size, geometry)
        out: torch.Tensor = _Blocks.apply(x, offset, weight, size, geometry)
        return out


class _Blocks(torch.autograd.Function):
    """Image by image, block by block.

    An interpolated vector is a weighted sum of rows, a row being the channels of a voxel. On a CPU ``embedding_bag``
    forms such sums several times as fast as ``grid_sample``, which walks channel by channel.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        offset: torch.Tensor,
        weight: torch.Tensor,
        size: list[int],
        geometry: list[int],
    ) -> torch.Tensor:
        ctx.save_for_backward(x, offset, weight)
        ctx.size, ctx.geometry = size, geometry
        kernels, moves = _kernels(weight, geometry[3]), _moves(offset, len(size))
        out = x.new_empty(len(x), len(weight), moves.shape[3])
        for image in range(len(x)):
            rows = x[image].flatten(1).T.contiguous()
            for places in _blocks(x, moves):
                index, share = _corners(moves[image : image + 1, ..., places], places.start, x, weight, size, geometry)
                samples = _samples(_sum_rows(rows, index, share), len(kernels), kernels.shape[1])
                out[image, :, places] = (samples @ kernels).transpose(1, 2).flatten(0, 1)
        return out.reshape(len(x), len(weight), *size)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, offset, weight = (tensor.detach() for tensor in ctx.saved_tensors)
        kernels, moves = _kernels(weight, ctx.geometry[3]), _moves(offset, len(ctx.size))
        by_x, by_moves, by_kernels = torch.empty_like(x), torch.empty_like(moves), torch.zeros_like(kernels)
        grad = grad.reshape(len(x), len(kernels), -1, moves.shape[3]).transpose(2, 3)
        for image in range(len(x)):
            rows = x[image].flatten(1).T.contiguous()
            by_rows = torch.zeros_like(rows)
            for places in _blocks(x, moves):
                above = grad[image, :, places]  # (groups, n, out_channels / groups)
                by_samples = _samples_back(above @ kernels.transpose(1, 2), x.shape[1])
                with torch.enable_grad():
                    moved = moves[image : image + 1, ..., places].requires_grad_()
                    index, share = _corners(moved, places.start, x, weight, ctx.size, ctx.geometry)
                    shares = share.detach().requires_grad_()
                    sums = _sum_rows(rows, index, shares)
                    by_share = _gradient(sums, shares, by_samples)
                    by_moves[image : image + 1, ..., places] = _gradient(share, moved, by_share)
                by_rows += _sum_samples(by_samples, index, shares.detach(), len(rows))
                by_kernels += _samples(sums.detach(), len(kernels), kernels.shape[1]).transpose(1, 2) @ above
            by_x[image] = by_rows.T.reshape(x.shape[1:])
        return by_x, by_moves.reshape(offset.shape), _kernels_back(by_kernels, weight), None, None


def _gathered(
    x: torch.Tensor, offset: torch.Tensor, weight: torch.Tensor, size: list[int], geometry: list[int]
) -> torch.Tensor:
    """The same in plain operations that export, everything at once: few nodes, much memory."""
    kernels, batch, channels = _kernels(weight, geometry[3]), x.shape[0], x.shape[1]
    index, share = _corners(_moves(offset, len(size)), 0, x, weight, size, geometry)
    index, share = index.reshape(batch, -1, 1, index.shape[3]), share.reshape(batch, -1, 1, share.shape[3])
    rows = x.flatten(2).transpose(1, 2)
    sums = torch.zeros([1, 1], dtype=x.dtype, device=x.device)
    for corner in range(index.shape[3]):
        sums = sums + share[..., corner] * rows.gather(1, index[..., corner].expand(-1, -1, channels))
    out = _samples(sums.reshape(-1, channels), kernels.shape[0], kernels.shape[1]) @ kernels
    out = out.reshape(kernels.shape[0], batch, -1, kernels.shape[2]).permute(1, 0, 3, 2)
    return out.reshape([batch, weight.shape[0]] + size)


def _corners(
    moves: torch.Tensor,
    start: int,
    x: torch.Tensor,
    weight: torch.Tensor,
    size: list[int],
    geometry: list[int],
) -> tuple[torch.Tensor, torch.Tensor]:
    """The voxels around the places where taps look, and their shares in the interpolation.

    Args:
        moves: offsets (B, taps, dims, n) of n outputs, from number ``start`` on.

    Returns:
        index of the voxel in its image, share: (B, n, taps, 2^dims) both. A voxel outside the image has no share.
    """
    stride, padding, dilation = geometry[0], geometry[1], geometry[2]
    corners = [(torch.zeros([1], dtype=torch.int64, device=x.device), torch.ones([1], dtype=x.dtype, device=x.device))]
    for axis in range(len(size)):
        outputs = torch.arange(start, start + moves.shape[3], device=x.device)
        taps = torch.arange(moves.shape[1], device=x.device)
        for behind in range(len(size) - 1, axis, -1):
            outputs, taps = outputs // size[behind], taps // weight.shape[2 + behind]
        outputs = outputs - outputs // size[axis] * size[axis]  # a remainder by a size is unknown to the ONNX exporter
        place = outputs.unsqueeze(1) * stride - padding + (taps % weight.shape[2 + axis]) * dilation
        places = place.to(moves.dtype) + moves[:, :, axis].transpose(1, 2)  # (B, n, taps), in voxels
        low = places.detach().floor()
        extent = x.shape[2 + axis]
        further: list[tuple[torch.Tensor, torch.Tensor]] = []
        for upper in range(2):
            voxel = low.to(torch.int64) + upper
            inside = ((voxel >= 0) & (voxel < extent)).to(x.dtype)
            near = (places - low if upper == 1 else low + 1.0 - places) * inside
            for index, share in corners:
                further.append((index * extent + voxel.clamp(0, extent - 1), share * near))
        corners = further
    return torch.stack([index for index, _ in corners], 3), torch.stack([share for _, share in corners], 3)


def _sum_rows(rows: torch.Tensor, index: torch.Tensor, share: torch.Tensor) -> torch.Tensor:
    """Interpolated vectors (B x n x taps, channels) of an image's rows (voxels, channels)."""
    return functional.embedding_bag(index.flatten(0, 2), rows, per_sample_weights=share.flatten(0, 2), mode="sum")


def _sum_samples(samples: torch.Tensor, index: torch.Tensor, share: torch.Tensor, voxels: int) -> torch.Tensor:
    """The other way: to each voxel's row what the samples that read it give, (voxels, channels)."""
    if samples.device.type != "cpu":
        return _sum_sorted(samples, index, share, voxels)
    # one pass over the shares, twelve times as fast on a core as sorting them by voxel
    columns = torch.arange(0, index.numel() + 1, index.shape[3]).numpy()
    given = csc_array((share.flatten().numpy(), index.flatten().numpy(), columns), (voxels, len(samples)))
    return torch.from_numpy(given @ samples.numpy())


def _sum_sorted(samples: torch.Tensor, index: torch.Tensor, share: torch.Tensor, voxels: int) -> torch.Tensor:
    """The same in an order that does not depend on how a GPU's threads run."""
    readers = index.flatten().argsort()
    first = torch.bincount(index.flatten(), minlength=voxels).cumsum(0).roll(1)
    first[0] = 0
    return functional.embedding_bag(
        readers // index.shape[3], samples, first, per_sample_weights=share.flatten()[readers], mode="sum"
    )


def _gradient(output: torch.Tensor, of: torch.Tensor, above: torch.Tensor) -> torch.Tensor:
    return torch.autograd.grad(output, of, above)[0]


def _blocks(x: torch.Tensor, moves: torch.Tensor) -> list[slice]:
    step = max(1, (_GPU_BLOCK if x.is_cuda else _CPU_BLOCK) // (moves.shape[1] * x.shape[1]))
    return [slice(start, min(start + step, moves.shape[3])) for start in range(0, moves.shape[3], step)]


def _moves(offset: torch.Tensor, dims: int) -> torch.Tensor:
    """(B, taps x dims, *out) to (B, taps, dims, N)."""
    return offset.flatten(2).unflatten(1, [-1, dims])


def _kernels(weight: torch.Tensor, groups: int) -> torch.Tensor:
    """(out_channels, channels / groups, *kernel) to (groups, taps x channels / groups, out_channels / groups)."""
    split = weight.flatten(2).reshape(groups, -1, weight.shape[1], weight[0, 0].numel())
    return split.permute(0, 3, 2, 1).flatten(1, 2)


def _kernels_back(kernels: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    split = kernels.reshape(len(kernels), -1, weight.shape[1], kernels.shape[2])
    return split.permute(0, 3, 2, 1).reshape(weight.shape)


def _samples(sums: torch.Tensor, groups: int, length: int) -> torch.Tensor:
    """(n x taps, channels) to (groups, n, taps x channels / groups), which is ``length`` long."""
    split = sums.reshape(-1, length * groups // sums.shape[1], groups, sums.shape[1] // groups)
    return split.permute(2, 0, 1, 3).flatten(2)


def _samples_back(samples: torch.Tensor, channels: int) -> torch.Tensor:
    split = samples.unflatten(2, [-1, channels // len(samples)])
    return split.permute(1, 2, 0, 3).reshape(-1, channels)
