"""The example without torch and MONAI, against MONAI."""

from __future__ import annotations

import numpy as np
import pytest
from monai.data.utils import compute_importance_map

from ci.export.examples.segment import importance


@pytest.mark.parametrize("mode", ["constant", "gaussian"])
@pytest.mark.parametrize("window", [(8, 12), (16, 24, 32)])
def test_windows_weigh_as_in_monai(mode: str, window: tuple[int, ...]) -> None:
    expected = compute_importance_map(window, mode=mode, sigma_scale=0.125).numpy()
    np.testing.assert_allclose(importance(window, mode), expected, rtol=1e-5)
