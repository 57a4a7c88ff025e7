"""Weights in channels-last order."""

from __future__ import annotations

import copy

import pytest
import torch
from monai.networks.nets import BasicUNet

from common.networks.layout import channels_last


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_features_follow_the_weights_and_no_value_changes(spatial_dims: int) -> None:
    torch.manual_seed(0)
    network = BasicUNet(spatial_dims, 1, 2, features=(4, 4, 8, 8, 8, 4), norm="batch").eval()
    ordered = copy.deepcopy(network)
    channels_last(ordered, spatial_dims)
    layout = torch.channels_last_3d if spatial_dims == 3 else torch.channels_last
    image = torch.rand(2, 1, *[32] * spatial_dims)
    found, expected = ordered.conv_0(image), network.conv_0(image)
    assert found.is_contiguous(memory_format=layout) and not expected.is_contiguous(memory_format=layout)
    torch.testing.assert_close(ordered(image), network(image), rtol=1e-4, atol=1e-5)
