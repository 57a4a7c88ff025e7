from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from bundles.attenscribble.scripts.network import DROPOUT, AttentiveUNet
from common.networks.attention import SpatialSelfAttention, recorded_scores


def dropouts(network: nn.Module) -> list[float]:
    return [module.p for module in network.modules() if isinstance(module, nn.Dropout)]


def test_dropout_grows_along_the_encoder_and_is_nowhere_else() -> None:
    network = AttentiveUNet()
    assert dropouts(network) == list(DROPOUT)
    assert not dropouts(network.upcat_1) and not dropouts(network.upcat_4)
    assert dropouts(AttentiveUNet(dropout=0.3)) == [0.3] * 5


@pytest.mark.parametrize("level", [0, 1, 2, 3, 4])
@pytest.mark.parametrize("dims", [2, 3])
def test_attention_sits_behind_the_level(dims: int, level: int) -> None:
    network = AttentiveUNet(dims, 1, 3, filters=2, attention_level=level).eval()
    with recorded_scores(network) as scores:
        assert network(torch.zeros(1, 1, *[16] * dims)).shape == (1, 3, *[16] * dims)
    assert scores.shape == tuple([16 // 2**level] * dims)


def test_the_paper_s_place_is_64_channels_at_a_quarter_of_the_size() -> None:
    network = AttentiveUNet().eval()
    with recorded_scores(network) as scores:
        network(torch.zeros(1, 1, 64, 32))
    assert scores.queries.shape == (1, 1, 16 * 8, 64)


def test_without_attention_it_is_a_plain_network() -> None:
    network = AttentiveUNet(attention_level=None)
    assert not [module for module in network.modules() if isinstance(module, SpatialSelfAttention)]


def test_odd_sizes() -> None:
    assert AttentiveUNet(out_channels=4, filters=2).eval()(torch.zeros(1, 1, 27, 23)).shape == (1, 4, 27, 23)


@pytest.mark.parametrize("arguments", [{"attention_level": 5}, {"attention_level": -1}, {"dropout": [0.1, 0.2]}])
def test_impossible_settings_are_refused(arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(arguments))):
        AttentiveUNet(**arguments)
