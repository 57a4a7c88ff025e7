"""MLflow beside the CSV and TensorBoard: what MONAI's ``--tracking mlflow`` leaves out.

MONAI puts an MLFlowHandler into a training: it logs epochs, one loss and the key metric. Here it is given all settings
as parameters, every loss term with its weight, and the history as an artifact; and the report of an evaluation, with
the means of its metrics, becomes a run of the same experiment.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from monai.handlers import MLFlowHandler
from monai.utils import path_to_uri

from ..errors import current_run

REPORT = ("report.png", "report.csv", "metrics.csv", "summary.txt", "reliability.csv")
_LONGEST = 500  # characters of a parameter that every MLflow server takes


def complete_tracking(handlers: Iterable[Any]) -> None:
    """Let the MLFlowHandlers among a trainer's handlers log settings, loss terms and the history."""
    run = current_run()
    for handler in handlers:
        if isinstance(handler, MLFlowHandler):
            handler.experiment_param = {**(handler.experiment_param or {}), **_parameters(run["settings"])}
            handler.output_transform = lambda output: output[0]["scalars"]
            folder = run["settings"].get("output_dir")
            if folder is not None:
                handler.artifacts = (*handler.artifacts, Path(folder) / "history.csv")


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
