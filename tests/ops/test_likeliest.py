"""The likeliest class is argmax's, ties and NaN included."""

from __future__ import annotations

import pytest
import torch
from monai.data import MetaTensor

from common.ops.likeliest import likeliest


@pytest.mark.parametrize("keepdim", [False, True])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_equals_argmax_with_ties_and_nan(axis: int, keepdim: bool) -> None:
    values = torch.randint(0, 3, (4, 5, 6, 7), generator=torch.manual_seed(0)).float()
    values[torch.rand(values.shape) < 0.05] = float("nan")
    found = likeliest(values.requires_grad_(), axis, keepdim)
    assert found.dtype == torch.int64 and torch.equal(found, values.argmax(axis, keepdim=keepdim))


def test_an_image_keeps_its_meta_data() -> None:
    image = MetaTensor(torch.rand(3, 4, 5), meta={"name": "a"})
    found = likeliest(image, 0, keepdim=True)
    assert isinstance(found, MetaTensor) and found.meta["name"] == "a" and found.shape == (1, 4, 5)
