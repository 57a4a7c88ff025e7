"""The V-Net of the semi-supervised literature: size, shapes, dropout, initialisation, export."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn

from common.networks.vnet import VNet


def small(spatial_dims: int, **arguments: float) -> VNet:
    options: dict[str, float] = {"in_channels": 1, "out_channels": 2, "base_filters": 4, **arguments}
    return VNet(spatial_dims=spatial_dims, **options)  # type: ignore[arg-type]


def convolutions(network: nn.Module, kernel: int) -> list[nn.Conv2d | nn.Conv3d]:
    found = [module for module in network.modules() if isinstance(module, (nn.Conv2d, nn.Conv3d))]
    return [module for module in found if module.kernel_size[0] == kernel]


def test_parameter_count_of_the_literature() -> None:
    assert sum(parameter.numel() for parameter in VNet().parameters()) == 9_448_866
    assert all(parameter.requires_grad for parameter in VNet(base_filters=2).parameters())


def test_each_further_class_or_channel_costs_only_its_own_weights() -> None:
    def count(in_channels: int, out_channels: int) -> int:
        network = VNet(in_channels=in_channels, out_channels=out_channels)
        return sum(parameter.numel() for parameter in network.parameters())

    assert count(1, 4) == 9_448_866 + 2 * (16 + 1)
    assert count(3, 2) == 9_448_866 + 2 * 27 * 16


@pytest.mark.parametrize(("spatial_dims", "size"), [(2, (16, 16)), (2, (32, 48)), (3, (16, 16, 16)), (3, (32, 16, 48))])
@pytest.mark.parametrize(("in_channels", "out_channels"), [(1, 2), (3, 4)])
def test_logits_have_the_size_of_the_image(
    spatial_dims: int, size: tuple[int, ...], in_channels: int, out_channels: int
) -> None:
    network = small(spatial_dims, in_channels=in_channels, out_channels=out_channels).eval()
    with torch.no_grad():
        logits = network(torch.randn(2, in_channels, *size))
    assert logits.shape == (2, out_channels, *size)
    assert bool(torch.isfinite(logits).all())
    assert not torch.allclose(logits.sum(1), torch.ones(()).expand(2, *size), atol=1e-3)  # logits, not probabilities


@pytest.mark.parametrize(("spatial_dims", "size"), [(2, (16, 20)), (3, (16, 8, 16)), (3, (30, 16, 16))])
def test_size_not_divisible_by_16_is_refused(spatial_dims: int, size: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="16"):
        small(spatial_dims)(torch.zeros(1, 1, *size))


def test_only_two_and_three_dimensions() -> None:
    with pytest.raises(ValueError):
        small(4)


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_skip_features_are_added(spatial_dims: int) -> None:
    # Concatenation would show as a 3x3x3 convolution that halves its channels.
    stages = convolutions(VNet(spatial_dims=spatial_dims), kernel=3)
    channels = [(conv.in_channels, conv.out_channels) for conv in stages]
    assert channels == (
        [(1, 16)] + [(32, 32)] * 2 + [(64, 64)] * 3 + [(128, 128)] * 3 + [(256, 256)] * 3
        + [(128, 128)] * 3 + [(64, 64)] * 3 + [(32, 32)] * 2 + [(16, 16)]
    )  # fmt: skip


@pytest.mark.parametrize("level", [0, 1, 2, 3])
def test_every_level_has_its_skip_connection(level: int) -> None:
    # With the upsampling into a level silenced, nothing coarser can be heard: what that level's encoder still
    # contributes can only come through its own skip connection.
    network = small(3).eval()
    ran: list[nn.Module] = []
    for module in network.modules():
        if isinstance(module, (nn.Conv3d, nn.ConvTranspose3d)):
            module.register_forward_hook(lambda module, _arguments, _answer: ran.append(module))
    image = torch.randn(1, 1, 16, 16, 16)
    network(image)
    width = 4 * 2**level
    stages = [module for module in ran if isinstance(module, nn.Conv3d) and module.kernel_size[0] == 3]
    ups = [module for module in ran if isinstance(module, nn.ConvTranspose3d)]
    nn.init.zeros_(next(up for up in ups if up.out_channels == width).weight)
    network(image).square().mean().backward()
    encoder = next(conv for conv in stages if conv.out_channels == width)
    bottleneck = next(conv for conv in stages if conv.out_channels == 64)
    assert encoder.weight.grad is not None and float(encoder.weight.grad.abs().max()) > 0.0
    assert bottleneck.weight.grad is not None and float(bottleneck.weight.grad.abs().max()) == 0.0


@pytest.mark.parametrize(("spatial_dims", "kind"), [(2, nn.Dropout2d), (3, nn.Dropout3d)])
def test_whole_channels_drop_after_the_bottleneck_and_before_the_output(
    spatial_dims: int, kind: type[nn.Module]
) -> None:
    network = small(spatial_dims)
    dropped: list[tuple[int, ...]] = []
    for module in network.modules():
        if isinstance(module, kind):
            assert module.p == 0.5
            module.register_forward_hook(lambda _module, _arguments, answer: dropped.append(tuple(answer.shape)))
    network(torch.randn(2, 1, *(32,) * spatial_dims))
    assert dropped == [(2, 64, *(2,) * spatial_dims), (2, 4, *(32,) * spatial_dims)]


def test_dropout_acts_in_training_only() -> None:
    network = small(3).eval()
    image = torch.randn(1, 1, 16, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(network(image), network(image), rtol=0, atol=0)
        for module in network.modules():
            if isinstance(module, nn.Dropout3d):
                module.train()
        assert not torch.allclose(network(image), network(image))


def test_kaiming_initialisation() -> None:
    network = VNet()
    for conv in convolutions(network, kernel=3)[1:]:
        weight = conv.weight
        expected = (2.0 / weight[0].numel()) ** 0.5  # gain of ReLU over the root of the inputs
        assert float(weight.detach().std()) == pytest.approx(expected, rel=0.1)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm3d):
            assert bool((module.weight == 1).all()) and bool((module.bias == 0).all())


def test_every_parameter_learns() -> None:
    network = small(3, dropout=0.0)
    network(torch.randn(2, 1, 16, 16, 16)).square().mean().backward()
    silent = [name for name, value in network.named_parameters() if value.grad is None]
    assert not silent


@pytest.mark.parametrize(("spatial_dims", "size"), [(2, (32, 16)), (3, (16, 32, 16))])
@pytest.mark.parametrize("how", ["script", "trace"])
def test_torchscript_gives_equal_logits(spatial_dims: int, size: tuple[int, ...], how: str) -> None:
    network = small(spatial_dims, out_channels=4).eval()
    image = torch.randn(1, 1, *size)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # TorchScript is deprecated in new torch, yet what deployments read
        exported = torch.jit.script(network) if how == "script" else torch.jit.trace(network, image)
        torch.testing.assert_close(exported(image), network(image))
        other = torch.randn(2, 1, *(2 * length for length in size))
        torch.testing.assert_close(exported(other), network(other))  # not bound to the size it was made with


def test_decoder_runs_in_parts() -> None:
    network = small(3).eval()
    features = [torch.randn(1, 4 * 2**level, *(16 // 2**level,) * 3) for level in range(5)]
    with torch.no_grad():
        whole = network.decode(features[4], features[:4])
        skips = features[:4]
        coarse = network.decode(features[4], skips, last=3)
        assert len(skips) == 1 and skips[0] is features[0]
        fine = network.decode(coarse[-1], skips, first=3)
    assert [feature.shape[1] for feature in whole] == [32, 16, 8, 4]
    torch.testing.assert_close(coarse + fine, whole, rtol=0, atol=0)


def test_names_and_first_values_stay() -> None:
    # other names would refuse past weights; weights drawn in another order would make every past seed another run
    torch.manual_seed(0)
    network = VNet(base_filters=2)
    parts = list(dict.fromkeys(name.split(".")[0] for name in network.state_dict()))
    assert parts == ["encoder", "down", "bottleneck", "up", "decoder", "output"]
    assert len(network.state_dict()) == 12 * 7 + 9 * 7 + 2 * 4 * 7 + 2
    last = network.output.weight.detach().flatten()
    torch.testing.assert_close(last, torch.tensor([-0.7520, -0.1235, -0.8743, -0.7485]), rtol=0.0, atol=1e-4)
