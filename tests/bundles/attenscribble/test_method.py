from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from bundles.attenscribble.scripts.losses import entropy, mumford_shah, partial_dice
from bundles.attenscribble.scripts.method import AttenScribble, _several_classes
from bundles.attenscribble.scripts.network import AttentiveUNet
from common.networks.attention import recorded_scores
from common.ops.energy import pairwise_window_energy
from common.ops.similarity import attentive_similarity_loss
from common.training.method import MethodOutput, Progress

START = Progress(0, 10)


def make_method(classes: int = 4, dims: int = 2, **arguments: Any) -> AttenScribble:
    torch.manual_seed(0)
    level = arguments.pop("attention_level", 2)
    network = AttentiveUNet(dims, 1, classes, filters=2, dropout=0.0, attention_level=level)
    return AttenScribble(network, radius=2, **arguments)


def make_batch(classes: int = 4, dims: int = 2, size: int = 3) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(classes)
    shape = (size, 1, *[32 if dims == 2 else 16] * dims)
    scribble = torch.ones(shape, dtype=torch.uint8)
    drawn = torch.rand(shape, generator=generator) < 0.1
    scribble[drawn] = torch.randint(2, 2 + classes, (int(drawn.sum()),), generator=generator, dtype=torch.uint8)
    scribble[:, :, :2] = 0  # a rotation's margin
    return {"image": torch.rand(shape, generator=generator), "scribble": scribble}


def gradients(method: AttenScribble, output: MethodOutput, term: str) -> dict[str, torch.Tensor]:
    names, parameters = zip(*method.named_parameters(), strict=True)
    found = torch.autograd.grad(output.terms[term].value, parameters, allow_unused=True, retain_graph=True)
    return {n: g for n, g in zip(names, found, strict=True) if g is not None and float(g.abs().sum()) > 0}


@pytest.mark.parametrize(("classes", "dims"), [(2, 2), (4, 2), (2, 3)])
def test_terms_are_those_of_the_equations(classes: int, dims: int) -> None:
    method, batch = make_method(classes, dims), make_batch(classes, dims)
    output = method(batch, START)
    assert set(output.terms) == {"partial", "crf", "attentive"}
    probabilities = output.prediction.softmax(1)
    codes = batch["scribble"].long()
    labelled = (codes > 1)[:, 0]
    truth = probabilities.movedim(1, -1)[labelled].gather(1, (codes[:, 0][labelled] - 2)[:, None])
    assert output.terms["partial"].value.item() == pytest.approx(-truth.log().mean().item(), rel=1e-4)
    crf = pairwise_window_energy(probabilities, batch["image"], 2, 6.0, 0.1, codes < 2, plain=True)
    assert output.terms["crf"].value.item() == pytest.approx(crf.item(), rel=1e-4)
    by_hand = output.terms["partial"].value + 0.1 * output.terms["crf"].value + 0.1 * output.terms["attentive"].value
    assert output.total.item() == pytest.approx(by_hand.item(), rel=1e-6)


def test_attentive_term_sees_small_maps_of_slices_with_several_classes() -> None:
    method, batch = make_method(), make_batch()
    batch["scribble"][1].clamp_(max=2)  # background alone
    scores: dict[str, torch.Tensor] = {}
    project = method.network.get_submodule("down_2.1.layers.0.project")
    hook = project.register_forward_hook(lambda m, i, o: scores.update(q=o[0], k=o[1]))
    output = method(batch, START)
    hook.remove()
    small = torch.stack([p.reshape(4, 8, 4, 8, 4).mean((2, 4)) for p in output.prediction.softmax(1)])
    unlabelled = torch.stack([(c.reshape(1, 8, 4, 8, 4) < 2).all(4).all(2) for c in batch["scribble"]])
    kept = [0, 2]
    assert method.similarity is not None
    expected = attentive_similarity_loss(
        scores["q"][kept],
        scores["k"][kept],
        method.similarity.weight[0],
        method.similarity.bias,
        small[kept],
        2,
        6.0,
        unlabelled[kept],
        plain=True,
    )
    assert output.terms["attentive"].value.item() == pytest.approx(expected.item(), rel=1e-4)


