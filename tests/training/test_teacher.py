"""The teacher of Mean Teacher methods: a copy, averaged, perturbed, without gradients."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from common.training.teacher import Teacher


def make_network(dropout: float = 0.5) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Dropout2d(dropout), nn.Conv2d(8, 2, 1))


def test_is_a_copy_without_gradients() -> None:
    network = make_network()
    teacher = Teacher(network)
    own = {value.data_ptr() for value in teacher.parameters()}
    assert own.isdisjoint(value.data_ptr() for value in network.parameters())
    assert not any(value.requires_grad for value in teacher.parameters())
    assert not teacher.passes(torch.randn(2, 1, 4, 4)).requires_grad


def test_average_by_hand() -> None:
    network = make_network()
    teacher = Teacher(network, decay=0.9)
    values = []
    for _ in range(3):
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.normal_()
        values.append(copy.deepcopy(network.state_dict()))
        teacher.update_parameters(network)
    for name, found in teacher.module.named_parameters():
        expected = 0.9 * (0.9 * values[0][name] + 0.1 * values[1][name]) + 0.1 * values[2][name]  # the first is copied
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(("dropout", "noise", "same"), [(0.0, 0.0, True), (0.5, 0.0, False), (0.0, 0.1, False)])
def test_passes_are_probabilities_and_differ_by_dropout_and_noise(dropout: float, noise: float, same: bool) -> None:
    torch.manual_seed(0)
    teacher = Teacher(make_network(dropout), input_noise=noise)
    first, second = teacher.passes(torch.randn(2, 1, 4, 4), count=2)
    torch.testing.assert_close(first.sum(1), torch.ones(2, 4, 4))
    assert torch.equal(first, second) == same


def test_normalises_by_the_batch_and_leaves_no_trace() -> None:
    torch.manual_seed(0)
    teacher = Teacher(make_network(0.0), input_noise=0.0)
    image = torch.randn(2, 1, 4, 4)
    before, expected = copy.deepcopy(teacher.state_dict()), teacher.passes(image)
    torch.testing.assert_close(teacher.state_dict(), before, rtol=0, atol=0)
    for module in teacher.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            module.running_mean.fill_(50.0)
    torch.testing.assert_close(teacher.passes(image), expected)


def test_mode_follows_the_method() -> None:
    teacher = Teacher(make_network())
    names = {type(module).__name__ for module in teacher.modules() if module.training}
    assert names == {"BatchNorm2d", "Dropout2d"}
    assert not any(module.training for module in teacher.eval().modules())


@pytest.mark.parametrize("arguments", [{"decay": 1.0}, {"decay": -0.1}, {"input_noise": -1.0}])
def test_refuses(arguments: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="must be"):
        Teacher(make_network(), **arguments)
