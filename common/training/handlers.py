"""Handlers that connect the trainer and evaluators to files, metrics and the screen."""

from __future__ import annotations

import csv
import os
import sys
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from ignite import distributed as idist
from ignite.engine import Engine, Events
from ignite.handlers import ProgressBar
from monai.handlers import LrScheduleHandler, ValidationHandler

from ..files import atomic_path, save_atomically
from ..settings import switch
from .lock import lock_folders
from .runs import FINAL_FILE, RESUME_FILE, is_first_rank, read_saved, refuse_non_finite, start_run

HISTORY_COLUMNS = ("iteration", "epoch", "name", "value")
_BAR = "{desc}[{n_fmt}/{total_fmt}] {percentage:3.0f}%|{bar}| {elapsed}<{remaining}{postfix}"
#: what a checkpoint for resuming holds, and of which type
CHECKPOINT = {
    "method": dict,
    "optimizer": dict,
    "scaler": dict,
    "epoch": int,
    "iteration": int,
    "epoch_length": int,
    "max_epochs": int,
    "seed": int,
    "processes": int,
    "cases_per_batch": list,
    "method_settings": dict,
    "skipped_steps": int,
}
NO_RESUMING = "Fix: start a new run without --resume, or put back a last.ckpt that is whole."


class TrainingRun:
    """The handlers of a training, in the one order in which they work.

    A progress bar with the loss terms; the learning rate's step after each iteration; validation; the history, which
    needs that epoch's metrics; last, what is saved, which needs them too.

    Args:
        ckpt_dir: folder of the weights.
        output_dir: folder of logs and results.
        network: what ships.
        lr_scheduler: steps after each iteration.
        validator: evaluator whose key metric chooses the weights, the larger the better.
        interval: epochs between validations.
        resume: continue the run in these folders.
    """

    def __init__(
        self,
        ckpt_dir: str | os.PathLike[str],
        output_dir: str | os.PathLike[str],
        network: torch.nn.Module,
        lr_scheduler: Any,
        validator: Any,
        interval: int = 1,
        resume: bool = False,
    ) -> None:
        self.handlers: list[Any] = [
            LossProgressBar(),
            LrScheduleHandler(lr_scheduler, print_lr=False, epoch_level=False),
            ValidationHandler(interval, validator),
            TrainingHistory(Path(output_dir) / "history.csv", validator),
            RunCheckpoint(ckpt_dir, output_dir, network, validator, lr_scheduler, resume),
        ]

    def attach(self, engine: Engine) -> None:
        """Attach to a :class:`~common.training.trainer.MethodTrainer`."""
        for handler in self.handlers:
            handler.attach(engine)


class LossProgressBar:
    """A progress bar with the times and the loss terms of the trainer's ``state.output[0]["scalars"]``.

    It is as wide as the terminal: the total comes first, and terms for which there is no room are left out.
    """

    def attach(self, engine: Engine) -> None:
        """Attach to a trainer."""
        if is_first_rank():
            bar = ProgressBar(persist=True, bar_format=_BAR, dynamic_ncols=True)
            bar.attach(engine, output_transform=lambda output: self._terms(output, engine))

    @staticmethod
    def _terms(output: list[dict[str, Any]], engine: Engine) -> dict[str, str]:
        scalars = output[0]["scalars"]
        losses = {key.removeprefix("loss/"): value for key, value in scalars.items() if key.startswith("loss/")}
        epochs, length = engine.state.max_epochs, engine.state.epoch_length
        room = _terminal_width() - len(f"Epoch [{epochs}/{epochs}]: [{length}/{length}] 100%|{'':8}| 0:00:00<0:00:00")
        shown: dict[str, str] = {}
        for name in sorted(losses, key=lambda name: name != "total"):
            room -= len(f", {name}={losses[name]:.3f}")
            if room < 0:
                break
            shown[name] = f"{losses[name]:.3f}"
        return shown


def _terminal_width() -> int:
    """Columns of the terminal that progress bars are drawn on; more than any line takes where there is none."""
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns - 1
    except (OSError, ValueError):  # a file, a pipe, or no stream at all
        return 1000


