"""AmbiSSL without an engine: gradients of every term, equations, pruning, resuming, batches of every kind."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from bundles.ambissl.scripts.latents import Latent, normal_kl
from bundles.ambissl.scripts.losses import bound_loss, dice_loss, one_hot, pick
from bundles.ambissl.scripts.method import AmbiSSL, PseudoLabels, View
from bundles.ambissl.scripts.supervised import Branch, Labelled, neighbour_distance, random_member
from common.training.method import MethodOutput, Progress

from .small import make_batch, small_network

START, HALFWAY = Progress(iteration=0, total=100), Progress(iteration=50, total=100)
ENCODER, PRIOR, POSTERIOR = "network.encoder.", "network.prior.", "posterior."
PHI, THETA, XI = ("network.decoder.", "network.head."), ("theta.", "theta_head."), ("xi.", "xi_head.")
PARTS = (ENCODER, PRIOR, POSTERIOR, *PHI, *THETA, *XI)
# whom each term teaches
REACH = {
    "kl": {PRIOR, POSTERIOR},
    "seg_phi": {ENCODER, POSTERIOR, *PHI},
    "seg_theta": {ENCODER, POSTERIOR, *THETA},
    "seg_xi": {ENCODER, POSTERIOR, *XI},
    "bound_phi": {ENCODER, PRIOR, *PHI},
    "bound_theta": {ENCODER, PRIOR, *THETA},
    "bound_xi": {ENCODER, PRIOR, *XI},
    "kl_phi": {PRIOR, POSTERIOR},
    "kl_xi": {PRIOR, POSTERIOR},
    "cross_phi": {ENCODER, POSTERIOR, *PHI},
    "cross_xi": {ENCODER, POSTERIOR, *XI},
    "l2": {PRIOR, POSTERIOR, "network.head.", "theta_head.", "xi_head."},
}


def make_method(classes: int = 3, dims: int = 2, **settings: Any) -> AmbiSSL:
    return AmbiSSL(small_network(classes, dims), **({"bound_samples": 3} | settings)).train()


def step(method: AmbiSSL, batch: dict[str, Tensor], progress: Progress = HALFWAY) -> MethodOutput:
    method.before_step(progress)
    output: MethodOutput = method(batch, progress)
    return output


def moved(method: AmbiSSL, value: Tensor) -> set[str]:
    method.zero_grad()
    value.backward(retain_graph=True)
    return {
        name
        for name, parameter in method.named_parameters()
        if parameter.grad is not None and bool((parameter.grad != 0).any())
    }


@pytest.mark.parametrize(
    ("classes", "dims", "posterior"),
    [(2, 2, "set"), (4, 2, "set"), (2, 2, "stacked"), (4, 2, "stacked"), (3, 3, "set")],
)
def test_a_step_needs_no_engine(classes: int, dims: int, posterior: str) -> None:
    method = make_method(classes, dims, posterior=posterior)
    optimizer = torch.optim.Adam(method.parameters(), lr=0.01)
    batch = make_batch((3, 4, 0, 0) if dims == 2 else (3, 0), classes, dims)
    output = step(method, batch)
    before = {name: value.clone() for name, value in method.named_parameters()}  # the pruning is drawn by now
    output.total.backward()
    assert [name for name, each in method.named_parameters() if each.grad is None] == []
    optimizer.step()
    assert set(output.terms) == set(REACH)
    assert all(term.value.ndim == 0 and bool(torch.isfinite(term.value)) for term in output.terms.values())
    assert output.prediction.shape == (len(batch["image"]), classes, *batch["image"].shape[2:])
    changed = [name for name, value in method.named_parameters() if not torch.equal(before[name], value)]
    assert all(any(name.startswith(part) for name in changed) for part in PARTS)


@pytest.mark.parametrize("soft", [False, True])
def test_each_term_teaches_whom_it_should_and_nobody_else(soft: bool) -> None:
    """No gradient goes into pseudo-labels: they come from theta and from the other pruned decoder."""
    method = make_method(soft_pseudo_labels=soft)
    output = step(method, make_batch())
    assert set(output.terms) == set(REACH)
    for term, parts in REACH.items():
        found = moved(method, output.terms[term].value)
        assert {part for part in PARTS if any(name.startswith(part) for name in found)} == parts, term


def test_weights_are_those_of_eqs_14_and_19_to_21() -> None:
    settings: dict[str, Any] = {"supervised_kl": 0.7, "unsupervised_kl": 0.3, "bound": 0.4, "unsupervised": 2.0}
    for iteration in (0, 50, 99):
        mu = 2.0 * math.exp(-5.0 * (1 - iteration / 100) ** 2)
        terms = step(make_method(l2=0.1, **settings), make_batch(), Progress(iteration, 100)).terms
        expected = {"kl": 3 * 0.7, "kl_phi": 0.3 * mu, "kl_xi": 0.3 * mu, "cross_phi": mu, "cross_xi": mu, "l2": 0.1}
        expected |= {f"seg_{name}": 1.0 for name in ("phi", "theta", "xi")}
        expected |= {f"bound_{name}": 0.4 for name in ("phi", "theta", "xi")}
        assert {name: term.weight for name, term in terms.items()} == pytest.approx(expected)


# --- supervised learning


def labelled_case() -> tuple[AmbiSSL, Labelled, Latent, Latent, dict[str, Branch]]:
    method = make_method().eval()
    batch = make_batch((3, 2), side=64)
    data = method.labelled(batch)
    features = method.network.encode(data.image)
    branches = {
        "phi": Branch(method.network.decode(features), method.network.head),
        "theta": Branch(method.theta(features, method.network.skips) * 1.5, method.theta_head),
    }
    return method, data, Latent(*method.network.prior(data.image)), method.encode_set(*data), branches


def test_supervised_terms_are_eq_14() -> None:
    method, data, prior, posterior, branches = labelled_case()
    torch.manual_seed(5)
    terms, samples = method.supervise(data, prior, posterior, branches)
    torch.manual_seed(5)  # the same noise and raters, in the order in which they are drawn
    z_post = posterior.sample(torch.randn(2, 1, 4))
    z_prior = prior.sample(torch.randn(2, 3, 4))
    chosen = random_member(data.raters)
    target = pick(data.masks, chosen)
    assert bool((chosen < data.raters).all())
    assert terms["kl"].value.item() == pytest.approx(normal_kl(posterior, prior).sum(1).mean().item(), rel=1e-5)
    for name, branch in branches.items():
        answer = branch.head(branch.features, z_post)[:, 0].softmax(1)
        assert terms[f"seg_{name}"].value.item() == pytest.approx(dice_loss(answer, target).item(), rel=1e-4)
        spread = branch.head(branch.features, z_prior).softmax(2)
        valid = torch.arange(3) < data.raters[:, None]
        expected = bound_loss(spread, data.masks, valid)
        assert terms[f"bound_{name}"].value.item() == pytest.approx(expected.item(), rel=1e-4)
    assert samples.shape == (2, 3, 3, 64, 64)


def test_printed_kl_is_the_other_order_and_free_nats_cost_nothing() -> None:
    method, _, prior, posterior, _ = labelled_case()
    forward, backward = normal_kl(posterior, prior), normal_kl(prior, posterior)
    assert method.divergence(prior, posterior, "normal").item() == pytest.approx(forward.sum(1).mean().item())
    method.printed_kl = True
    assert method.divergence(prior, posterior, "normal").item() == pytest.approx(backward.sum(1).mean().item())
    method.printed_kl, method.free_nats = False, 0.2
    expected = sum(max(value, 0.2) for value in forward.mean(0).tolist())
    assert method.divergence(prior, posterior, "normal").item() == pytest.approx(expected, rel=1e-5)


def test_what_is_no_rater_does_not_count() -> None:
    method, batch = make_method(), make_batch((2, 4, 0))
    other = {**batch, "raters": batch["raters"].clone()}
    other["raters"][0, 2:], other["raters"][2] = 1, 2
    totals = []
    for each in (batch, other):
        torch.manual_seed(0)
        totals.append(step(copy.deepcopy(method), each).total.item())
    assert totals[0] == pytest.approx(totals[1], rel=1e-6)


# --- unlabelled images


def test_pseudo_labels_are_eqs_9_to_13() -> None:
    method = make_method(soft_pseudo_labels=True, raters=5)
    method.before_step(START)
    method.eval()
    weak = torch.rand(2, 1, 64, 64)
    features = method.network.encode(weak)
    prior = Latent(*method.network.prior(weak))
    phi_features = method._phi(features)
    torch.manual_seed(2)
    found = method._pseudo_labels(features, prior, phi_features, weak)
    torch.manual_seed(2)
    codes = prior.sample(torch.randn(2, 5, 4), "laplace")
    phi = method.network.head(phi_features, codes).softmax(2)
    theta = method.theta_head(method.theta(features, 4), codes).softmax(2)
    xi = method.xi_head(method._xi(features), codes).softmax(2)
    expected = (phi, xi, (phi + theta) / 2, (xi + theta) / 2)
    torch.testing.assert_close(found.codes, codes)
    for ours, theirs in zip(found[1:], expected, strict=True):
        torch.testing.assert_close(ours, theirs)
        assert not ours.requires_grad
    method.soft_pseudo_labels = False
    torch.manual_seed(2)
    for ours, theirs in zip(method._pseudo_labels(features, prior, phi_features, weak)[1:], expected, strict=True):
        assert torch.equal(ours.argmax(2), theirs.argmax(2)) and set(ours.unique().tolist()) <= {0.0, 1.0}


@pytest.mark.parametrize("paired", [False, True])
def test_cross_supervision_is_eqs_15_to_18(paired: bool) -> None:
    """Decoder phi learns on the weak view from xi's set, xi on the strong view from phi's."""
    method = make_method(raters=4, paired_codes=paired).eval()
    method.before_step(START)
    weak, strong = torch.rand(2, 1, 64, 64), torch.rand(2, 1, 64, 64)
    masks = (one_hot(torch.randint(0, 3, (2, 4, 64, 64)), 3) for _ in range(4))
    sets = PseudoLabels(torch.randn(2, 4, 4), *masks)
    views = [
        View(image, Latent(*method.network.prior(image)), decode(method.network.encode(image)))
        for image, decode in ((weak, method._phi), (strong, method._xi))
    ]
    torch.manual_seed(4)
    terms = method._cross_supervise(views[0], views[1], sets, 0.6)
    torch.manual_seed(4)
    count = torch.tensor([4, 4])
    for name, view, ensemble, target, head in (
        ("phi", views[0], sets.phi_theta, sets.xi, method.network.head),
        ("xi", views[1], sets.xi_theta, sets.phi, method.xi_head),
    ):
        posterior = method.encode_set(view.image, ensemble, count)
        code, member = posterior.sample(torch.randn(2, 1, 4), "laplace"), random_member(count)
        answer = head(view.features, pick(sets.codes, member)[:, None] if paired else code)[:, 0].softmax(1)
        expected = dice_loss(answer, pick(target, member))
        assert terms[f"cross_{name}"].value.item() == pytest.approx(expected.item(), rel=1e-4)
        divergence = method.divergence(view.prior, posterior, "laplace")
        assert terms[f"kl_{name}"].value.item() == pytest.approx(divergence.item(), rel=1e-4)


def test_pseudo_labels_come_from_the_weak_view_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another strong view changes what xi sees, and the targets not at all."""
    method = make_method().eval()
    batch = make_batch()
    seen: list[Any] = []
    original = method._pseudo_labels

    def spy(*arguments: Any) -> Any:
        seen.append(original(*arguments))
        return seen[-1]

    monkeypatch.setattr(method, "_pseudo_labels", spy)
    for strong in (batch["strong"], torch.rand_like(batch["strong"])):
        torch.manual_seed(1)
        step(method, {**batch, "strong": strong})
    for first, second in zip(*seen, strict=True):
        assert torch.equal(first, second)


