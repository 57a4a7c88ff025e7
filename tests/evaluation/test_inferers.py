"""Sliding windows that average probabilities, against loops over the windows."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from monai.inferers import SliceInferer, SlidingWindowInferer

from common.evaluation.inferers import ProbabilitySliceInferer, ProbabilityWindowInferer, window_probabilities

CLASSES = 3


class PlaceNet(torch.nn.Module):
    """Logits that depend on where in its window a voxel lies, so that windows disagree; one channel more if asked."""

    def __init__(self, extra: bool = False) -> None:
        super().__init__()
        self.extra = extra

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        ramp = torch.linspace(-4.0, 4.0, image.shape[-1])
        logits = torch.cat([image * ramp, -image, image * ramp.flip(0) * 0.5], dim=1)
        return torch.cat([logits, image], dim=1) if self.extra else logits


@pytest.fixture
def image() -> torch.Tensor:
    return torch.rand(1, 1, 6, 10)


def by_loops(image: torch.Tensor, network: torch.nn.Module, size: int, stride: int) -> torch.Tensor:
    """The mean over windows along the last axis of softmax(logits), voxel by voxel."""
    width = image.shape[-1]
    total = torch.zeros(1, CLASSES, *image.shape[2:])
    count = torch.zeros(width)
    for start in range(0, width - size + 1, stride):
        logits = network(image[..., start : start + size])
        for row, column in np.ndindex(image.shape[2], size):
            powers = [float(np.exp(float(logits[0, c, row, column]))) for c in range(CLASSES)]
            for c in range(CLASSES):
                total[0, c, row, start + column] += powers[c] / sum(powers)
        count[start : start + size] += 1
    return total / count


def test_mean_of_the_windows_probabilities(image: torch.Tensor) -> None:
    inferer = ProbabilityWindowInferer((6, 4), sw_batch_size=3, overlap=0.5)
    found = inferer(image, PlaceNet())
    torch.testing.assert_close(found, by_loops(image, PlaceNet(), 4, 2), rtol=1e-5, atol=1e-6)
    logits = SlidingWindowInferer((6, 4), overlap=0.5)(image, PlaceNet())
    assert (found - logits.softmax(1)).abs().max() > 0.01, "the mean of logits would pass as well"


def test_channels_beyond_the_classes_stay(image: torch.Tensor) -> None:
    inferer = ProbabilityWindowInferer((6, 4), overlap=0.5, num_classes=CLASSES)
    found = inferer(image, PlaceNet(extra=True))
    torch.testing.assert_close(found[:, :CLASSES], by_loops(image, PlaceNet(), 4, 2), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found[:, CLASSES:], image)


def test_slices(image: torch.Tensor) -> None:
    volume = torch.rand(1, 1, 6, 5, 10)
    arguments: dict[str, Any] = {"roi_size": (6, 4), "sw_batch_size": 2, "overlap": 0.5}
    found = ProbabilitySliceInferer(spatial_dim=1, **arguments)(volume, PlaceNet())
    for place in range(5):
        expected = by_loops(volume[..., place, :], PlaceNet(), 4, 2)
        torch.testing.assert_close(found[..., place, :], expected, rtol=1e-5, atol=1e-6)
    assert isinstance(ProbabilitySliceInferer(**arguments), SliceInferer)


def test_softmax_is_float32_whatever_the_network_gives() -> None:
    logits = torch.randn(2, CLASSES, 4, dtype=torch.bfloat16)
    found = window_probabilities(logits)
    assert found.dtype is torch.float32
    torch.testing.assert_close(found, logits.float().softmax(1))