class TrainingHistory:
    """Keep every scalar of a training in one CSV, in long form, and in TensorBoard.

    Rows are (iteration, epoch, name, value); names are those of ``state.output[0]["scalars"]`` and
    ``validation/<metric>``. The CSV is written after each epoch. A resumed run drops rows that lie ahead of it.

    Attach it after the ValidationHandler, so that an epoch's metrics are there when it looks.

    Args:
        path: the CSV file; TensorBoard's files go beside it.
        validator: evaluator whose metrics to keep.
        tensorboard: whether to write TensorBoard's files.
    """

    def __init__(self, path: str | os.PathLike[str], validator: Engine | None = None, tensorboard: bool = True) -> None:
        self.path = Path(path)
        self.validator = validator
        self.tensorboard = tensorboard
        self.rows: list[tuple[int, int, str, float]] = []
        self._validated = 0
        self._writer: Any = None

    def attach(self, engine: Engine) -> None:
        """Attach to a trainer."""
        if is_first_rank():
            engine.add_event_handler(Events.STARTED, self._start)
            engine.add_event_handler(Events.ITERATION_COMPLETED, self._iteration)
            engine.add_event_handler(Events.EPOCH_COMPLETED, self._epoch)
            engine.add_event_handler(Events.COMPLETED, self._close)
            engine.add_event_handler(Events.EXCEPTION_RAISED, self._fail)

    def _start(self, engine: Engine) -> None:
        if engine.state.iteration > 0 and self.path.exists():
            rows = _read_history(self.path)
            self.rows = [row for row in rows if row[0] <= engine.state.iteration]

    def _add(self, engine: Engine, name: str, value: float) -> None:
        self.rows.append((engine.state.iteration, engine.state.epoch, name, value))
        if self.tensorboard and self._writer is None:  # not before an earlier run's files are set aside
            from torch.utils.tensorboard import SummaryWriter  # slow to import, and tests do without

            self._writer = SummaryWriter(str(self.path.parent), purge_step=engine.state.iteration)
        if self._writer is not None:
            self._writer.add_scalar(name, value, engine.state.iteration)

    def _iteration(self, engine: Engine) -> None:
        for name, value in engine.state.output[0]["scalars"].items():
            self._add(engine, name, value)

    def _epoch(self, engine: Engine) -> None:
        state = None if self.validator is None else self.validator.state
        # the validator's epoch is the trainer's at which it last ran
        if state is not None and state.epoch == engine.state.epoch and state.epoch != self._validated:
            self._validated = state.epoch
            for name, value in state.metrics.items():
                self._add(engine, f"validation/{name}", float(value))
        self._write()

    def _write(self) -> None:
        with atomic_path(self.path) as temporary, temporary.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(HISTORY_COLUMNS)
            writer.writerows(self.rows)

    def _close(self, engine: Engine) -> None:
        if self._writer is not None:
            self._writer.close()

    def _fail(self, engine: Engine, error: BaseException) -> None:
        if self.rows:  # else the run was refused before its first step, and the file is another run's
            self._write()
        self._close(engine)
        raise error


def _read_history(path: Path) -> list[tuple[int, int, str, float]]:
    try:
        with path.open(newline="") as file:
            reader = csv.DictReader(file)
            rows = [(int(r["iteration"]), int(r["epoch"]), r["name"], float(r["value"])) for r in reader]
        if reader.fieldnames != list(HISTORY_COLUMNS):
            raise ValueError(f"columns {reader.fieldnames}")
    except (KeyError, TypeError, ValueError, csv.Error) as error:
        fix = "Fix: move it away, and the resumed run begins a new one."
        raise ValueError(f"{path}: is no history of a training ({error!r}). {fix}") from None
    return rows


