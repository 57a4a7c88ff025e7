"""The network that ships: a U-Net with spatial self-attention behind one level of its encoder."""

from __future__ import annotations

from collections.abc import Sequence

from monai.networks.nets import BasicUNet
from torch import nn

from common.networks.attention import SpatialSelfAttention, attach
from common.networks.layout import channels_last

DROPOUT = (0.05, 0.1, 0.2, 0.3, 0.5)


class AttentiveUNet(BasicUNet):
    """MONAI's BasicUNet in the shape of the scribble literature, with a pluggable attention block.

    16 filters double at each of 4 max-poolings; batch normalisation, LeakyReLU, transposed convolutions; dropout
    between the two convolutions of each encoder level. The attention block replaces the feature map of one encoder
    level, in the skip connection too.

    Source: Secs. 2.3 and 3.2 of Tian et al., AttenScribble, arXiv 2312.06614.

    Args:
        spatial_dims: 2 or 3.
        in_channels: image channels.
        out_channels: classes, background included.
        filters: channels at full resolution.
        dropout: probability to drop a value, one for each encoder level or one for all.
        attention_level: encoder level, from 0, that the block follows; None: a plain U-Net.
        heads: attention heads.
        layers: attention layers.

    Shape:
        image (B, in_channels, H, W[, D]) to logits (B, out_channels, H, W[, D]); sizes of at least 16.

    Raises:
        ValueError: when there is no such level, or dropout does not hold 5 numbers.

    Example:
        >>> import torch
        >>> AttentiveUNet(out_channels=4)(torch.zeros(2, 1, 32, 48)).shape
        torch.Size([2, 4, 32, 48])
    """

    def __init__(
        self,
        spatial_dims: int = 2,
        in_channels: int = 1,
        out_channels: int = 2,
        filters: int = 16,
        dropout: float | Sequence[float] = DROPOUT,
        attention_level: int | None = 2,
        heads: int = 1,
        layers: int = 1,
    ) -> None:
        features = [filters * 2**level for level in range(len(DROPOUT))]
        super().__init__(
            spatial_dims,
            in_channels,
            out_channels,
            features=(*features, filters),
            act=("LeakyReLU", {"inplace": True}),
            norm="batch",
        )
        levels = ["conv_0", "down_1", "down_2", "down_3", "down_4"]
        rates = [dropout] * len(levels) if isinstance(dropout, int | float) else list(dropout)
        if len(rates) != len(levels):
            raise ValueError(f"dropout needs {len(levels)} numbers, or one for all levels, got {len(rates)}.")
        self._place_dropout(dict(zip(levels, rates, strict=True)))
        if attention_level is not None:
            if not 0 <= attention_level < len(levels):
                raise ValueError(f"attention_level must be 0 to {len(levels) - 1} or null, got {attention_level}.")
            block = SpatialSelfAttention(spatial_dims, features[attention_level], heads, layers)
            attach(self, levels[attention_level], block)
        channels_last(self, spatial_dims)

    def _place_dropout(self, rates: dict[str, float]) -> None:
        """Dropout after the first convolution of the encoder's levels; none of what MONAI puts elsewhere."""
        for name, module in list(self.named_modules()):
            for child, layer in list(module.named_children()):
                if isinstance(layer, nn.Dropout):
                    level = next((level for level in rates if f"{name}.".startswith(f"{level}.")), None)
                    if level is not None and ".conv_0.adn" in f".{name}":
                        layer.p = rates[level]
                    else:
                        delattr(module, child)
