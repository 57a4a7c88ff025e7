"""The networks of Zhang et al., MICCAI 2025: U-Mamba's encoder and decoders, and AffinityUMamba's pair of decoders."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import nn

from common.ops.bilateral import bilateral_enhancement
from common.settings import switch

from .stages import Decoder, Encoder, Plan, Size, initialise

FILTERS = (32, 64, 128, 256, 320, 320)


class Branches(NamedTuple):
    """What training needs of both decoders.

    Attributes:
        cnn: logits of the CNN decoder (B, C, *S), enhanced by the image's neighbourhoods where ``pne`` is on.
        am: logits of the Affinity-Mamba decoder (B, C, *S).
    """

    cnn: torch.Tensor
    am: torch.Tensor


class UMamba(nn.Module):
    """U-Mamba: a residual encoder with Mamba behind some of its stages, and one CNN decoder.

    Source: Ma et al., U-Mamba, arXiv 2401.04722, Sec. 2. Mamba behind the deepest stage alone is their U-Mamba_Bot,
    behind every stage their U-Mamba_Enc (whose deepest stages exchange channels and voxels; here voxels are the tokens
    everywhere, so that weights fit any size); behind none it is nnU-Net's residual U-Net. As nnU-Net plans it for ACDC
    (6 stages, 4 classes) these have 41,934,020, 43,207,620 and 41,258,180 parameters. No deep supervision.

    Args:
        spatial_dims: 2 or 3.
        in_channels: image channels.
        out_channels: classes, background included.
        filters: channels of each stage, from full resolution down.
        strides: of each stage, one number or one an axis; the first is 1. None: 1, then 2s.
        kernels: sides of each stage's convolutions, odd, one number or one an axis. None: 3s.
        mamba_stages: stages, from 0 at full resolution, that Mamba follows. None: the deepest.
        mamba_residual: whether Mamba adds to the feature; else it replaces it, as U-Mamba's does.
        dropout: probability to drop a channel, in [0, 1), after the deepest stage and before the output convolution.

    Shape:
        image (B, in_channels, H, W[, D]) to logits (B, out_channels, H, W[, D]).

    Raises:
        ValueError: when a spatial size is no multiple of its axis's strides, or an argument is out of range.

    Example:
        >>> UMamba(2, out_channels=4, filters=(4, 8))(torch.zeros(1, 1, 16, 24)).shape
        torch.Size([1, 4, 16, 24])
    """

    def __init__(
        self,
        spatial_dims: int = 3,
        in_channels: int = 1,
        out_channels: int = 2,
        filters: Sequence[int] = FILTERS,
        strides: Sequence[Size] | None = None,
        kernels: Sequence[Size] | None = None,
        mamba_stages: Sequence[int] | None = None,
        mamba_residual: bool = True,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        plan = Plan.of(spatial_dims, filters, strides, kernels)
        stages = [len(filters) - 1] if mamba_stages is None else mamba_stages
        self.encoder = Encoder(plan, in_channels, stages, switch(mamba_residual, "mamba_residual"), dropout)
        self.decoder = Decoder(plan, out_channels, (), True, dropout)
        initialise(self)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Logits (B, out_channels, *S) of an image (B, in_channels, *S)."""
        return self.decoder.output(self.decoder(self.encoder(image))[-1])