class RunCheckpoint:
    """Save the weights that ship and, after each epoch, all that resuming needs.

    ``model.pt`` is the state dict of the network alone: at the best value of the validator's key metric, or, if nothing
    was validated, the last; ``model_final.pt`` is that at the end. ``last.ckpt`` has method, optimiser, scheduler,
    scaler, epoch, iteration and the best metric. As the trainer seeds each epoch from its number, a run that is killed
    at any moment and resumed is the same as one that was not. All are written atomically.

    A new run first sets aside, when it starts, what an earlier one left in its folders, see
    :func:`~common.training.runs.start_run`. While it runs no other process trains in these folders, see
    :func:`~common.training.lock.lock_folders`. A run that was killed after its last epoch, before ``model_final.pt``
    was written, writes it when it is resumed.

    Attach it last.

    Args:
        ckpt_dir: folder of the weights.
        output_dir: folder of logs and results.
        network: what ships.
        validator: evaluator whose key metric decides, the larger the better.
        lr_scheduler: its state is kept too.
        resume: load ``last.ckpt`` before training.
        save_interval: epochs between saves of ``last.ckpt``.
    """

    def __init__(
        self,
        ckpt_dir: str | os.PathLike[str],
        output_dir: str | os.PathLike[str],
        network: torch.nn.Module,
        validator: Engine | None = None,
        lr_scheduler: Any = None,
        resume: bool = False,
        save_interval: int = 1,
    ) -> None:
        self.folder = Path(ckpt_dir)
        self.output_dir = Path(output_dir)
        self.network = network
        self.validator = validator
        self.lr_scheduler = lr_scheduler
        self.resume = switch(resume, "resume")
        self.save_interval = save_interval
        self._method_settings: dict[str, Any] = {}
        self._step_settings: dict[str, Any] = {}

    def attach(self, engine: Engine) -> None:
        """Attach to a :class:`~common.training.trainer.MethodTrainer` and, when resuming, load its state."""
        self._method_settings = _plain(vars(engine.method))
        schedule = {} if self.lr_scheduler is None else self.lr_scheduler.state_dict()
        # as they are built: what some schedules show of themselves and the optimiser changes as they run
        self._step_settings = deepcopy(_step_settings(engine.optimizer.state_dict(), schedule))
        if self.resume:
            self._start(engine)
            self._load(engine)
        if is_first_rank():
            if not self.resume:  # not before it runs: a config that is only looked at must not touch an earlier run
                engine.add_event_handler(Events.STARTED, self._start)
            engine.add_event_handler(Events.EPOCH_COMPLETED, self._epoch)
            engine.add_event_handler(Events.COMPLETED, self._completed)

    def _start(self, engine: Any) -> None:
        if is_first_rank():
            engine.resources.push(lock_folders(self.folder, self.output_dir))
        start_run(self.folder, self.output_dir, self.resume)

    def _epoch(self, engine: Any) -> None:
        validator = self.validator
        if validator is None or validator.state.best_metric_epoch == engine.state.epoch:
            save_atomically(self.network.state_dict(), self.folder / "model.pt")
        if engine.state.epoch % self.save_interval == 0 or engine.state.epoch == engine.state.max_epochs:
            save_atomically(self._state(engine), self.folder / RESUME_FILE)

    def _completed(self, engine: Any) -> None:
        best = self.folder / "model.pt"
        save_atomically(self.network.state_dict(), self.folder / FINAL_FILE)
        if self.validator is not None and self.validator.state.best_metric_epoch == -1:
            # else an earlier run's model.pt would pass for this one's
            save_atomically(self.network.state_dict(), best)
        elif not best.exists():  # written before last.ckpt: someone has removed it since
            engine.logger.warning(f"{best}: the best epoch's weights are gone; {FINAL_FILE} has the last epoch's.")

    def _state(self, engine: Any) -> dict[str, Any]:
        state = {
            "method": engine.method.state_dict(),
            "optimizer": engine.optimizer.state_dict(),
            "scaler": engine.scaler.state_dict(),
            "epoch": engine.state.epoch,
            "iteration": engine.state.iteration,
            "epoch_length": engine.state.epoch_length,
            "max_epochs": engine.state.max_epochs,
            "seed": engine.state.seed,
            "processes": idist.get_world_size(),
            "cases_per_batch": list(getattr(getattr(engine.data_loader, "batch_sampler", None), "sizes", ())),
            "method_settings": self._method_settings,
            "step_settings": self._step_settings,
            "skipped_steps": engine.skipped_steps,
        }
        if self.lr_scheduler is not None:
            state["lr_scheduler"] = self.lr_scheduler.state_dict()
        if self.validator is not None:
            validated = self.validator.state
            state["best_metric"] = float(validated.best_metric)
            state["best_metric_epoch"] = validated.best_metric_epoch
        return state

    def _load(self, engine: Any) -> None:
        path = self.folder / RESUME_FILE
        state = self._read(path)
        for key in ("epoch_length", "max_epochs", "seed"):
            if state[key] != getattr(engine.state, key):
                raise ValueError(
                    f"{path}: the run has {key} {state[key]}, the config {getattr(engine.state, key)}: the schedule "
                    f"would not be that of either. Fix: give --{key} {state[key]}, or start a new run."
                )
        now = _settings(self._state(engine))
        for name, was in _settings(state).items():
            if now.get(name, was) != was:
                raise ValueError(
                    f"{path}: the run has {name} {was}, the config {now[name]}, which would be lost or change its "
                    "course. Fix: give the settings that the run began with, or start a new run."
                )
        parts = {"method": engine.method, "optimizer": engine.optimizer, "scaler": engine.scaler}
        if self.lr_scheduler is not None:
            parts["lr_scheduler"] = self.lr_scheduler
        for name, part in parts.items():
            _load_part(part, name, state[name], path)
        engine.state.epoch, engine.state.iteration = state["epoch"], state["iteration"]
        engine.skipped_steps = state["skipped_steps"]
        if self.validator is not None:
            self.validator.state.best_metric = state["best_metric"]
            self.validator.state.best_metric_epoch = state["best_metric_epoch"]
        engine.logger.info(f"Resumed {path} after epoch {state['epoch']} of {state['max_epochs']}.")

    def _read(self, path: Path) -> dict[str, Any]:
        """A checkpoint that has all that this run needs."""
        state = read_saved(path, "checkpoint of a run", NO_RESUMING)
        needed: dict[str, Any] = dict(CHECKPOINT)
        if self.lr_scheduler is not None:
            needed["lr_scheduler"] = dict
        if self.validator is not None:
            needed |= {"best_metric": float, "best_metric_epoch": int}
        if "step_settings" in state:  # not in those of earlier versions
            needed["step_settings"] = dict
        lacking = [key for key, kind in needed.items() if not isinstance(state.get(key), kind)]
        if "optimizer" not in lacking and not isinstance(state["optimizer"].get("param_groups"), list):
            lacking.append("optimizer")
        if lacking:
            raise ValueError(f"{path}: is no whole checkpoint: it lacks {', '.join(lacking)}. {NO_RESUMING}")
        refuse_non_finite(state["method"], path, NO_RESUMING)
        return state


