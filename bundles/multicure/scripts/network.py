"""The two networks of Karimijafarbigloo et al., MIDL 2024, as the one that ships, and the MultiCURE module."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from monai.networks.layers.factories import Conv, Norm, Pool
from monai.networks.nets.resnet import ResNetBlock
from torch import nn
from torch.nn import functional

from common.evaluation.ensemble import Ensemble, log_probability
from common.networks.vnet import VNet, VNetDecoder, check_size
from common.ops.deformable import DeformableConv
from common.settings import switch

BLOCKS = (3, 4, 6, 3)  # of ResNet-34, from 1/2 to 1/16 of the resolution
OUTPUTS = ("both", "predictive", "auxiliary")


class Branches(NamedTuple):
    """What training needs of both networks.

    Attributes:
        predictive: logits (B, C, *S).
        auxiliary: logits (B, C, *S).
        features: of the auxiliary network's decoder, at full, 1/2 and 1/4 resolution: (B, F, *S), (B, 2 F, *S / 2),
            (B, 4 F, *S / 4) with F base filters.
    """

    predictive: torch.Tensor
    auxiliary: torch.Tensor
    features: list[torch.Tensor]


class MultiCURENet(nn.Module):
    """Predictive V-Net and auxiliary ResNet-34 V-Net, which looks twice where the predictive network is unsure.

    Source: Karimijafarbigloo et al., "Reducing Uncertainty in 3D Medical Image Segmentation under Limited Annotations
    through Contrastive Learning", MIDL 2024, Fig. 1; the average of both is what the authors test.

    Args:
        spatial_dims: 2 or 3.
        in_channels: image channels.
        out_channels: classes, background included.
        base_filters: channels at full resolution, of both networks.
        dropout: probability to drop a channel, in [0, 1), in both networks.
        multicure: whether the auxiliary network has the MultiCURE module (Table 3).
        threshold: confidence below which a voxel of the predictive network is uncertain, in [0, 1].
        output: both averages the two networks; predictive or auxiliary is one of them alone. The auxiliary network's
            uncertainty map always comes from the predictive one.

    Shape:
        image (B, in_channels, H, W[, D]) to (B, out_channels, H, W[, D]): for both, the logarithm of the mean
        probability, so that argmax and softmax are those of the average; else the network's logits.

    Raises:
        ValueError: when a spatial size is no multiple of 16, or an argument is out of range.

    Example:
        >>> network = MultiCURENet(base_filters=4).eval()
        >>> network(torch.zeros(1, 1, 16, 16, 32)).softmax(1).shape
        torch.Size([1, 2, 16, 16, 32])
    """

    def __init__(
        self,
        spatial_dims: int = 3,
        in_channels: int = 1,
        out_channels: int = 2,
        base_filters: int = 16,
        dropout: float = 0.5,
        multicure: bool = True,
        threshold: float = 0.7,
        output: str = "both",
    ) -> None:
        super().__init__()
        if output not in OUTPUTS:
            raise ValueError(f"output must be one of {', '.join(OUTPUTS)}, got {output!r}.")
        if not 0.0 <= threshold <= 1.0:
            raise ValueError(f"threshold must be in [0, 1], got {threshold}.")
        self.spatial_dims = spatial_dims
        self.base_filters = base_filters
        self.threshold = threshold
        self.output = output
        self.predictive = VNet(spatial_dims, in_channels, out_channels, base_filters, dropout)
        multicure = switch(multicure, "multicure")
        self.auxiliary = ResNetVNet(spatial_dims, in_channels, out_channels, base_filters, dropout, multicure)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Logits (B, C, H, W, D) of an image (B, channels, H, W, D): the log mean probability, or one network's own."""
        predictive = self.predictive(image)
        if self.output == "predictive":
            return predictive
        auxiliary, _ = self.auxiliary(image, uncertainty_map(predictive, self.threshold))
        return auxiliary if self.output == "auxiliary" else mean_log_probability(predictive, auxiliary)

    def branches(self, image: torch.Tensor) -> Branches:
        """Logits of both networks and the auxiliary decoder's features, whatever ``output`` says."""
        predictive = self.predictive(image)
        return Branches(predictive, *self.auxiliary(image, uncertainty_map(predictive, self.threshold)))


