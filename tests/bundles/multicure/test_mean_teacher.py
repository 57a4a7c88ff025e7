"""Mean Teacher, a baseline beside MultiCURE."""

from __future__ import annotations

from typing import cast

import pytest
import torch
from torch import Tensor

from bundles.multicure.scripts.method import MeanTeacher
from common.networks import VNet
from common.training.losses import segmentation_loss
from common.training.method import MethodOutput, Progress


def make_method(**arguments: float) -> MeanTeacher:
    torch.manual_seed(0)
    return MeanTeacher(VNet(2, base_filters=4, dropout=0.0), **arguments).train()


def make_batch(labelled: int, unlabelled: int) -> dict[str, Tensor]:
    samples = labelled + unlabelled
    return {
        "image": torch.randn(samples, 1, 16, 16),
        "label": torch.randint(0, 2, (samples, 1, 16, 16)),
        "labelled": torch.arange(samples) < labelled,
    }


def step(method: MeanTeacher, batch: dict[str, Tensor], iteration: int = 100) -> MethodOutput:
    return cast(MethodOutput, method(batch, Progress(iteration=iteration, total=100)))


def test_terms_by_definition() -> None:
    method, batch = make_method(input_noise=0.0, consistency=0.7), make_batch(2, 3)
    with torch.no_grad():
        for parameter in method.teacher.parameters():
            parameter.mul_(1.1)
    output = step(method, batch)
    expected = segmentation_loss(output.prediction[:2], batch["label"][:2]).mean()
    torch.testing.assert_close(output.terms["supervised"].value, expected)
    teacher = method.teacher.passes(batch["image"][2:])[0]
    difference = output.prediction[2:].softmax(1) - teacher
    torch.testing.assert_close(output.terms["consistency"].value, difference.square().mean())
    assert output.terms["consistency"].weight == pytest.approx(0.7)
    assert step(method, batch, 0).terms["consistency"].weight == pytest.approx(0.7 * 0.0067, rel=0.01)


@pytest.mark.parametrize(("labelled", "unlabelled", "silent"), [(3, 0, "consistency"), (0, 3, "supervised")])
def test_a_batch_may_lack_a_kind(labelled: int, unlabelled: int, silent: str) -> None:
    output = step(make_method(), make_batch(labelled, unlabelled))
    assert output.terms[silent].value.item() == 0.0
    output.total.backward()


def test_only_the_student_learns_and_the_teacher_follows() -> None:
    method, batch = make_method(ema_decay=0.5), make_batch(2, 2)
    step(method, batch).total.backward()
    assert all(parameter.grad is not None for parameter in method.network.parameters())
    assert all(parameter.grad is None for parameter in method.teacher.parameters())
    before = [value.clone() for value in method.teacher.parameters()]
    method.after_step()  # the first call copies
    with torch.no_grad():
        for parameter in method.network.parameters():
            parameter.add_(1.0)
    method.after_step()
    for old, new in zip(before, method.teacher.parameters(), strict=True):
        torch.testing.assert_close(new, old + 0.5)


def test_refuses_a_negative_weight() -> None:
    with pytest.raises(ValueError, match="at least 0"):
        make_method(consistency=-1.0)
