"""The two networks, the MultiCURE module and the deep features: sizes, branches by hand, outputs, export."""

from __future__ import annotations

import math
import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional

from bundles.multicure.scripts.network import (
    DeepFeatures,
    MultiCUREModule,
    MultiCURENet,
    ResNetVNet,
    mean_log_probability,
    uncertainty_map,
)
from common.networks.vnet import VNet

SIZES = pytest.mark.parametrize(("spatial_dims", "size"), [(2, (16, 32)), (3, (16, 16, 16))])


def small(spatial_dims: int = 3, **arguments: object) -> MultiCURENet:
    return MultiCURENet(spatial_dims, **{"base_filters": 2, **arguments})  # type: ignore[arg-type]


def parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


# --- parameters, by arithmetic


def decoder_parameters(filters: list[int], classes: int) -> int:
    total = filters[0] * classes + classes
    for level, convolutions in enumerate((1, 2, 3, 3)):
        fine, coarse = filters[level], filters[level + 1]
        total += coarse * fine * 8 + 3 * fine  # transposed convolution, bias, normalisation
        total += convolutions * (fine * fine * 27 + 3 * fine)
    return total


def resnet_parameters(channels: int, filters: list[int]) -> int:
    total = channels * filters[0] * 343 + 2 * filters[0]
    for level, blocks in enumerate((3, 4, 6, 3)):
        narrow, wide = filters[level], filters[level + 1]
        total += narrow * wide * 27 + narrow * wide + wide * wide * 27 + 6 * wide  # first block with its projection
        total += (blocks - 1) * (2 * wide * wide * 27 + 4 * wide)
    return total


@pytest.mark.parametrize(("channels", "classes"), [(1, 2), (3, 4)])
def test_parameters_of_the_auxiliary_network(channels: int, classes: int) -> None:
    filters = [16, 32, 64, 128, 256]
    network = ResNetVNet(in_channels=channels, out_channels=classes, multicure=False)
    assert parameters(network) == resnet_parameters(channels, filters) + decoder_parameters(filters, classes)
    if (channels, classes) == (1, 2):
        assert parameters(network) == 17_930_354


def test_parameters_of_the_module() -> None:
    # 16 groups of 2 channels: 32 * 2 * 27 weights a plain branch, and 2 * 32 of its normalisation
    plain = 2 * (32 * 2 * 27 + 64)
    attention = (96 * 32 + 32) + (32 * 32 + 64) + 3 * (32 * 32 + 32)
    module = MultiCUREModule(3, 32)
    assert parameters(module) - parameters(module.deformable) == plain + attention == 10_944


def test_parameters_of_the_deep_features() -> None:
    assert parameters(DeepFeatures(3, (16, 32, 64))) == 112 * 16 + 16