class WithDisagreement(nn.Module):
    """The network's output with one more channel: how far its two halves are apart.

    Args:
        network: trained, or an ensemble, of which both are the means; the output of networks without two halves, such
            as a baseline's V-Net, stays as it is.

    Shape:
        image (B, in_channels, *S) to (B, out_channels + 1, *S): the network's logits and, last, half the L1 distance of
        the two softmaxes, 0 where they agree to 1 where each is sure of another class.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Logits with the disagreement as one channel more, (B, C + 1, *S); of another network its logits alone."""
        if isinstance(self.network, Ensemble) and isinstance(self.network.networks[0], MultiCURENet):
            maps = self.network.mean(image, _probabilities_and_disagreement)
            return torch.cat([log_probability(maps[:, :-1]), maps[:, -1:]], 1)
        if not isinstance(self.network, MultiCURENet):
            return self.network(image)
        return _logits_and_disagreement(self.network, image)


def _logits_and_disagreement(network: MultiCURENet, image: torch.Tensor) -> torch.Tensor:
    outputs = network.branches(image)
    first, second = (logits.float().softmax(1) for logits in (outputs.predictive, outputs.auxiliary))
    alone = {"predictive": outputs.predictive, "auxiliary": outputs.auxiliary}
    logits = alone.get(network.output, mean_log_probability(outputs.predictive, outputs.auxiliary))
    return torch.cat([logits, 0.5 * (first - second).abs().sum(1, keepdim=True)], 1)


def _probabilities_and_disagreement(network: nn.Module, image: torch.Tensor) -> torch.Tensor:
    maps = _logits_and_disagreement(network, image)  # type: ignore[arg-type]
    return torch.cat([maps[:, :-1].float().softmax(1), maps[:, -1:].float()], 1)


