"""Ensembles and mirror images, against the mean written out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from bundles.affinity_umamba.scripts.audit import BothDecoders
from bundles.ambissl.scripts.network import ProbabilisticUNet
from bundles.multicure.scripts.network import MultiCURENet, WithDisagreement
from common.evaluation.ensemble import Ensemble, load_networks
from common.evaluation.inferers import ProbabilityWindowInferer
from common.evaluation.sampling import SampleWindowInferer

IMAGE = torch.rand(2, 1, 6, 5, 4, generator=torch.Generator().manual_seed(1))


def network(seed: int) -> nn.Module:
    """One whose answer to a mirror image is not the mirror image of its answer."""
    torch.manual_seed(seed)
    return nn.Conv3d(1, 3, 3, padding=1)


def test_the_answer_is_the_mean_of_all_networks_and_mirror_images() -> None:
    networks = [network(0), network(1)]
    # axes 0 and 2 of the image are axes 2 and 4 of the batch
    by_hand = sum(
        each(IMAGE.flip(axes)).softmax(1).flip(axes) for each in networks for axes in ((), (2,), (4,), (2, 4))
    )
    with torch.no_grad():
        found = Ensemble(networks, [2, 0])(IMAGE)
    torch.testing.assert_close(found.exp(), by_hand / 8)
    torch.testing.assert_close(found.softmax(1), by_hand / 8)


def test_a_mirrored_answer_knows_no_side() -> None:
    both = Ensemble([network(0)], [1])
    torch.testing.assert_close(both(IMAGE.flip(3)), both(IMAGE).flip(3))
    assert not torch.allclose(network(0)(IMAGE.flip(3)).softmax(1), network(0)(IMAGE).flip(3).softmax(1), atol=1e-3)


def test_impossible_answers_stay_finite() -> None:
    class Certain(nn.Module):
        def forward(self, image: torch.Tensor) -> torch.Tensor:
            return torch.cat([image * 0 + 1e4, image * 0 - 1e4], 1)

    logits = Ensemble([Certain(), Certain()])(IMAGE)
    assert logits.isfinite().all() and torch.equal(logits.softmax(1)[:, 0], torch.ones_like(IMAGE[:, 0]))


def test_windows_take_an_ensemble() -> None:
    networks = [network(0), network(1)]
    found = ProbabilityWindowInferer((6, 5, 4))(IMAGE, Ensemble(networks))
    torch.testing.assert_close(found, sum(each(IMAGE).softmax(1) for each in networks) / 2)


def test_what_cannot_be_an_ensemble() -> None:
    for networks, axes in (([], []), ([network(0)], [1, 1])):
        with pytest.raises(ValueError, match="takes networks and different axes"):
            Ensemble(networks, axes)


def test_weights_of_one_network_are_that_network(tmp_path: Path) -> None:
    paths = []
    for seed in (0, 1):
        paths.append(tmp_path / f"{seed}.pt")
        torch.save(network(seed).state_dict(), paths[-1])
    plain = load_networks(network(5), str(paths[0]))
    assert isinstance(plain, nn.Conv3d)
    torch.testing.assert_close(plain.state_dict(), network(0).state_dict())
    assert isinstance(load_networks(network(5), [paths[0]]), nn.Conv3d)
    assert isinstance(load_networks(network(5), paths[0], [0]), Ensemble)
    both = load_networks(network(5), paths)
    torch.testing.assert_close(both(IMAGE), Ensemble([network(0), network(1)])(IMAGE))
    with pytest.raises(FileNotFoundError, match="no trained weights here"):
        load_networks(network(5), [*paths, tmp_path / "2.pt"])


class Rater(nn.Module):
    """Answers whose class 1 is as likely as the latent code says, and that know which network gave them."""

    latent_size = 2

    def __init__(self, bias: float) -> None:
        super().__init__()
        self.bias = bias

    def samples(self, image: torch.Tensor, latent: torch.Tensor) -> torch.Tensor:
        logits = (image * latent[:, :, 0, None, None] + self.bias)[:, :, None]
        return torch.cat([-logits, logits], 2)


def test_samples_are_shared_out_among_the_networks() -> None:
    image = torch.rand(1, 1, 3, 4)
    latent = torch.randn(1, 5, 2)
    raters = [Rater(0.0), Rater(3.0)]
    found = Ensemble(raters, [1]).samples(image, latent)
    assert found.shape == (1, 5, 2, 3, 4) and Ensemble(raters).latent_size == 2
    for j in range(5):
        torch.testing.assert_close(found[:, j].exp(), raters[j % 2].samples(image, latent[:, [j]])[:, 0].softmax(1))
    inferer = SampleWindowInferer((3, 4), samples=4)
    assert inferer(image, Ensemble(raters)).shape == (1, 8, 3, 4)


def test_ambissl_answers_to_both_calls() -> None:
    small: dict[str, Any] = {"backbone": "resnet10", "decoder_channels": (8, 8, 8, 8, 8), "prior_channels": (4, 8)}
    networks = [ProbabilisticUNet(**small).eval() for _ in range(2)]
    ensemble = Ensemble(networks, [0])
    image = torch.rand(1, 1, 32, 32)
    with torch.no_grad():
        assert ensemble(image).shape == (1, 2, 32, 32)
        assert ensemble.samples(image, torch.zeros(1, 3, ensemble.latent_size)).shape == (1, 3, 2, 32, 32)


def test_multicure_keeps_its_disagreement() -> None:
    torch.manual_seed(0)
    networks = [MultiCURENet(out_channels=3, base_filters=2).eval() for _ in range(2)]
    image = torch.randn(1, 1, 16, 16, 16)
    with torch.no_grad():
        found = WithDisagreement(Ensemble(networks))(image)
        alone = [WithDisagreement(each)(image) for each in networks]
    torch.testing.assert_close(found[:, :3].exp(), sum(each[:, :3].softmax(1) for each in alone) / 2)
    torch.testing.assert_close(found[:, 3], sum(each[:, 3] for each in alone) / 2)
    plain = WithDisagreement(Ensemble([network(0), network(1)]))
    torch.testing.assert_close(plain(IMAGE), Ensemble([network(0), network(1)])(IMAGE))


def test_both_decoders_of_an_ensemble_answer() -> None:
    class Two(nn.Module):
        def branches(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return torch.cat([image, -image], 1), torch.cat([2 * image, image], 1)

    alone = BothDecoders(Two())(IMAGE)  # type: ignore[arg-type]
    both = BothDecoders(Ensemble([Two(), Two()], [0]))(IMAGE)
    torch.testing.assert_close(both[:, :2].softmax(1), alone[:, :2].softmax(1))
    torch.testing.assert_close(both[:, 2:], alone[:, 2:])
    with pytest.raises(ValueError, match="two decoders, Conv3d has one"):
        BothDecoders(Ensemble([network(0)]))
