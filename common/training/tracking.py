"""MLflow beside the CSV and TensorBoard: what MONAI's ``--tracking mlflow`` leaves out.

MONAI puts an MLFlowHandler into a training: it logs epochs, one loss and the key metric. Here it is given all settings
as parameters, every loss term with its weight, and the history as an artifact; a training has a run of its own, which
it goes on in when it is resumed; and the report of an evaluation, with the means of its metrics, becomes a run of the
same experiment.
"""

from __future__ import annotations

import logging
import math
import time
import uuid
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from ignite.engine import Events
from monai.handlers import MLFlowHandler
from monai.utils import path_to_uri

from ..errors import current_run

REPORT = ("report.png", "report.csv", "metrics.csv", "summary.txt", "reliability.csv")
_LONGEST = 500  # characters of a parameter that every MLflow server takes
logger = logging.getLogger(__name__)


def complete_tracking(handlers: Iterable[Any]) -> list[Any]:
    """Let the MLFlowHandlers among a trainer's handlers log settings, loss terms and the history, in a run of its own.

    Returns:
        the handlers, after those that choose the run: where there is no server an earlier training is left alone.
    """
    run, listed = current_run(), list(handlers)
    validators = [handler.validator for handler in listed if getattr(handler, "validator", None) is not None]
    runs: list[Any] = []
    for handler in listed:
        if isinstance(handler, MLFlowHandler):
            handler.experiment_param = {**(handler.experiment_param or {}), **_parameters(run["settings"])}
            handler.output_transform = lambda output: output[0]["scalars"]
            folder = run["settings"].get("output_dir")
            if folder is not None:
                handler.artifacts = (*handler.artifacts, Path(folder) / "history.csv")
            runs.append(TrackedRun(handler, validators))
    return [*runs, *listed]


class TrackedRun:
    """Choose the run that a training is logged in: a new one, or, when it is resumed, the one that it had.

    MONAI's handlers take any run of the experiment that is not finished, another training's too, and log all parameters
    again, of which MLflow allows none to change. Where an error or Ctrl-C ends the training they leave its run open.

    Args:
        handler: MONAI's, of the trainer.
        validators: whose own handlers log to the same run.
    """

    def __init__(self, handler: Any, validators: Iterable[Any] = ()) -> None:
        self.handler = handler
        self.validators = list(validators)

    def attach(self, engine: Any) -> None:
        """Attach to a :class:`~common.training.trainer.MethodTrainer`, before the handler itself."""
        engine.add_event_handler(Events.STARTED, self._start)

    def _start(self, engine: Any) -> None:
        handler, client = self.handler, self.handler.client
        handler._set_experiment()
        run = self._earlier(engine.tracked_run)
        if run is None:
            name = handler.run_name or f"run_{time.strftime('%Y%m%d_%H%M%S')}_{uuid.uuid4().hex[:6]}"
            run = client.create_run(handler.experiment.experiment_id, run_name=name)
        else:
            client.update_run(run.info.run_id, status="RUNNING")
        engine.tracked_run = run.info.run_id
        engine.resources.push(self._end)
        known = client.get_run(run.info.run_id).data.params
        handler.experiment_param = {key: text for key, text in handler.experiment_param.items() if key not in known}
        for one in [handler, *(one for validator in self.validators for one in _handlers_of(validator))]:
            one.cur_run = run

    def _earlier(self, key: str | None) -> Any:
        """The run that the training had, unless it is gone, or of another experiment."""
        if key is None:
            return None
        from mlflow.exceptions import MlflowException  # an extra

        try:
            run = self.handler.client.get_run(key)
        except MlflowException:
            return None
        here = run.info.experiment_id == self.handler.experiment.experiment_id
        return run if here and run.info.lifecycle_stage == "active" else None

    def _end(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is None or self.handler.cur_run is None:
            return
        status = "FAILED" if issubclass(kind, Exception) else "KILLED"
        try:
            self.handler.client.set_terminated(self.handler.cur_run.info.run_id, status)
        except Exception as fault:  # such as a server that is gone: it must not hide why the training ended
            logger.warning(f"mlflow: the run could not be marked as {status} ({fault}).")


def _handlers_of(engine: Any) -> list[Any]:
    """The MLFlowHandlers that were attached to an engine, which keeps their methods alone."""
    found = [getattr(entry[0], "__self__", None) for entry in engine._event_handlers[Events.STARTED]]
    return [handler for handler in found if isinstance(handler, MLFlowHandler)]


def track_report(results_dir: str | Path, means: Mapping[str, float]) -> None:
    """Log an evaluation's report and the mean over cases of every metric; without ``--tracking`` nothing.

    Args:
        results_dir: folder of the results.
        means: of the metrics, by their names.
    """
    run = current_run()
    if run["tracking"] is None:
        return
    from mlflow import MlflowClient  # an extra

    client = MlflowClient(run["tracking"]["tracking_uri"])
    name = run["tracking"]["experiment_name"]
    experiment = client.get_experiment_by_name(name)
    # where MONAI's handler puts the artifacts of a training; a server has a place of its own
    local = str(run["tracking"]["tracking_uri"]).startswith("sqlite:")
    place = path_to_uri(Path(run["settings"]["output_dir"]) / "mlruns") if local else None
    key = client.create_experiment(name, place) if experiment is None else experiment.experiment_id
    title = run["tracking"]["run_name"] or f"report {Path(results_dir).name}"
    found = client.create_run(key, run_name=title).info.run_id
    for parameter, text in _parameters(run["settings"]).items():
        client.log_param(found, parameter, text)
    for metric, value in means.items():
        if math.isfinite(value):
            client.log_metric(found, metric, value)
    for path in filter(Path.is_file, (Path(results_dir) / file for file in REPORT)):
        client.log_artifact(found, str(path))
    client.set_terminated(found)


def _parameters(settings: dict[str, Any]) -> dict[str, str]:
    return {name: str(value)[:_LONGEST] for name, value in settings.items()}
