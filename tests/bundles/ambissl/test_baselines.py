"""The baselines of Sec. 4.3: terms, gradients, views."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from bundles.ambissl.scripts.baselines import CrossPseudoSupervision, ProbabilisticUNetMethod, SelfTraining
from bundles.ambissl.scripts.latents import Latent
from bundles.ambissl.scripts.losses import one_hot
from bundles.ambissl.scripts.supervised import RaterMethod
from common.training.method import MethodOutput, Progress

from .small import make_batch, small_network

HALFWAY = Progress(iteration=50, total=100)


def step(method: RaterMethod, batch: dict[str, Tensor]) -> MethodOutput:
    output: MethodOutput = method(batch, HALFWAY)
    return output


def make(kind: type[RaterMethod], **settings: Any) -> RaterMethod:
    return kind(small_network(), **({"bound_samples": 3} | settings)).train()


ALL = [
    (SelfTraining, {"threshold": 0.3}),
    (SelfTraining, {"threshold": 0.3, "view": "strong"}),
    (SelfTraining, {"unsupervised": 0.0, "bound": 0.0}),
    (CrossPseudoSupervision, {}),
    (ProbabilisticUNetMethod, {}),
]


@pytest.mark.parametrize(("kind", "settings"), ALL, ids=str)
@pytest.mark.parametrize("counts", [(3, 4, 0, 0), (2, 2), (0, 0), (0, 3, 0)])
def test_any_mixture_trains(kind: type[RaterMethod], settings: dict[str, Any], counts: tuple[int, ...]) -> None:
    method = make(kind, **settings)
    output = step(method, make_batch(counts))
    output.total.backward()
    assert [name for name, each in method.named_parameters() if each.grad is None] == []
    assert all(bool(torch.isfinite(term.value)) for term in output.terms.values())


def test_terms_of_each() -> None:
    names = {"kl", "seg_network", "bound_network", "l2"}
    batch = make_batch()
    assert set(step(make(SelfTraining), batch).terms) == names | {"pseudo_label"}
    plain = step(make(SelfTraining, unsupervised=0.0, bound=0.0), batch).terms
    assert set(plain) == {"kl", "seg_network", "l2"} and plain["kl"].weight == 1.0
    twin = {"kl_twin", "seg_twin", "bound_twin", "cross_network", "cross_twin"}
    assert set(step(make(CrossPseudoSupervision), batch).terms) == names | twin


def test_only_confident_pixels_count() -> None:
    batch = make_batch()
    assert step(make(SelfTraining, threshold=0.999999), batch).monitors["confident"].item() == 0.0
    assert step(make(SelfTraining, threshold=0.0), batch).monitors["confident"].item() == 1.0
    method = make(SelfTraining, threshold=0.999999)
    method.zero_grad()
    step(method, batch).terms["pseudo_label"].value.backward()
    assert all(each.grad is None or bool((each.grad == 0).all()) for each in method.network.parameters())


def test_the_strong_view_is_used_by_baseline_iii_alone() -> None:
    batch = make_batch()
    other = {**batch, "strong": torch.rand_like(batch["strong"])}
    for view, differs in (("weak", False), ("strong", True)):
        torch.manual_seed(1)
        method = make(SelfTraining, view=view, threshold=0.0).eval()
        values = []
        for each in (batch, other):
            torch.manual_seed(2)
            values.append(step(method, each).terms["pseudo_label"].value.item())
        assert (values[0] != values[1]) == differs


def test_each_network_learns_from_the_other() -> None:
    method = make(CrossPseudoSupervision)
    assert isinstance(method, CrossPseudoSupervision)
    weights = zip(method.network.parameters(), method.twin.parameters(), strict=True)
    assert any(not torch.equal(a, b) for a, b in weights if a.ndim > 1)
    terms = step(method, make_batch()).terms
    for name, taught, other in (("network", method.network, method.twin), ("twin", method.twin, method.network)):
        method.zero_grad()
        terms[f"cross_{name}"].value.backward(retain_graph=True)
        assert any(each.grad is not None and bool((each.grad != 0).any()) for each in taught.parameters())
        assert all(each.grad is None or bool((each.grad == 0).all()) for each in other.parameters())


def test_the_probabilistic_unets_posterior_sees_the_one_mask_that_is_learnt() -> None:
    """Kohl et al., Eq. 4: cross entropy over the pixels and the divergence, both divided by the number of pixels."""
    method = make(ProbabilisticUNetMethod, free_nats=0.0, supervised_kl=2.0).eval()
    batch = make_batch((3, 4, 0))
    torch.manual_seed(3)
    terms = step(method, batch).terms
    torch.manual_seed(3)
    image, masks = batch["image"][:2], one_hot(batch["raters"][:2], method.network.out_channels)
    members = (torch.rand(2) * torch.tensor([3, 4])).long()
    mask = torch.stack([masks[0, members[0]], masks[1, members[1]]])
    foreground = mask[:, 1:] - 0.5
    posterior = Latent(*method.posterior(torch.cat((image, foreground, foreground, foreground), 1)))
    code = posterior.sample(torch.randn(2, 1, method.network.latent_size))
    logits = method.network.head(method.network.decode(method.network.encode(image)), code)[:, 0]
    answer = logits[..., : mask.shape[2], : mask.shape[3]].softmax(1)  # without the padding
    pixels = mask[0, 0].numel()
    expected = -sum((m * a.log()).sum().item() for m, a in zip(mask, answer, strict=True)) / (2 * pixels)
    assert terms["seg_network"].value.item() == pytest.approx(expected, rel=1e-5)
    prior = Latent(*method.network.prior(image))
    divergence = method.divergence(prior, posterior, "normal")
    assert terms["kl"].value.item() == pytest.approx(divergence.item(), rel=1e-5)
    assert terms["kl"].weight == pytest.approx(2.0 / pixels)


@pytest.mark.parametrize("settings", [{"view": "both"}, {"threshold": 1.0}])
def test_wrong_settings_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="|".join(settings)):
        make(SelfTraining, **settings)
