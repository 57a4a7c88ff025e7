"""The MultiCURE method without an engine: gradients of every term, switches, batches of every kind, determinism."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from bundles.multicure.scripts.losses import pseudo_label_loss, xor_regularisation
from bundles.multicure.scripts.method import MultiCURE
from bundles.multicure.scripts.network import MultiCURENet
from common.training.losses import segmentation_loss
from common.training.method import MethodOutput, Progress

PARTS = ("network.predictive.", "network.auxiliary.", "deep_features.")
# whom each term teaches
REACH = {
    "predictive": {"network.predictive."},
    "auxiliary": {"network.auxiliary."},
    "pseudo_label": {"network.auxiliary."},
    "pseudo_label_mutual": {"network.predictive."},
    "regularisation": {"network.auxiliary."},
    "contrastive": {"network.auxiliary.", "deep_features."},
    "separation": {"network.auxiliary.", "deep_features."},
}
SIDE = 16  # of an image, in pixels
HALFWAY = Progress(iteration=50, total=100)


def make_batch(labelled: int = 2, unlabelled: int = 2, classes: int = 2, dims: int = 2) -> dict[str, Tensor]:
    samples = labelled + unlabelled
    return {
        "image": torch.randn(samples, 1, *(SIDE,) * dims),
        "label": torch.randint(0, classes, (samples, 1, *(SIDE,) * dims)),
        "labelled": torch.arange(samples) < labelled,
    }


def make_method(classes: int = 2, dims: int = 2, network: dict[str, Any] | None = None, **arguments: Any) -> MultiCURE:
    """A method whose untrained predictive network is sure of about half of the voxels."""
    threshold = 0.6 if classes == 2 else 0.4
    options = {"base_filters": 4, "dropout": 0.0, "threshold": threshold} | (network or {})
    return MultiCURE(MultiCURENet(dims, out_channels=classes, **options), **arguments).train()


def step(method: MultiCURE, batch: dict[str, Tensor], progress: Progress = HALFWAY) -> MethodOutput:
    output: MethodOutput = method(batch, progress)
    return output


def gradients(method: MultiCURE, value: Tensor) -> dict[str, Tensor]:
    method.zero_grad()
    value.backward(retain_graph=True)
    return {name: each.grad for name, each in method.named_parameters() if each.grad is not None}


@pytest.mark.parametrize(
    ("length", "shares"), [(0.0, (1.0, 1.0, 1.0)), (1.0, (0.0067, 0.2865, 1.0)), (0.5, (0.0067, 1.0, 1.0))]
)
def test_lambda_u_rises(length: float, shares: tuple[float, ...]) -> None:
    method, batch = make_method(unlabelled=0.7, regularisation=2.0, ramp_length=length, mutual=True), make_batch()
    for iteration, share in zip((0, 50, 100), shares, strict=True):
        terms = step(method, batch, Progress(iteration=iteration, total=100)).terms
        for name, weight in {"pseudo_label": 0.7, "pseudo_label_mutual": 0.7, "regularisation": 1.4}.items():
            assert terms[name].weight == pytest.approx(weight * share, rel=0.01)


# --- one step


@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize("dims", [2, 3])
def test_a_step_needs_no_engine(classes: int, dims: int) -> None:
    method = make_method(classes, dims, mutual=True)
    optimizer = torch.optim.SGD(method.parameters(), lr=0.1)
    before = {name: value.clone() for name, value in method.named_parameters()}
    output = step(method, make_batch(classes=classes, dims=dims))
    output.total.backward()
    optimizer.step()
    method.after_step()
    assert set(output.terms) == set(REACH)
    assert all(term.value.ndim == 0 and bool(torch.isfinite(term.value)) for term in output.terms.values())
    assert output.prediction.shape == (4, classes, *(SIDE,) * dims)
    torch.testing.assert_close(output.prediction.exp().sum(1), torch.ones(4, *(SIDE,) * dims))
    changed = [name for name, value in method.named_parameters() if not torch.equal(before[name], value)]
    assert all(any(name.startswith(part) for name in changed) for part in PARTS)


@pytest.mark.parametrize("regularise", ["auxiliary", "both"])
@pytest.mark.parametrize("classes", [2, 4])
def test_each_term_teaches_whom_it_should_and_nobody_else(classes: int, regularise: str) -> None:
    method = make_method(classes, mutual=True, regularise=regularise)
    output = step(method, make_batch(classes=classes))
    assert set(output.terms) == set(REACH)
    both = {"network.predictive.", "network.auxiliary."}
    for term, parts in (REACH | ({"regularisation": both} if regularise == "both" else {})).items():
        found = gradients(method, output.terms[term].value)
        moved = {name for name, gradient in found.items() if bool((gradient != 0.0).any())}
        assert all(bool(torch.isfinite(gradient).all()) for gradient in found.values()), term
        assert {part for part in PARTS if any(name.startswith(part) for name in moved)} == parts, term
        for name, parameter in method.named_parameters():
            if parameter.ndim > 1 and name.startswith(tuple(parts)):  # every layer of them
                after_features = name.startswith("network.auxiliary.output") and "deep_features." in parts
                assert (name in moved) != after_features, (term, name)


@pytest.mark.parametrize("multicure", [True, False])
@pytest.mark.parametrize("arguments", [{}, {"contrastive": 0.0}, {"contrastive": 0.0, "unlabelled": 0.0}])
def test_total_leaves_no_parameter_without_gradient(arguments: dict[str, Any], multicure: bool) -> None:
    """Several processes would wait for it."""
    method = make_method(network={"multicure": multicure}, **arguments)
    step(method, make_batch()).total.backward()
    assert [name for name, each in method.named_parameters() if each.grad is None] == []


def test_supervised_terms_are_eq_1() -> None:
    method, batch = make_method(), make_batch(2, 2)
    outputs = method.network.branches(batch["image"])
    for name in ("predictive", "auxiliary"):
        term = step(method, batch).terms[name]
        expected = segmentation_loss(getattr(outputs, name)[:2], batch["label"][:2]).mean()
        assert term.value.item() == pytest.approx(expected.item(), rel=1e-5)
        assert term.weight == 2.0  # it is half of cross entropy plus Dice


def test_unlabelled_terms_are_eq_2() -> None:
    method, batch = make_method(), make_batch(2, 2)
    outputs = method.network.branches(batch["image"])
    predictive, auxiliary = outputs.predictive[2:], outputs.auxiliary[2:]
    confidence, pseudo_label = predictive.softmax(1).max(1, keepdim=True)
    terms = step(method, batch).terms
    expected = pseudo_label_loss(auxiliary, pseudo_label, confidence > 0.6)
    assert terms["pseudo_label"].value.item() == pytest.approx(expected.item(), rel=1e-5)
    expected = xor_regularisation(predictive.softmax(1), auxiliary.softmax(1), confidence > 0.6)
    assert terms["regularisation"].value.item() == pytest.approx(expected.item(), rel=1e-5)
    assert "pseudo_label_mutual" not in terms


def test_regularising_both_changes_no_value_and_is_how_the_predictive_network_learns_from_unlabelled_images() -> None:
    batch = make_batch(0, 3)
    values, reached = {}, {}
    for regularise in ("auxiliary", "both"):
        torch.manual_seed(0)
        method = make_method(regularise=regularise)
        output = step(method, batch)
        values[regularise] = output.total.item()
        reached[regularise] = [
            name for name, gradient in gradients(method, output.total).items() if bool((gradient != 0.0).any())
        ]
    assert values["both"] == values["auxiliary"]
    assert not any(name.startswith("network.predictive.") for name in reached["auxiliary"])
    assert any(name.startswith("network.predictive.") for name in reached["both"])


def test_labels_of_unlabelled_images_do_not_count() -> None:
    method, batch = make_method(), make_batch()
    other = {**batch, "label": batch["label"].clone()}
    other["label"][2:] = 255
    assert step(method, batch).total.item() == pytest.approx(step(method, other).total.item(), rel=1e-6)


def test_monitors_are_shares() -> None:
    method, batch = make_method(), make_batch()
    outputs = method.network.branches(batch["image"])
    monitors = step(method, batch).monitors
    unsure = (outputs.predictive.softmax(1).amax(1) <= 0.6).float().mean()
    differ = (outputs.predictive.argmax(1) != outputs.auxiliary.argmax(1)).float().mean()
    assert monitors["uncertain"].item() == pytest.approx(unsure.item(), abs=1e-6)
    assert monitors["disagreement"].item() == pytest.approx(differ.item(), abs=1e-6)


# --- weights and the paper's ablations


@pytest.mark.parametrize("schedule", ["rise", "decay"])
@pytest.mark.parametrize("iteration", [0, 50, 99])
def test_weights_are_those_of_eq_3(schedule: str, iteration: int) -> None:
    method = make_method(schedule=schedule, unlabelled=0.5, regularisation=0.2, separation=3.0)
    weights = {name: term.weight for name, term in step(method, make_batch(), Progress(iteration, 100)).terms.items()}
    contrast = 0.1 * math.exp((-4.0 if schedule == "rise" else 4.0) * (1.0 - iteration / 100) ** 2)
    assert weights == pytest.approx(
        {"predictive": 2.0, "auxiliary": 2.0, "pseudo_label": 0.5, "regularisation": 0.1}
        | {"contrastive": contrast, "separation": 3.0 * contrast}
    )


@pytest.mark.parametrize("contrastive", [0.0, 0.1])
@pytest.mark.parametrize("multicure", [False, True])
def test_rows_of_table_3(contrastive: float, multicure: bool) -> None:
    method = make_method(network={"multicure": multicure}, contrastive=contrastive)
    terms = step(method, make_batch()).terms
    names = {name.split(".")[0] for name, _ in method.named_parameters()}
    assert ("contrastive" in terms) == ("separation" in terms) == ("deep_features" in names) == (contrastive > 0.0)
    refined = [name for name, _ in method.network.named_parameters() if name.startswith("auxiliary.refine.")]
    assert bool(refined) == multicure


def test_supervised_only() -> None:
    assert set(step(make_method(unlabelled=0.0, contrastive=0.0), make_batch()).terms) == {"predictive", "auxiliary"}


def test_cross_pseudo_supervision() -> None:
    method = make_method(
        network={"multicure": False, "threshold": 0.0}, contrastive=0.0, regularisation=0.0, mutual=True
    )
    batch = make_batch(2, 2)
    terms = step(method, batch).terms
    assert set(terms) == {"predictive", "auxiliary", "pseudo_label", "pseudo_label_mutual"}
    outputs = method.network.branches(batch["image"])
    label = outputs.auxiliary[2:].argmax(1, keepdim=True)
    expected = pseudo_label_loss(outputs.predictive[2:], label, torch.ones_like(label, dtype=torch.bool))
    assert terms["pseudo_label_mutual"].value.item() == pytest.approx(expected.item(), rel=1e-5)


# --- batches of every kind


@pytest.mark.parametrize(("labelled", "unlabelled"), [(4, 0), (0, 4), (1, 1), (3, 1)])
def test_any_mixture_is_finite_and_trains(labelled: int, unlabelled: int) -> None:
    method = make_method(mutual=True)
    output = step(method, make_batch(labelled, unlabelled))
    found = gradients(method, output.total)
    assert len(found) == len(list(method.parameters()))
    assert all(bool(torch.isfinite(gradient).all()) for gradient in found.values())
    silent = {"pseudo_label", "pseudo_label_mutual", "regularisation", "contrastive"} if unlabelled == 0 else set()
    silent |= {"predictive", "auxiliary"} if labelled == 0 else set()
    assert {name for name, term in output.terms.items() if term.value.item() == 0.0} == silent


@pytest.mark.parametrize(
    ("threshold", "silent"),
    [(1.0, {"pseudo_label", "regularisation", "contrastive", "separation"}), (0.0, {"contrastive"})],
    ids=["all uncertain", "all confident"],
)
def test_all_uncertain_or_all_confident(threshold: float, silent: set[str]) -> None:
    method = make_method(network={"threshold": threshold})
    output = step(method, make_batch())
    assert {name for name, term in output.terms.items() if term.value.item() == 0.0} == silent
    for name in silent:
        assert all(bool((gradient == 0.0).all()) for gradient in gradients(method, output.terms[name].value).values())


def test_a_class_that_nobody_predicts() -> None:
    method = make_method(classes=4)
    with torch.no_grad():
        method.network.predictive.output.bias[2] = -100.0
    output = step(method, make_batch(classes=4))
    found = gradients(method, output.total)
    assert all(bool(torch.isfinite(gradient).all()) for gradient in found.values())
    assert output.terms["contrastive"].value.item() > 0.0


def test_uncertain_voxels_are_those_of_unlabelled_images(monkeypatch: pytest.MonkeyPatch) -> None:
    method, batch = make_method(max_voxels=10**6), make_batch(2, 2)
    places = []

    def spy(mask: Tensor, most: int) -> Tensor:
        places.append(mask)
        assert most == 10**6
        return mask.flatten().nonzero()[:, 0]

    monkeypatch.setattr(f"{MultiCURE.__module__}.sample_voxels", spy)
    step(method, batch)
    probability = method.network.branches(batch["image"]).predictive.softmax(1).amax(1)
    expected = (probability < 0.6) & ~batch["labelled"].reshape(-1, 1, 1)
    assert torch.equal(places[0].reshape(expected.shape), expected) and bool(expected.any())


# --- determinism and settings


def train_a_little(seed: int) -> tuple[list[float], dict[str, Tensor]]:
    torch.manual_seed(seed)
    method = make_method(network={"dropout": 0.5}, max_voxels=16)
    optimizer = torch.optim.SGD(method.parameters(), lr=0.01)
    totals = []
    for iteration in range(3):
        optimizer.zero_grad()
        output = step(method, make_batch(), Progress(iteration, 3))
        output.total.backward()
        optimizer.step()
        totals.append(float(output.total.detach()))
    return totals, method.state_dict()


def test_same_seed_same_training() -> None:
    totals, state = train_a_little(5)
    again, state_again = train_a_little(5)
    assert totals == again
    torch.testing.assert_close(state, state_again, rtol=0, atol=0)
    assert train_a_little(6)[0] != totals


def test_one_optimiser_does_what_two_would() -> None:
    states = []
    for separate in (False, True):
        torch.manual_seed(0)
        method = make_method(contrastive=0.0)
        groups = [method.network.predictive, method.network.auxiliary] if separate else [method]
        optimizers = [torch.optim.SGD(each.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4) for each in groups]
        for _ in range(2):
            batch = make_batch()
            method.zero_grad()
            step(method, batch).total.backward()
            for optimizer in optimizers:
                optimizer.step()
        states.append(method.state_dict())
    torch.testing.assert_close(*states, rtol=0, atol=0)


@pytest.mark.parametrize(
    "arguments",
    [
        {"schedule": "up"},
        {"regularise": "predictive"},
        {"temperature": 0.0},
        {"max_voxels": 0},
        {"feature_channels": 0},
        {"unlabelled": -1.0},
        {"ramp_length": -0.1},
        {"ramp_length": 1.1},
        {"regularisation": -1.0},
        {"contrastive": -1.0},
        {"separation": -1.0},
    ],
)
def test_impossible_settings_are_refused(arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(arguments))):
        make_method(**arguments)
