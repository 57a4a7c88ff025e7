"""What ``ci/label_app.py`` writes, and what it refuses; that a server starts with it is tried in test_server.py."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import pytest
import torch
import yaml

from ci.export import ExportError
from ci.monai_label.app_folder import APP, make_app
from ci.monai_label.environment import FOLDER, default_folder

NAME = "alc"


def test_an_untrained_app_has_the_code_and_weights_for_other_structures(tmp_path: Path) -> None:
    app = make_app(tmp_path / "app", [NAME], untrained=True, labels=["atrium"])
    assert {path.relative_to(APP) for path in APP.rglob("*.py")} <= {
        path.relative_to(app) for path in app.rglob("*.py")
    }
    bundle = app / "model" / NAME
    metadata = json.loads((bundle / "configs" / "metadata.json").read_text())
    assert metadata["network_data_format"]["outputs"]["pred"]["channel_def"] == {"0": "background", "1": "atrium"}
    assert yaml.safe_load((bundle / "configs" / "inference.yaml").read_text())["num_classes"] == 2
    weights = torch.load(bundle / "models" / "model.pt", weights_only=True)
    assert weights and all(torch.isfinite(value).all() for value in weights.values())
    assert sorted(path.name for path in (app / "model").iterdir()) == [NAME]
    with pytest.raises(ExportError, match="is there already. Fix: give --overwrite"):
        make_app(app, [NAME], untrained=True)


def test_an_app_stands_alone() -> None:
    """Nothing of it imports this repository."""
    for path in APP.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
            assert not {name.split(".")[0] for name in names} & {"ci", "common", "bundles", "tests"}, path


def test_settings_of_one_bundle_need_its_name(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="one bundle's. Fix: name it by --bundles"):
        make_app(tmp_path / "app", untrained=True, overlay=[tmp_path / "la.yaml"])


def test_the_environment_is_kept_outside_unless_said_otherwise(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv(FOLDER, raising=False)
    assert default_folder() == tmp_path / "imperfect-labels" / "monai_label"
    monkeypatch.setenv(FOLDER, str(tmp_path / "mine"))
    assert default_folder() == tmp_path / "mine"
