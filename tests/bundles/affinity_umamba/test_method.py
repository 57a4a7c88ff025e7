"""The training step: which term reaches what, when labels are refined, which options and networks it takes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bundles.affinity_umamba.scripts import network as networks
from bundles.affinity_umamba.scripts.method import AffinityUMamba
from bundles.affinity_umamba.scripts.network import Branches
from common.training.method import MethodOutput, Progress

START, LATER = Progress(0, 10), Progress(5, 10)
SIZES = {2: (12, 10), 3: (8, 6, 6)}


class SingleOutput(nn.Module):
    def __init__(self, classes: int = 2, dims: int = 3) -> None:
        super().__init__()
        convolution = nn.Conv2d if dims == 2 else nn.Conv3d
        self.output = convolution(1, classes, 3, padding=1)

    def forward(self, image: Tensor) -> Tensor:
        return self.output(image)


class TwoDecoders(nn.Module):
    """A shared encoder and two convolutions for decoders."""

    def __init__(self, classes: int = 2, dims: int = 3) -> None:
        super().__init__()
        convolution = nn.Conv2d if dims == 2 else nn.Conv3d
        self.encoder = convolution(1, 4, 3, padding=1)
        self.cnn, self.am = (convolution(4, classes, 3, padding=1) for _ in range(2))

    def branches(self, image: Tensor) -> Branches:
        features = self.encoder(image).relu()
        return Branches(4.0 * self.cnn(features), 4.0 * self.am(features))

    def forward(self, image: Tensor) -> Tensor:
        return self.branches(image).am


#: the rules that suspect most voxels, so that small batches have some
WIDE: dict[str, Any] = {"noise_rule": "union", "require_support": False}


def make_method(classes: int = 2, dims: int = 3, single: bool = False, **arguments: Any) -> AffinityUMamba:
    torch.manual_seed(1)
    network = SingleOutput(classes, dims) if single else TwoDecoders(classes, dims)
    return AffinityUMamba(network, **(WIDE | arguments))


def make_batch(classes: int = 2, dims: int = 3) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(classes)
    shape = (2, 1, *SIZES[dims])
    label = torch.randint(classes, shape, generator=generator, dtype=torch.uint8)
    return {"image": torch.randn(shape, generator=generator), "label": label}


def reached(method: AffinityUMamba, output: MethodOutput, term: str) -> set[str]:
    """Parts of the network that a term has a gradient for."""
    names, parameters = zip(*method.network.named_parameters(), strict=True)
    found = torch.autograd.grad(output.terms[term].value, parameters, allow_unused=True, retain_graph=True)
    return {n.split(".")[0] for n, g in zip(names, found, strict=True) if g is not None and float(g.abs().sum()) > 0}


@pytest.mark.parametrize(("classes", "dims"), [(2, 2), (4, 2), (2, 3), (4, 3)])
@pytest.mark.parametrize("real", [False, True])
def test_every_term_reaches_its_decoder_and_no_other(classes: int, dims: int, real: bool) -> None:
    """The real network too: what steers Eq. 1 has no gradient."""
    method, batch = make_method(classes, dims), make_batch(classes, dims)
    method.network.get_parameter("am.weight").data.mul_(8.0)  # logits further apart than the margin
    if real:
        method = AffinityUMamba(networks.AffinityUMamba(dims, 1, classes, filters=(4, 8)))
        batch = {name: tensor[:, :, :8, :4] for name, tensor in batch.items()}
    output = method(batch, LATER)
    expected = {
        **{"supervision_cnn": "cnn", "supervision_am": "am", "refined_cnn": "cnn", "refined_am": "am"},
        **{"margin": "am", "affinity": "am"},
    }
    assert output.terms.keys() == expected.keys()
    for term, decoder in expected.items():
        assert reached(method, output, term) == {"encoder", decoder}, term
    output.total.backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in method.parameters())


def test_weights_of_the_terms() -> None:
    output = make_method()(make_batch(), LATER)
    weights = {name: term.weight for name, term in output.terms.items()}
    # supervision counts 2 times half of Dice and cross entropy
    assert weights == pytest.approx(
        {
            **{"supervision_cnn": 2.0, "supervision_am": 2.0, "refined_cnn": 0.2, "refined_am": 0.2},
            **{"margin": 0.1, "affinity": 0.01},
        }
    )


def test_labels_are_refined_after_the_warm_up() -> None:
    method, batch = make_method(4, warm_up=0.3), make_batch(4)
    before, after = method(batch, Progress(2, 10)), method(batch, Progress(3, 10))
    assert not before.monitors and "refined_am" not in before.terms
    assert 0.0 < after.monitors["changed_voxels"] <= after.monitors["noisy_voxels"] < 1.0
    assert before.terms["affinity"].value != after.terms["affinity"].value, "it takes the refined labels"


def test_refined_labels_have_no_gradient_and_leave_the_batch_alone() -> None:
    method, batch = make_method(4), make_batch(4)
    label = batch["label"].clone()
    assert isinstance(method.network, TwoDecoders)
    refined, monitors = method.refine(*method.network.branches(batch["image"]), batch["label"])
    assert not refined.requires_grad and not any(value.requires_grad for value in monitors.values())
    method(batch, LATER)
    assert torch.equal(batch["label"], label) and not torch.equal(refined, label.long())


def test_an_error_at_a_border_is_taken_back() -> None:
    """A sheet of label that both decoders are sure does not belong there; they agree with the label elsewhere."""
    truth = torch.zeros(1, 1, 12, 12, dtype=torch.long)
    truth[..., 6:] = 1
    label = truth.clone()
    label[..., 3:6, 3:6] = 1  # grown outwards by more than a window
    logits = torch.cat([-6.0 * (2 * truth - 1), 6.0 * (2 * truth - 1)], dim=1).float()
    assert torch.equal(make_method(dims=2).refine(logits, logits, label)[0], truth)
    wrong = label != truth
    # by the predicted class of the centre two are found: no neighbour of theirs is labelled so
    refined, _ = make_method(dims=2, affinity_centre="prediction").refine(logits, logits, label)
    assert (refined == label)[~wrong].all() and ((refined == truth) & wrong).nonzero()[:, 2:].tolist() == [
        [4, 4],
        [4, 5],
    ]
    kept, _ = make_method(dims=2, affinity_centre="prediction", require_support=True).refine(logits, logits, label)
    assert torch.equal(kept, label)


def test_a_structure_that_a_network_does_not_find_yet_stays_where_support_is_asked_for() -> None:
    label = torch.zeros(1, 1, 12, 12, dtype=torch.long)
    label[..., 4:8, 4:8] = 1
    logits = torch.tensor([6.0, -6.0]).reshape(1, 2, 1, 1).expand(1, 2, 12, 12)
    assert not make_method(dims=2).refine(logits, logits, label)[0].any(), "all is background to it"
    kept, _ = make_method(dims=2, require_support=True).refine(logits, logits, label)
    assert torch.equal(kept, label)


@pytest.mark.parametrize("option", [{"noise_rule": "both"}, {"require_support": True}, {"surer_cnn": "label"}])
def test_options_change_fewer_labels(option: dict[str, Any]) -> None:
    batch = make_batch(4)
    default, careful = (make_method(4, **arguments)(batch, LATER).monitors for arguments in ({}, option))
    assert 0.0 < careful["changed_voxels"] < default["changed_voxels"]


def test_without_lalr_the_labels_stand_for_themselves() -> None:
    method, batch = make_method(lalr=False), make_batch()
    output = method(batch, LATER)
    assert output.terms.keys() == {"supervision_cnn", "supervision_am", "margin", "affinity"}
    assert not output.monitors
    assert output.terms["affinity"].value == make_method()(batch, START).terms["affinity"].value


@pytest.mark.parametrize("dims", [2, 3])
def test_a_network_with_a_single_output(dims: int) -> None:
    method = make_method(4, dims, single=True, lalr=False, margin=0.0, affinity=0.0)
    output = method(make_batch(4, dims), LATER)
    assert output.terms.keys() == {"supervision"} and reached(method, output, "supervision") == {"output"}
    more = make_method(4, dims, single=True, lalr=False)(make_batch(4, dims), LATER)
    assert more.terms.keys() == {"supervision", "margin", "affinity"}
    torch.testing.assert_close(more.terms["supervision"].value, output.terms["supervision"].value)
    with pytest.raises(ValueError, match="two decoders, SingleOutput has one"):
        make_method(single=True)


def test_prediction_is_what_ships() -> None:
    method, batch = make_method(), make_batch()
    assert torch.equal(method(batch, LATER).prediction, method.network(batch["image"]))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_losses_are_single_precision_under_autocast(dtype: torch.dtype) -> None:
    method, batch = make_method(4), make_batch(4)
    with torch.autocast("cpu", dtype=dtype):
        output = method(batch, LATER)
    assert output.prediction.dtype is dtype
    assert {term.value.dtype for term in output.terms.values()} == {torch.float32}
    assert torch.isfinite(output.total)


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ({"refined": -1.0}, "refined is a weight"),
        ({"margin": -0.1}, "margin is a weight"),
        ({"affinity": -0.1}, "affinity is a weight"),
        ({"warm_up": 1.5}, "warm_up must be in"),
        ({"noise_rule": "either"}, "noise_rule must be union or both"),
        ({"affinity_centre": "both"}, "affinity_centre must be one of label, prediction"),
        ({"surer_cnn": "zero"}, "surer_cnn must be one of"),
        ({"lalr": "perhaps"}, "lalr must be true or false"),
    ],
)
def test_bad_arguments(argument: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_method(**argument)
