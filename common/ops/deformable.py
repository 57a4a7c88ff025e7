"""Deformable convolution in 2D and 3D, with memory for one kernel tap at a time."""

from __future__ import annotations

import math
from typing import Any

import torch
from monai.networks.layers.factories import Conv
from torch import nn
from torch.autograd.function import once_differentiable


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
        return deformable_conv(
            x, self.offset(x), self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups
        )


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

    Taps are visited one after the other, in the backward pass again: the memory beyond input, output and gradients is
    that of one tap's samples, not of all (27 in 3D). TorchScript, tracing and ONNX get the same formula in plain
    operations; an exported graph visits all taps at once, which keeps it small and costs memory.

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
    rows = x.to(kind).flatten(2).transpose(1, 2).reshape(-1, x.shape[1])  # a voxel's channels side by side
    moved = offset.to(kind).reshape(x.shape[0], taps, dims, -1)
    kernels = weight.to(kind).flatten(2).permute(2, 0, 1)  # (taps, out_channels, channels / groups)
    geometry = [stride, padding, dilation, groups]
    kernel = list(weight.shape[2:])
    if torch.jit.is_scripting():
        out = _convolve(rows, moved, kernels, x.shape[2:], size, kernel, geometry)
    else:
        out = _convolve_in_turn(rows, moved, kernels, x.shape[2:], size, kernel, geometry)
    if bias is not None:
        out = out + bias.to(kind)
    return out.reshape(x.shape[0], -1, weight.shape[0]).transpose(1, 2).reshape([x.shape[0], weight.shape[0]] + size)


def _convolve(
    rows: torch.Tensor,
    offset: torch.Tensor,
    kernels: torch.Tensor,
    shape: list[int],
    size: list[int],
    kernel: list[int],
    geometry: list[int],
    at_once: int = 1,
) -> torch.Tensor:
    """Outputs (B x N, out_channels) from rows (B x voxels, channels), offset (B, taps, dims, N), some taps at once."""
    out = torch.zeros([offset.shape[0] * offset.shape[3], kernels.shape[1]], dtype=rows.dtype, device=rows.device)
    for tap in range(0, kernels.shape[0], at_once):
        places = _places(offset[:, tap : tap + at_once], tap, size, kernel, geometry)
        sample = torch.zeros([1, 1], dtype=rows.dtype, device=rows.device)
        for corner in range(1 << len(shape)):
            index, share, _ = _corner(places, corner, shape)
            sample = sample + share.unsqueeze(1) * rows.index_select(0, index)
        out = out + _mix(sample, kernels[tap : tap + at_once], geometry[3], offset.shape[0])
    return out


@torch.jit.unused
def _convolve_in_turn(
    rows: torch.Tensor,
    offset: torch.Tensor,
    kernels: torch.Tensor,
    shape: list[int],
    size: list[int],
    kernel: list[int],
    geometry: list[int],
) -> torch.Tensor:
    """As :func:`_convolve`, whichever way serves: for a graph to export, without gradients, or to train."""
    with torch.autocast(rows.device.type, enabled=False):
        if torch.jit.is_tracing() or torch.compiler.is_exporting():
            return _convolve(rows, offset, kernels, shape, size, kernel, geometry, len(kernels))
        if not torch.is_grad_enabled():
            return _convolve(rows, offset, kernels, shape, size, kernel, geometry)
        out: torch.Tensor = _Taps.apply(rows, offset, kernels, shape, size, kernel, geometry)
        return out


