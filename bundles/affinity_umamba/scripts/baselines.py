"""MONAI's networks where they need a change to be trained and served as the others."""

from __future__ import annotations

from typing import Any

import torch
from monai.networks.nets import BasicUNetPlusPlus


class UNetPlusPlus(BasicUNetPlusPlus):
    """MONAI's UNet++ with logits for an answer, where MONAI's gives a list of them.

    Source: Zhou et al., UNet++, DLMIA 2018. Arguments as of MONAI's, without ``deep_supervision``.

    Shape:
        image (B, in_channels, H, W[, D]) to logits (B, out_channels, H, W[, D]).
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # heads of shallower nests, which deep supervision would train; several processes wait for each gradient
        for head in (self.final_conv_0_1, self.final_conv_0_2, self.final_conv_0_3):
            head.requires_grad_(False)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Logits (B, out_channels, *S) of an image (B, in_channels, *S)."""
        (logits,) = super().forward(image)
        return logits