def test_both_networks_share_the_decoder() -> None:
    vnet, auxiliary = VNet(base_filters=2), ResNetVNet(base_filters=2, dropout=0.5, multicure=False)
    of_decoder = ("up.", "decoder.", "output.")
    weights = {name: value for name, value in vnet.state_dict().items() if name.startswith(of_decoder)}
    assert len(weights) == 4 * 7 + 9 * 7 + 2  # up; nine convolutions, each with its normalisation; output
    missing = auxiliary.load_state_dict(weights, strict=False)
    assert not missing.unexpected_keys
    assert not [name for name in missing.missing_keys if name.startswith(of_decoder)]
    features = [torch.randn(2, 2 * 2**level, *(16 // 2**level,) * 3) for level in range(5)]
    one = vnet.eval().decode(features[-1], features[:-1])
    two = auxiliary.eval().decode(features[-1], features[:-1])
    torch.testing.assert_close(one, two, rtol=0, atol=0)


def test_auxiliary_convolutions_start_as_the_others_do() -> None:
    network = ResNetVNet(multicure=False)
    for name, module in network.named_modules():
        if isinstance(module, nn.Conv3d) and module.weight.numel() > 10_000:
            expected = math.sqrt(2.0 / module.weight[0].numel())
            assert float(module.weight.detach().std()) == pytest.approx(expected, rel=0.1), name


# --- what comes out


@SIZES
@pytest.mark.parametrize("classes", [2, 4])
def test_output_is_the_average_of_both_softmaxes(spatial_dims: int, size: tuple[int, ...], classes: int) -> None:
    network = small(spatial_dims, in_channels=3, out_channels=classes).eval()
    image = torch.randn(2, 3, *size)
    with torch.no_grad():
        answer = network(image)
        predictive, auxiliary, features = network.branches(image)
    average = 0.5 * (predictive.softmax(1) + auxiliary.softmax(1))
    assert answer.shape == (2, classes, *size)
    torch.testing.assert_close(answer.exp(), average)
    torch.testing.assert_close(answer.softmax(1), average)
    assert not torch.allclose(predictive.softmax(1), auxiliary.softmax(1), atol=1e-3)
    sizes = [(2, 2 * 2**level, *(length // 2**level for length in size)) for level in range(3)]
    assert [tuple(feature.shape) for feature in features] == sizes


@pytest.mark.parametrize("output", ["predictive", "auxiliary"])
def test_each_network_alone(output: str) -> None:
    network = small(output=output).eval()
    image = torch.randn(1, 1, 16, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(network(image), getattr(network.branches(image), output))
        if output == "predictive":
            torch.testing.assert_close(network(image), network.predictive(image))


def test_weights_serve_every_output() -> None:
    assert list(small().state_dict()) == list(small(output="predictive").state_dict())


def test_mean_of_probabilities_by_hand_and_far_from_overflow() -> None:
    first, second = torch.tensor([[0.0, math.log(3.0)]]), torch.tensor([[300.0, -300.0]])
    torch.testing.assert_close(mean_log_probability(first, second).exp(), torch.tensor([[0.625, 0.375]]))
    third = torch.tensor([[1000.0, 0.0]])
    assert bool(torch.isfinite(mean_log_probability(third, third)).all())


@SIZES
def test_trace_gives_equal_answers_at_other_sizes(spatial_dims: int, size: tuple[int, ...]) -> None:
    network = small(spatial_dims, out_channels=4).eval()
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(network, torch.randn(1, 1, *size))
        other = torch.randn(2, 1, 32, *size[1:])
        torch.testing.assert_close(traced(other), network(other))


@pytest.mark.parametrize("network", [small(), small(output="auxiliary"), ResNetVNet(base_filters=2)])
def test_size_not_divisible_by_16_is_refused(network: nn.Module) -> None:
    with pytest.raises(ValueError, match="multiples of 16"):
        network(torch.zeros(2, 1, 16, 24, 16))


@pytest.mark.parametrize("arguments", [{"output": "all"}, {"threshold": 1.5}, {"spatial_dims": 4}])
def test_impossible_settings_are_refused(arguments: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(arguments))):
        MultiCURENet(**arguments)  # type: ignore[arg-type]


# --- uncertainty


def test_uncertainty_map_by_hand() -> None:
    probability = torch.tensor([[0.69, 0.71, 0.2, 0.5], [0.31, 0.29, 0.8, 0.5]])
    logits = probability.log().reshape(1, 2, 2, 2).requires_grad_()
    expected = torch.tensor([[1.0, 0.0], [0.0, 1.0]]).reshape(1, 1, 2, 2)
    uncertainty = uncertainty_map(logits, 0.7)
    torch.testing.assert_close(uncertainty, expected)
    assert not uncertainty.requires_grad
    assert float(uncertainty_map(torch.zeros(1, 4, 1, 1), 0.25).sum()) == 0.0  # not below


def test_the_predictive_networks_doubt_steers_the_auxiliary() -> None:
    network = small().eval()
    image = torch.randn(1, 1, 16, 16, 16)
    with torch.no_grad():
        doubt = uncertainty_map(network.predictive(image), network.threshold)
        torch.testing.assert_close(network.branches(image).auxiliary, network.auxiliary(image, doubt)[0])
        sure, unsure = (
            network.auxiliary(image, value)[0] for value in (torch.zeros_like(image), torch.ones_like(image))
        )
        assert not torch.allclose(sure, unsure)
        torch.testing.assert_close(network.auxiliary(image)[0], sure)  # no map: nothing is uncertain
        without = small(multicure=False).eval().auxiliary
        torch.testing.assert_close(without(image, torch.ones_like(image))[0], without(image)[0])


# --- the module


def attend_to(module: MultiCUREModule, chosen: int) -> None:
    """Sets the attention to one branch, whatever comes."""
    for branch, head in enumerate(module.heads):
        nn.init.zeros_(head.weight)  # type: ignore[arg-type]
        nn.init.constant_(head.bias, 100.0 * (branch == chosen))  # type: ignore[arg-type]


@pytest.mark.parametrize(("branch", "reach"), [(0, 1), (1, 2)])
def test_receptive_field_of_the_plain_branches(branch: int, reach: int) -> None:
    module = MultiCUREModule(2, 16).eval()
    attend_to(module, branch)
    feature = torch.rand(1, 16, 9, 9)
    other = feature.clone()
    other[:, :, 4, 4] += 1.0
    zero = torch.zeros(1, 1, 18, 18)
    with torch.no_grad():
        module.plain[branch][0].weight.abs_()  # type: ignore[index]
        changed = (module(feature, zero) - module(other, zero)).abs().sum((0, 1)).nonzero()
    assert changed.min().item() == 4 - reach and changed.max().item() == 4 + reach


def test_third_branch_adds_the_pooled_map_to_the_deformable_convolution() -> None:
    module = MultiCUREModule(2, 4).eval()
    attend_to(module, 2)
    feature, uncertainty = torch.randn(1, 4, 4, 4), torch.zeros(1, 1, 8, 8)
    uncertainty[0, 0, 3, 6] = 1.0
    # kernel 3, stride 2, padding 1: place i sees rows 2i - 1 to 2i + 1, so row 3 is seen by 1 and 2, column 6 by 3
    pooled = torch.zeros(1, 1, 4, 4)
    pooled[0, 0, 1:3, 3] = 1.0
    with torch.no_grad():
        torch.testing.assert_close(module(feature, uncertainty), module.deformable(feature) + pooled)


def test_module_equals_the_attention_written_out() -> None:
    """The fusion as in the paper: a 1x1x1 convolution of the concatenated volumes, then the global mean."""
    module = MultiCUREModule(3, 8).eval()
    feature, uncertainty = torch.randn(2, 8, 4, 4, 4), (torch.rand(2, 1, 8, 8, 8) > 0.5).float()
    with torch.no_grad():
        u = [branch(feature) for branch in module.plain]
        u.append(module.deformable(feature) + functional.max_pool3d(uncertainty, 3, 2, 1))
        fused = functional.conv3d(torch.cat(u, 1), module.fuse.weight[:, :, None, None, None], module.fuse.bias)
        squeezed = module.squeeze(fused.mean((2, 3, 4)))
        answer = module(feature, uncertainty)
        for b in range(2):
            for c in range(8):
                scores = [math.exp(float(head(squeezed)[b, c])) for head in module.heads]
                expected = torch.stack([u[i][b, c] * scores[i] / sum(scores) for i in range(3)]).sum(0)
                torch.testing.assert_close(answer[b, c], expected)


def test_one_image_cannot_train_the_attention() -> None:
    with pytest.raises(ValueError, match="two images"):
        MultiCUREModule(2, 4).train()(torch.zeros(1, 4, 4, 4), torch.zeros(1, 1, 8, 8))


# --- deep features


@pytest.mark.parametrize(("spatial_dims", "mode"), [(2, "bilinear"), (3, "trilinear")])
def test_deep_features_equal_upsampling_and_concatenating_first(spatial_dims: int, mode: str) -> None:
    module = DeepFeatures(spatial_dims, (2, 4, 8), 5)
    features = [torch.randn(2, 2 * 2**level, *(8 // 2**level,) * spatial_dims) for level in range(3)]
    levels = [functional.interpolate(features[i], scale_factor=2.0**i, mode=mode) for i in (1, 2)]
    weight = torch.cat([level.weight for level in module.levels], 1)  # type: ignore[misc]
    convolution = functional.conv3d if spatial_dims == 3 else functional.conv2d
    bias: torch.Tensor = module.levels[0].bias  # type: ignore[assignment]
    expected = convolution(torch.cat([features[0], *levels], 1), weight, bias)
    assert weight.shape[:2] == (5, 14)
    torch.testing.assert_close(module(features), expected)