class _Taps(torch.autograd.Function):
    """:func:`_convolve` whose backward pass samples again, tap by tap."""

    @staticmethod
    def forward(
        ctx: Any,
        rows: torch.Tensor,
        offset: torch.Tensor,
        kernels: torch.Tensor,
        shape: list[int],
        size: list[int],
        kernel: list[int],
        geometry: list[int],
    ) -> torch.Tensor:
        ctx.save_for_backward(rows, offset, kernels)
        ctx.shapes = (shape, size, kernel, geometry)
        return _convolve(rows, offset, kernels, shape, size, kernel, geometry)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        rows, offset, kernels = ctx.saved_tensors
        shape, size, kernel, geometry = ctx.shapes
        by_rows, by_offset, by_kernels = (torch.zeros_like(tensor) for tensor in (rows, offset, kernels))
        groups = geometry[3]
        batch, _, dims, _ = offset.shape
        split = grad.reshape(len(grad), groups, -1)
        for tap, weights in enumerate(kernels):
            by_sample = torch.einsum("ngo,goc->ngc", split, weights.reshape(groups, -1, weights.shape[1])).flatten(1)
            places = _places(offset[:, tap : tap + 1], tap, size, kernel, geometry)
            sample = torch.zeros_like(by_sample)
            for corner in range(1 << dims):
                index, share, slopes = _corner(places, corner, shape)
                near = rows.index_select(0, index)
                by_share = (by_sample * near).sum(1)
                by_offset[:, tap] += (by_share * slopes).reshape(dims, batch, -1).transpose(0, 1)
                sample.addcmul_(share[:, None], near)
                by_rows.index_add_(0, index, by_sample * share[:, None])
            mixed = torch.einsum("ngo,ngc->goc", split, sample.reshape(len(sample), groups, -1))
            by_kernels[tap] = mixed.flatten(0, 1)
        return by_rows, by_offset, by_kernels, None, None, None, None


def _places(offset: torch.Tensor, tap: int, size: list[int], kernel: list[int], geometry: list[int]) -> torch.Tensor:
    """Where some taps, from number ``tap`` on, look from each output: (dims, B, T, N), in voxels.

    offset: (B, T, dims, N).
    """
    stride, padding, dilation = geometry[0], geometry[1], geometry[2]
    coordinates: list[torch.Tensor] = []
    rest = torch.arange(tap, tap + offset.shape[1], device=offset.device)
    for axis in range(len(size) - 1, -1, -1):
        around = [1] * len(size)
        around[axis] = size[axis]
        line = torch.arange(size[axis], device=offset.device) * stride - padding
        line = line.reshape(around).expand(size).reshape(1, -1)
        coordinates.insert(0, line + (rest % kernel[axis]).unsqueeze(1) * dilation)
        rest = rest // kernel[axis]
    return torch.stack(coordinates).unsqueeze(1).to(offset.dtype) + offset.permute(2, 0, 1, 3)


def _corner(places: torch.Tensor, corner: int, shape: list[int]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """One of the voxels around each place: its row, its share in the interpolation, and how this changes by axis.

    Rows and shares are (B x T x N,), slopes (dims, B x T x N). A voxel outside the image has no share.
    """
    index = torch.zeros(places.shape[1:], dtype=torch.int64, device=places.device)
    inside = torch.ones(places.shape[1:], dtype=torch.bool, device=places.device)
    shares: list[torch.Tensor] = []
    signs: list[float] = []
    for axis in range(len(shape)):
        low = places[axis].floor()
        upper = (corner >> axis) & 1
        part = places[axis] - low
        shares.append(part if upper == 1 else 1.0 - part)
        signs.append(1.0 if upper == 1 else -1.0)
        voxel = low.to(torch.int64) + upper
        inside = inside & (voxel >= 0) & (voxel < shape[axis])
        index = index * shape[axis] + voxel.clamp(0, shape[axis] - 1)
    voxels = 1
    for extent in shape:
        voxels = voxels * extent
    batch = torch.arange(places.shape[1], device=places.device).reshape(-1, 1, 1)
    share = inside.to(places.dtype)
    slopes: list[torch.Tensor] = []
    for axis in range(len(shape)):
        slope = inside.to(places.dtype) * signs[axis]
        for other in range(len(shape)):
            if other != axis:
                slope = slope * shares[other]
        slopes.append(slope.reshape(-1))
        share = share * shares[axis]
    return (index + batch * voxels).reshape(-1), share.reshape(-1), torch.stack(slopes)


def _mix(sample: torch.Tensor, kernels: torch.Tensor, groups: int, batch: int) -> torch.Tensor:
    """Samples (B x T x N, channels) by T taps' weights (T, out_channels, channels / groups): (B x N, out_channels)."""
    taps = kernels.shape[0]
    if groups == 1 and taps == 1:
        return sample @ kernels[0].t()
    parts = sample.reshape(batch, taps, -1, groups, kernels.shape[2])
    mixed = torch.einsum("btngc,tgoc->bngo", parts, kernels.reshape(taps, groups, -1, kernels.shape[2]))
    return mixed.reshape(-1, kernels.shape[1])
