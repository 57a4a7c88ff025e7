"""U-Mamba and the two-decoder network of AffinityUMamba, and a baseline brought to one output."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from monai.networks.layers.factories import Conv, Norm
from monai.networks.nets import BasicUNetPlusPlus
from torch import nn

from common.networks.mamba import SpatialMamba
from common.ops.bilateral import bilateral_enhancement
from common.ops.gate import affinity_gate
from common.settings import switch

FILTERS = (32, 64, 128, 256, 320, 320)  # from full resolution down
SLOPE = 0.01  # of the leaky ReLU
BLOCKS = 2  # of a stage; one in the encoder's coarser half and in the decoder's finer half

Steps = Sequence[int | Sequence[int]]  # a number, or one for each axis, at every level


class Branches(NamedTuple):
    """What training needs of both decoders.

    Attributes:
        cnn: logits (B, C, *S) of the convolutional decoder, after pixel neighbourhood enhancement.
        am: logits (B, C, *S) of the Affinity-Mamba decoder, which ships.
    """

    cnn: torch.Tensor
    am: torch.Tensor


class _Family(nn.Module):
    """What the networks share: the residual encoder, the sizes that it takes, the initialisation."""

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        filters: Sequence[int],
        strides: Steps | None,
        kernel_sizes: Steps | None,
        dropout: float,
    ) -> None:
        super().__init__()
        if spatial_dims not in (2, 3):
            raise ValueError(f"spatial_dims must be 2 or 3, got {spatial_dims}.")
        if len(filters) < 2:
            raise ValueError(f"filters must name at least two levels, got {list(filters)}.")
        self.spatial_dims, self.filters = spatial_dims, tuple(filters)
        self.strides = _per_level(strides, "strides", 2, len(filters) - 1, spatial_dims)
        self.kernels = _per_level(kernel_sizes, "kernel_sizes", 3, len(filters), spatial_dims)
        if any(size % 2 == 0 for kernel in self.kernels for size in kernel):
            raise ValueError(f"kernel_sizes must be odd, got {kernel_sizes}.")
        self.encoder = _Encoder(spatial_dims, in_channels, self.filters, self.strides, self.kernels)
        self.dropout = nn.Dropout3d(dropout) if spatial_dims == 3 else nn.Dropout2d(dropout)

    def _encode(self, image: torch.Tensor) -> list[torch.Tensor]:
        """Features from full resolution down."""
        if not torch.jit.is_tracing() and not torch.compiler.is_exporting():
            self._check_size(image)
        features = self.encoder(image)
        return [*features[:-1], self.dropout(features[-1])]

    def _check_size(self, image: torch.Tensor) -> None:
        steps = [math.prod(stride[axis] for stride in self.strides) for axis in range(self.spatial_dims)]
        sizes = list(image.shape[2:])
        if len(sizes) != len(steps) or any(size % step != 0 for size, step in zip(sizes, steps, strict=True)):
            raise ValueError(
                f"This network needs spatial sizes that are multiples of {steps}, got {sizes}: choose such a "
                "patch_size, pad the image, or give other strides."
            )
        if sizes == steps:
            raise ValueError(
                f"Spatial sizes {sizes} leave one voxel at the coarsest level, which cannot be normalised: choose a "
                f"larger patch_size, another multiple of {steps}."
            )

    def _decoder(self, mamba_levels: Sequence[int] = (), mamba_residual: bool = True) -> _Decoder:
        return _Decoder(self.spatial_dims, self.filters, self.strides, self.kernels, mamba_levels, mamba_residual)

    def _output(self, out_channels: int) -> nn.Module:
        output: nn.Module = Conv[Conv.CONV, self.spatial_dims](self.filters[0], out_channels, 1)
        return output

    def _settle(self) -> None:
        """He initialisation of the convolutions over space; Mamba keeps its own."""
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.Conv3d)):
                nn.init.kaiming_normal_(module.weight, a=SLOPE)
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]


class UMamba(_Family):
    """U-Mamba with Mamba at the bottleneck; without it the plain residual U-Net that it is compared with.

    Source: Ma et al., U-Mamba, arXiv 2401.04722 (U-Mamba_Bot), here without deep supervision.

    Args:
        spatial_dims: 2 or 3.
        in_channels: image channels.
        out_channels: classes, background included.
        filters: channels from full resolution down.
        strides: between the levels, from full resolution down, one fewer than filters; a number or one for each axis.
            None: 2.
        kernel_sizes: of the convolutions at each level, odd; None: 3.
        mamba: whether the bottleneck has a Mamba layer.
        mamba_residual: whether that layer adds to the feature; U-Mamba's replaces it.
        dropout: probability to drop a channel of the bottleneck, in [0, 1).

    Shape:
        image (B, in_channels, H, W[, D]) to logits (B, out_channels, H, W[, D]).

    Raises:
        ValueError: when a spatial size is no multiple of the product of its strides, the coarsest level would be one
            voxel, or an argument is out of range.

    Example:
        >>> UMamba(2, filters=(4, 8, 8)).eval()(torch.zeros(1, 1, 16, 8)).shape
        torch.Size([1, 2, 16, 8])
    """

    def __init__(
        self,
        spatial_dims: int = 3,
        in_channels: int = 1,
        out_channels: int = 2,
        filters: Sequence[int] = FILTERS,
        strides: Steps | None = None,
        kernel_sizes: Steps | None = None,
        mamba: bool = True,
        mamba_residual: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(spatial_dims, in_channels, filters, strides, kernel_sizes, dropout)
        residual = switch(mamba_residual, "mamba_residual")
        self.bottleneck = SpatialMamba(filters[-1], residual) if switch(mamba, "mamba") else nn.Identity()
        self.decoder = self._decoder()
        self.output = self._output(out_channels)
        self._settle()

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        *skips, deepest = self._encode(image)
        logits: torch.Tensor = self.output(self.decoder([*skips, self.bottleneck(deepest)])[-1])
        return logits


class AffinityUMamba(_Family):
    """One residual encoder, a convolutional decoder and an Affinity-Mamba decoder, whose answer ships.

    Source: Zhang et al., AffinityUMamba, MICCAI 2025, Fig. 1, Secs. 2.1 and 2.2, with the blocks of U-Mamba. A level of
    the Affinity-Mamba decoder is convolutions, Mamba over its voxels, and implicit affinity enhancement (Eq. 1), where
    the convolutional decoder's feature of the level selects the neighbours to add. Pixel neighbourhood enhancement
    (Eq. 2) filters the convolutional decoder's logits by the image; as the other decoder ships, in training only.

    Args:
        spatial_dims: 2 or 3.
        in_channels: image channels.
        out_channels: classes, background included.
        filters: channels from full resolution down.
        strides: between the levels, from full resolution down, one fewer than filters; a number or one for each axis.
            None: 2.
        kernel_sizes: of the convolutions at each level, odd; None: 3.
        iae: implicit affinity enhancement (Table 3).
        iae_normalise: divide its sum by the number of neighbours selected; False: the sum as printed.
        pne: pixel neighbourhood enhancement (Table 3).
        pne_average: halve its result; False: as printed, which doubles logits in regions of one intensity.
        mamba_levels: decoder levels with Mamba, 0 is full resolution; None: all. Its time is in proportion to the
            voxels of the level.
        mamba_residual: whether Mamba adds to the feature; else it replaces it, as in U-Mamba.
        dropout: probability to drop a channel of the bottleneck, in [0, 1).

    Shape:
        image (B, in_channels, H, W[, D]) to logits (B, out_channels, H, W[, D]) of the Affinity-Mamba decoder.

    Raises:
        ValueError: when a spatial size is no multiple of the product of its strides, the coarsest level would be one
            voxel, or an argument is out of range.

    Example:
        >>> network = AffinityUMamba(2, filters=(4, 8, 8)).eval()
        >>> network(torch.zeros(1, 1, 16, 8)).shape, network.branches(torch.zeros(1, 1, 16, 8)).cnn.shape
        (torch.Size([1, 2, 16, 8]), torch.Size([1, 2, 16, 8]))
    """

    def __init__(
        self,
        spatial_dims: int = 3,
        in_channels: int = 1,
        out_channels: int = 2,
        filters: Sequence[int] = FILTERS,
        strides: Steps | None = None,
        kernel_sizes: Steps | None = None,
        iae: bool = True,
        iae_normalise: bool = True,
        pne: bool = True,
        pne_average: bool = False,
        mamba_levels: Sequence[int] | None = None,
        mamba_residual: bool = True,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(spatial_dims, in_channels, filters, strides, kernel_sizes, dropout)
        levels = range(len(filters) - 1)
        mamba_levels = list(levels) if mamba_levels is None else list(mamba_levels)
        if any(level not in levels for level in mamba_levels):
            raise ValueError(f"mamba_levels must be among {list(levels)}, got {mamba_levels}.")
        self.iae, self.iae_normalise = switch(iae, "iae"), switch(iae_normalise, "iae_normalise")
        self.pne, self.pne_average = switch(pne, "pne"), switch(pne_average, "pne_average")
        self.cnn_decoder = self._decoder()
        self.am_decoder = self._decoder(mamba_levels, switch(mamba_residual, "mamba_residual"))
        self.cnn_output, self.am_output = self._output(out_channels), self._output(out_channels)
        self._settle()

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        features = self._encode(image)
        guides = self.cnn_decoder(features) if self.iae else []  # without the gate one decoder is enough
        return self._affinity_mamba(features, guides)

    def branches(self, image: torch.Tensor) -> Branches:
        """Logits of both decoders, (B, out_channels, *S) each."""
        features = self._encode(image)
        guides = self.cnn_decoder(features)
        cnn = self.cnn_output(guides[-1])
        if self.pne:
            cnn = bilateral_enhancement(cnn, image, average=self.pne_average)
        return Branches(cnn, self._affinity_mamba(features, guides))

    def _affinity_mamba(self, features: list[torch.Tensor], guides: list[torch.Tensor]) -> torch.Tensor:
        decoded = self.am_decoder(features, guides if self.iae else [], self.iae_normalise)
        logits: torch.Tensor = self.am_output(decoded[-1])
        return logits


class UNetPlusPlus(BasicUNetPlusPlus):
    """MONAI's UNet++ as a baseline: the logits themselves instead of a list of them.

    Args:
        *args: of MONAI's ``BasicUNetPlusPlus``, without ``deep_supervision``.
        **kwargs: the same.

    Shape:
        image (B, in_channels, H, W[, D]), sizes multiples of 16, to logits (B, out_channels, H, W[, D]).
    """

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        (logits,) = super().forward(image)
        return logits


class _Encoder(nn.Module):
    """Stem and stages of residual blocks; image to features from full resolution down."""

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        filters: tuple[int, ...],
        strides: list[tuple[int, ...]],
        kernels: list[tuple[int, ...]],
    ) -> None:
        super().__init__()
        one = (1,) * spatial_dims
        self.stem = _stage(spatial_dims, in_channels, filters[0], kernels[0], one, BLOCKS)
        coarse = math.ceil(len(filters) / 2)
        self.stages = nn.ModuleList(
            _stage(
                spatial_dims,
                filters[max(level - 1, 0)],
                filters[level],
                kernels[level],
                one if level == 0 else strides[level - 1],
                1 if level >= coarse else BLOCKS,
            )
            for level in range(len(filters))
        )

    def forward(self, image: torch.Tensor) -> list[torch.Tensor]:
        features = [self.stem(image)]
        for stage in self.stages:
            features.append(stage(features[-1]))
        return features[1:]


class _Decoder(nn.Module):
    """Way up from the encoder's features; gives its own features, the finest last."""

    def __init__(
        self,
        spatial_dims: int,
        filters: tuple[int, ...],
        strides: list[tuple[int, ...]],
        kernels: list[tuple[int, ...]],
        mamba_levels: Sequence[int],
        mamba_residual: bool,
    ) -> None:
        super().__init__()
        levels = list(reversed(range(len(filters) - 1)))  # from the coarsest to the finest, the order in which they run
        fine = math.ceil(len(filters) / 2)
        self.up = nn.ModuleList(
            nn.Sequential(
                nn.Upsample(scale_factor=tuple(map(float, strides[level])), mode="nearest"),
                Conv[Conv.CONV, spatial_dims](filters[level + 1], filters[level], 1),
            )
            for level in levels
        )
        self.stages = nn.ModuleList(
            _stage(
                spatial_dims,
                2 * filters[level],
                filters[level],
                kernels[level],
                (1,) * spatial_dims,
                1 if order >= fine else BLOCKS,
            )
            for order, level in enumerate(levels)
        )
        self.mamba = nn.ModuleList(
            SpatialMamba(filters[level], mamba_residual) if level in mamba_levels else nn.Identity() for level in levels
        )

    def forward(
        self, features: list[torch.Tensor], guides: Sequence[torch.Tensor] = (), normalise: bool = True
    ) -> list[torch.Tensor]:
        *skips, feature = features
        decoded: list[torch.Tensor] = []
        for level, (up, stage, mamba) in enumerate(zip(self.up, self.stages, self.mamba, strict=True)):
            feature = mamba(stage(torch.cat([up(feature), skips.pop()], 1)))
            if guides:
                feature = affinity_gate(feature, guides[level], normalise=normalise)
            decoded.append(feature)
        return decoded


