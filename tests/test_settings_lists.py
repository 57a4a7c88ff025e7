"""Settings that are lists of any length, and what is typed for them at a command line."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from common.errors import root_cause
from common.settings import COMMON, MIRRORED_SLICES, VOLUMES, SettingsError, SettingsTable
from common.settings.setting import BadValueError
from tests.bundles.conftest import BUNDLES, Bundle

TABLE = SettingsTable(COMMON, VOLUMES)


@pytest.mark.parametrize(
    ("name", "value", "meant"),
    [
        ("weights", "a.pt", "a.pt"),
        ("weights", ["a.pt", Path("b.pt")], ["a.pt", "b.pt"]),
        ("weights", "[runs/a.pt, runs/b.pt]", ["runs/a.pt", "runs/b.pt"]),
        ("weights", "[2024, b.pt]", ["2024", "b.pt"]),
        ("mirror_axes", [], []),
        ("mirror_axes", (0, 2.0), [0, 2]),
        ("structures", None, None),
        ("structures", "[left ventricle, myocardium]", ["left ventricle", "myocardium"]),
    ],
)
def test_a_good_list_gets_its_type(name: str, value: Any, meant: Any) -> None:
    checked = TABLE[name].check(value)
    assert checked == meant and type(checked) is type(meant)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("weights", [], r"weights: has 0 items. Fix: give a path, or a list of paths"),
        ("weights", ["a.pt", "a.pt"], r"weights: holds 'a.pt' twice"),
        ("weights", ["a.pt", None], r"weights: holds None, which is no path"),
        ("weights", None, r"weights: is null"),
        ("weights", "[a.pt, [}]", r"weights: is '\[a.pt, \[\}\]', which is no list"),
        ("mirror_axes", 1, r"mirror_axes: is 1, which is no list. Fix: give a list of whole numbers, each in \[0, 2\]"),
        ("mirror_axes", [3], r"mirror_axes: holds 3, which is not in \[0, 2\]"),
        ("mirror_axes", [0, 0], r"mirror_axes: holds 0 twice"),
        ("mirror_axes", [0.5], r"mirror_axes: holds 0.5, which is no whole number"),
        ("structures", "left atrium", r"structures: is 'left atrium', which is no list. .*or null"),
        ("structures", [1], r"structures: holds 1"),
        ("largest_component", "yes", r"largest_component: is 'yes'. Fix: give true or false"),
    ],
)
def test_a_bad_list_is_refused(name: str, value: Any, message: str) -> None:
    with pytest.raises(BadValueError, match=message):
        TABLE[name].check(value)


def test_slices_have_two_axes() -> None:
    with pytest.raises(BadValueError, match=r"mirror_axes: holds 2, which is not in \[0, 1\]"):
        MIRRORED_SLICES.check([2])


def test_type_and_range_in_words() -> None:
    assert TABLE["weights"].type == "path, or list of paths"
    assert TABLE["structures"].type == "list of words or null"
    assert (TABLE["mirror_axes"].type, TABLE["mirror_axes"].range) == ("list of whole numbers", "in [0, 2]")


@pytest.mark.parametrize("name", BUNDLES)
def test_bad_lists_stop_an_inference_before_it_starts(name: str, tmp_path: Path) -> None:
    bundle = Bundle(name, tmp_path)
    for given, message in (
        ({"mirror_axes": [3]}, "mirror_axes: holds 3"),
        ({"structures": "[a]"}, "structures: has 1 items, and num_classes is 4.*Fix: give 3 names, or null"),
        ({"weights": []}, "weights: has 0 items"),
        ({"preview": "maybe"}, "preview: is 'maybe'"),
    ):
        with pytest.raises(Exception) as caught:  # noqa: PT011, B017 - MONAI wraps it
            bundle.run("inferring", "inference", **bundle.tiny("inference") | given)
        cause = root_cause(caught.value)
        assert isinstance(cause, SettingsError) and re.search(message, str(cause)), cause
    assert not (tmp_path / "eval").exists()
