from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from monai.networks.nets import BasicUNet
from torch import nn

from common.networks import VNet
from common.networks.attention import SpatialSelfAttention, attach, recorded_scores


@pytest.mark.parametrize(("shape", "heads", "layers"), [((3, 5), 1, 1), ((4, 2), 2, 3), ((2, 3, 4), 4, 1)])
def test_keeps_the_shape(shape: tuple[int, ...], heads: int, layers: int) -> None:
    block = SpatialSelfAttention(len(shape), 8, heads, layers)
    assert block(torch.randn(2, 8, *shape)).shape == (2, 8, *shape)


def test_equals_attention_written_out() -> None:
    """One head, one layer, on 2 x 3 positions: every step of Sec. 2.3 with plain loops and matrices."""
    torch.manual_seed(0)
    block, feature = SpatialSelfAttention(2, 4), torch.randn(1, 4, 2, 3)
    layer: Any = block.layers[0]
    x = torch.stack([feature[0, :, i, j] for i in range(2) for j in range(3)])
    projected = layer.project.linear(layer.attention_norm(x))
    q, k, v = projected[:, :4], projected[:, 4:8], projected[:, 8:]
    rows = []
    for p in range(6):
        weights = torch.stack([(q[p] @ k[other]) / math.sqrt(4) for other in range(6)]).exp()
        rows.append(sum(w * v[other] for other, w in enumerate(weights / weights.sum())))
    x = x + layer.join(torch.stack(rows))
    wide = layer.widen(layer.mlp_norm(x)).T.reshape(1, 16, 2, 3)
    mixed = torch.nn.functional.gelu(layer.mix(wide)[0].reshape(16, 6).T)
    expected = block.norm(x + layer.narrow(mixed)).T.reshape(1, 4, 2, 3)
    torch.testing.assert_close(block(feature), expected)


def test_scores_are_those_of_every_head_and_layer() -> None:
    torch.manual_seed(0)
    block = SpatialSelfAttention(2, 8, heads=2, layers=3)
    network = nn.Sequential(nn.Conv2d(1, 8, 1), block)
    image = torch.randn(2, 1, 3, 4)
    with recorded_scores(network) as scores:
        network(image)
    assert scores.shape == (3, 4)
    assert scores.queries.shape == scores.keys.shape == (2, 6, 12, 4)
    tokens = network[0](image).flatten(2).transpose(1, 2)
    first: Any = block.layers[0]
    queries = first.project.linear(first.attention_norm(tokens))[..., :8]
    torch.testing.assert_close(scores.queries[:, 0], queries[..., :4])
    torch.testing.assert_close(scores.queries[:, 1], queries[..., 4:])
    assert scores.keys.requires_grad
    with recorded_scores(network) as again:
        pass
    assert again.shape == () and not any(module._forward_hooks for module in network.modules())


@pytest.mark.parametrize("blocks", [0, 2])
def test_one_block_is_needed_to_record(blocks: int) -> None:
    network = nn.Sequential(*(SpatialSelfAttention(2, 4) for _ in range(blocks)))
    with pytest.raises(ValueError, match=f"it holds {blocks}"), recorded_scores(network):
        pass


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("level", range(4))
def test_behind_every_level_of_the_v_net(dims: int, level: int) -> None:
    network = VNet(dims, 1, 3, base_filters=4)
    attach(network, f"encoder.{level}", SpatialSelfAttention(dims, 4 * 2**level))
    image = torch.randn(2, 1, *[16] * dims)
    with recorded_scores(network) as scores:
        logits = network(image)
    assert logits.shape == (2, 3, *image.shape[2:]) and scores.shape == tuple([16 // 2**level] * dims)


@pytest.mark.parametrize("dims", [2, 3])
def test_behind_a_level_of_a_network_of_monai(dims: int) -> None:
    network = BasicUNet(dims, 1, 2, features=(4, 4, 8, 8, 8, 4))
    plain = network(torch.ones(2, 1, *[32] * dims))
    attach(network, "down_2", SpatialSelfAttention(dims, 8))
    logits = network(torch.ones(2, 1, *[32] * dims))
    assert logits.shape == plain.shape and not torch.allclose(logits, plain)


def test_unknown_layers_and_odd_heads_are_refused() -> None:
    with pytest.raises(ValueError, match="no layer 'encoder.7'"):
        attach(VNet(2, base_filters=4), "encoder.7", nn.Identity())
    with pytest.raises(ValueError, match="among 3 heads"):
        SpatialSelfAttention(2, 8, heads=3)
