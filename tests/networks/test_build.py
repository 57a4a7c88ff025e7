"""Networks by their dotted names."""

from __future__ import annotations

import pytest
import torch

from common.networks import VNet, build_network

NETWORKS = [
    ("common.networks.VNet", {"spatial_dims": 3, "base_filters": 4}),
    ("monai.networks.nets.SwinUNETR", {"feature_size": 12, "norm_name": "batch"}),
    ("monai.networks.nets.UNETR", {"img_size": 32, "hidden_size": 24, "mlp_dim": 24, "num_heads": 2}),
    ("monai.networks.nets.SegResNet", {"init_filters": 8}),
    ("monai.networks.nets.BasicUNet", {"features": (4, 4, 4, 4, 4, 4)}),
]


@pytest.mark.parametrize(("name", "arguments"), NETWORKS, ids=[name for name, _ in NETWORKS])
def test_dropout_reaches_the_network(name: str, arguments: dict[str, object]) -> None:
    network = build_network(name, dropout=0.25, in_channels=1, out_channels=3, **arguments)
    dropouts = [module.p for module in network.modules() if isinstance(module, torch.nn.modules.dropout._DropoutNd)]
    assert dropouts and set(dropouts) <= {0.0, 0.25} and 0.25 in dropouts
    with torch.no_grad():
        assert network.eval()(torch.rand(1, 1, 32, 32, 32)).shape == (1, 3, 32, 32, 32)


def test_a_network_without_dropout() -> None:
    with pytest.raises(ValueError, match=r"dropout: torch\.nn\.Linear has none of dropout"):
        build_network("torch.nn.Linear", dropout=0.1, in_features=1, out_features=1)
    assert isinstance(build_network("torch.nn.Linear", in_features=1, out_features=1), torch.nn.Linear)


def test_an_unknown_network() -> None:
    with pytest.raises(ValueError, match="there is no 'monai.networks.nets.SwinUnter'"):
        build_network("monai.networks.nets.SwinUnter")
    assert isinstance(build_network("common.networks.VNet", spatial_dims=2, in_channels=1, out_channels=2), VNet)
