"""What the settings of the network's stages refuse, one by one and together."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from bundles.affinity_umamba.scripts.settings import SETTINGS
from common.errors import root_cause
from common.settings import SettingsError
from common.settings.setting import BadValueError
from tests.bundles.conftest import Bundle


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


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"strides": [2, 2, 2]},
            "strides: begins with 2, and the first stage is at full resolution. Fix: begin with 1",
        ),
        ({"strides": [[1, 1, 2], 2, 2]}, r"strides: begins with \[1, 1, 2\]"),
        ({"kernels": [3, 2, 3]}, "kernels: holds 2, and an even side has no middle. Fix: give odd numbers"),
        ({"kernels": [3, 3, [3, 3, 2]]}, r"kernels: holds \[3, 3, 2\]"),
        ({"mamba_levels": [0, 2]}, "mamba_levels: holds 2, and a decoder of 3 stages has the levels 0 to 1. Fix: "),
        ({"filters": [4], "strides": [1], "kernels": [3]}, "filters: has 1 item, and a decoder needs 2 stages. Fix: "),
    ],
)
def test_stages_that_no_network_can_have(changes: dict[str, Any], message: str) -> None:
    good = {"filters": [4, 8, 8], "strides": [[1, 1, 1], 2, 2], "kernels": [3, 3, [3, 3, 1]], "mamba_levels": [0, 1]}
    assert faults(good) == []
    (fault,) = faults(good | changes)
    assert re.match(message, fault)


def test_levels_that_another_network_does_not_use_may_be_any(tmp_path: Path) -> None:
    bundle = Bundle("affinity_umamba", tmp_path)
    few: dict[str, Any] = {"filters": [4, 8], "strides": [1, 2], "kernels": [3, 3], "mamba_levels": [0, 1, 2]}
    last = {"training": ["$@settings", "$1 / 0"]}  # it ends where the settings are right
    for names, cause in ((("train", "unet"), ZeroDivisionError), (("train",), SettingsError)):
        with pytest.raises(Exception) as caught:  # noqa: PT011, B017 - MONAI wraps it
            bundle.run("training", *names, **bundle.tiny(*names), **few, **last)
        assert isinstance(root_cause(caught.value), cause)


def faults(values: dict[str, Any]) -> list[str]:
    return [str(fault) for check in SETTINGS.checks for fault in check(values)]
