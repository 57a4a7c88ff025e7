"""What `--tracking mlflow` logs, against a stand-in for mlflow's client."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from ignite.engine import Events
from monai.engines import SupervisedEvaluator
from monai.handlers import MLFlowHandler, ValidationHandler, mlflow_handler

from common import errors
from common.training import tracking
from common.training.handlers import RunCheckpoint
from common.training.trainer import MethodTrainer
from tests.tiny import TinyMethod, tiny_trainer


class MlflowException(Exception):  # noqa: N818 - its name there
    """What the client raises."""


class Client:
    """Remembers what it is told, as mlflow's MlflowClient would store it, and refuses what that would."""

    def __init__(self, tracking_uri: str) -> None:
        self.uri, self.experiments, self.logged = tracking_uri, experiments, []  # type: ignore[var-annotated]
        clients.append(self)

    def get_experiment_by_name(self, name: str) -> Any:
        return self.experiments.get(name)

    def get_experiment(self, key: str) -> Any:
        return next(found for found in self.experiments.values() if found.experiment_id == key)

    def create_experiment(self, name: str, artifact_location: str | None) -> str:
        self.experiments[name] = SimpleNamespace(experiment_id="7", place=artifact_location, lifecycle_stage="active")
        return "7"

    def create_run(self, experiment_id: str, run_name: str) -> Any:
        self.logged.append(("run", experiment_id, run_name))
        info = SimpleNamespace(
            run_id=f"r{len(runs) + 1}",
            run_name=run_name,
            experiment_id=experiment_id,
            status="RUNNING",
            lifecycle_stage="active",
        )
        runs[info.run_id] = SimpleNamespace(info=info, data=SimpleNamespace(params={}), metrics=[])
        return runs[info.run_id]

    def get_run(self, run_id: str) -> Any:
        if run_id not in runs:
            raise MlflowException(f"Run with id={run_id} not found")
        return runs[run_id]

    def search_runs(self, experiment_id: str) -> list[Any]:
        return list(reversed(runs.values()))

    def update_run(self, run_id: str, status: str) -> None:
        runs[run_id].info.status = status

    def log_param(self, run: str, name: str, value: str) -> None:
        if runs[run].data.params.setdefault(name, value) != value:
            raise MlflowException(f"Changing param values is not allowed. Param with key='{name}' was already logged")
        self.logged.append(("param", name, value))

    def log_metric(self, run: str, name: str, value: float) -> None:
        self.logged.append(("metric", name, value))

    def log_batch(self, run_id: str, metrics: list[Any], params: list[Any], tags: list[Any]) -> None:
        for name, value in params:
            self.log_param(run_id, name, value)
        runs[run_id].metrics += [(name, step) for name, _, _, step in metrics]

    def log_artifact(self, run: str, path: str) -> None:
        self.logged.append(("artifact", Path(path).name))

    def set_terminated(self, run: str, status: str = "FINISHED") -> None:
        runs[run].info.status = status
        self.logged.append(("end", run))


clients: list[Client] = []
experiments: dict[str, Any] = {}
runs: dict[str, Any] = {}


@pytest.fixture
def tracked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run that is tracked, in this folder."""
    module, exceptions = ModuleType("mlflow"), ModuleType("mlflow.exceptions")
    module.MlflowClient = Client  # type: ignore[attr-defined]
    module.entities = SimpleNamespace(  # type: ignore[attr-defined]
        RunStatus=SimpleNamespace(FINISHED=3, to_string=lambda status: "FINISHED"),
        LifecycleStage=SimpleNamespace(ACTIVE="active"),
        Param=lambda *parameter: parameter,
        Metric=lambda *metric: metric,
    )
    exceptions.MlflowException = MlflowException  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "mlflow", module)
    monkeypatch.setitem(sys.modules, "mlflow.exceptions", exceptions)
    monkeypatch.setattr(mlflow_handler, "mlflow", module)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr(errors, "_RUN", dict(errors._RUN))
    for kept in (clients, experiments, runs):
        kept.clear()
    tell(tmp_path)
    return tmp_path


def tell(folder: Path, **settings: Any) -> None:
    """What the check of a config notes of a run."""
    known = {"learning_rate": 0.05, "output_dir": str(folder), "patch_size": [16, 16], **settings}
    where = {"tracking_uri": f"sqlite:///{folder}/mlruns.db", "experiment_name": "mine", "run_name": None}
    errors.remember_run(None, known, where)


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
        ("end", "r1"),
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


# the run that a training is logged in


def logger(folder: Path, name: str | None = None, **arguments: Any) -> Any:
    uri = f"sqlite:///{folder}/mlruns.db"
    return MLFlowHandler(tracking_uri=uri, experiment_name="mine", run_name=name, **arguments)


def tracked_training(folder: Path, resume: bool = False, name: str | None = None, **settings: Any) -> MethodTrainer:
    """A training as MONAI's ``--tracking mlflow`` puts it together: a handler for it, and one for its validator."""
    tell(folder, **{"resume": resume, **settings})
    torch.manual_seed(0)
    method, image = TinyMethod(), torch.zeros(1, 1, 8, 8)
    validator = SupervisedEvaluator(
        device=torch.device("cpu"),
        val_data_loader=[{"image": image, "label": image}],
        network=method.network,
        val_handlers=[logger(folder, name, iteration_log=False)],
        decollate=False,
    )
    validator.add_event_handler(Events.ITERATION_COMPLETED, lambda engine: engine.state.metrics.update(score=1.0))
    added = [
        ValidationHandler(1, validator),
        RunCheckpoint(folder, folder, method.network, resume=resume),
        logger(folder, name, close_on_complete=True),
    ]
    trainer: MethodTrainer = tiny_trainer(method, max_epochs=3, epoch_length=2, train_handlers=added)
    return trainer


