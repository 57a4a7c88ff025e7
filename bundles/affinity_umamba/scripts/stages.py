"""Parts of U-Mamba and AffinityUMamba: nnU-Net's residual encoder and decoder, with Mamba and IAE where asked for."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from monai.networks.layers.factories import Conv, Dropout, Norm
from torch import nn
from torch.nn import functional

from common.networks.mamba import SpatialMamba
from common.ops.gate import affinity_gate

SLOPE = 0.01  # of the leaky ReLUs
Size = int | Sequence[int]


class Plan(NamedTuple):
    """Shape of the encoder and its decoders, stage by stage, with one number an axis."""

    dims: int
    filters: list[int]
    strides: list[tuple[int, ...]]
    kernels: list[tuple[int, ...]]

    @classmethod
    def of(
        cls, spatial_dims: int, filters: Sequence[int], strides: Sequence[Size] | None, kernels: Sequence[Size] | None
    ) -> Plan:
        """Check and complete the arguments of a network."""
        if spatial_dims not in (2, 3):
            raise ValueError(f"spatial_dims must be 2 or 3, got {spatial_dims}.")
        count = len(filters)
        if count < 2 or min(filters) < 1:
            raise ValueError(f"filters must be 2 or more positive numbers of channels, got {list(filters)}.")
        given = {
            "strides": [1] + [2] * (count - 1) if strides is None else strides,
            "kernels": [3] * count if kernels is None else kernels,
        }
        whole: dict[str, list[tuple[int, ...]]] = {}
        for name, sizes in given.items():
            whole[name] = [(size,) * spatial_dims if isinstance(size, int) else tuple(size) for size in sizes]
            if len(sizes) != count or any(len(size) != spatial_dims or min(size) < 1 for size in whole[name]):
                raise ValueError(
                    f"{name} must hold {count} entries, one for each of filters, each a positive number or "
                    f"{spatial_dims} of them, got {list(sizes)}."
                )
        if max(whole["strides"][0]) != 1:
            raise ValueError(f"strides must begin with 1, got {list(given['strides'])}.")
        if any(side % 2 == 0 for kernel in whole["kernels"] for side in kernel):
            raise ValueError(f"kernels must be odd, got {list(given['kernels'])}.")
        return cls(spatial_dims, list(filters), **whole)

    @property
    def steps(self) -> list[int]:
        """What a spatial size must be a multiple of, an axis."""
        return [math.prod(stride[axis] for stride in self.strides) for axis in range(self.dims)]


class Encoder(nn.Module):
    """nnU-Net's residual encoder: a stem, then stages; two blocks in each of the first half, one after it.

    Shape:
        image (B, in_channels, *S) to the stages' features, from full resolution down.
    """

    def __init__(
        self, plan: Plan, in_channels: int, mamba_stages: Sequence[int], mamba_residual: bool, dropout: float
    ) -> None:
        super().__init__()
        count = len(plan.filters)
        _check_levels("mamba_stages", mamba_stages, count)
        self.steps = plan.steps
        self.stem = _blocks(plan, 0, in_channels, 2)
        self.stages = nn.ModuleList(
            _blocks(
                plan,
                stage,
                plan.filters[max(stage - 1, 0)],
                2 if stage < math.ceil(count / 2) else 1,
                plan.strides[stage],
            )
            for stage in range(count)
        )
        self.mamba = _mambas([plan.filters[i] if i in mamba_stages else 0 for i in range(count)], mamba_residual)
        self.dropout = Dropout[Dropout.DROPOUT, plan.dims](dropout)

    def forward(self, image: torch.Tensor) -> list[torch.Tensor]:
        """The stages' features, from full resolution down."""
        if not torch.jit.is_tracing():
            check_size(image, self.steps, self.training)
        feature = self.stem(image)
        features: list[torch.Tensor] = []
        for stage, mamba in zip(self.stages, self.mamba):  # noqa: B905 - TorchScript knows no strict=
            feature = mamba(stage(feature))
            features.append(feature)
        features[-1] = self.dropout(features[-1])
        return features


class Decoder(nn.Module):
    """From the deepest feature up: upsampling, the encoder's feature beside it, blocks, Mamba and IAE if asked for.

    Shape:
        the encoder's features, and guides for IAE, of the levels from the deepest up, to the levels' features in that
        order, the last at full resolution; ``output`` turns that one into logits.
    """

    def __init__(
        self,
        plan: Plan,
        out_channels: int,
        mamba_levels: Sequence[int],
        mamba_residual: bool,
        dropout: float,
        iae: bool = False,
        iae_normalise: bool = True,
    ) -> None:
        super().__init__()
        filters, count = plan.filters, len(plan.filters)
        _check_levels("mamba_levels", mamba_levels, count)
        self.iae, self.iae_normalise = iae, iae_normalise
        levels = range(count - 2, -1, -1)  # from the deepest up, the order in which they run
        deep = math.ceil((count - 1) / 2 + 0.5)
        self.up = nn.ModuleList(
            Upsample(plan.dims, filters[level + 1], filters[level], plan.strides[level + 1]) for level in levels
        )
        self.blocks = nn.ModuleList(
            _blocks(plan, level, 2 * filters[level], 2 if place < deep else 1) for place, level in enumerate(levels)
        )
        channels = [filters[level] if level in mamba_levels else 0 for level in (count - 1, *levels)]
        self.entry, *rest = _mambas(channels, mamba_residual)
        self.mamba = nn.ModuleList(rest)
        self.dropout = Dropout[Dropout.DROPOUT, plan.dims](dropout)
        self.classes = Conv[Conv.CONV, plan.dims](filters[0], out_channels, 1)

    def forward(self, features: list[torch.Tensor], guides: list[torch.Tensor] | None = None) -> list[torch.Tensor]:
        """The levels' features, from the deepest up; ``guides`` are those of the decoder that steers IAE."""
        feature = self.entry(features[-1])
        levels: list[torch.Tensor] = []
        for up, blocks, mamba in zip(self.up, self.blocks, self.mamba):  # noqa: B905
            skip = features[len(features) - 2 - len(levels)]
            feature = mamba(blocks(torch.cat([up(feature), skip], 1)))
            if self.iae:
                assert guides is not None
                feature = affinity_gate(feature, guides[len(levels)], normalise=self.iae_normalise)
            levels.append(feature)
        return levels

    def output(self, feature: torch.Tensor) -> torch.Tensor:
        """Logits (B, out_channels, *S) of the last level's feature."""
        return self.classes(self.dropout(feature))


