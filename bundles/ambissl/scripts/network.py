"""The network that ships: U-Net, prior and a head that turns a latent code into an answer."""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Sequence

import torch
from monai.networks.layers.factories import Conv, Pool
from monai.networks.nets import FlexibleUNet
from torch import nn
from torch.nn import functional

from common.networks.layout import channels_last
from common.training.runs import load_weights

from .head import Head
from .latents import FAMILIES, sample_latent

_CONVOLUTIONS = 3  # of a block of the latent encoders


class LatentEncoder(nn.Module):
    """Distribution of the latent code of an image: the prior, or with masks beside the image the posterior (Eq. 1).

    Blocks of three 3x3 convolutions with ReLU and average pooling between the blocks, mean over space, a 1x1
    convolution to mean and log scale. Source: Kohl et al., A probabilistic U-Net, NeurIPS 2018.

    Args:
        spatial_dims: 2 or 3.
        in_channels: channels of image and masks.
        channels: of each block.
        latent_size: D.

    Shape:
        (B, in_channels, H, W[, D]) of any size to mean and log scale (B, latent_size), float32.
    """

    def __init__(self, spatial_dims: int, in_channels: int, channels: Sequence[int], latent_size: int) -> None:
        super().__init__()
        self.channels = tuple(channels)
        convolution = Conv[Conv.CONV, spatial_dims]
        layers: list[nn.Module] = []
        before = in_channels
        for level, width in enumerate(channels):
            if level > 0:
                layers.append(Pool[Pool.AVG, spatial_dims](2, stride=2, ceil_mode=True))
            for _ in range(_CONVOLUTIONS):
                layers += [convolution(before, width, 3, padding=1), nn.ReLU()]
                before = width
        self.blocks = nn.Sequential(*layers)
        self.output = nn.Linear(before, 2 * latent_size)
        for module in self.modules():
            if isinstance(module, convolution | nn.Linear):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                nn.init.trunc_normal_(module.bias, std=0.001)

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and log scale of the latent code."""
        pooled = self.blocks(image).float().flatten(2).mean(2)
        # autocast would make a linear layer of half precision: products of such few numbers are as fast written out
        answer = (pooled.unsqueeze(1) * self.output.weight).sum(2) + self.output.bias
        mean, log_scale = answer.chunk(2, dim=1)
        # exp of more overflows, the known NaN of this family of networks
        return mean, log_scale.clamp(-10.0, 10.0)


class ProbabilisticUNet(nn.Module):
    """Answers with a set of segmentations: one for each latent code.

    Encoder and decoder of MONAI's FlexibleUNet, a prior encoder and a head. ``forward(image)`` gives the logits of the
    mean answer: the logarithm of the mean probability over ``mean_samples`` fixed, evenly spread latent codes. The
    answer at the prior's mean code would be one rater's more than the mean of all: what few raters draw is missing
    from it altogether.

    Source: Sec. 3.1 of Kumari and Singh, AmbiSSL, CVPR 2025; Kohl et al., NeurIPS 2018.

    Args:
        spatial_dims: 2 or 3.
        in_channels: image channels.
        out_channels: classes, background included, at least 2.
        backbone: resnet10, resnet18, resnet34, resnet50 or an EfficientNet, as FlexibleUNet names them.
        decoder_channels: of the five decoder blocks, the deepest first.
        latent_size: D.
        prior_channels: of the prior encoder's blocks.
        head_channels: width of the head's hidden layers.
        mean_samples: latent codes of the mean answer; 0: the prior's mean alone.
        family: normal or laplace, of latent codes at inference.
        dropout: probability to drop a value in the decoder.

    Shape:
        image (B, in_channels, H, W[, D]) of any size, latent (B, D) in standard-normal units or none, to logits
        (B, out_channels, H, W[, D]).

    Raises:
        ValueError: when an argument is outside its range.

    Example:
        >>> network = ProbabilisticUNet(backbone="resnet10", decoder_channels=(32, 16, 16, 8, 8)).eval()
        >>> network(torch.zeros(1, 1, 40, 50)).shape, network(torch.zeros(1, 1, 40, 50), torch.zeros(1, 6)).shape
        (torch.Size([1, 2, 40, 50]), torch.Size([1, 2, 40, 50]))
    """

    def __init__(
        self,
        spatial_dims: int = 2,
        in_channels: int = 1,
        out_channels: int = 2,
        backbone: str = "resnet34",
        decoder_channels: Sequence[int] = (256, 128, 64, 32, 16),
        latent_size: int = 6,
        prior_channels: Sequence[int] = (32, 64, 128, 192),
        head_channels: int = 32,
        mean_samples: int = 15,
        family: str = "normal",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if out_channels < 2:
            raise ValueError(f"out_channels counts the background too, at least 2, got {out_channels}.")
        if latent_size < 1 or mean_samples < 0:
            raise ValueError(
                f"latent_size must be at least 1 and mean_samples at least 0, got {latent_size} and {mean_samples}."
            )
        if family not in FAMILIES:
            raise ValueError(f"family must be one of {', '.join(FAMILIES)}, got {family!r}.")
        self.arguments = {name: value for name, value in locals().items() if name not in ("self", "__class__")}
        unet = FlexibleUNet(
            in_channels,
            out_channels,
            backbone,
            decoder_channels=tuple(decoder_channels),
            spatial_dims=spatial_dims,
            dropout=dropout,
        )
        self.spatial_dims, self.in_channels, self.out_channels = spatial_dims, in_channels, out_channels
        self.latent_size, self.laplace = latent_size, family == "laplace"
        self.encoder, self.decoder, self.skips = unet.encoder, unet.decoder, unet.skip_connect
        _replace_shortcuts(self.encoder)
        self.head = Head(spatial_dims, decoder_channels[-1], latent_size, head_channels, out_channels)
        self.prior = LatentEncoder(spatial_dims, in_channels, prior_channels, latent_size)
        channels_last(self, spatial_dims)
        self.mean_noise: torch.Tensor
        self.register_buffer("mean_noise", _spread_noise(mean_samples, latent_size), persistent=False)

    def forward(self, image: torch.Tensor, latent: torch.Tensor | None = None) -> torch.Tensor:
        """Logits of the mean answer, or of one latent code an image."""
        if latent is not None:
            return self.samples(image, latent.unsqueeze(1))[:, 0]
        noise = self.mean_noise.unsqueeze(0).expand(image.shape[0], -1, -1)
        logits = self.samples(image, noise).float()
        return torch.logsumexp(logits.log_softmax(2), 1) - math.log(noise.shape[1])

    def samples(self, image: torch.Tensor, latent: torch.Tensor) -> torch.Tensor:
        """Answers for several latent codes; the backbone runs once.

        Args:
            image: (B, in_channels, H, W[, D]).
            latent: (B, n, D), in standard-normal units.

        Returns:
            logits (B, n, out_channels, H, W[, D]).
        """
        mean, log_scale = self.prior(image)
        codes = sample_latent(mean, log_scale, latent, self.laplace)
        return crop(self.head(self.decode(self.encode(image)), codes), image)

    def encode(self, image: torch.Tensor) -> list[torch.Tensor]:
        """Features of every level, of the image padded to whole strides of the backbone, at least two."""
        padding: list[int] = []
        for axis in range(image.ndim - 1, 1, -1):
            size = image.shape[axis]
            # 32 is the stride of the deepest features; one voxel of them alone has no batch statistics: it becomes two
            # by a term that is 1 for 1 and else 0, for an exported graph keeps sums, but not a max of sizes
            steps = (size + 31) // 32
            padding += [0, 32 * (steps + 1 // steps) - size]
        features: list[torch.Tensor] = self.encoder(functional.pad(image, padding))
        return features

    def fresh(self) -> ProbabilisticUNet:
        """Another network of the same make with random weights of its own."""
        return type(self)(**self.arguments)

    def decode(self, features: list[torch.Tensor]) -> torch.Tensor:
        """Features (B, channels, padded size) of the decoder."""
        decoded: torch.Tensor = self.decoder(features, self.skips)
        return decoded


class PaddedShortcut(nn.Module):
    """ResNet's shortcut without parameters: every ``stride``-th voxel, and zeros for the further channels.

    MONAI's own is a function that TorchScript cannot compile, and that passes no gradient.

    Args:
        spatial_dims: 2 or 3.
        planes: channels that come out.
        stride: along each axis.
    """

    def __init__(self, spatial_dims: int, planes: int, stride: int) -> None:
        super().__init__()
        self.planes = planes
        self.pool = Pool[Pool.AVG, spatial_dims](1, stride=stride)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """(B, channels, *S) to (B, planes, *S / stride)."""
        kept = self.pool(features)
        size = [kept.shape[0], self.planes - kept.shape[1]] + list(kept.shape[2:])
        return torch.cat((kept, torch.zeros(size, dtype=kept.dtype, device=kept.device)), 1)


def _replace_shortcuts(encoder: nn.Module) -> None:
    for module in encoder.modules():
        shortcut = getattr(module, "downsample", None)
        if isinstance(shortcut, functools.partial):
            arguments = shortcut.keywords
            module.downsample = PaddedShortcut(arguments["spatial_dims"], arguments["planes"], arguments["stride"])


def with_backbone(
    network: ProbabilisticUNet, path: str | os.PathLike[str] | None, device: torch.device
) -> ProbabilisticUNet:
    """The network on its device, its encoder's weights from a file.

    Args:
        network: on the CPU.
        path: state dict of the encoder, such as a MONAI ``ResNetEncoder``'s; None: random weights.
        device: where to put it.

    Raises:
        FileNotFoundError: when there is no such file.
        ValueError: when its weights are of another encoder.
    """
    if path is not None:
        load_weights(network.encoder, path)
    return network.to(device)


def crop(values: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
    """Cut the padding of (..., padded size) to the image's size."""
    for axis in range(2, image.ndim):
        values = values.narrow(axis - image.ndim, 0, image.shape[axis])
    return values


def _spread_noise(count: int, size: int) -> torch.Tensor:
    """Latent codes (count, size) in standard-normal units that cover the distribution evenly: Sobol points' quantiles.

    The first of them is zero, the mean.
    """
    points = torch.quasirandom.SobolEngine(size).fast_forward(1).draw(max(count, 1))
    return torch.special.ndtri(points.double()).float()
