"""MONAI's networks where they need a change to be trained and served as the others."""

from __future__ import annotations

import torch
from monai.networks.nets import BasicUNetPlusPlus


class UNetPlusPlus(BasicUNetPlusPlus):
    """MONAI's UNet++ with logits for an answer, where MONAI's gives a list of them.

    Source: Zhou et al., UNet++, DLMIA 2018. Arguments as of MONAI's, without ``deep_supervision``.

    Shape:
        image (B, in_channels, H, W[, D]) to logits (B, out_channels, H, W[, D]).
    """

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Logits (B, out_channels, *S) of an image (B, in_channels, *S)."""
        (logits,) = super().forward(image)
        return logits
