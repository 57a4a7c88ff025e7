from __future__ import annotations

import pytest
import torch

from common.ops import spread
from common.ops.spread import local_spread, local_variance
from tests.ops.window_cases import EVERY, SHAPES, at, normal, voxels, window


@pytest.mark.parametrize("elements", [1, 10**6])
@pytest.mark.parametrize("radius", [1, 2])
@pytest.mark.parametrize("shape", SHAPES)
def test_equals_the_equation(
    shape: tuple[int, ...], radius: int, elements: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spread, "_ELEMENTS", elements)
    values = normal(2, 3, *shape, dtype=torch.float32) + 100
    found = local_spread(values, radius)
    assert found.dtype is torch.float32 and found.shape == (2, 1, *shape)
    for b in range(2):
        for i in voxels(shape):
            near = torch.stack([values[at(b, EVERY, j)].double() for j in window(i, shape, radius)])
            expected = (near - near.mean(0)).square().sum(1).mean().sqrt()
            assert float(found[at(b, 0, i)]) == pytest.approx(float(expected), abs=1e-5)
    torch.testing.assert_close(local_variance(values, radius), found.square())


def test_constant_regions_have_none() -> None:
    assert float(local_spread(torch.full((1, 4, 5, 5, 5), 1000.1)).max()) < 1e-4


def test_no_gradient_and_float32_under_autocast() -> None:
    values = normal(1, 2, 4, 4, dtype=torch.float32).bfloat16().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = local_spread(values)
    assert not found.requires_grad and found.dtype is torch.float32
    torch.testing.assert_close(found, local_spread(values.detach().float()))


def test_an_empty_batch_stays_empty() -> None:
    assert local_spread(torch.zeros(0, 2, 3, 4)).shape == (0, 1, 3, 4)


@pytest.mark.parametrize(("values", "radius"), [(torch.zeros(1, 1, 3, 3), 0), (torch.zeros(1, 3, 3), 1)])
def test_what_does_not_fit_is_refused(values: torch.Tensor, radius: int) -> None:
    with pytest.raises(ValueError, match="radius|expected"):
        local_spread(values, radius)