# --- pruning through the training


@pytest.mark.parametrize("optimiser", ["sgd", "adam"])
def test_zeros_stay_zeros_under_momentum_and_weight_decay(optimiser: str) -> None:
    method = make_method()
    if optimiser == "sgd":
        optimizer: torch.optim.Optimizer = torch.optim.SGD(
            method.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01, nesterov=True
        )
    else:
        optimizer = torch.optim.Adam(method.parameters(), lr=0.01, weight_decay=0.01)
    for iteration in range(4):
        optimizer.zero_grad()
        step(method, make_batch(), Progress(iteration, 100)).total.backward()
        optimizer.step()
    pruned = 0
    for masks, decoder in ((method.phi_masks, method.network.decoder), (method.xi_masks, method.xi)):
        weights = dict(decoder.named_parameters())
        for name, mask in masks.masks().items():
            assert bool((weights[name][~mask] == 0).all())
            pruned += int((~mask).sum())
    assert pruned > 0
    shipped = method.network.decoder.state_dict()  # what is exported holds the zeros
    name = next(name for name, mask in method.phi_masks.masks().items() if not bool(mask.all()))
    assert float((shipped[name] == 0).float().mean()) >= 0.45


def test_decoders_start_as_copies_and_differ_by_their_pruning() -> None:
    method = make_method()
    with torch.no_grad():  # weights that are loaded after the method was made
        for parameter in method.network.decoder.parameters():
            parameter.add_(0.1)
    loaded = {name: value.clone() for name, value in method.network.decoder.named_parameters()}
    method.before_step(START)
    theta, phi, xi = (dict(decoder.named_parameters()) for decoder in (method.theta, method.network.decoder, method.xi))
    torch.testing.assert_close(theta, loaded)
    phi_masks, xi_masks = method.phi_masks.masks(), method.xi_masks.masks()
    for name in loaded:
        torch.testing.assert_close(phi[name], loaded[name] * phi_masks.get(name, 1))
        torch.testing.assert_close(xi[name], loaded[name] * xi_masks.get(name, 1))
    assert any(not torch.equal(phi_masks[name], xi_masks[name]) for name in phi_masks)