class ResNetVNet(VNetDecoder):
    """The auxiliary network: the encoder of ResNet-34, the decoder of the V-Net.

    The stem (kernel 7) keeps full resolution, so that the decoder has a skip connection there; after the pooling come
    ResNet-34's 3-4-6-3 blocks at half its usual width, 32 to 256 channels for 16 base filters. Where the width changes
    a 1x1x1 convolution stands in the shortcut. With 1 input channel, 2 classes and no MultiCURE module it has
    17,930,354 parameters.

    Args:
        spatial_dims: 2 or 3.
        in_channels: image channels.
        out_channels: classes, background included.
        base_filters: channels at full resolution.
        dropout: probability to drop a channel, in [0, 1), after the bottleneck and before the output convolution.
        multicure: whether the decoder's feature at half resolution passes a :class:`MultiCUREModule`.

    Shape:
        image (B, in_channels, *S), uncertainty (B, 1, *S) or None for none, to logits (B, out_channels, *S) and the
        decoder's features at full, 1/2 and 1/4 resolution.

    Raises:
        ValueError: when a spatial size is no multiple of 16.
    """

    def __init__(
        self,
        spatial_dims: int = 3,
        in_channels: int = 1,
        out_channels: int = 2,
        base_filters: int = 16,
        dropout: float = 0.5,
        multicure: bool = True,
    ) -> None:
        super().__init__()
        filters = [base_filters * 2**i for i in range(len(BLOCKS) + 1)]
        self.stem = nn.Sequential(
            Conv[Conv.CONV, spatial_dims](in_channels, filters[0], 7, padding=3, bias=False),
            Norm[Norm.BATCH, spatial_dims](filters[0]),
            nn.ReLU(inplace=True),
        )
        self.pool = Pool[Pool.MAX, spatial_dims](kernel_size=3, stride=2, padding=1)
        self.layers = nn.ModuleList(
            _layer(spatial_dims, filters[i], filters[i + 1], blocks, stride=1 if i == 0 else 2)
            for i, blocks in enumerate(BLOCKS)
        )
        self._add_decoder(spatial_dims, filters, out_channels, dropout)
        self._settle(spatial_dims)
        # last, because it initialises itself: its offsets start at zero
        self.refine = MultiCUREModule(spatial_dims, filters[1]) if multicure else None

    def forward(
        self, image: torch.Tensor, uncertainty: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Logits (B, C, *S) and the decoder's features, from full resolution down; ``uncertainty`` is (B, 1, *S)."""
        if not torch.jit.is_tracing():
            check_size(image)
        skips = [self.stem(image)]
        feature = self.pool(skips[0])
        for layer in self.layers:
            feature = layer(feature)
            skips.append(feature)
        _, quarter, half = self.decode(self.dropout(skips.pop()), skips, last=3)
        if self.refine is not None:
            half = self.refine(half, torch.zeros_like(image[:, :1]) if uncertainty is None else uncertainty)
        (full,) = self.decode(half, skips, first=3)
        return self.output(self.dropout(full)), [full, half, quarter]


class MultiCUREModule(nn.Module):
    """Multi-branch contextual uncertainty reduction: three receptive fields, weighed by soft attention.

    Source: Karimijafarbigloo et al., MIDL 2024, Sec. 2.1 and Fig. 2. u_1: convolution of kernel 3; u_2: receptive field
    5, as kernel 3 with dilation 2; both in 16 groups with batch normalisation and ReLU; u_3: deformable convolution of
    kernel 3 plus the uncertainty map, pooled to the feature's resolution. The attention (K_1, K_2, K_3) is a softmax
    over the branches for every channel; z' = u_1 K_1 + u_2 K_2 + u_3 K_3.

    Args:
        spatial_dims: 2 or 3.
        channels: of the feature.

    Shape:
        feature (B, channels, *S / 2), uncertainty (B, 1, *S) to (B, channels, *S / 2).

    Raises:
        ValueError: in training with a single image, which has no statistics to normalise the attention by.
    """

    def __init__(self, spatial_dims: int, channels: int) -> None:
        super().__init__()
        convolution = Conv[Conv.CONV, spatial_dims]
        self.plain = nn.ModuleList(
            nn.Sequential(
                convolution(
                    channels,
                    channels,
                    3,
                    padding=dilation,
                    dilation=dilation,
                    groups=math.gcd(16, channels),
                    bias=False,
                ),
                Norm[Norm.BATCH, spatial_dims](channels),
                nn.ReLU(inplace=True),
            )
            for dilation in (1, 2)
        )
        self.deformable = DeformableConv(spatial_dims, channels, channels)
        self.pool = Pool[Pool.MAX, spatial_dims](kernel_size=3, stride=2, padding=1)
        squeezed = max(channels // 16, 32)
        self.fuse = nn.Linear(3 * channels, channels)
        self.squeeze = nn.Sequential(
            nn.Linear(channels, squeezed, bias=False), nn.BatchNorm1d(squeezed), nn.ReLU(inplace=True)
        )
        self.heads = nn.ModuleList(nn.Linear(squeezed, channels) for _ in range(3))

    def forward(self, feature: torch.Tensor, uncertainty: torch.Tensor) -> torch.Tensor:
        """The refined feature, of the size of ``feature``."""
        if self.training and feature.shape[0] == 1 and torch.is_grad_enabled():
            raise ValueError("The MultiCURE module needs at least two images in a training batch, got 1.")
        if not torch.jit.is_scripting():
            # MONAI Label's scoring has dropout on, one image and no gradient: normalised by what training gathered
            self.squeeze.train(self.training and feature.shape[0] > 1)
        branches = [branch(feature) for branch in self.plain]
        branches.append(self.deformable(feature) + self.pool(uncertainty.to(feature.dtype)))
        # the 1x1x1 convolution of the concatenated branches, after the global mean: both are linear, and one vector
        # costs less than a volume
        means = torch.cat([branch.flatten(2).mean(2) for branch in branches], 1)
        squeezed = self.squeeze(self.fuse(means))
        weights = torch.stack([head(squeezed) for head in self.heads]).softmax(0)
        weights = weights.reshape(list(weights.shape) + [1] * (feature.dim() - 2))
        return branches[0] * weights[0] + branches[1] * weights[1] + branches[2] * weights[2]


class DeepFeatures(nn.Module):
    """One vector per voxel from decoder features of several resolutions, f_{l:L} of Eq. 4.

    Upsampled to full resolution, concatenated (112 channels for 16 base filters) and brought to ``out_channels`` by a
    1x1x1 convolution. As that commutes with the linear upsampling it comes first, each level's share by itself: the
    112 channels are never held at full resolution.

    Args:
        spatial_dims: 2 or 3.
        in_channels: of the features, from full resolution down, each level at half the one before.
        out_channels: length of a voxel's vector.

    Shape:
        features (B, in_channels[i], *S / 2^i) to (B, out_channels, *S).

    Example:
        >>> DeepFeatures(2, (4, 8), 6)([torch.zeros(1, 4, 8, 8), torch.zeros(1, 8, 4, 4)]).shape
        torch.Size([1, 6, 8, 8])
    """

    def __init__(self, spatial_dims: int, in_channels: tuple[int, ...], out_channels: int = 16) -> None:
        super().__init__()
        self.mode = "trilinear" if spatial_dims == 3 else "bilinear"
        self.levels = nn.ModuleList(
            Conv[Conv.CONV, spatial_dims](channels, out_channels, 1, bias=level == 0)
            for level, channels in enumerate(in_channels)
        )

    def forward(self, features: list[torch.Tensor]) -> torch.Tensor:
        """Logits (B, C, H, W, D) of the features of all levels."""
        size = features[0].shape[2:]
        total = self.levels[0](features[0])
        for level, feature in zip(self.levels[1:], features[1:], strict=True):
            total = total + functional.interpolate(level(feature), size=size, mode=self.mode)
        return total


def uncertainty_map(logits: torch.Tensor, threshold: float = 0.7) -> torch.Tensor:
    """1 where a network is unsure, 0 elsewhere (Sec. 2.1); no gradient.

    Args:
        logits: (B, C, *S).
        threshold: probability of the likeliest class below which a voxel is uncertain.

    Returns:
        (B, 1, *S), 0 or 1, float32.

    Example:
        >>> uncertainty_map(torch.tensor([[[0.0, 3.0]], [[0.5, 0.0]]]).transpose(0, 1))
        tensor([[[1., 0.]]])
    """
    return (logits.detach().float().softmax(1).amax(1, keepdim=True) < threshold).float()


def mean_log_probability(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Logarithm of the mean of two softmaxes; it serves as logits of the average.

    Args:
        first: logits (B, C, *S).
        second: logits (B, C, *S).

    Returns:
        (B, C, *S), at most 0, in float32.

    Example:
        >>> sure, unsure = torch.tensor([[50.0, -50.0]]), torch.tensor([[0.0, 0.0]])
        >>> mean_log_probability(sure, unsure).softmax(1)
        tensor([[0.7500, 0.2500]])
    """
    return torch.logaddexp(first.float().log_softmax(1), second.float().log_softmax(1)) - math.log(2.0)


def _layer(spatial_dims: int, in_channels: int, out_channels: int, blocks: int, stride: int) -> nn.Sequential:
    """Blocks of MONAI's ResNet; the first changes the width, and the resolution by its stride."""
    projection = nn.Sequential(
        Conv[Conv.CONV, spatial_dims](in_channels, out_channels, 1, stride=stride, bias=False),
        Norm[Norm.BATCH, spatial_dims](out_channels),
    )
    first = ResNetBlock(in_channels, out_channels, spatial_dims, stride, projection)
    return nn.Sequential(first, *(ResNetBlock(out_channels, out_channels, spatial_dims) for _ in range(1, blocks)))
