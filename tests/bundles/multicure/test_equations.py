"""Eqs. 2 to 5 of MultiCURE (MIDL 2024): each by hand once, by loops over voxels, and where something is missing."""

from __future__ import annotations

import itertools
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, distributed

from bundles.multicure.scripts.losses import (
    contrastive_loss,
    contrastive_weight,
    prototypes,
    pseudo_label_loss,
    sample_voxels,
    separation_loss,
    xor_regularisation,
)

ROOT = Path(__file__).resolve().parents[3]
CLASSES = pytest.mark.parametrize("classes", [2, 4])
SIZES = pytest.mark.parametrize("size", [(3, 4), (2, 3, 2)], ids=["2D", "3D"])
SMOOTH = 1e-5  # of the Dice loss


def some(classes: int, size: tuple[int, ...], samples: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    """Logits, class numbers, and a mask that is True for about half of the voxels."""
    logits = 2.0 * torch.randn(samples, classes, *size)
    return logits, torch.randint(0, classes, (samples, 1, *size)), torch.rand(samples, 1, *size) > 0.5


# --- the paper by loops


def naive_pseudo_label(logits: Tensor, target: Tensor, confident: Tensor) -> float:
    logits, target, confident = (each.flatten(2) for each in (logits, target, confident))
    samples, classes, voxels = logits.shape
    losses = []
    for b in range(samples):
        places = [v for v in range(voxels) if bool(confident[b, 0, v])]
        probability = {v: torch.softmax(logits[b, :, v], 0).tolist() for v in places}
        truth = {v: int(target[b, 0, v]) for v in places}
        entropy = sum(-math.log(probability[v][truth[v]]) for v in places) / max(len(places), 1)
        dice = []
        for k in range(1, classes):
            members = [v for v in places if truth[v] == k]
            if members:
                overlap = sum(probability[v][k] for v in members)
                total = len(members) + sum(probability[v][k] for v in places)
                dice.append(1.0 - (2.0 * overlap + SMOOTH) / (total + SMOOTH))
        losses.append(entropy + (sum(dice) / len(dice) if dice else 0.0))
    return sum(losses) / samples


def naive_xor(first: Tensor, second: Tensor, confident: Tensor) -> float:
    first, second, confident = (each.flatten(2) for each in (first, second, confident))
    samples, classes, voxels = first.shape
    distances = []
    for b in range(samples):
        for v in range(voxels):
            p, q = (each[b, :, v].tolist() for each in (first, second))
            if p.index(max(p)) != q.index(max(q)) and bool(confident[b, 0, v]):
                distances.append(sum(abs(p[c] - q[c]) for c in range(classes)) / 2.0)
    return sum(distances) / len(distances) if distances else 0.0


def naive_prototypes(features: Tensor, predicted: Tensor, confident: Tensor, classes: int) -> dict[int, list[float]]:
    features, predicted, confident = (each.flatten(2) for each in (features, predicted, confident))
    samples, length, voxels = features.shape
    members: dict[int, list[list[float]]] = {}
    for b in range(samples):
        for v in range(voxels):
            if bool(confident[b, 0, v]):
                members.setdefault(int(predicted[b, 0, v]), []).append(features[b, :, v].tolist())
    assert all(k < classes for k in members)
    return {k: [sum(row[f] for row in rows) / len(rows) for f in range(length)] for k, rows in members.items()}


def cosine(a: list[float], b: list[float]) -> float:
    lengths = [math.sqrt(sum(x * x for x in vector)) for vector in (a, b)]
    return sum(x * y for x, y in zip(a, b, strict=True)) / (lengths[0] * lengths[1])


def naive_contrast(
    voxels: list[list[float]], predicted: list[int], centres: dict[int, list[float]], temperature: float, printed: bool
) -> float:
    per_class = []
    for k in centres:
        losses = []
        for vector, label in zip(voxels, predicted, strict=True):
            if label == k:
                against = [j for j in centres if not printed or j != k]
                scores = {j: math.exp(cosine(vector, centres[j]) / temperature) for j in centres}
                if against:
                    losses.append(-math.log(scores[k] / sum(scores[j] for j in against)))
        if losses:
            per_class.append(sum(losses) / len(losses))
    return sum(per_class) / len(per_class) if per_class else 0.0


def as_table(centres: dict[int, list[float]], classes: int, length: int) -> tuple[Tensor, Tensor]:
    table = torch.tensor([centres.get(k, [0.0] * length) for k in range(classes)])
    return table, torch.tensor([k in centres for k in range(classes)])


# --- Eq. 2


@CLASSES
@SIZES
def test_pseudo_label_loss_against_loops(classes: int, size: tuple[int, ...]) -> None:
    logits, target, confident = some(classes, size)
    value = pseudo_label_loss(logits, target, confident).item()
    assert value == pytest.approx(naive_pseudo_label(logits, target, confident), rel=1e-4)


def test_pseudo_label_loss_by_hand() -> None:
    # two voxels, p(foreground) = 0.5 each; labels 1 and 0; both confident: CE = ln 2, Dice = 1 - 2 * 0.5 / (1 + 1)
    logits, target = torch.zeros(1, 2, 1, 2), torch.tensor([[[[1, 0]]]])
    everywhere = torch.ones(1, 1, 1, 2, dtype=torch.bool)
    assert pseudo_label_loss(logits, target, everywhere).item() == pytest.approx(math.log(2.0) + 0.5, abs=1e-4)
    # the first alone: Dice = 1 - 2 * 0.5 / (1 + 0.5)
    first = torch.tensor([[[[True, False]]]])
    assert pseudo_label_loss(logits, target, first).item() == pytest.approx(math.log(2.0) + 1.0 / 3.0, abs=1e-4)
    # the second alone: no foreground in the pseudo-label, so no Dice
    assert pseudo_label_loss(logits, target, ~first).item() == pytest.approx(math.log(2.0), abs=1e-4)


@CLASSES
@SIZES
def test_xor_regularisation_against_loops(classes: int, size: tuple[int, ...]) -> None:
    first, _, confident = some(classes, size)
    second = some(classes, size)[0].softmax(1)
    first = first.softmax(1)
    expected = naive_xor(first, second, confident)
    assert expected > 0.0
    assert xor_regularisation(first, second, confident).item() == pytest.approx(expected, rel=1e-5)


def test_xor_regularisation_of_two_classes_is_that_of_the_foreground() -> None:
    p, q = torch.tensor([0.9, 0.6, 0.4]), torch.tensor([0.2, 0.8, 0.7])  # foreground; XOR at the first and the last
    first, second = (torch.stack([1.0 - each, each]).reshape(1, 2, 1, 3) for each in (p, q))
    value = xor_regularisation(first, second, torch.ones(1, 1, 1, 3, dtype=torch.bool))
    assert value.item() == pytest.approx((0.7 + 0.3) / 2)


# --- Eq. 4


@CLASSES
@SIZES
def test_prototypes_against_loops(classes: int, size: tuple[int, ...]) -> None:
    features = torch.randn(2, 5, *size)
    _, predicted, confident = some(classes, size)
    predicted[predicted == classes - 1] = 0  # the last class is missing
    expected, there = as_table(naive_prototypes(features, predicted, confident, classes), classes, 5)
    centres, present = prototypes(features, predicted, confident, classes)
    torch.testing.assert_close(centres, expected)
    assert torch.equal(present, there) and not bool(present[-1])


def test_gradient_of_a_prototype_is_shared_by_its_voxels() -> None:
    features = torch.randn(1, 2, 1, 4, requires_grad=True)
    predicted, confident = torch.tensor([[[[0, 0, 1, 0]]]]), torch.tensor([[[[True, True, True, False]]]])
    prototypes(features, predicted, confident, 3)[0].sum().backward()
    torch.testing.assert_close(features.grad, torch.tensor([0.5, 0.5, 1.0, 0.0]).expand(1, 2, 1, 4))


def test_one_process_of_a_group_is_as_none(tmp_path: Path) -> None:
    features, predicted = torch.randn(2, 3, 4, requires_grad=True), torch.randint(0, 2, (2, 1, 4))
    everywhere = torch.ones(2, 1, 4, dtype=torch.bool)
    answers = []
    for grouped in (False, True):
        if grouped:
            distributed.init_process_group("gloo", f"file://{tmp_path / 'group'}", rank=0, world_size=1)
        try:
            centres, _ = prototypes(features, predicted, everywhere, 2)
            answers.append((centres, *torch.autograd.grad(centres.square().sum(), features)))
        finally:
            if grouped:
                distributed.destroy_process_group()
    torch.testing.assert_close(answers[0], answers[1])


# --- Eq. 5


@CLASSES
@pytest.mark.parametrize("printed", [False, True])
def test_contrastive_loss_against_loops(classes: int, printed: bool) -> None:
    voxels, predicted = torch.randn(12, 5), torch.randint(0, classes, (12,))
    centres = {k: torch.randn(5).tolist() for k in range(classes) if classes == 2 or k != 1}  # of 4 one is missing
    table, present = as_table(centres, classes, 5)
    expected = naive_contrast(voxels.tolist(), predicted.tolist(), centres, 0.5, printed)
    value = contrastive_loss(voxels, predicted, table, present, 0.5, printed)
    assert value.item() == pytest.approx(expected, rel=1e-5)


def test_contrastive_loss_by_hand() -> None:
    # one voxel on its own prototype, the other prototype opposite: s = 1 and -1 over a temperature of 0.5
    voxel, centres = torch.tensor([[2.0, 0.0]]), torch.tensor([[3.0, 0.0], [-1.0, 0.0]])
    present = torch.tensor([True, True])
    value = contrastive_loss(voxel, torch.tensor([0]), centres, present, 0.5)
    assert value.item() == pytest.approx(math.log(1.0 + math.exp(-4.0)), rel=1e-4)
    value = contrastive_loss(voxel, torch.tensor([0]), centres, present, 0.5, printed=True)
    assert value.item() == pytest.approx(-4.0)


def test_classes_count_alike_however_many_voxels_they_have() -> None:
    centres, present = torch.eye(2), torch.tensor([True, True])
    few = contrastive_loss(torch.tensor([[1.0, 0.0], [1.0, 1.0]]), torch.tensor([0, 1]), centres, present)
    many = contrastive_loss(
        torch.tensor([[1.0, 0.0]] * 9 + [[1.0, 1.0]]), torch.tensor([0] * 9 + [1]), centres, present
    )
    assert few.item() == pytest.approx(many.item())


def test_contrastive_loss_turns_a_voxel_towards_its_prototype() -> None:
    voxel = torch.tensor([[1.0, 1.0]], requires_grad=True)
    contrastive_loss(voxel, torch.tensor([0]), torch.eye(2), torch.tensor([True, True])).backward()
    assert voxel.grad is not None and voxel.grad[0, 0] < 0.0 < voxel.grad[0, 1]


# --- separation


@CLASSES
def test_separation_against_loops(classes: int) -> None:
    centres = {k: torch.randn(5).tolist() for k in range(classes) if classes == 2 or k != 2}
    pairs = [0.5 * (1.0 + cosine(centres[i], centres[j])) for i, j in itertools.combinations(centres, 2)]
    value = separation_loss(*as_table(centres, classes, 5))
    assert value.item() == pytest.approx(sum(pairs) / len(pairs), rel=1e-5)


def test_separation_is_0_for_opposite_and_1_for_equal_directions() -> None:
    present = torch.tensor([True, True])
    assert separation_loss(torch.tensor([[1.0, 2.0], [-2.0, -4.0]]), present).item() == pytest.approx(0.0, abs=1e-6)
    assert separation_loss(torch.tensor([[1.0, 2.0], [2.0, 4.0]]), present).item() == pytest.approx(1.0)


# --- where something is missing


def assert_nothing(value: Tensor, *inputs: Tensor) -> None:
    """The value is 0 and so is, to the bit, its gradient."""
    assert value.item() == 0.0
    gradients = torch.autograd.grad(value, inputs)
    assert all(bool((gradient == 0.0).all()) for gradient in gradients)


@CLASSES
def test_no_confident_voxel_teaches_nothing(classes: int) -> None:
    logits, target, _ = some(classes, (3, 4))
    logits.requires_grad_()
    nowhere = torch.zeros(2, 1, 3, 4, dtype=torch.bool)
    assert_nothing(pseudo_label_loss(logits, target, nowhere), logits)
    assert_nothing(xor_regularisation(logits.softmax(1), (-logits).softmax(1), nowhere), logits)
    features = torch.randn(2, 5, 3, 4, requires_grad=True)
    centres, present = prototypes(features, target, nowhere, classes)
    assert not bool(present.any()) and bool((centres == 0.0).all())
    assert_nothing(separation_loss(centres, present), features)
    for printed in (False, True):
        centres, present = prototypes(features, target, nowhere, classes)
        voxels = features.flatten(2)[0].T
        assert_nothing(contrastive_loss(voxels, target[0].flatten(), centres, present, printed=printed), features)


@pytest.mark.parametrize("printed", [False, True])
def test_no_uncertain_voxel_teaches_nothing(printed: bool) -> None:
    features = torch.randn(1, 5, 3, requires_grad=True)
    centres, present = prototypes(features, torch.tensor([[[0, 1, 2]]]), torch.ones(1, 1, 3, dtype=torch.bool), 3)
    nobody = features.flatten(2)[torch.zeros(0, dtype=torch.long), :, torch.zeros(0, dtype=torch.long)]
    assert_nothing(contrastive_loss(nobody, torch.zeros(0), centres, present, printed=printed), features)


@pytest.mark.parametrize("printed", [False, True])
def test_a_single_prototype_has_nothing_to_contrast(printed: bool) -> None:
    voxels, centres = torch.randn(4, 5, requires_grad=True), torch.randn(3, 5, requires_grad=True)
    present = torch.tensor([False, True, False])
    loss = contrastive_loss(
        voxels, torch.tensor([0, 1, 1, 2]), centres * present.unsqueeze(1), present, printed=printed
    )
    assert_nothing(loss, voxels, centres)
    assert_nothing(separation_loss(centres * present.unsqueeze(1), present), centres)


def test_no_image_teaches_nothing() -> None:
    logits = torch.zeros(0, 2, 3, 4, requires_grad=True)
    target = torch.zeros(0, 1, 3, 4, dtype=torch.long)
    assert_nothing(pseudo_label_loss(logits, target, target > 0), logits)
    assert_nothing(xor_regularisation(logits.softmax(1), logits.softmax(1), target > 0), logits)


def test_voxels_without_direction_stay_finite() -> None:
    voxels = torch.zeros(2, 5, requires_grad=True)
    contrastive_loss(voxels, torch.tensor([0, 1]), torch.eye(5)[:2], torch.tensor([True, True])).backward()
    assert voxels.grad is not None and bool(torch.isfinite(voxels.grad).all())


def test_many_classes() -> None:
    features, predicted = torch.randn(1, 6, 40, requires_grad=True), torch.arange(40).reshape(1, 1, 40) % 25
    centres, present = prototypes(features, predicted, torch.ones(1, 1, 40, dtype=torch.bool), 30)
    assert int(present.sum()) == 25
    loss = contrastive_loss(features[0].T, predicted.flatten(), centres, present) + separation_loss(centres, present)
    loss.backward()
    assert features.grad is not None and bool(torch.isfinite(features.grad).all())


# --- sampling, schedule


def test_sampling_keeps_within_the_mask_and_the_number() -> None:
    mask = torch.rand(2, 1, 10, 10) > 0.5
    every = sample_voxels(mask, 1000)
    assert torch.equal(every, mask.flatten().nonzero()[:, 0])
    some_of_them = sample_voxels(mask, 7)
    assert len(some_of_them.unique()) == 7 and bool(mask.flatten()[some_of_them].all())
    assert not torch.equal(some_of_them, sample_voxels(mask, 7))
    assert len(sample_voxels(mask & False, 7)) == 0


@pytest.mark.parametrize(
    ("fraction", "rising", "expected"),
    [(0.0, True, 0.1 * math.exp(-4)), (0.5, True, 0.1 / math.e), (1.0, True, 0.1)]
    + [(0.0, False, 0.1 * math.exp(4)), (0.5, False, 0.1 * math.e), (1.0, False, 0.1)],
)
def test_schedules_of_the_contrastive_weight(fraction: float, rising: bool, expected: float) -> None:
    assert contrastive_weight(fraction, 0.1, rising) == pytest.approx(expected)


# --- two processes

SHARE = """
import sys
import torch
from torch import distributed
from bundles.multicure.scripts.losses import contrastive_loss, prototypes, separation_loss

rank, folder = int(sys.argv[1]), sys.argv[2]
features, predicted, confident, voxels = (value.chunk(2)[rank] for value in torch.load(folder + "/batch.pt"))
distributed.init_process_group("gloo", "file://" + folder + "/group", rank=rank, world_size=2)
features.requires_grad_()
centres, present = prototypes(features, predicted, confident, 3)
labels = torch.arange(len(voxels)) % 3
loss = separation_loss(centres, present) + contrastive_loss(voxels, labels, centres, present)
loss.backward()
torch.save((centres.detach(), present, features.grad), f"{folder}/answer_{rank}.pt")
distributed.destroy_process_group()
"""


@pytest.mark.slow
def test_prototypes_over_two_processes(tmp_path: Path) -> None:
    """Class 2 is confident in the second process alone; means and gradients are those of the whole batch."""
    features, voxels = torch.randn(4, 5, 6), torch.randn(6, 5)
    predicted = torch.tensor([[0, 1] * 3, [0] * 6, [2, 1] * 3, [1, 2, 0] * 2]).unsqueeze(1)
    confident = torch.rand(4, 1, 6) > 0.3
    torch.save((features, predicted, confident, voxels), tmp_path / "batch.pt")
    command = [sys.executable, "-c", SHARE]
    ranks = [subprocess.Popen([*command, str(rank), str(tmp_path)], cwd=ROOT) for rank in (0, 1)]
    assert [process.wait(timeout=120) for process in ranks] == [0, 0]

    features.requires_grad_()
    centres, present = prototypes(features, predicted, confident, 3)
    labels = torch.arange(3)
    losses = [contrastive_loss(share, labels, centres, present) for share in voxels.chunk(2)]
    (separation_loss(centres, present) + sum(losses) / 2).backward()  # DDP takes the mean over processes
    answers = [torch.load(tmp_path / f"answer_{rank}.pt") for rank in (0, 1)]
    for answer in answers:
        torch.testing.assert_close(answer[:2], (centres.detach(), present))
    torch.testing.assert_close(torch.cat([answer[2] for answer in answers]) / 2, features.grad)
