"""The ALC method without an engine: gradients, teacher, selection, batches of every kind, determinism."""

from __future__ import annotations

import copy
import itertools
import math
from typing import Any

import pytest
import torch
from monai.data import MetaTensor, list_data_collate
from torch import Tensor, nn

from bundles.alc.scripts.method import AdaptiveLabelCorrection
from common.networks.vnet import VNet
from common.training.method import MethodOutput, Progress

TERMS = ("clean", "refined", "noisy", "consistency")
HALFWAY = Progress(iteration=50, total=100)


class Small(nn.Module):
    """Convolution, batch norm and dropout: all that a teacher can handle wrongly."""

    def __init__(self, spatial_dims: int = 2, classes: int = 2, dropout: float = 0.5) -> None:
        super().__init__()
        dims = spatial_dims - 2
        convolution, norm = (nn.Conv2d, nn.Conv3d)[dims], (nn.BatchNorm2d, nn.BatchNorm3d)[dims]
        self.features = nn.Sequential(convolution(1, 8, 3, padding=1), norm(8), nn.LeakyReLU())
        self.dropout = (nn.Dropout2d, nn.Dropout3d)[dims](dropout)
        self.head = convolution(8, classes, 1)

    def forward(self, image: Tensor) -> Tensor:
        logits: Tensor = self.head(self.dropout(self.features(image)))
        return logits


def make_batch(clean: int = 2, noisy: int = 4, classes: int = 2, size: tuple[int, ...] = (8, 8)) -> dict[str, Tensor]:
    samples = clean + noisy
    return {
        "image": torch.randn(samples, 1, *size),
        "label": torch.randint(0, classes, (samples, 1, *size)),
        "clean": torch.arange(samples) < clean,
    }


def make_method(network: nn.Module | None = None, **arguments: Any) -> AdaptiveLabelCorrection:
    """A method whose teacher already differs from its student."""
    method = AdaptiveLabelCorrection(network or Small(), **arguments)
    with torch.no_grad():
        for parameter in method.teacher.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return method.train()


def step(method: AdaptiveLabelCorrection, batch: dict[str, Tensor], progress: Progress = HALFWAY) -> MethodOutput:
    output: MethodOutput = method(batch, progress)
    return output


def state_of(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in module.state_dict().items()}


