"""Pruned decoders (Eqs. 7 and 8)."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.networks.nets import FlexibleUNet

from bundles.ambissl.scripts.method import AmbiSSL
from bundles.ambissl.scripts.pruning import PruningMasks, draw_layers, largest
from common.training.method import Progress

from .small import make_batch, small_network


def decoder_of(channels: tuple[int, ...] = (16, 8, 8, 4, 4)) -> torch.nn.Module:
    decoder: torch.nn.Module = FlexibleUNet(1, 1, "resnet10", decoder_channels=channels).decoder
    return decoder


@pytest.mark.parametrize("keep", [0.2, 0.5, 0.6])
def test_top_a_is_by_magnitude(keep: float) -> None:
    weight = torch.randn(4, 3, 5)
    mask = largest(weight, keep)
    assert int(mask.sum()) == round(keep * 60)
    assert weight[mask].abs().min() >= weight[~mask].abs().max()


def test_ties_do_not_keep_more() -> None:
    assert int(largest(torch.ones(10), 0.3).sum()) == 3


@pytest.mark.parametrize(("first", "tensors"), [(0, 14), (1, 11), (2, 8), (3, 5), (4, 2)])
def test_layers_from_l_on(first: int, tensors: int) -> None:
    """Three convolutions a block, two in the last."""
    masks = PruningMasks(decoder_of(), first)
    assert len(masks.names) == tensors
    assert all(int(name.split(".")[1]) >= first for name in masks.names)


def test_share_of_zeros_of_each_layer() -> None:
    decoder = decoder_of()
    masks = PruningMasks(decoder, 2)
    drawn = [True, False] * 4
    before = {name: weight.clone() for name, weight in decoder.named_parameters()}
    masks.prune(decoder, drawn, 0.5)
    for name, weight in decoder.named_parameters():
        chosen = name in masks.names and drawn[masks.names.index(name)]
        zeros = int((weight == 0).sum()) - int((before[name] == 0).sum())
        assert zeros == (weight.numel() - round(weight.numel() / 2) if chosen else 0), name


def test_layers_are_drawn_with_q_and_differ() -> None:
    draws = [draw_layers(8, 0.3, np.random.default_rng(seed)) for seed in range(300)]
    assert all(phi != xi and any(phi) and any(xi) for phi, xi in draws)
    share = np.mean([[*phi, *xi] for phi, xi in draws])
    assert 0.27 < share < 0.38  # above .3, as draws without a pruned layer are drawn again
    assert draws[5] == draw_layers(8, 0.3, np.random.default_rng(5))


def test_masked_forward_is_that_of_masked_weights_and_masks_the_gradient() -> None:
    decoder = decoder_of().eval()
    masks = PruningMasks(decoder, 2)
    masks.prune(decoder, [True] * 8, 0.5)
    features = [torch.randn(2, c, s, s) for c, s in zip((64, 64, 128, 256, 512), (32, 16, 8, 4, 2), strict=True)]
    expected = decoder(features, 4)
    torch.testing.assert_close(masks(decoder, features, 4), expected)
    weights = dict(decoder.named_parameters())
    with torch.no_grad():  # what a pruned weight were does not matter
        for name, mask in masks.masks().items():
            weights[name][~mask] = 5.0
    found = masks(decoder, features, 4)
    torch.testing.assert_close(found, expected)
    found.sum().backward()
    for name, mask in masks.masks().items():
        gradient = weights[name].grad
        assert gradient is not None and bool((gradient[~mask] == 0).all()) and bool((gradient[mask] != 0).any())


def trained(interval: int, hook: bool = True) -> AmbiSSL:
    """Twelve steps of Adam; ``hook``: with what follows each of them."""
    torch.manual_seed(0)
    method = AmbiSSL(small_network(), prune_interval=interval, bound_samples=2).train()
    optimizer = torch.optim.Adam(method.parameters(), lr=0.01)
    for iteration in range(12):
        optimizer.zero_grad()
        progress = Progress(iteration, 12)
        method.before_step(progress)
        method(make_batch((2, 0)), progress).total.backward()
        optimizer.step()
        if hook:
            method.after_step()
    return method


def test_what_a_redraw_prunes_stays_0_whatever_momentum_adam_has_for_it() -> None:
    """So what ships, without masks, is what has trained."""
    method = trained(5)
    for masks, decoder in ((method.phi_masks, method.network.decoder), (method.xi_masks, method.xi)):
        weights = dict(decoder.named_parameters())
        assert any(not bool(mask.all()) for mask in masks.masks().values())
        assert all(bool((weights[name][~mask] == 0).all()) for name, mask in masks.masks().items())
    features = method.eval().network.encode(torch.rand(1, 1, 64, 64))
    assert torch.equal(method.network.decode(features), method._phi(features))


def test_without_redraws_training_is_equal_to_the_bit() -> None:
    """Signs of zeros too."""
    found, expected = (dict(trained(0, hook).named_parameters()) for hook in (True, False))
    for name, weight in expected.items():
        assert torch.equal(found[name].view(torch.int32), weight.view(torch.int32)), name


def test_block_out_of_range_is_refused() -> None:
    with pytest.raises(ValueError, match="prune_from must be 0 to 4"):
        PruningMasks(decoder_of(), 5)
