"""Eqs. 1-11 of Adaptive Label Correction (arXiv 2503.12218): each by hand once, and once by loops over voxels.

The loops are written from the paper alone and share no code with the bundle. Equations that only live inside the method
(1, 3, 8, 9, 11) are observed from outside: hooks on the teacher record what it was shown and what it answered.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from bundles.alc.scripts.losses import (
    consistency_loss,
    kl_uncertainty,
    mean_probability,
    refine_labels,
    sample_uncertainty,
    select_most_certain,
)
from bundles.alc.scripts.method import AdaptiveLabelCorrection
from common.training.method import MethodOutput, Progress

CLASSES = pytest.mark.parametrize("classes", [2, 4])
SIZES = pytest.mark.parametrize("size", [(3, 4), (2, 3, 2)], ids=["2D", "3D"])
SMOOTH = 1e-5


def some_passes(passes: int, samples: int, classes: int, size: tuple[int, ...]) -> Tensor:
    return torch.softmax(2.0 * torch.randn(passes, samples, classes, *size), dim=2)


def voxels_of(size: tuple[int, ...] | torch.Size) -> Iterator[tuple[int, ...]]:
    return itertools.product(*(range(length) for length in size))


def at(tensor: Tensor, *index: int) -> float:
    return float(tensor[index])


# --- the paper by loops


def naive_mean(passes: Tensor) -> Tensor:
    """Eq. 4."""
    mean = torch.zeros(passes.shape[1:])
    for index in voxels_of(mean.shape):
        mean[index] = sum(at(passes, j, *index) for j in range(passes.shape[0])) / passes.shape[0]
    return mean


def naive_kl(passes: Tensor) -> Tensor:
    """Eq. 5: KL(average || pass), summed over classes."""
    count, samples, classes, *size = passes.shape
    mean = naive_mean(passes)
    divergence = torch.zeros(count, samples, *size)
    for j, b in itertools.product(range(count), range(samples)):
        for v in voxels_of(tuple(size)):
            index = (j, b, *v)
            divergence[index] = sum(
                at(mean, b, c, *v) * math.log(at(mean, b, c, *v) / at(passes, j, b, c, *v)) for c in range(classes)
            )
    return divergence


def naive_refined(passes: Tensor) -> Tensor:
    """Eq. 6: the class that wins the sum of the passes, each weighted by exp(-divergence) at that voxel."""
    count, samples, classes, *size = passes.shape
    divergence = naive_kl(passes)
    refined = torch.zeros(samples, 1, *size, dtype=torch.int64)
    for b in range(samples):
        for v in voxels_of(tuple(size)):
            weights = [math.exp(-at(divergence, j, b, *v)) for j in range(count)]
            scores = [
                sum(at(passes, j, b, c, *v) * weights[j] / sum(weights) for j in range(count)) / count
                for c in range(classes)
            ]
            index = (b, 0, *v)
            refined[index] = scores.index(max(scores))
    return refined


def naive_sample_uncertainty(passes: Tensor) -> list[float]:
    """Eq. 7: variance over the passes, averaged over voxels and classes."""
    count, samples, classes, *size = passes.shape
    scores = []
    for b in range(samples):
        variances = []
        for c, v in itertools.product(range(classes), voxels_of(tuple(size))):
            values = [at(passes, j, b, c, *v) for j in range(count)]
            mean = sum(values) / count
            variances.append(sum((value - mean) ** 2 for value in values) / count)
        scores.append(sum(variances) / len(variances))
    return scores


def naive_consistency(teacher: Tensor, student: Tensor) -> float:
    """Eq. 10: half the L1 norm over classes, mean over voxels."""
    total, voxels = 0.0, 0
    for image, *voxel in voxels_of((teacher.shape[0], *teacher.shape[2:])):
        places = [(image, c, *voxel) for c in range(teacher.shape[1])]
        total += sum(abs(float(teacher[place]) - float(student[place])) for place in places) / 2
        voxels += 1
    return total / voxels


def naive_segmentation(logits: Tensor, label: Tensor) -> float:
    """Eq. 2 for one sample: logits (C, *S), label (1, *S)."""
    classes = logits.shape[0]
    voxels = list(voxels_of(logits.shape[1:]))
    cross_entropy, overlap, predicted, present = 0.0, [0.0] * classes, [0.0] * classes, [0.0] * classes
    for v in voxels:
        scores = [math.exp(at(logits, c, *v)) for c in range(classes)]
        truth = int(at(label, 0, *v))
        cross_entropy -= math.log(scores[truth] / sum(scores)) / len(voxels)
        overlap[truth] += scores[truth] / sum(scores)
        present[truth] += 1.0
        predicted = [total + score / sum(scores) for total, score in zip(predicted, scores, strict=True)]
    dice = [1 - (2 * overlap[c] + SMOOTH) / (predicted[c] + present[c] + SMOOTH) for c in range(1, classes)]
    return 0.5 * (cross_entropy + sum(dice) / len(dice))


# --- Eqs. 4-7 and 10: pure functions


@CLASSES
@SIZES
def test_pure_functions_equal_loops(classes: int, size: tuple[int, ...]) -> None:
    passes = some_passes(3, 2, classes, size)
    mean, student = mean_probability(passes), some_passes(1, 2, classes, size)[0]
    torch.testing.assert_close(mean, naive_mean(passes))
    torch.testing.assert_close(kl_uncertainty(passes), naive_kl(passes), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(refine_labels(passes), naive_refined(passes))
    assert sample_uncertainty(passes).tolist() == pytest.approx(naive_sample_uncertainty(passes), rel=1e-5)
    assert float(consistency_loss(mean, student)) == pytest.approx(naive_consistency(mean, student), rel=1e-5)


def voxel(*passes: tuple[float, ...]) -> Tensor:
    """The passes of one sample of one voxel (2D): (M, 1, C, 1, 1)."""
    return torch.tensor(passes)[:, None, :, None, None]


def test_eq4_mean_by_hand() -> None:
    mean = mean_probability(voxel((0.8, 0.2), (0.4, 0.6)))
    assert mean.shape == (1, 2, 1, 1)
    assert mean.flatten().tolist() == pytest.approx([0.6, 0.4])


def test_eq5_divergence_by_hand() -> None:
    # average (.6, .4): .6 ln(.6/.8) + .4 ln(.4/.2) and .6 ln(.6/.4) + .4 ln(.4/.6)
    divergence = kl_uncertainty(voxel((0.8, 0.2), (0.4, 0.6)))
    assert divergence.shape == (2, 1, 1, 1)
    assert divergence.flatten().tolist() == pytest.approx([0.10464963, 0.08109302], rel=1e-5)


def test_eq5_is_zero_where_all_passes_agree() -> None:
    passes = some_passes(1, 2, 4, (3, 3)).repeat(5, 1, 1, 1, 1)
    torch.testing.assert_close(kl_uncertainty(passes), torch.zeros(5, 2, 3, 3), rtol=0, atol=1e-6)


def test_eq6_weights_by_hand() -> None:
    # The average (.49667, .50333) says class 1. The third pass strays most: KL .0218, .0218, .0941, so the weights are
    # .9785, .9785, .9102 and the weighted average is (.5016, .4984): class 0.
    passes = voxel((0.6, 0.4), (0.6, 0.4), (0.29, 0.71))
    assert int(mean_probability(passes).argmax()) == 1
    refined = refine_labels(passes)
    assert refined.shape == (1, 1, 1, 1) and refined.dtype == torch.int64
    assert int(refined) == 0


def test_eqs5_and_6_survive_probabilities_of_zero() -> None:
    # softmax in float32 gives exact zeros, for which KL is infinite
    passes = voxel((1.0, 0.0, 0.0), (1.0, 0.0, 0.0), (0.0, 0.0, 1.0))
    assert bool(torch.isfinite(kl_uncertainty(passes)).all())
    assert int(refine_labels(passes)) == 0
    assert int(refine_labels(passes.flip(2))) == 2


def test_eq7_variance_by_hand() -> None:
    # One voxel varies: (.8, .4) about .6 is variance .04 in either class. The other voxel does not. Mean: .02
    shaken = torch.tensor([[[0.8, 0.5], [0.2, 0.5]], [[0.4, 0.5], [0.6, 0.5]]])  # (M, C, voxels)
    steady = torch.tensor([[[0.9, 0.1], [0.1, 0.9]]]).repeat(2, 1, 1)  # differs over voxels, never over passes
    uncertainty = sample_uncertainty(torch.stack([shaken, steady], dim=1)[..., None])
    assert uncertainty.shape == (2,)
    assert uncertainty.tolist() == pytest.approx([0.02, 0.0], abs=1e-7)


@pytest.mark.parametrize(
    ("k", "chosen"),
    [
        (0, [False, False, False, False, False]),
        (1, [False, False, False, True, False]),
        (2, [False, True, False, True, False]),
        (5, [True, True, True, True, True]),
    ],
)
def test_selection_by_hand(k: int, chosen: list[bool]) -> None:
    selected = select_most_certain(torch.tensor([0.5, 0.2, 0.9, 0.1, 0.4]), k)
    assert selected.dtype == torch.bool and selected.tolist() == chosen


def test_selection_takes_exactly_k_of_equals() -> None:
    assert int(select_most_certain(torch.full((6,), 0.25), 3).sum()) == 3


@pytest.mark.parametrize("k", [-1, 4])
def test_selection_of_more_than_there_are_is_refused(k: int) -> None:
    with pytest.raises(ValueError):
        select_most_certain(torch.tensor([0.1, 0.2, 0.3]), k)


def test_eq10_by_hand() -> None:
    teacher, student = torch.tensor([[0.8, 0.4], [0.2, 0.6]]), torch.tensor([[0.5, 0.5], [0.5, 0.5]])
    # |differences| .3 .1 .3 .1
    assert float(consistency_loss(teacher[None, ..., None], student[None, ..., None])) == pytest.approx(0.2)


@pytest.mark.parametrize("classes", [2, 3, 8])
def test_eq10_does_not_weaken_with_the_number_of_classes(classes: int) -> None:
    """The same mass in another place costs the same, however many classes stand empty beside."""
    teacher, student = torch.zeros(2, 1, classes, 2, 2)
    teacher[:, 0], student[:, 0] = 0.9, 0.3
    teacher[:, 1], student[:, 1] = 0.1, 0.7
    assert float(consistency_loss(teacher, student)) == pytest.approx(0.6)
    assert float(consistency_loss(teacher[:, :2], student[:, :2])) == pytest.approx(
        float((teacher[:, :2] - student[:, :2]).abs().mean())
    )


# --- Eqs. 1-3, 8, 9, 11 by hand: networks that answer one thing everywhere


class Constant(nn.Module):
    """The same logits at every voxel, whatever the image shows."""

    def __init__(self, logits: list[float]) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.tensor(logits))

    def forward(self, image: Tensor) -> Tensor:
        shape = (1, -1) + (1,) * (image.ndim - 2)
        return self.logits.view(shape).expand(image.shape[0], -1, *image.shape[2:])


UNDECIDED_ON_FOREGROUND = 0.5 * (0.69314718 + 1.0 / 3.0)  # p = 1/2, label all 1: CE ln 2, Dice loss 1 - 1/(1/2 + 1)
UNDECIDED_ON_BACKGROUND = 0.5 * (0.69314718 + 1.0)  # p = 1/2, label all 0: CE ln 2, Dice loss 1


def constant_case(iteration: int = 0, **arguments: float) -> MethodOutput:
    """2 clean samples (foreground), 4 noisy ones (background); student undecided; teacher sure of foreground."""
    method = AdaptiveLabelCorrection(Constant([0.0, 0.0]), **arguments)  # type: ignore[arg-type]
    with torch.no_grad():
        for logits in method.teacher.parameters():
            logits.copy_(torch.tensor([0.0, 2.0]))
    label = torch.zeros(6, 1, 4, 4, 4, dtype=torch.int64)
    label[:2] = 1
    batch = {"image": torch.randn(6, 1, 4, 4, 4), "label": label, "clean": torch.arange(6) < 2}
    output: MethodOutput = method(batch, Progress(iteration=iteration, total=100))
    return output


def test_eqs1_and_2_clean_loss_by_hand() -> None:
    assert constant_case().terms["clean"].value.item() == pytest.approx(UNDECIDED_ON_FOREGROUND, rel=1e-5)


def test_eq8_refined_loss_by_hand() -> None:
    # the teacher's label is foreground, so the loss is what the same label costs on a clean sample
    assert constant_case().terms["refined"].value.item() == pytest.approx(UNDECIDED_ON_FOREGROUND, rel=1e-5)


def test_eq9_noisy_loss_by_hand() -> None:
    # the mean over the samples not selected: the printed "+ 1" would make it 2/3 of this
    assert constant_case().terms["noisy"].value.item() == pytest.approx(UNDECIDED_ON_BACKGROUND, rel=1e-5)


def test_eq10_consistency_of_the_method_by_hand() -> None:
    # sigmoid(2) - 1/2 in both classes
    assert constant_case().terms["consistency"].value.item() == pytest.approx(0.88079708 - 0.5, rel=1e-5)


@pytest.mark.parametrize(("iteration", "ramp"), [(0, 0.00673795), (50, 0.28650480), (100, 1.0)])
def test_eq11_total_by_hand(iteration: int, ramp: float) -> None:
    clean = refined = UNDECIDED_ON_FOREGROUND
    noisy, consistency = UNDECIDED_ON_BACKGROUND, 0.380797
    expected = clean + ramp * (3.0 * refined + 2.0 * noisy + 1.0 * consistency)
    assert constant_case(iteration).total.item() == pytest.approx(expected, rel=1e-5)
    halved = clean + 0.5 * ramp * (5.0 * refined + 7.0 * noisy + 11.0 * consistency)
    total = constant_case(iteration, alpha=5.0, beta=7.0, consistency=11.0, ramp_scale=0.5).total
    assert total.item() == pytest.approx(halved, rel=1e-5)


# --- Algorithm 1 by loops: the whole step


def plain_network(spatial_dims: int, classes: int) -> nn.Module:
    """No dropout and no batch statistics: what a sample costs depends on that sample alone."""
    convolution = nn.Conv2d if spatial_dims == 2 else nn.Conv3d
    return nn.Sequential(convolution(1, 4, 3, padding=1), nn.ReLU(), convolution(4, classes, 1))


class TeacherRecord:
    """What the teacher was shown and what it answered, sorted by sample, however the passes were batched."""

    def __init__(self, method: AdaptiveLabelCorrection) -> None:
        self.shown: list[Tensor] = []
        self.answered: list[Tensor] = []
        method.teacher.register_forward_hook(self._record)

    def _record(self, module: nn.Module, arguments: tuple[Tensor, ...], answer: Tensor) -> None:
        self.shown.extend(arguments[0].detach().clone().unbind())
        self.answered.extend(answer.detach().clone().unbind())

    def of_sample(self, image: Tensor, images: Tensor) -> tuple[Tensor, Tensor]:
        """Inputs (M, 1, *S) and logits (M, C, *S) of the passes whose input is nearer to `image` than to the others."""
        nearest = [int((images - shown).flatten(1).norm(dim=1).argmin()) for shown in self.shown]
        index = int((images - image).flatten(1).norm(dim=1).argmin())
        mine = [row for row, near in enumerate(nearest) if near == index]
        return torch.stack([self.shown[row] for row in mine]), torch.stack([self.answered[row] for row in mine])


@CLASSES
@SIZES
@pytest.mark.parametrize("noisy_samples", [2, 4])
def test_one_step_equals_algorithm_1_by_loops(classes: int, size: tuple[int, ...], noisy_samples: int) -> None:
    method = AdaptiveLabelCorrection(plain_network(len(size), classes), passes=3)
    with torch.no_grad():
        for parameter in method.teacher.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    record = TeacherRecord(method)
    clean = torch.tensor([False, True] + [False] * (noisy_samples - 1) + [True])  # not sorted by quality
    image = 3.0 * torch.randn(noisy_samples + 2, 1, *size)
    label = torch.randint(0, classes, (noisy_samples + 2, 1, *size))
    output = method({"image": image, "label": label, "clean": clean}, Progress(iteration=30, total=100))

    logits = method.network(image).detach()
    noisy = [b for b in range(noisy_samples + 2) if not clean[b]]
    passes = torch.stack(
        [torch.softmax(record.of_sample(image[b], image[noisy])[1], dim=1) for b in noisy], dim=1
    )  # (M, noisy samples, C, *S)
    assert passes.shape[0] == 3
    uncertainty = naive_sample_uncertainty(passes)
    order = sorted(range(len(noisy)), key=lambda i: uncertainty[i])
    selected, rest = order[: len(noisy) // 2], order[len(noisy) // 2 :]
    refined_labels = naive_refined(passes)

    hs = [naive_segmentation(logits[b], label[b]) for b in range(noisy_samples + 2) if clean[b]]
    ls = [naive_segmentation(logits[noisy[i]], refined_labels[i]) for i in selected]
    ln = [naive_segmentation(logits[noisy[i]], label[noisy[i]]) for i in rest]
    expected = {
        "clean": sum(hs) / len(hs),
        "refined": sum(ls) / len(ls),
        "noisy": sum(ln) / len(ln),
        "consistency": naive_consistency(naive_mean(passes), torch.softmax(logits[noisy], dim=1)),
    }
    values = {name: term.value.item() for name, term in output.terms.items()}
    assert values == pytest.approx(expected, rel=1e-4)
    ramp = math.exp(-5.0 * (1.0 - 0.3) ** 2)
    total = values["clean"] + ramp * (3 * values["refined"] + 2 * values["noisy"] + values["consistency"])
    assert output.total.item() == pytest.approx(total, rel=1e-5)


def test_eq3_every_pass_sees_its_own_gaussian_noise() -> None:
    method = AdaptiveLabelCorrection(plain_network(3, 2), passes=4, input_noise=0.3)
    record = TeacherRecord(method)
    image = 20.0 * torch.arange(4.0).view(4, 1, 1, 1, 1) + torch.randn(4, 1, 16, 16, 16)
    batch = {"image": image, "label": torch.zeros_like(image), "clean": torch.tensor([True, False, False, False])}
    method(batch, Progress(iteration=0, total=10))
    assert len(record.shown) == 3 * 4  # noisy samples only, four passes each
    for b in (1, 2, 3):
        shown, _ = record.of_sample(image[b], image)
        noise = (shown - image[b]).flatten(1)
        assert noise.shape[0] == 4
        assert noise.std(dim=1).tolist() == pytest.approx([0.3] * 4, rel=0.1)
        assert noise.mean(dim=1).tolist() == pytest.approx([0.0] * 4, abs=0.03)
        assert float((torch.corrcoef(noise) - torch.eye(4)).abs().max()) < 0.1  # no two passes share their noise