def _load_part(part: Any, name: str, state: dict[str, Any], path: Path) -> None:
    try:
        part.load_state_dict(state)
    except (RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:
        # torch lists every tensor that differs, one a line, after a line that says nothing
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise ValueError(
            f"{path}: its {name} is not the config's: {' '.join(lines[-1:])[:300]} Fix: give the config and settings "
            "that the run began with, or start a new run."
        ) from None


def _plain(attributes: dict[str, Any]) -> dict[str, Any]:
    """Numbers, words and switches among attributes; a module's ``training`` is none of its settings."""
    named = {key: value for key, value in attributes.items() if not key.startswith("_") and key != "training"}
    return {key: value for key, value in named.items() if isinstance(value, bool | int | float | str)}


def _settings(state: dict[str, Any]) -> dict[str, Any]:
    """What a checkpoint's method, batches, optimiser and schedule were told, not what they have come to since."""
    found = {"processes": state["processes"], "cases_per_batch": state["cases_per_batch"], **state["method_settings"]}
    if "step_settings" in state:
        return found | state["step_settings"]
    return found | _step_settings(state["optimizer"], state.get("lr_scheduler", {}))


def _step_settings(optimizer: dict[str, Any], schedule: dict[str, Any]) -> dict[str, Any]:
    """What states of an optimiser and a schedule were told, by its name in messages."""
    found: dict[str, Any] = {}
    for number, group in enumerate(optimizer["param_groups"]):
        told = {key: value for key, value in group.items() if key not in ("params", "lr")}
        found |= {f"{key} (of the optimiser's group {number})": value for key, value in told.items()}
    told = {key: value for key, value in schedule.items() if not key.startswith("_") and key != "last_epoch"}
    return found | {f"{key} (of the learning rate's schedule)": value for key, value in told.items()}
