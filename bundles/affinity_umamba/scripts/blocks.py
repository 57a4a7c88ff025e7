"""What encoder and decoders are built of: residual blocks and upsampling."""

from __future__ import annotations

import torch
from monai.networks.layers.factories import Conv, Norm
from torch import nn
from torch.nn import functional

SLOPE = 0.01  # of the leaky ReLUs


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
