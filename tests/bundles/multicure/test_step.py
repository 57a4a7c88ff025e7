"""A whole step of MultiCURE against its equations by loops: Eq. 3 from what both networks answered."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from bundles.multicure.scripts.method import MultiCURE
from bundles.multicure.scripts.network import MultiCURENet
from common.training.method import Progress
from tests.bundles.multicure.test_equations import (
    cosine,
    naive_contrast,
    naive_prototypes,
    naive_pseudo_label,
    naive_xor,
)


@pytest.mark.parametrize(("schedule", "sign"), [("rise", -1), ("decay", 1)])
@pytest.mark.parametrize("printed", [False, True])
@pytest.mark.parametrize(("classes", "dims"), [(2, 2), (4, 2), (2, 3)])
def test_one_step_equals_eqs_1_to_5_by_loops(classes: int, dims: int, printed: bool, schedule: str, sign: int) -> None:
    torch.manual_seed(classes + dims)
    threshold, shape = 0.6 if classes == 2 else 0.4, (4, 1, *(16,) * dims)
    network = MultiCURENet(dims, out_channels=classes, base_filters=2, dropout=0.0, threshold=threshold)
    method = MultiCURE(
        network,
        unlabelled=0.7,
        regularisation=0.3,
        contrastive=0.2,
        schedule=schedule,
        separation=0.4,
        temperature=0.5,
        printed_denominator=printed,
        max_voxels=10**6,
    ).train()
    labelled = torch.tensor([True, False, True, False])
    image, label = torch.randn(shape), torch.randint(0, classes, shape)
    output = method({"image": image, "label": label, "labelled": labelled}, Progress(iteration=25, total=100))
    with torch.no_grad():
        branches = network.branches(image)
        features = method.deep_features(branches.features)
    predictive, auxiliary = branches.predictive, branches.auxiliary
    everywhere = torch.ones_like(label, dtype=torch.bool)

    # Eq. 1: cross entropy and Dice of both networks on labelled images
    supervised = sum(
        naive_pseudo_label(logits[labelled], label[labelled], everywhere[labelled])
        for logits in (predictive, auxiliary)
    )
    # Eq. 2: the predictive network's label teaches, where it is confident
    confidence, pseudo = predictive.softmax(1).max(1, keepdim=True)
    sure = confidence > threshold
    guided = naive_pseudo_label(auxiliary[~labelled], pseudo[~labelled], sure[~labelled])
    apart = naive_xor(predictive.softmax(1)[~labelled], auxiliary.softmax(1)[~labelled], sure[~labelled])
    # Eq. 4 over all images, Eq. 5 over the uncertain voxels of unlabelled ones
    centres = naive_prototypes(features, pseudo, sure, classes)
    places = [place for place in (~sure).nonzero().tolist() if not labelled[place[0]]]
    indices = [(b, slice(None), *voxel) for b, _, *voxel in places]
    vectors = [features[index].tolist() for index in indices]
    contrast = naive_contrast(vectors, [int(pseudo[tuple(place)]) for place in places], centres, 0.5, printed)
    pairs = list(itertools.combinations(sorted(centres), 2))
    alike = sum((1 + cosine(centres[a], centres[b])) / 2 for a, b in pairs) / max(len(pairs), 1)
    # Eq. 3 at a quarter of the training
    weight = 0.2 * math.exp(sign * 4 * 0.75**2)
    total = supervised + 0.7 * (guided + 0.3 * apart) + weight * (contrast + 0.4 * alike)
    assert min(len(places), int(sure.sum()), len(centres)) > 0, "the case must exercise every term"
    assert output.total.item() == pytest.approx(total, rel=2e-4)
