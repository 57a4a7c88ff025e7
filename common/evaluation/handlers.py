"""Handlers of evaluators: progress, and metrics per case written to files."""

from __future__ import annotations

import os
from pathlib import Path

from ignite.engine import Engine, Events
from ignite.handlers import ProgressBar

from ..data.contract.names import case_name, voxel_size
from ..files import atomic_path
from ..training.runs import start_results
from .metrics import CaseTable


class CaseProgress:
    """Say how far an evaluator is, case by case, and at the end where its files are.

    Args:
        output_dir: folder that the files are in.
    """

    def __init__(self, output_dir: str | os.PathLike[str]) -> None:
        self.folder = Path(output_dir)

    def attach(self, engine: Engine) -> None:
        """Attach to an evaluator."""
        ProgressBar(persist=True, dynamic_ncols=True, desc="Cases").attach(engine)
        engine.add_event_handler(Events.COMPLETED, lambda: print(f"Results are in {self.folder}"))


class CaseMetrics:
    """Measure every case of an evaluator in the space of its label, and write the results.

    Writes ``metrics.csv`` (a row per case and structure), ``summary.txt`` (mean, standard deviation, bootstrap 95%
    interval, missed structures by name; printed too) and ``reliability.csv``. The evaluator's postprocessing ends
    with :class:`~common.data.loading.transforms.SegmentationAndUncertaintyd` in the label's space. Earlier results
    are set aside, see :func:`~common.training.runs.start_results`.

    Args:
        output_dir: folder to write to.
        structures: names by label value, background left out or in.
        seed: of the bootstrap.
    """

    def __init__(self, output_dir: str | os.PathLike[str], structures: dict[int, str], seed: int = 0) -> None:
        self.folder = Path(output_dir)
        self.seed = seed
        self.structures = {int(value): name for value, name in structures.items() if int(value) != 0}
        self.table = CaseTable(self.structures)

    def attach(self, engine: Engine) -> None:
        """Attach to an evaluator."""
        engine.add_event_handler(Events.STARTED, self._started)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._case)
        engine.add_event_handler(Events.COMPLETED, self._completed)

    def _started(self) -> None:
        start_results(self.folder)
        self.table = CaseTable(self.structures)

    def _case(self, engine: Engine) -> None:
        for batch, output in zip(engine.state.batch, engine.state.output, strict=True):
            label = output["label"] if "label" in output else batch["label"]
            self.table.add(
                case=case_name(output["pred"].meta["filename_or_obj"]),
                prediction=output["pred"][0].cpu().numpy(),
                reference=label[0].cpu().numpy(),
                spacing=voxel_size(label),
                probabilities=output.get("uncalibrated", output["probabilities"]).cpu().numpy(),
                tempered=output["probabilities"].cpu().numpy() if "uncalibrated" in output else None,
            )

    def _completed(self, engine: Engine) -> None:
        self.table.write_csv(self.folder / "metrics.csv")
        self.table.write_reliability_csv(self.folder / "reliability.csv")
        text = self.table.format_summary(seed=self.seed)
        with atomic_path(self.folder / "summary.txt") as temporary:
            temporary.write_text(text + "\n")
        print(text)