class AffinityUMamba(nn.Module):
    """One encoder, a CNN decoder and an Affinity-Mamba decoder that the CNN decoder's features steer.

    Source: Zhang et al., AffinityUMamba, MICCAI 2025, Sec. 2 and Fig. 1. A level of the Affinity-Mamba (AM) decoder is
    that of the CNN decoder, then Mamba over its voxels, then implicit affinity enhancement (IAE, Eq. 1) with the CNN
    decoder's feature of the same level. Pixel neighbourhood enhancement (PNE, Eq. 2) acts on the CNN decoder's logits.
    The encoder is nnU-Net's residual one, as in :class:`UMamba`. No gradient flows through IAE into the CNN decoder.
    As nnU-Net plans it for ACDC it has 68,391,368 parameters.

    It exports to TorchScript and ONNX at any size. IAE's indicator jumps: where a feature lies within rounding of its
    window's mean, another order of summation (ONNX Runtime, a GPU) selects differently, and few voxels in 10,000 differ
    by more than 1e-3; without IAE none do.

    Args:
        spatial_dims: 2 or 3.
        in_channels: image channels.
        out_channels: classes, background included.
        filters: channels of each stage, from full resolution down.
        strides: of each stage, one number or one an axis; the first is 1. None: 1, then 2s.
        kernels: sides of each stage's convolutions, odd, one number or one an axis. None: 3s.
        iae: whether the AM decoder has IAE.
        pne: whether the CNN decoder's logits get PNE.
        mamba_levels: levels of the AM decoder, from 0 at full resolution, that have Mamba; the number of stages less 1
            means the encoder's deepest feature on its way into that decoder. None: all but that one. Time grows with
            the level's voxels: on a CPU leave out those of more than some 40,000.
        mamba_residual: whether Mamba adds to the feature; else it replaces it, as U-Mamba's does.
        iae_normalise: whether IAE divides by the number of neighbours selected; else the sum as printed.
        pne_sigma: the constant of Eq. 2, in squared units of the image; None: the image's local variance.
        pne_average: whether PNE halves its result, which as printed about doubles logits in even regions.
        dropout: probability to drop a channel, in [0, 1), after the deepest stage and before the output convolutions.

    Shape:
        image (B, in_channels, H, W[, D]) to the AM decoder's logits (B, out_channels, H, W[, D]).

    Raises:
        ValueError: when a spatial size is no multiple of its axis's strides, or an argument is out of range.

    Example:
        >>> network = AffinityUMamba(out_channels=4, filters=(4, 8))
        >>> network(torch.zeros(1, 1, 8, 8, 16)).shape, network.branches(torch.zeros(1, 1, 8, 8, 16)).cnn.shape
        (torch.Size([1, 4, 8, 8, 16]), torch.Size([1, 4, 8, 8, 16]))
    """

    def __init__(
        self,
        spatial_dims: int = 3,
        in_channels: int = 1,
        out_channels: int = 2,
        filters: Sequence[int] = FILTERS,
        strides: Sequence[Size] | None = None,
        kernels: Sequence[Size] | None = None,
        iae: bool = True,
        pne: bool = True,
        mamba_levels: Sequence[int] | None = None,
        mamba_residual: bool = True,
        iae_normalise: bool = True,
        pne_sigma: float | None = None,
        pne_average: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        plan = Plan.of(spatial_dims, filters, strides, kernels)
        levels = range(len(filters) - 1) if mamba_levels is None else mamba_levels
        residual = switch(mamba_residual, "mamba_residual")
        self.iae, self.iae_normalise = switch(iae, "iae"), switch(iae_normalise, "iae_normalise")
        self.pne, self.pne_average = switch(pne, "pne"), switch(pne_average, "pne_average")
        self.pne_sigma = pne_sigma
        self.encoder = Encoder(plan, in_channels, (), residual, dropout)
        self.cnn = Decoder(plan, out_channels, (), residual, dropout)
        self.am = Decoder(plan, out_channels, levels, residual, dropout, self.iae, self.iae_normalise)
        initialise(self)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """The AM decoder's logits (B, out_channels, *S) of an image (B, in_channels, *S)."""
        features = self.encoder(image)
        guides: list[torch.Tensor] | None = None
        if self.iae:
            guides = self.cnn(features)
        return self.am.output(self.am(features, guides)[-1])

    def branches(self, image: torch.Tensor) -> Branches:
        """Logits of both decoders; those of the CNN decoder after PNE."""
        features = self.encoder(image)
        guides = self.cnn(features)
        cnn, am = self.cnn.output(guides[-1]), self.am.output(self.am(features, guides)[-1])
        if self.pne:
            cnn = bilateral_enhancement(cnn, image, sigma=self.pne_sigma, average=self.pne_average)
        return Branches(cnn, am)