def test_pruning_follows_from_the_seed() -> None:
    network = small_network()
    masks = []
    for seed in (0, 0, 1, 2):
        torch.manual_seed(seed * 7)
        method = AmbiSSL(copy.deepcopy(network), seed=seed)
        method.before_step(START)
        masks.append([mask.clone() for mask in method.phi_masks.masks().values()])
    same = [all(torch.equal(a, b) for a, b in zip(masks[0], other, strict=True)) for other in masks[1:]]
    assert same[0] and not all(same[1:])


def test_pruning_is_drawn_once_or_every_so_many_steps() -> None:
    for interval, changes in ((0, 0), (2, 2)):
        method, batch, seen = make_method(prune_interval=interval), make_batch(), []
        for iteration in range(6):
            step(method, batch, Progress(iteration, 6))
            seen.append([mask.clone() for mask in method.xi_masks.masks().values()])
        changed = [not all(map(torch.equal, a, b)) for a, b in zip(seen, seen[1:], strict=False)]
        assert sum(changed) <= changes and (interval == 0 or any(changed[1::2])) and not any(changed[::2])


def test_no_pruning() -> None:
    method = make_method(keep_fraction=1.0)
    step(method, make_batch())
    assert all(bool(mask.all()) for mask in method.phi_masks.masks().values())


