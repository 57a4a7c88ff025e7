"""The networks of Zhang et al., MICCAI 2025: U-Mamba's encoder and decoders, and AffinityUMamba's pair of decoders."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from monai.networks.layers.factories import Conv, Dropout
from torch import nn

from common.networks.mamba import SpatialMamba
from common.ops.bilateral import bilateral_enhancement
from common.ops.gate import affinity_gate
from common.settings import switch

from .blocks import SLOPE, ResidualBlock, Upsample

FILTERS = (32, 64, 128, 256, 320, 320)
Size = int | Sequence[int]


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
        _initialise(self)

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

    It exports to TorchScript and ONNX at any size, with the same logits up to 1e-3 whatever computes them: IAE's
    indicator has an edge, see :func:`~common.ops.gate.affinity_gate`.

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
        iae_average: whether IAE halves its result: a feature and the mean of like neighbours add up to about twice its
            scale, level after level.
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
        iae_average: bool = False,
        pne_sigma: float | None = None,
        pne_average: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        plan = Plan.of(spatial_dims, filters, strides, kernels)
        levels = range(len(filters) - 1) if mamba_levels is None else mamba_levels
        residual = switch(mamba_residual, "mamba_residual")
        self.iae = switch(iae, "iae")
        gate = Gate(self.iae, switch(iae_normalise, "iae_normalise"), switch(iae_average, "iae_average"))
        self.pne, self.pne_average = switch(pne, "pne"), switch(pne_average, "pne_average")
        self.pne_sigma = pne_sigma
        self.encoder = Encoder(plan, in_channels, (), residual, dropout)
        self.cnn = Decoder(plan, out_channels, (), residual, dropout)
        self.am = Decoder(plan, out_channels, levels, residual, dropout, gate)
        _initialise(self)

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


class Gate(NamedTuple):
    """IAE in a decoder: whether there is any, divided by the number of neighbours, halved."""

    used: bool
    normalise: bool = True
    average: bool = False


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
        gate: Gate | None = None,
    ) -> None:
        super().__init__()
        filters, count = plan.filters, len(plan.filters)
        _check_levels("mamba_levels", mamba_levels, count)
        self.iae, self.iae_normalise, self.iae_average = gate or Gate(False)
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
                if self.iae_average:
                    feature = feature / 2
            levels.append(feature)
        return levels

    def output(self, feature: torch.Tensor) -> torch.Tensor:
        """Logits (B, out_channels, *S) of the last level's feature."""
        return self.classes(self.dropout(feature))


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


def _initialise(network: nn.Module) -> None:
    """He initialisation of the convolutions; Mamba keeps its own."""
    for module in network.modules():
        if isinstance(module, (nn.Conv2d, nn.Conv3d)):
            nn.init.kaiming_normal_(module.weight, a=SLOPE)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