@pytest.mark.parametrize(("heads", "layers"), [(1, 1), (2, 3)])
def test_similarity_with_the_papers_scale_by_its_text(heads: int, layers: int) -> None:
    """Sec. 2.4 with A = Q K^T / sqrt(d): softmax, plus its transpose, 1x1 convolution, sigmoid; loops over pixels."""
    network = AttentiveUNet(2, 1, 3, filters=2, dropout=0.0, heads=heads, layers=layers)
    for module in network.modules():
        if isinstance(module, torch.nn.Linear):  # initialised small, S would hardly depend on the scale
            torch.nn.init.normal_(module.weight, std=0.7)
    method, batch = AttenScribble(network, radius=2, scaled_similarity=True), make_batch(3, size=1)
    assert method.similarity is not None and method.similarity.weight.shape == (1, heads * layers)
    torch.nn.init.constant_(method.similarity.weight, 5.0)
    with torch.no_grad(), recorded_scores(network) as scores:
        small = torch.nn.functional.interpolate(network(batch["image"]).softmax(1), (8, 8), mode="area")[0]
    attention = (scores.queries[0] @ scores.keys[0].transpose(1, 2) / math.sqrt(8 // heads)).softmax(-1)
    weight, bias = method.similarity.weight[0], method.similarity.bias
    free = (batch["scribble"] < 2).reshape(8, 4, 8, 4).all(3).all(1)
    total, places = 0.0, [(y, x) for y in range(8) for x in range(8)]
    for p, (y, x) in enumerate(places):
        for q, (v, u) in enumerate(places):
            if free[y, x] and p != q and max(abs(y - v), abs(x - u)) <= 2:
                pair = attention[:, p, q] + attention[:, q, p]
                similarity = torch.sigmoid((weight * pair).sum() + bias)
                near = math.exp(-((y - v) ** 2 + (x - u) ** 2) / (2 * 6.0**2))
                total += near * float(similarity) * float(1 - small[:, y, x] @ small[:, v, u])
    value = method(batch, START).terms["attentive"].value.item()
    assert value == pytest.approx(total / int(free.sum()), rel=1e-4)
    plain = AttenScribble(network, radius=2)
    plain.similarity = method.similarity
    assert abs(plain(batch, START).terms["attentive"].value.item() / value - 1) > 1e-3, "the scale matters here"


def test_slices_of_one_class_are_told() -> None:
    codes = torch.tensor([[0, 1, 2, 2], [1, 2, 3, 1], [1, 1, 0, 1], [4, 4, 1, 0], [2, 5, 1, 0]]).reshape(5, 1, 2, 2)
    assert _several_classes(codes).tolist() == [False, True, False, False, True]


def test_gated_crf_leaves_out_margins_on_both_sides() -> None:
    method, batch = make_method(attention_level=None, attentive_weight=0.0, crf_mask="image"), make_batch()
    output = method(batch, START)
    inside = batch["scribble"] > 0
    probabilities = output.prediction.softmax(1)
    expected = pairwise_window_energy(probabilities, batch["image"], 2, 6.0, 0.1, inside, inside, plain=True)
    assert output.terms["crf"].value.item() == pytest.approx(expected.item(), rel=1e-4)


def test_neighbours_are_masked_as_printed() -> None:
    method, batch = make_method(mask_neighbours=True), make_batch()
    output = method(batch, START)
    free = batch["scribble"] < 2
    probabilities = output.prediction.softmax(1)
    expected = pairwise_window_energy(probabilities, batch["image"], 2, 6.0, 0.1, free, free, plain=True)
    assert output.terms["crf"].value.item() == pytest.approx(expected.item(), rel=1e-4)


def test_baselines_terms() -> None:
    arguments: dict[str, Any] = {
        "crf_weight": 0.0,
        "attentive_weight": 0.0,
        "dice_weight": 0.2,
        "entropy_weight": 0.3,
        "mumford_shah_weight": 0.7,
    }
    method, batch = make_method(attention_level=None, **arguments), make_batch()
    output = method(batch, START)
    assert {name: term.weight for name, term in output.terms.items()} == {
        "partial": 1.0,
        "dice": 0.2,
        "entropy": 0.3,
        "mumford_shah": 0.7,
    }
    probabilities, codes = output.prediction.softmax(1), batch["scribble"]
    dice = partial_dice(probabilities, codes[:, 0] - 2, codes[:, 0] >= 2)
    assert output.terms["dice"].value.item() == pytest.approx(dice.item(), rel=1e-5)
    assert output.terms["entropy"].value.item() == pytest.approx(entropy(probabilities, codes == 1).item(), rel=1e-5)
    expected = mumford_shah(probabilities, batch["image"], codes > 0)
    assert output.terms["mumford_shah"].value.item() == pytest.approx(expected.item(), rel=1e-5)


def test_every_term_moves_what_it_is_meant_for() -> None:
    method = make_method()
    output = method(make_batch(), START)
    attention = "network.down_2.1.layers.0.project.linear.weight"
    for term in ("partial", "crf", "attentive"):
        reached = gradients(method, output, term)
        assert {"network.conv_0.conv_0.conv.weight", "network.final_conv.weight", attention} <= set(reached)
        similarity = {"similarity.weight", "similarity.bias"}
        assert similarity & set(reached) == (similarity if term == "attentive" else set())


def test_similarity_does_not_ship() -> None:
    method = make_method()
    assert method.similarity is not None and not any("similarity" in name for name in method.network.state_dict())


@pytest.mark.parametrize("fill", [0, 1, 2])
def test_batches_without_scribbles_or_with_one_class_are_finite(fill: int) -> None:
    method, batch = make_method(), make_batch()
    batch["scribble"].fill_(fill)
    output = method(batch, START)
    output.total.backward()
    assert all(bool(torch.isfinite(term.value)) for term in output.terms.values())
    assert output.terms["attentive"].value.item() == 0.0
    trained = [parameter for parameter in method.parameters() if parameter.requires_grad]
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in trained)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"crf_weight": -1.0}, "crf_weight"),
        ({"crf_mask": "all"}, "crf_mask"),
        ({"attention_level": None}, "attentive_weight"),
    ],
)
def test_impossible_settings_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_method(**arguments)