class Upsample(nn.Module):
    """A convolution of kernel 1, then nearest neighbours: the other order gives the same, with more work."""

    def __init__(self, dims: int, in_channels: int, out_channels: int, scale: tuple[int, ...]) -> None:
        super().__init__()
        self.scale = [float(factor) for factor in scale]
        self.convolution = Conv[Conv.CONV, dims](in_channels, out_channels, 1)

    def forward(self, feature: torch.Tensor) -> torch.Tensor:
        """The feature at the finer level's size, with its channels."""
        return functional.interpolate(self.convolution(feature), scale_factor=self.scale, mode="nearest")


class ResidualBlock(nn.Module):
    """Two convolutions with instance normalisation; leaky ReLU after the first and after the sum.

    The shortcut of a stage's first block is a convolution of kernel 1, that of the others the feature itself.
    """

    def __init__(
        self,
        dims: int,
        in_channels: int,
        channels: int,
        kernel: tuple[int, ...],
        stride: tuple[int, ...],
        first: bool,
    ) -> None:
        super().__init__()
        convolution, padding = Conv[Conv.CONV, dims], tuple(side // 2 for side in kernel)
        self.body = nn.Sequential(
            convolution(in_channels, channels, kernel, stride, padding),
            Norm[Norm.INSTANCE, dims](channels, affine=True),
            nn.LeakyReLU(SLOPE, inplace=True),
            convolution(channels, channels, kernel, 1, padding),
            Norm[Norm.INSTANCE, dims](channels, affine=True),
        )
        self.activation = nn.LeakyReLU(SLOPE, inplace=True)
        self.shortcut = convolution(in_channels, channels, 1, stride) if first else nn.Identity()

    def forward(self, feature: torch.Tensor) -> torch.Tensor:
        """The feature with ``channels`` channels, its sizes divided by the stride."""
        return self.activation(self.body(feature) + self.shortcut(feature))


def check_size(image: torch.Tensor, steps: list[int], training: bool) -> None:
    """Raise a ValueError unless the sizes of image (B, C, *S) are multiples of the steps, and leave more than 1 voxel.

    Args:
        image: (B, C, *S).
        steps: what the strides multiply to, an axis.
        training: instance normalisation has nothing to normalise a single voxel by.
    """
    voxels = 1
    for axis, step in enumerate(steps):
        if image.shape[2 + axis] % step != 0:
            raise ValueError(
                "The network needs spatial sizes that are multiples of "
                + str(steps)
                + ", got "
                + str(list(image.shape[2:]))
                + ": choose such a patch_size, or pad the image."
            )
        voxels *= image.shape[2 + axis] // step
    if training and voxels < 2:
        raise ValueError(
            "The deepest stage of an image of " + str(list(image.shape[2:])) + " has a single voxel: choose a larger "
            "patch_size, or fewer filters and strides."
        )


def _check_levels(name: str, levels: Sequence[int], count: int) -> None:
    if not all(0 <= level < count for level in levels):
        raise ValueError(f"{name} must be 0 to {count - 1}, got {list(levels)}.")


def _blocks(
    plan: Plan, stage: int, in_channels: int, count: int, stride: tuple[int, ...] | None = None
) -> nn.Sequential:
    channels, ones = plan.filters[stage], (1,) * plan.dims
    return nn.Sequential(
        *(
            ResidualBlock(
                plan.dims,
                channels if number else in_channels,
                channels,
                plan.kernels[stage],
                ones if number or stride is None else stride,
                first=number == 0,
            )
            for number in range(count)
        )
    )


def _mambas(channels: Sequence[int], residual: bool) -> nn.ModuleList:
    """One a level; where the number of channels is 0, none."""
    return nn.ModuleList(SpatialMamba(number, residual) if number else nn.Identity() for number in channels)


def initialise(network: nn.Module) -> None:
    """He initialisation of the convolutions; Mamba keeps its own."""
    for module in network.modules():
        if isinstance(module, (nn.Conv2d, nn.Conv3d)):
            nn.init.kaiming_normal_(module.weight, a=SLOPE)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