def assert_same(first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
    torch.testing.assert_close(first, second, rtol=0, atol=0)


# --- one step


@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize("size", [(8, 8), (6, 4, 8)], ids=["2D", "3D"])
def test_a_step_needs_no_engine(classes: int, size: tuple[int, ...]) -> None:
    method = make_method(Small(len(size), classes))
    optimizer = torch.optim.SGD(method.network.parameters(), lr=0.1)
    before = state_of(method.network)
    output = step(method, make_batch(classes=classes, size=size))
    output.total.backward()
    optimizer.step()
    method.after_step()
    assert set(output.terms) == set(TERMS)
    assert all(term.value.ndim == 0 and bool(torch.isfinite(term.value)) for term in output.terms.values())
    assert output.total.ndim == 0
    assert output.prediction.shape[0] == 6 and output.prediction.shape[2:] == size
    assert any(not torch.equal(before[name], value) for name, value in method.network.state_dict().items())


def test_a_step_with_the_shipped_network() -> None:
    method = make_method(VNet(base_filters=2), passes=2)
    output = step(method, make_batch(1, 2, size=(16, 16, 16)))
    output.total.backward()
    assert bool(torch.isfinite(output.total))


def test_a_step_takes_what_monai_collates() -> None:
    plain = make_batch()
    rows = zip(plain["image"], plain["label"], plain["clean"].tolist(), strict=True)
    records = [{"image": MetaTensor(image), "label": MetaTensor(label), "clean": clean} for image, label, clean in rows]
    totals = []
    for batch in (plain, list_data_collate(records)):
        torch.manual_seed(3)
        totals.append(step(make_method(), batch).total.item())
    assert totals[0] == totals[1]


def test_total_is_the_weighted_sum_of_the_terms() -> None:
    output = step(make_method(), make_batch())
    expected = sum(term.weight * term.value.item() for term in output.terms.values())
    assert float(output.total.detach()) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("name", TERMS)
def test_each_term_teaches_the_student_and_never_the_teacher(name: str) -> None:
    method = make_method()
    # A frozen teacher would hide a step that forgets to cut the gradient.
    method.teacher.requires_grad_(True)
    step(method, make_batch()).terms[name].value.backward()
    gradients = [parameter.grad for parameter in method.network.parameters()]
    assert all(gradient is not None and bool(torch.isfinite(gradient).all()) for gradient in gradients)
    assert sum(float(gradient.abs().sum()) for gradient in gradients if gradient is not None) > 1e-6
    assert all(parameter.grad is None for parameter in method.teacher.parameters())


def test_total_teaches_every_parameter_of_the_student() -> None:
    method = make_method(Small(dropout=0.0))
    step(method, make_batch()).total.backward()
    for name, parameter in method.network.named_parameters():
        assert parameter.grad is not None and bool((parameter.grad != 0).any()), name


# --- the teacher


def storage_of(module: nn.Module) -> set[int]:
    return {tensor.data_ptr() for tensor in itertools.chain(module.parameters(), module.buffers())}


def buffers_of(method: AdaptiveLabelCorrection) -> list[Tensor]:
    """The teacher's counterparts of the network's buffers (not those it keeps for itself)."""
    names = {name for name, _ in method.network.named_buffers()}
    return [value for name, value in method.teacher.named_buffers() if name.removeprefix("module.") in names]


def test_teacher_starts_equal_and_shares_nothing() -> None:
    network = Small()
    method = AdaptiveLabelCorrection(network)
    assert method.network is network
    assert storage_of(method.network).isdisjoint(storage_of(method.teacher))
    torch.testing.assert_close(list(method.teacher.parameters()), list(network.parameters()), rtol=0, atol=0)
    torch.testing.assert_close(buffers_of(method), list(network.buffers()), rtol=0, atol=0)
    assert not any(parameter.requires_grad for parameter in method.teacher.parameters())
    assert all(parameter.requires_grad for parameter in method.network.parameters())


@pytest.mark.parametrize("decay", [0.99, 0.75])
def test_one_update_of_the_teacher_by_hand(decay: float) -> None:
    method = AdaptiveLabelCorrection(Small(), ema_decay=decay)
    with torch.no_grad():
        for value in [*method.network.parameters(), *method.network.buffers()]:
            value.fill_(1)
    method.after_step()  # the first average is the student itself
    for value in [*method.teacher.module.parameters(), *buffers_of(method)]:
        torch.testing.assert_close(value, torch.ones_like(value))
    with torch.no_grad():
        for value in [*method.network.parameters(), *method.network.buffers()]:
            value.fill_(3)
    student = state_of(method.network)
    method.after_step()
    # batch-norm statistics follow as the weights do; the count of batches is an integer and steers nothing
    averaged = [*method.teacher.parameters(), *(value for value in buffers_of(method) if value.is_floating_point())]
    assert len(averaged) == 6 + 2
    for value in averaged:  # the mean of 1 and 3, as 1 - 1 / 2 is below the decay
        torch.testing.assert_close(value, torch.full_like(value, 2.0))
    assert_same(student, state_of(method.network))
    for before in (2, 3, 4, 5):  # a = 2/3, 3/4, 4/5, 5/6 or the decay
        expected = value.flatten()[0].item()
        share = min(1.0 - 1.0 / (before + 1), decay)
        expected = share * expected + (1.0 - share) * 3.0
        method.after_step()
        for value in averaged:
            torch.testing.assert_close(value, torch.full_like(value, expected))


def test_weights_loaded_late_reach_the_teacher_at_once() -> None:
    method, other = AdaptiveLabelCorrection(Small()), Small()
    with torch.no_grad():
        for value in [*other.parameters(), *other.buffers()]:
            value.fill_(2)
    method.network.load_state_dict(other.state_dict())
    assert_same(state_of(method.teacher.module), state_of(other))


@pytest.mark.parametrize("mode", ["as built", "train", "validated"])
def test_forward_changes_nothing_of_the_teacher(mode: str) -> None:
    method = AdaptiveLabelCorrection(Small())
    if mode == "train":
        method.train()
    elif mode == "validated":  # an evaluator sets the network alone, the trainer sets the whole method again
        method.train()
        method.network.eval()
        method.train()
    before = state_of(method.teacher)
    for progress in (Progress(0, 100), HALFWAY):
        step(method, make_batch(), progress).total.backward()
    assert_same(before, state_of(method.teacher))


def test_teacher_normalises_by_the_batch() -> None:
    """Its averaged statistics may be far off, as they are while the weights change fast: a pass does not use them."""
    passes = []
    for mean in (0.0, 50.0):
        torch.manual_seed(0)
        method = AdaptiveLabelCorrection(Small(), input_noise=0.0)
        for module in method.teacher.modules():
            if isinstance(module, (nn.BatchNorm2d, nn.BatchNorm3d)):
                assert module.running_mean is not None
                module.running_mean.fill_(mean)
        torch.manual_seed(1)
        passes.append(method.teacher.passes(make_batch()["image"]))
    torch.testing.assert_close(passes[0], passes[1])


class Watch:
    """Each call of the teacher: its inputs, its answers, and whether gradients were on."""

    def __init__(self, method: AdaptiveLabelCorrection) -> None:
        self.inputs: list[Tensor] = []
        self.answers: list[Tensor] = []
        self.gradients: list[bool] = []
        self.dropout_active: list[bool] = []
        method.teacher.register_forward_hook(self._record)

    def _record(self, module: nn.Module, arguments: tuple[Tensor, ...], answer: Tensor) -> None:
        self.inputs.append(arguments[0].detach().clone())
        self.answers.append(answer.detach().clone())
        self.gradients.append(torch.is_grad_enabled() or answer.requires_grad)
        dropouts = [m for m in module.modules() if isinstance(m, nn.Dropout2d)]
        self.dropout_active.append(all(dropout.training for dropout in dropouts))


def passes_of_one_sample(dropout: float, input_noise: float) -> Watch:
    method = make_method(Small(dropout=dropout), passes=4, input_noise=input_noise)
    method.teacher.requires_grad_(True)
    watch = Watch(method)
    batch = make_batch(1, 1)
    batch["image"][0] += 100.0  # the clean sample would stand out
    step(method, batch)
    watch.inputs = list(torch.cat(watch.inputs))
    watch.answers = list(torch.cat(watch.answers))
    return watch


def differing(tensors: list[Tensor]) -> int:
    return sum(not torch.allclose(a, b, atol=1e-5) for a, b in itertools.combinations(tensors, 2))


def test_passes_differ_by_dropout_alone() -> None:
    watch = passes_of_one_sample(dropout=0.5, input_noise=0.0)
    assert len(watch.answers) == 4 and all(watch.dropout_active)
    assert differing(watch.inputs) == 0
    assert differing(watch.answers) >= 3  # of 6 pairs: two passes may draw the same mask of 8 channels


def test_passes_differ_by_input_noise_alone() -> None:
    watch = passes_of_one_sample(dropout=0.0, input_noise=0.1)
    assert differing(watch.inputs) == 6 and differing(watch.answers) == 6


def test_passes_are_equal_without_disturbance() -> None:
    watch = passes_of_one_sample(dropout=0.0, input_noise=0.0)
    assert differing(watch.inputs) == 0 and differing(watch.answers) == 0


def test_teacher_sees_noisy_images_only_and_builds_no_graph() -> None:
    watch = passes_of_one_sample(dropout=0.5, input_noise=0.1)
    assert all(float(image.mean()) < 50.0 for image in watch.inputs)
    assert not any(watch.gradients)


# --- weights and the paper's ablations


def test_without_selection_nothing_is_left_to_the_noisy_term() -> None:
    output = step(make_method(selected_fraction=1.0), make_batch())
    assert "noisy" not in output.terms or output.terms["noisy"].value.item() == 0.0
    assert output.terms["refined"].value.item() > 0.0
    output.total.backward()


@pytest.mark.parametrize("progress", [0, 50, 99])
def test_weights_follow_the_ramp(progress: int) -> None:
    output = step(make_method(ramp_scale=2.0), make_batch(), Progress(progress, 100))
    ramp = 2.0 * math.exp(-5.0 * (1.0 - progress / 100) ** 2)
    weights = {name: term.weight for name, term in output.terms.items()}
    expected = {"clean": 1.0, "refined": 3.0 * ramp, "noisy": 2.0 * ramp, "consistency": ramp}
    assert weights == pytest.approx(expected)


@pytest.mark.parametrize(("progress", "risen"), [(10, 0.4), (25, 1.0), (80, 1.0)])
def test_ramp_may_end_before_the_training(progress: int, risen: float) -> None:
    output = step(make_method(ramp_scale=0.3, ramp_length=0.25), make_batch(), Progress(progress, 100))
    assert output.terms["consistency"].weight == pytest.approx(0.3 * math.exp(-5.0 * (1.0 - risen) ** 2))


# --- batches of every kind


@pytest.mark.parametrize(("clean", "noisy"), [(4, 0), (0, 4), (0, 1), (1, 1), (1, 3)])
def test_any_mixture_is_finite_and_trains(clean: int, noisy: int) -> None:
    method = make_method()
    output = step(method, make_batch(clean, noisy))
    output.total.backward()
    assert all(bool(torch.isfinite(term.value)) for term in output.terms.values())
    gradients = [parameter.grad for parameter in method.network.parameters() if parameter.grad is not None]
    assert gradients and all(bool(torch.isfinite(gradient).all()) for gradient in gradients)
    assert sum(float(gradient.abs().sum()) for gradient in gradients) > 0.0


def test_clean_batch_costs_the_clean_loss_alone() -> None:
    output = step(make_method(), make_batch(4, 0))
    assert float(output.total.detach()) == pytest.approx(output.terms["clean"].value.item(), rel=1e-6)


def test_teacher_is_not_asked_about_a_clean_batch() -> None:
    method = make_method()
    watch = Watch(method)
    step(method, make_batch(4, 0))
    assert sum(len(inputs) for inputs in watch.inputs) == 0


def test_labels_of_noisy_samples_that_were_refined_do_not_count() -> None:
    batch = make_batch()
    other = {**batch, "label": batch["label"].clone()}
    other["label"][2:] = 1 - other["label"][2:]
    values = []
    for each in (batch, other):
        torch.manual_seed(3)
        values.append(float(step(make_method(selected_fraction=1.0), each).total.detach()))
    assert values[0] == values[1]


# --- determinism and state


def train_a_little(seed: int) -> tuple[list[float], dict[str, Tensor]]:
    torch.manual_seed(seed)
    method = AdaptiveLabelCorrection(Small(3, 4)).train()
    optimizer = torch.optim.SGD(method.network.parameters(), lr=0.1)
    totals = []
    for iteration in range(3):
        optimizer.zero_grad()
        output = step(method, make_batch(classes=4, size=(4, 4, 4)), Progress(iteration, 3))
        output.total.backward()
        optimizer.step()
        method.after_step()
        totals.append(float(output.total.detach()))
    return totals, state_of(method)


def test_same_seed_same_training() -> None:
    totals, state = train_a_little(seed=5)
    again, state_again = train_a_little(seed=5)
    assert totals == again
    assert_same(state, state_again)
    assert train_a_little(seed=6)[0] != totals


def test_state_holds_student_and_teacher() -> None:
    method = make_method()
    restored = AdaptiveLabelCorrection(Small())
    restored.load_state_dict(copy.deepcopy(method.state_dict()))
    assert_same(state_of(restored.network), state_of(method.network))
    assert_same(state_of(restored.teacher), state_of(method.teacher))


@pytest.mark.parametrize(
    "arguments",
    [
        {"passes": 0},
        {"selected_fraction": -0.1},
        {"selected_fraction": 1.5},
        {"ema_decay": 1.5},
        {"ramp_length": 0.0},
        {"input_noise": -1.0},
    ],
)
def test_impossible_settings_are_refused(arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(arguments))):
        AdaptiveLabelCorrection(Small(), **arguments)
