from __future__ import annotations

import pytest
import torch

from bundles.multicure.scripts.network import MultiCURENet, WithDisagreement
from bundles.multicure.scripts.transforms import SplitDisagreementd


@pytest.mark.parametrize("output", ["both", "predictive", "auxiliary"])
def test_last_channel_is_the_distance_of_the_networks(output: str) -> None:
    torch.manual_seed(0)
    network = MultiCURENet(out_channels=3, base_filters=2, output=output).eval()
    image = torch.randn(2, 1, 16, 16, 16)
    with torch.no_grad():
        found, alone, branches = WithDisagreement(network)(image), network(image), network.branches(image)
    torch.testing.assert_close(found[:, :3], alone)
    first, second = branches.predictive.softmax(1), branches.auxiliary.softmax(1)
    by_hand = sum((first[:, c] - second[:, c]).abs() for c in range(3)) / 2
    torch.testing.assert_close(found[:, 3], by_hand)
    assert float(found[:, 3].min()) >= 0.0 and float(found[:, 3].max()) <= 1.0


def test_split_takes_the_channel_beyond_the_classes() -> None:
    pred = torch.arange(4.0).reshape(4, 1, 1, 1)
    found = SplitDisagreementd(3)({"pred": pred})
    assert found["pred"].flatten().tolist() == [0.0, 1.0, 2.0] and found["disagreement"].flatten().tolist() == [3.0]
    assert set(SplitDisagreementd(4)({"pred": pred})) == {"pred"}
