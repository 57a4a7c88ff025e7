"""The V-Net variant of the semi-supervised segmentation literature."""

from __future__ import annotations

import torch
from monai.networks.layers.factories import Conv, Norm
from torch import nn

from .layout import channels_last

CONVOLUTIONS = (1, 2, 3, 3, 3)  # per resolution, from full to 1/16
LEVELS = len(CONVOLUTIONS) - 1  # of the decoder


class VNetDecoder(nn.Module):
    """What a V-Net has after its encoder, for networks with an encoder of their own; added skip connections.

    A subclass builds its encoder, then calls ``_add_decoder`` and ``_settle``.
    """

    def _add_decoder(self, spatial_dims: int, filters: list[int], out_channels: int, dropout: float) -> None:
        """Way up and output convolution; filters: of the encoder's features, from full resolution to 1/16."""
        levels = range(len(filters) - 1)
        # from the coarsest level to the finest, the order in which they run
        self.up = nn.ModuleList(
            _resample(spatial_dims, filters[i + 1], filters[i], Conv.CONVTRANS) for i in reversed(levels)
        )
        self.decoder = nn.ModuleList(
            _stage(spatial_dims, filters[i], filters[i], CONVOLUTIONS[i]) for i in reversed(levels)
        )
        self.dropout = nn.Dropout3d(dropout) if spatial_dims == 3 else nn.Dropout2d(dropout)
        self.output = Conv[Conv.CONV, spatial_dims](filters[0], out_channels, 1)

    def _settle(self, spatial_dims: int) -> None:
        """Kaiming initialisation of the convolutions there are, weights in channels-last order."""
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.Conv3d)):
                nn.init.kaiming_normal_(module.weight)
        channels_last(self, spatial_dims)

    def decode(
        self, feature: torch.Tensor, skips: list[torch.Tensor], first: int = 0, last: int = LEVELS
    ) -> list[torch.Tensor]:
        """Features of the decoder's levels first to last - 1, where 0 is the coarsest.

        Args:
            feature: what enters level ``first`` from below.
            skips: the encoder's features that are not yet used, the next one last; those used here are taken out.
            first: level to begin with.
            last: level to stop before.
        """
        features: list[torch.Tensor] = []
        for level, (up, stage) in enumerate(zip(self.up, self.decoder)):  # noqa: B905 - TorchScript knows no strict=
            if first <= level and level < last:
                feature = stage(up(feature) + skips.pop())
                features.append(feature)
        return features


class VNet(VNetDecoder):
    """V-Net as used on the LA data since 2019: added skip connections, no residuals inside a stage.

    16 base filters double at each of 4 strided convolutions (kernel 2, stride 2); a stage has 1-2-3-3-3 convolutions
    (kernel 3) with batch normalisation and ReLU; transposed convolutions go up; encoder features are *added* to the
    decoder's. Dropout of whole channels follows the bottleneck and precedes the output convolution. With 1 input
    channel and 2 classes it has 9,448,866 parameters. MONAI's ``VNet`` is another network (45.6 M, ELU, residual).

    Source: Milletari et al., 3DV 2016, in the variant of the left-atrium benchmarks that came after it.

    The weights are kept in channels-last order, in which convolutions of this size run faster on a CPU
    without changing a value.

    Args:
        spatial_dims: 2 or 3.
        in_channels: image channels.
        out_channels: classes, background included.
        base_filters: channels at full resolution.
        dropout: probability to drop a channel, in [0, 1).

    Shape:
        image (B, in_channels, H, W[, D]) to logits (B, out_channels, H, W[, D]).

    Raises:
        ValueError: when a spatial size is no multiple of 16, or spatial_dims is neither 2 nor 3.

    Example:
        >>> network = VNet(in_channels=1, out_channels=2)
        >>> sum(p.numel() for p in network.parameters())
        9448866
        >>> network(torch.zeros(2, 1, 16, 16, 32)).shape
        torch.Size([2, 2, 16, 16, 32])
    """

    def __init__(
        self,
        spatial_dims: int = 3,
        in_channels: int = 1,
        out_channels: int = 2,
        base_filters: int = 16,
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        if spatial_dims not in (2, 3):
            raise ValueError(f"spatial_dims must be 2 or 3, got {spatial_dims}.")
        filters = [base_filters * 2**i for i in range(len(CONVOLUTIONS))]
        levels = range(len(filters) - 1)
        self.encoder = nn.ModuleList(
            _stage(spatial_dims, in_channels if i == 0 else filters[i], filters[i], CONVOLUTIONS[i]) for i in levels
        )
        self.down = nn.ModuleList(_resample(spatial_dims, filters[i], filters[i + 1], Conv.CONV) for i in levels)
        self.bottleneck = _stage(spatial_dims, filters[-1], filters[-1], CONVOLUTIONS[-1])
        self._add_decoder(spatial_dims, filters, out_channels, dropout)
        self._settle(spatial_dims)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Logits (B, C, *S) of an image (B, channels, *S)."""
        if not torch.jit.is_tracing():
            check_size(image)
        feature = image
        skips: list[torch.Tensor] = []
        for stage, down in zip(self.encoder, self.down):  # noqa: B905 - TorchScript knows no strict=
            feature = stage(feature)
            skips.append(feature)
            feature = down(feature)
        features = self.decode(self.dropout(self.bottleneck(feature)), skips)
        return self.output(self.dropout(features[-1]))


def check_size(image: torch.Tensor) -> None:
    """Raise a ValueError unless each spatial size of image (B, C, *S) is a multiple of 16."""
    for size in image.shape[2:]:
        if size % 16 != 0:
            raise ValueError(
                "V-Net needs spatial sizes that are multiples of 16, got "
                + str(list(image.shape[2:]))
                + ": choose such a patch_size, or pad the image."
            )


def _stage(spatial_dims: int, in_channels: int, out_channels: int, convolutions: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for index in range(convolutions):
        channels = in_channels if index == 0 else out_channels
        layers += [
            Conv[Conv.CONV, spatial_dims](channels, out_channels, 3, padding=1),
            Norm[Norm.BATCH, spatial_dims](out_channels),
            nn.ReLU(inplace=True),
        ]
    return nn.Sequential(*layers)


def _resample(spatial_dims: int, in_channels: int, out_channels: int, kind: str) -> nn.Sequential:
    return nn.Sequential(
        Conv[kind, spatial_dims](in_channels, out_channels, 2, stride=2),
        Norm[Norm.BATCH, spatial_dims](out_channels),
        nn.ReLU(inplace=True),
    )
