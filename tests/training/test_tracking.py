"""What `--tracking mlflow` logs, against a stand-in for mlflow's client."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from common import errors
from common.training import tracking


class Client:
    """Remembers what it is told, as mlflow's MlflowClient would store it."""

    def __init__(self, uri: str) -> None:
        self.uri, self.experiments, self.logged = uri, {}, []  # type: ignore[var-annotated]
        clients.append(self)

    def get_experiment_by_name(self, name: str) -> Any:
        return self.experiments.get(name)

    def create_experiment(self, name: str, place: str | None) -> str:
        self.experiments[name] = SimpleNamespace(experiment_id="7", place=place)
        return "7"

    def create_run(self, experiment: str, run_name: str) -> Any:
        self.logged.append(("run", experiment, run_name))
        return SimpleNamespace(info=SimpleNamespace(run_id="r"))

    def log_param(self, run: str, name: str, value: str) -> None:
        self.logged.append(("param", name, value))

    def log_metric(self, run: str, name: str, value: float) -> None:
        self.logged.append(("metric", name, value))

    def log_artifact(self, run: str, path: str) -> None:
        self.logged.append(("artifact", Path(path).name))

    def set_terminated(self, run: str) -> None:
        self.logged.append(("end", run))


clients: list[Client] = []


@pytest.fixture
def tracked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run that is tracked, in this folder."""
    module = ModuleType("mlflow")
    module.MlflowClient = Client  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "mlflow", module)
    monkeypatch.setattr(errors, "_RUN", dict(errors._RUN))
    clients.clear()
    settings = {"learning_rate": 0.05, "output_dir": str(tmp_path), "patch_size": [16, 16]}
    where = {"tracking_uri": f"sqlite:///{tmp_path}/mlruns.db", "experiment_name": "mine", "run_name": None}
    errors.remember_run(None, settings, where)
    return tmp_path


def test_a_report_becomes_a_run_with_settings_metrics_and_files(tracked: Path) -> None:
    for name in ("report.png", "metrics.csv", "other.csv"):
        (tracked / name).write_text("")
    tracking.track_report(tracked, {"lobe/dice": 0.75, "lobe/hd95": math.inf})
    (client,) = clients
    assert client.experiments["mine"].place == f"{tracked.as_uri()}/mlruns"
    assert client.logged == [
        ("run", "7", f"report {tracked.name}"),
        ("param", "learning_rate", "0.05"),
        ("param", "output_dir", str(tracked)),
        ("param", "patch_size", "[16, 16]"),
        ("metric", "lobe/dice", 0.75),
        ("artifact", "report.png"),
        ("artifact", "metrics.csv"),
        ("end", "r"),
    ]


def test_nothing_is_logged_without_tracking(tracked: Path) -> None:
    errors.remember_run(None, {})
    tracking.track_report(tracked, {"lobe/dice": 0.75})
    assert clients == []


def test_a_training_logs_settings_all_loss_terms_and_its_history(tracked: Path) -> None:
    handler = object.__new__(tracking.MLFlowHandler)  # its constructor needs mlflow
    handler.experiment_param, handler.artifacts = {"mine": 1}, ("config.json",)
    tracking.complete_tracking([object(), handler])
    expected = {"mine": 1, "learning_rate": "0.05", "output_dir": str(tracked), "patch_size": "[16, 16]"}
    assert handler.experiment_param == expected
    assert handler.artifacts == ("config.json", tracked / "history.csv")
    scalars = {"loss/total": 2.0, "weight/clean": 1.0}
    assert handler.output_transform([{"loss": 2.0, "scalars": scalars}]) == scalars
