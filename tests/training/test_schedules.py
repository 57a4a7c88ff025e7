"""Ramp-up of the weights of unsupervised terms against hand-computed values."""

from __future__ import annotations

import math

import pytest

from common.training.schedules import gaussian_ramp_up


@pytest.mark.parametrize(
    ("fraction", "expected"),
    [
        (0.0, 0.006737946999),  # exp(-5)
        (0.25, 0.060054667895),  # exp(-5 * 9/16)
        (0.5, 0.286504796860),  # exp(-5/4)
        (0.8, 0.818730753078),  # exp(-1/5)
        (1.0, 1.0),
    ],
)
def test_hand_computed(fraction: float, expected: float) -> None:
    assert gaussian_ramp_up(fraction) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(("outside", "nearest"), [(-0.5, 0.0), (1.5, 1.0), (7.0, 1.0)])
def test_fraction_is_clipped(outside: float, nearest: float) -> None:
    assert gaussian_ramp_up(outside) == gaussian_ramp_up(nearest)


def test_rises_all_the_way() -> None:
    values = [gaussian_ramp_up(step / 100) for step in range(101)]
    assert all(earlier < later for earlier, later in zip(values, values[1:], strict=False))
    assert all(math.isfinite(value) and 0.0 < value <= 1.0 for value in values)