class _ResidualBlock(nn.Module):
    """Two convolutions with instance normalisation beside a shortcut, which is a 1x1x1 convolution if asked for."""

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        kernel: tuple[int, ...],
        stride: tuple[int, ...],
        project: bool,
    ) -> None:
        super().__init__()
        convolution, padding = Conv[Conv.CONV, spatial_dims], tuple(size // 2 for size in kernel)
        self.residual = nn.Sequential(
            convolution(in_channels, out_channels, kernel, stride=stride, padding=padding),
            Norm[Norm.INSTANCE, spatial_dims](out_channels, affine=True),
            nn.LeakyReLU(SLOPE, inplace=True),
            convolution(out_channels, out_channels, kernel, padding=padding),
            Norm[Norm.INSTANCE, spatial_dims](out_channels, affine=True),
        )
        self.shortcut = convolution(in_channels, out_channels, 1, stride=stride) if project else nn.Identity()
        self.activation = nn.LeakyReLU(SLOPE, inplace=True)

    def forward(self, feature: torch.Tensor) -> torch.Tensor:
        joined: torch.Tensor = self.activation(self.residual(feature) + self.shortcut(feature))
        return joined


def _stage(
    spatial_dims: int,
    in_channels: int,
    out_channels: int,
    kernel: tuple[int, ...],
    stride: tuple[int, ...],
    blocks: int,
) -> nn.Sequential:
    """The first block changes width and resolution."""
    one = (1,) * spatial_dims
    return nn.Sequential(
        _ResidualBlock(spatial_dims, in_channels, out_channels, kernel, stride, project=True),
        *(
            _ResidualBlock(spatial_dims, out_channels, out_channels, kernel, one, project=False)
            for _ in range(1, blocks)
        ),
    )


def _per_level(values: Steps | None, name: str, default: int, levels: int, spatial_dims: int) -> list[tuple[int, ...]]:
    values = [default] * levels if values is None else values
    spread = [(v,) * spatial_dims if isinstance(v, int) else tuple(v) for v in values]
    if len(spread) != levels or any(len(v) != spatial_dims or min(v) < 1 for v in spread):
        raise ValueError(f"{name} must be {levels} numbers, or lists of {spatial_dims}, at least 1, got {values}.")
    return spread
