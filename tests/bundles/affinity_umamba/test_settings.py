"""What the settings of the network's stages refuse, one by one and together."""

from __future__ import annotations

from typing import Any

import pytest

from bundles.affinity_umamba.scripts.settings import SETTINGS
from common.settings.setting import BadValueError


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("filters", 16, "filters: is 16, which is no list of whole numbers. Fix: give one for each stage"),
        ("filters", [], "filters: is"),
        ("filters", [16, 0], "filters: holds 0, which is not at least 1"),
        ("filters", [16, [2, 2, 2]], "filters: holds"),
        ("strides", [1, [2, 2]], r"strides: holds \[2, 2\]. Fix: give a number, or 3, one for each axis"),
        ("strides", [1, [2, 2, 0]], "strides: holds 0, which is not at least 1"),
        ("mamba_levels", [-1], "mamba_levels: holds -1"),
    ],
)
def test_bad_stages(name: str, value: Any, message: str) -> None:
    with pytest.raises(BadValueError, match=message):
        SETTINGS[name].check(value)


def test_good_stages() -> None:
    assert SETTINGS["strides"].check((1, [2, 2, 1], 2.0)) == [1, [2, 2, 1], 2]
    assert SETTINGS["mamba_levels"].check([0]) == [0]


def test_settings_that_do_not_go_together() -> None:
    good = {"filters": [4, 8], "strides": [1, [2, 2, 1]], "kernels": [3, 3], "patch_size": [16, 18, 5]}
    assert faults(good) == []
    assert "kernels: has 3 items, and filters has 2" in faults(good | {"kernels": [3, 3, 3]})[0]
    (odd,) = faults(good | {"patch_size": [16, 17, 5]})
    assert "patch_size: holds 17 along axis 1, no multiple of 2" in odd
    assert faults({"patch_size": [16, 16, 16]}) == []


def faults(values: dict[str, Any]) -> list[str]:
    return [str(fault) for check in SETTINGS.checks for fault in check(values)]