def end_at(trainer: MethodTrainer, iteration: int, error: type[BaseException] = ValueError) -> None:
    def fail(engine: Any) -> None:
        raise error("on purpose")

    trainer.add_event_handler(Events.ITERATION_STARTED(once=iteration), fail)
    with pytest.raises(error, match="on purpose"):
        trainer.run()


def kill_at(trainer: MethodTrainer, iteration: int) -> None:
    end_at(trainer, iteration)
    runs[f"r{len(runs)}"].info.status = "RUNNING"  # nobody was left to close it


def test_a_training_that_was_killed_goes_on_in_its_run(tracked: Path) -> None:
    kill_at(tracked_training(tracked, num_workers=0), 4)
    kill_at(tracked_training(tracked / "other"), 1)  # MONAI takes the last of all that are open
    tracked_training(tracked, resume=True, num_workers=2).run()
    assert len(runs) == 2 and runs["r1"].info.status == "FINISHED"
    params = runs["r1"].data.params
    assert (params["num_workers"], params["resume"], params["epoch_length"]) == ("0", "False", "2")
    assert {step for name, step in runs["r1"].metrics if name == "loss/total"} == {1, 2, 3, 4, 5, 6}
    assert [step for name, step in runs["r1"].metrics if name == "score"] == [1, 2, 3]


@pytest.mark.parametrize("name", [None, "mine"])
def test_a_new_training_has_a_run_of_its_own(name: str | None, tracked: Path) -> None:
    kill_at(tracked_training(tracked, name=name), 4)
    tracked_training(tracked, name=name, learning_rate=0.01).run()
    rates = [run.data.params["learning_rate"] for run in runs.values()]
    assert rates == ["0.05", "0.01"] and runs["r2"].info.status == "FINISHED"
    scores = [[step for metric, step in run.metrics if metric == "score"] for run in runs.values()]
    assert scores == [[1], [1, 2, 3]], "the validator's"
    names = [run.info.run_name for run in runs.values()]
    assert names == ["mine", "mine"] if name else len(set(names)) == 2


@pytest.mark.parametrize(("error", "status"), [(ValueError, "FAILED"), (KeyboardInterrupt, "KILLED")])
def test_a_training_that_an_error_ends_closes_its_run(error: type[BaseException], status: str, tracked: Path) -> None:
    end_at(tracked_training(tracked), 4, error)
    assert runs["r1"].info.status == status
    tracked_training(tracked, resume=True).run()
    assert len(runs) == 1 and runs["r1"].info.status == "FINISHED"


def test_a_server_that_is_gone_does_not_hide_the_error(
    tracked: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def gone(*arguments: Any) -> None:
        raise MlflowException("no connection")

    monkeypatch.setattr(Client, "set_terminated", gone)
    end_at(tracked_training(tracked), 4)
    assert "mlflow: the run could not be marked as FAILED (no connection)" in caplog.text


def test_where_no_run_can_be_begun_an_earlier_training_is_left_alone(
    tracked: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracked_training(tracked).run()
    before = {path: path.read_bytes() for path in tracked.iterdir()}

    def gone(*arguments: Any, **named: Any) -> None:
        raise MlflowException("no connection")

    monkeypatch.setattr(Client, "create_run", gone)
    with pytest.raises(MlflowException, match="no connection"):
        tracked_training(tracked).run()
    assert {path: path.read_bytes() for path in tracked.iterdir()} == before


def test_a_run_that_is_gone_is_replaced(tracked: Path) -> None:
    kill_at(tracked_training(tracked), 4)
    runs["r1"].info.lifecycle_stage = "deleted"
    tracked_training(tracked, resume=True).run()
    assert runs["r2"].info.status == "FINISHED" and runs["r2"].data.params["learning_rate"] == "0.05"
    assert torch.load(tracked / "last.ckpt", weights_only=True)["tracked_run"] == "r2"
