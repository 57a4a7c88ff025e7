"""Deformable convolution in 2D and 3D, with memory for one kernel tap at a time."""

from __future__ import annotations

import math
from typing import Any

import torch
from monai.networks.layers.factories import Conv
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn import functional


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
    with torch.autocast(x.device.type, enabled=False):
        if torch.jit.is_tracing() or torch.compiler.is_exporting():
            return _gathered(x, offset, weight, size, geometry)
        out: torch.Tensor = _Taps.apply(x, offset, weight, size, geometry)
        return out


class _Taps(torch.autograd.Function):
    """Sum over the taps; the backward pass samples again, tap by tap."""

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
        kernels, dims = weight.flatten(2), len(size)
        out = x.new_zeros(len(x), len(weight), *size)
        for tap in range(kernels.shape[2]):
            moved = offset[:, tap * dims : (tap + 1) * dims]
            out += _tap(x, moved, kernels[..., tap], tap, list(weight.shape[2:]), geometry)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, offset, weight = (tensor.detach() for tensor in ctx.saved_tensors)
        dims, kernel = len(ctx.size), list(weight.shape[2:])
        kernels = weight.flatten(2)
        by_x, by_offset, by_kernels = torch.zeros_like(x), torch.empty_like(offset), torch.empty_like(kernels)
        for tap in range(kernels.shape[2]):
            place = slice(tap * dims, (tap + 1) * dims)
            moved, weights = offset[:, place].requires_grad_(), kernels[..., tap].requires_grad_()
            with torch.enable_grad():
                out = _tap(x.requires_grad_(), moved, weights, tap, kernel, ctx.geometry)
            found = torch.autograd.grad(out, (x, moved, weights), grad)
            by_x += found[0]
            by_offset[:, place] = found[1]
            by_kernels[..., tap] = found[2]
        return by_x, by_offset, by_kernels.reshape(weight.shape), None, None


def _tap(
    x: torch.Tensor, offset: torch.Tensor, weights: torch.Tensor, tap: int, kernel: list[int], geometry: list[int]
) -> torch.Tensor:
    """What one tap adds to the output; offset (B, dims, *out), weights (out_channels, channels / groups)."""
    dims, size = offset.shape[1], offset.shape[2:]
    places = _places(offset.flatten(2)[:, None], tap, list(size), kernel, geometry)[:, :, 0]  # (dims, B, N)
    # grid_sample counts from -1 to 1 between the image's borders, and the last axis first
    scale = torch.tensor(x.shape[2:], dtype=x.dtype, device=x.device).reshape(dims, 1, 1)
    grid = ((2 * places + 1) / scale - 1).flip(0).permute(1, 2, 0).reshape(len(x), *size, dims)
    sample = functional.grid_sample(x, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    parts = sample.reshape(len(x), geometry[3], weights.shape[1], -1)
    mixed = weights.reshape(geometry[3], -1, weights.shape[1]) @ parts  # (B, groups, out_channels / groups, N)
    return mixed.reshape(len(x), -1, *size)


def _gathered(
    x: torch.Tensor, offset: torch.Tensor, weight: torch.Tensor, size: list[int], geometry: list[int]
) -> torch.Tensor:
    """The same in plain operations that export, all taps at once: few nodes, much memory."""
    batch, groups = x.shape[0], geometry[3]
    rows = x.flatten(2).transpose(1, 2).reshape(-1, x.shape[1])  # a voxel's channels side by side
    kernels = weight.flatten(2).permute(2, 0, 1)  # (taps, out_channels, channels / groups)
    taps = kernels.shape[0]
    places = _places(offset.reshape(batch, taps, len(size), -1), 0, size, list(weight.shape[2:]), geometry)
    sample = torch.zeros([1, 1], dtype=x.dtype, device=x.device)
    for corner in range(1 << len(size)):
        index, share = _corner(places, corner, list(x.shape[2:]))
        sample = sample + share.unsqueeze(1) * rows.index_select(0, index)
    parts = sample.reshape(batch, taps, -1, groups, kernels.shape[2])
    mixed = torch.einsum("btngc,tgoc->bgon", parts, kernels.reshape(taps, groups, -1, kernels.shape[2]))
    return mixed.reshape([batch, weight.shape[0]] + size)


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


def _corner(places: torch.Tensor, corner: int, shape: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """One of the voxels around each place: its row and its share in the interpolation, both (B x T x N,).

    A voxel outside the image has no share.
    """
    index = torch.zeros(places.shape[1:], dtype=torch.int64, device=places.device)
    share = torch.ones(places.shape[1:], dtype=places.dtype, device=places.device)
    voxels = 1
    for axis in range(len(shape)):
        low = places[axis].floor()
        upper = (corner >> axis) & 1
        part = places[axis] - low
        voxel = low.to(torch.int64) + upper
        inside = (voxel >= 0) & (voxel < shape[axis])
        share = share * (part if upper == 1 else 1.0 - part) * inside.to(places.dtype)
        index = index * shape[axis] + voxel.clamp(0, shape[axis] - 1)
        voxels = voxels * shape[axis]
    batch = torch.arange(places.shape[1], device=places.device).reshape(-1, 1, 1)
    return (index + batch * voxels).reshape(-1), share.reshape(-1)