@pytest.mark.parametrize("interval", [0, 2])
def test_resuming_is_equal_to_the_bit(interval: int) -> None:
    def train(method: AmbiSSL, optimizer: torch.optim.Optimizer, start: int, stop: int) -> None:
        for iteration in range(start, stop):
            torch.manual_seed(iteration)
            optimizer.zero_grad()
            step(method, make_batch(), Progress(iteration, 6)).total.backward()
            optimizer.step()

    torch.manual_seed(0)
    method = make_method(prune_interval=interval)
    optimizer = torch.optim.Adam(method.parameters(), lr=0.01)
    train(method, optimizer, 0, 3)
    saved = copy.deepcopy((method.state_dict(), optimizer.state_dict()))
    train(method, optimizer, 3, 6)
    torch.manual_seed(99)
    resumed = make_method(prune_interval=interval)
    other = torch.optim.Adam(resumed.parameters(), lr=0.01)
    resumed.load_state_dict(saved[0])
    other.load_state_dict(saved[1])
    train(resumed, other, 3, 6)
    for name, value in method.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


# --- batches of every kind, monitors, settings


@pytest.mark.parametrize("counts", [(3, 4), (0, 0), (1, 0), (0, 2, 0, 5), (1, 1, 1)])
def test_any_mixture_is_finite_and_leaves_no_parameter_without_gradient(counts: tuple[int, ...]) -> None:
    method = make_method()
    output = step(method, make_batch(counts))
    output.total.backward()
    assert [name for name, each in method.named_parameters() if each.grad is None] == []
    assert all(bool(torch.isfinite(each.grad).all()) for each in method.parameters() if each.grad is not None)
    assert output.prediction.shape[0] == len(counts)


def test_the_prediction_is_in_the_order_of_the_batch() -> None:
    method = make_method().eval()
    batch = make_batch((0, 2, 0, 3))
    shown = step(method, batch).prediction
    with torch.no_grad():
        expected = method.network(batch["image"], torch.zeros(4, 4)).log_softmax(1)
    torch.testing.assert_close(shown, expected, rtol=1e-3, atol=1e-4)


def test_float32_under_autocast() -> None:
    method = make_method()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = step(method, make_batch())
    assert all(term.value.dtype is torch.float32 for term in output.terms.values())


def test_spread_by_hand() -> None:
    classes = torch.tensor([[[0, 1, 1, 0], [0, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]])
    # IoU 1/2, 0, and two empty ones
    assert neighbour_distance(one_hot(classes, 2)).item() == pytest.approx(1 - 1.5 / 3)


def test_random_members_are_drawn_evenly() -> None:
    drawn = random_member(torch.tensor([1, 2, 5]).repeat(2000)).reshape(2000, 3)
    assert set(drawn[:, 0].tolist()) == {0} and drawn[:, 1].float().mean().item() == pytest.approx(0.5, abs=0.05)
    assert torch.bincount(drawn[:, 2], minlength=5).min() > 330


@pytest.mark.parametrize(
    "settings",
    [
        {"posterior": "sum"},
        {"rater_order": "name"},
        {"raters": 0},
        {"bound_samples": 0},
        {"bound": -1.0},
        {"unsupervised_kl": -0.1},
        {"free_nats": -1.0},
        {"keep_fraction": 0.0},
        {"prune_probability": 1.0},
        {"prune_interval": -1},
        {"prune_from": 5},
        {"unlabelled_family": "cauchy"},
    ],
    ids=str,
)
def test_wrong_settings_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="|".join(settings)):
        make_method(**settings)
