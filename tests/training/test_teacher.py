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


def randomise(network: nn.Module) -> dict[str, torch.Tensor]:
    """New weights and statistics; returns a copy of them."""
    with torch.no_grad():
        for value in [*network.parameters(), *network.buffers()]:
            value.copy_(torch.randn(value.shape) * 3)
    return copy.deepcopy(network.state_dict())


def test_average_by_hand() -> None:
    """The first is copied, the second and third make means, then the decay is reached: 1 - 1/4 is above 0.7."""
    network = make_network()
    teacher = Teacher(network, decay=0.7)
    values = []
    for _ in range(5):
        values.append(randomise(network))
        teacher.update_parameters(network)
        if len(values) == 3:
            early = copy.deepcopy(teacher.module.state_dict())
    for name, found in teacher.module.named_parameters():
        mean = (values[0][name] + values[1][name] + values[2][name]) / 3
        torch.testing.assert_close(early[name], mean)
        torch.testing.assert_close(found, 0.7 * (0.7 * mean + 0.3 * values[3][name]) + 0.3 * values[4][name])
    torch.testing.assert_close(early["1.running_mean"], sum(v["1.running_mean"] for v in values[:3]) / 3)


def test_the_untrained_student_is_forgotten() -> None:
    """After 200 updates at 0.99 it weighs 1/100 * 0.99^100, not 0.99^199."""
    network = nn.Linear(1, 1, bias=False)
    teacher = Teacher(network, decay=0.99)
    for step in range(200):
        nn.init.constant_(network.weight, 1.0 if step == 0 else 0.0)
        teacher.update_parameters(network)
    weight = next(teacher.module.parameters())
    assert weight.item() == pytest.approx(0.99**100 / 100, rel=1e-3)


def test_resumes_to_the_bit_with_its_count() -> None:
    """A parent that is saved and loaded midway, student and teacher, goes on as if nothing had happened."""

    class Parent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = make_network()
            self.teacher = Teacher(self.network, decay=0.99)

    torch.manual_seed(0)
    whole, resumed = Parent(), Parent()
    steps = [randomise(make_network()) for _ in range(6)]
    for index, step in enumerate(steps):
        if index == 3:
            resumed.load_state_dict(whole.state_dict())
            torch.testing.assert_close(resumed.state_dict(), whole.state_dict(), rtol=0, atol=0)
        for parent in (whole, resumed) if index >= 3 else (whole,):
            with torch.no_grad():
                for name, value in parent.network.state_dict().items():
                    value.copy_(step[name])
            parent.teacher.update_parameters(parent.network)
    assert int(whole.teacher.n_averaged) == int(resumed.teacher.n_averaged) == 6
    torch.testing.assert_close(resumed.state_dict(), whole.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize("updates", [0, 2])
def test_loaded_weights_reach_it_at_once_and_the_average_begins_anew(updates: int) -> None:
    network, other = make_network(), make_network()
    teacher = Teacher(network)
    for _ in range(updates):
        randomise(network)
        teacher.update_parameters(network)
    loaded = randomise(other)
    network.load_state_dict(loaded)
    torch.testing.assert_close(dict(teacher.module.state_dict()), dict(loaded), rtol=0, atol=0)
    second = randomise(network)
    teacher.update_parameters(network)  # not averaged with what was before
    torch.testing.assert_close(dict(teacher.module.state_dict()), dict(second), rtol=0, atol=0)


def test_a_copied_student_leads_its_own_teacher() -> None:
    network = make_network()
    teacher = Teacher(network)
    other_network, other_teacher = copy.deepcopy((network, teacher))
    loaded = randomise(make_network())
    other_network.load_state_dict(loaded)
    torch.testing.assert_close(dict(other_teacher.module.state_dict()), dict(loaded), rtol=0, atol=0)
    assert not torch.equal(next(teacher.parameters()), next(other_teacher.parameters()))


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
