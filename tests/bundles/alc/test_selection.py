"""Which noisy samples ALC refines, how many, and with which labels."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from bundles.alc.scripts.method import AdaptiveLabelCorrection
from common.training.method import Progress

HALFWAY = Progress(iteration=50, total=100)


def make_batch(noisy: int) -> dict[str, Tensor]:
    """One clean sample, then the noisy ones."""
    return {
        "image": torch.randn(1 + noisy, 1, 8, 8),
        "label": torch.randint(0, 2, (1 + noisy, 1, 8, 8)),
        "clean": torch.arange(1 + noisy) < 1,
    }


class ByBrightness(nn.Module):
    """Logits follow the image times a gain: with input noise, a sample's uncertainty follows its own steepness."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(1))

    def forward(self, image: Tensor) -> Tensor:
        return torch.cat([torch.zeros_like(image), self.gain * image], dim=1)


def selected_count(noisy: int, fraction: float) -> int:
    """How many samples the refined term was made of, read from the gradient at the logits of each sample."""
    method = AdaptiveLabelCorrection(ByBrightness(), selected_fraction=fraction)
    logits: list[Tensor] = []

    def keep(module: nn.Module, arguments: tuple[Tensor, ...], answer: Tensor) -> None:
        answer.retain_grad()
        logits.append(answer)

    method.network.register_forward_hook(keep)
    output = method(make_batch(noisy), HALFWAY)
    if not output.terms["refined"].value.requires_grad:
        return 0
    output.terms["refined"].value.backward()
    gradients = [answer.grad for answer in logits if answer.grad is not None]
    return sum(int((gradient.flatten(1).abs().sum(1) > 0).sum()) for gradient in gradients)


@pytest.mark.parametrize(
    ("noisy", "fraction", "expected"),
    [(2, 0.5, 1), (4, 0.5, 2), (20, 0.5, 10), (4, 0.0, 0), (4, 1.0, 4), (10, 0.28, 3), (10, 0.32, 3), (10, 0.7, 7)],
)
def test_k_is_the_fraction_of_the_noisy_batch(noisy: int, fraction: float, expected: int) -> None:
    assert selected_count(noisy, fraction) == expected


@pytest.mark.parametrize("noisy", [3, 5, 7])
def test_k_of_an_odd_batch_is_one_of_the_two_nearest(noisy: int) -> None:
    assert selected_count(noisy, 0.5) in (noisy // 2, noisy // 2 + 1)


def test_the_most_certain_sample_is_refined_and_the_other_keeps_its_label() -> None:
    # Sample 1 is far from the decision (certain, foreground); sample 2 sits on it. Their labels are the opposite.
    method = AdaptiveLabelCorrection(ByBrightness(), input_noise=0.5)
    image = torch.cat([torch.zeros(1, 1, 8, 8), torch.full((1, 1, 8, 8), 9.0), torch.zeros(1, 1, 8, 8)])
    label = torch.zeros(3, 1, 8, 8, dtype=torch.int64)
    label[2] = 1
    output = method({"image": image, "label": label, "clean": torch.tensor([True, False, False])}, HALFWAY)
    assert output.terms["refined"].value.item() < 1e-3  # refined to foreground, which the student predicts too
    expected = 0.5 * (math.log(2.0) + 1.0 / 3.0)  # p = 1/2 on a label of foreground only
    assert output.terms["noisy"].value.item() == pytest.approx(expected, rel=1e-4)


class Scripted(nn.Module):
    """A teacher of two noisy samples that reads its passes from a script, one row of probabilities a pass."""

    def __init__(self, rows: list[list[float]]) -> None:
        super().__init__()
        self.rows = torch.tensor(rows).log()

    def forward(self, image: Tensor) -> Tensor:
        passes = image.shape[0] // 2  # one pass a call, or all passes in one call
        rows, self.rows = self.rows[:passes], self.rows[passes:]
        return rows.repeat_interleave(2, dim=0)[:, :, None, None].expand(-1, -1, *image.shape[2:]).clone()


@pytest.mark.parametrize(("refine", "winner"), [(True, 0), (False, 1)])
def test_refinement_can_be_switched_off(refine: bool, winner: int) -> None:
    # The first pass and the plain mean say class 1, the weighted mean of Eq. 6 says class 0 (by hand in the equations).
    method = AdaptiveLabelCorrection(ByBrightness(), passes=3, selected_fraction=1.0, refine=refine)
    method.teacher.module = Scripted([[0.29, 0.71], [0.6, 0.4], [0.6, 0.4]])
    batch = make_batch(2)
    batch["image"] = torch.full_like(batch["image"], 4.0)  # the student is sure of class 1
    loss = method(batch, HALFWAY).terms["refined"].value.item()
    assert loss < 0.1 if winner == 1 else loss > 1.0


def test_one_pass_cannot_select() -> None:
    with pytest.raises(ValueError, match="passes is 1"):
        AdaptiveLabelCorrection(ByBrightness(), passes=1)
    AdaptiveLabelCorrection(ByBrightness(), passes=1, selected_fraction=1.0)
    AdaptiveLabelCorrection(ByBrightness(), passes=1, alpha=0.0, beta=0.0)


def test_the_word_false_from_the_command_line_is_no() -> None:
    assert AdaptiveLabelCorrection(ByBrightness(), refine="false").refine is False  # type: ignore[arg-type]
