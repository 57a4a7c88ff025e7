"""The audit's suspicion: both decoders of the network that was trained, window by window."""

from __future__ import annotations

import pytest
import torch

from bundles.affinity_umamba.scripts.audit import BothDecoders, suspicion_by
from bundles.affinity_umamba.scripts.losses import suspicious_voxels
from bundles.affinity_umamba.scripts.network import AffinityUMamba, UMamba
from common.evaluation.inferers import ProbabilityWindowInferer


def test_maps_are_both_decoders_and_suspicion_is_that_of_training() -> None:
    torch.manual_seed(0)
    network = AffinityUMamba(3, 1, 4, filters=(4, 8)).eval()
    image, label = torch.randn(1, 1, 8, 8, 6), torch.zeros(1, 1, 8, 8, 6, dtype=torch.long)
    with torch.no_grad():
        maps = ProbabilityWindowInferer((8, 8, 6), num_classes=4)(image, BothDecoders(network))
        cnn, am = (logits.softmax(1) for logits in network.branches(image))
    torch.testing.assert_close(maps, torch.cat([am, cnn], 1))
    found = suspicion_by("local_affinity")(maps[0].numpy(), label[0, 0].numpy().astype("uint8"))
    assert found.min() >= 0.0 and found.max() <= 1.0
    noisy = suspicious_voxels([cnn, am], label, "union", False, "label")[0, 0]
    assert noisy.any() and torch.equal(torch.from_numpy(found) > 0.5, noisy)
    plain = suspicion_by("probability")(maps[0].numpy(), label[0, 0].numpy().astype("uint8"))
    torch.testing.assert_close(torch.from_numpy(plain), 1 - am[0, 0])


def test_an_unknown_suspicion_is_refused() -> None:
    with pytest.raises(ValueError, match="probability, local_affinity, got 'noise'"):
        suspicion_by("noise")


def test_a_network_with_one_decoder_is_refused() -> None:
    with pytest.raises(ValueError, match="two decoders, UMamba has one"):
        BothDecoders(UMamba(3, 1, 4, filters=(4, 8)))  # type: ignore[arg-type]
