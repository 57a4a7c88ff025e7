"""Config files that are given alone, in the wrong order or from the wrong folder: one line says how."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from monai.bundle import run

from common.errors import root_cause
from tests.bundles.conftest import ROOT


def last_words(bundle: Any, run_id: str, *names: str, **overrides: Any) -> str:
    """The error that a run of these configs ends with."""
    with pytest.raises(Exception) as caught:  # noqa: PT011 - MONAI wraps it
        bundle.run(run_id, *names, **overrides)
    return str(root_cause(caught.value))


def test_an_overlay_alone_names_what_it_goes_on(bundle: Any) -> None:
    train, evaluate = bundle.files("train", "evaluate")
    words = last_words(bundle, "evaluating", "evaluate")
    assert words.startswith(
        f"{evaluate}: goes on top of train.yaml, and without it there is no data and no network_def"
    )
    assert words.endswith(f"Fix: --config_file \"['{train}','{evaluate}']\".")


def test_an_overlay_before_its_config_is_refused(bundle: Any) -> None:
    train, evaluate = bundle.files("train", "evaluate")
    words = last_words(bundle, "evaluating", "evaluate", "train")
    assert words.startswith(f"{train}: comes after evaluate.yaml, whose keys it would replace. Fix: ")
    assert words.endswith(f"--config_file \"['{train}', '{evaluate}']\".")


def test_another_folder_is_told_where_the_bundle_is(
    bundle: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with bundle.imported():
        monkeypatch.chdir(tmp_path)
        with pytest.raises(Exception) as caught:  # noqa: PT011
            run(run_id="training", config_file=str(ROOT / bundle.files("train")[0]), logging_file=False)
    words = str(root_cause(caught.value))
    assert words.startswith(f"bundle_root: there is no folder bundles/{bundle.name} in {tmp_path}. Fix: cd {ROOT}")
    assert not list(tmp_path.iterdir())


def test_tracking_without_mlflow_is_told(bundle: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("common.settings.check.find_spec", lambda name: None)
    words = last_words(bundle, "training", "train", tracking="mlflow", **bundle.tiny("train"))
    assert words == "tracking: needs mlflow, which is not installed. Fix: pip install mlflow, or leave --tracking out."
