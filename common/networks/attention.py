"""Spatial self-attention that can be put behind any layer of any convolutional network."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from monai.networks.layers.factories import Conv
from torch import nn
from torch.nn import functional

from ..ops.autocast import no_autocast


class SpatialSelfAttention(nn.Module):
    """Transformer layers over the positions of a feature map, which they replace by one of the same shape.

    A layer is, with pre-normalisation and skip connections, self-attention over all positions and a perceptron with a
    depth-wise 3 x 3 [x 3] convolution inside; a last LayerNorm ends the block. Positions are not encoded: the
    convolutions around it tell them.

    Source: Sec. 2.3 of Tian et al., AttenScribble, arXiv 2312.06614.

    Args:
        spatial_dims: 2 or 3.
        channels: of the feature map.
        heads: attention heads a layer.
        layers: number of layers.
        mlp_ratio: width of the perceptron in units of ``channels``.

    Shape:
        (B, channels, H, W[, D]) to the same.

    Raises:
        ValueError: when the channels cannot be shared out among the heads.

    Example:
        >>> SpatialSelfAttention(2, channels=8, heads=2)(torch.zeros(1, 8, 4, 6)).shape
        torch.Size([1, 8, 4, 6])
    """

    def __init__(self, spatial_dims: int, channels: int, heads: int = 1, layers: int = 1, mlp_ratio: int = 4) -> None:
        super().__init__()
        if channels % heads != 0:
            raise ValueError(f"{channels} channels cannot be shared out among {heads} heads.")
        self.heads, self.depth = heads, layers
        self.layers = nn.ModuleList(_Layer(spatial_dims, channels, heads, mlp_ratio) for _ in range(layers))
        self.norm = nn.LayerNorm(channels)
        for module in self.modules():
            if isinstance(module, nn.Linear):  # as transformers are; the block starts close to its skip connections
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def forward(self, feature: torch.Tensor) -> torch.Tensor:
        """Feature (B, C, H, W[, D]) after all layers, of the same size."""
        tokens = feature.flatten(2).transpose(1, 2)
        for layer in self.layers:
            tokens = layer(tokens, feature.shape[2:])
        return self.norm(tokens).transpose(1, 2).reshape(feature.shape)


class _Layer(nn.Module):
    def __init__(self, spatial_dims: int, channels: int, heads: int, mlp_ratio: int) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(channels)
        self.project = _QueriesKeysValues(channels, heads)
        self.join = nn.Linear(channels, channels)
        self.mlp_norm = nn.LayerNorm(channels)
        width = mlp_ratio * channels
        self.widen = nn.Linear(channels, width)
        self.mix = Conv[Conv.CONV, spatial_dims](width, width, 3, padding=1, groups=width)
        self.narrow = nn.Linear(width, channels)

    def forward(self, tokens: torch.Tensor, shape: list[int]) -> torch.Tensor:
        queries, keys, values = self.project(self.attention_norm(tokens))
        attended = functional.scaled_dot_product_attention(queries, keys, values)
        tokens = tokens + self.join(attended.transpose(1, 2).flatten(2))
        wide = self.widen(self.mlp_norm(tokens)).transpose(1, 2)
        mixed = self.mix(wide.unflatten(-1, shape)).flatten(2).transpose(1, 2)
        return tokens + self.narrow(functional.gelu(mixed))


class _QueriesKeysValues(nn.Module):
    """Tokens (B, N, channels) to queries, keys and values, each (B, heads, N, channels / heads)."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.linear = nn.Linear(channels, 3 * channels)

    def forward(self, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        linear = self.linear(tokens) if torch.jit.is_scripting() else self._precise(tokens)
        projected = linear.unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return projected[0], projected[1], projected[2]

    @torch.jit.unused
    def _precise(self, tokens: torch.Tensor) -> torch.Tensor:
        """In the weights' precision under autocast too: a loss on queries and keys is off by 6% in bfloat16."""
        with no_autocast(tokens):
            return self.linear(tokens.to(self.linear.weight.dtype))


@dataclass
class AttentionScores:
    """What an attention block formed its scores from, each (B, heads x layers, N, channels / heads).

    Attributes:
        queries: of every head and layer.
        keys: of every head and layer.
        shape: spatial sizes of the feature map; N is their product.
    """

    queries: torch.Tensor = field(default_factory=lambda: torch.empty(0))
    keys: torch.Tensor = field(default_factory=lambda: torch.empty(0))
    shape: tuple[int, ...] = ()


def attach(network: nn.Module, layer: str, block: nn.Module) -> None:
    """Put a block behind a layer of a network: what the layer gives goes through the block first.

    Args:
        network: any network.
        layer: name of a submodule, such as ``down_2`` of MONAI's BasicUNet or ``encoder.2`` of the V-Net.
        block: maps the layer's output to one of the same shape.

    Raises:
        ValueError: when the network has no such layer.
    """
    try:
        inner = network.get_submodule(layer)
    except AttributeError as error:
        names = ", ".join(name for name, _ in network.named_children())
        raise ValueError(f"The network has no layer {layer!r}; it has {names}.") from error
    network.set_submodule(layer, nn.Sequential(inner, block))


@contextmanager
def recorded_scores(network: nn.Module) -> Iterator[AttentionScores]:
    """Record queries and keys of the network's attention block during the forward pass inside the ``with``.

    Args:
        network: holds one :class:`SpatialSelfAttention`.

    Raises:
        ValueError: when it holds none, or several.
    """
    blocks = [module for module in network.modules() if isinstance(module, SpatialSelfAttention)]
    if len(blocks) != 1:
        raise ValueError(f"The network must hold one attention block, it holds {len(blocks)}.")
    scores = AttentionScores()
    pairs: list[tuple[torch.Tensor, torch.Tensor]] = []

    def finish(module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        scores.queries = torch.cat([queries for queries, _ in pairs], dim=1)
        scores.keys = torch.cat([keys for _, keys in pairs], dim=1)
        scores.shape = tuple(inputs[0].shape[2:])

    hooks = [blocks[0].register_forward_hook(finish)]
    for module in blocks[0].modules():
        if isinstance(module, _QueriesKeysValues):
            hooks.append(module.register_forward_hook(lambda m, i, output: pairs.append(output[:2])))
    try:
        yield scores
    finally:
        for hook in hooks:
            hook.remove()
