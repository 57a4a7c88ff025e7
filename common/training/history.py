"""The history of a training: every scalar in one CSV and in TensorBoard."""

from __future__ import annotations

import csv
import io
import os
from pathlib import Path
from typing import Any

from ignite.engine import Engine, Events

from ..files import atomic_path
from .runs import is_first_rank

HISTORY_COLUMNS = ("iteration", "epoch", "name", "value")


class TrainingHistory:
    """Keep every scalar of a training in one CSV, in long form, and in TensorBoard.

    Rows are (iteration, epoch, name, value); names are those of ``state.output[0]["scalars"]`` and
    ``validation/<metric>``. An epoch's rows are appended when it ends. A resumed run cuts off rows that lie ahead of
    it, and a last one that a kill left half written.

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
        self.rows: list[tuple[int, int, str, float]] = []  # that are not in the file yet
        self._begun = False  # whether the file is this run's
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
            os.truncate(self.path, _end(self.path, engine.state.iteration))
            self._begun = True

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
        if self._begun and self.path.exists():
            _append(self.path, _lines(self.rows))
        else:
            with atomic_path(self.path) as temporary:
                temporary.write_bytes(_lines([HISTORY_COLUMNS, *self.rows]))
            self._begun = True
        self.rows = []

    def _close(self, engine: Engine) -> None:
        if self._writer is not None:
            self._writer.close()

    def _fail(self, engine: Engine, error: BaseException) -> None:
        if self.rows:  # else the run was refused before its first step, and the file is another run's
            self._write()
        self._close(engine)
        raise error


def _lines(rows: list[Any]) -> bytes:
    text = io.StringIO(newline="")
    csv.writer(text).writerows(rows)
    return text.getvalue().encode()


def _append(path: Path, lines: bytes) -> None:
    """Append to a file all or, where the disk is full or Ctrl-C comes, nothing."""
    length = path.stat().st_size
    try:
        with path.open("ab") as file:
            file.write(lines)
    except BaseException:
        os.truncate(path, length)
        raise


def _end(path: Path, iteration: int) -> int:
    """Length of a history up to an iteration, in bytes: without rows after it and a last one that is not whole.

    Raises:
        ValueError: when a row up to there is none of a history.
    """
    end = 0
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file):
                if number > 0 and not line.endswith(b"\n"):  # a kill came while it was written
                    break
                fields = next(csv.reader([line.decode()], strict=True))
                if number == 0 and (fields != list(HISTORY_COLUMNS) or not line.endswith(b"\n")):
                    raise ValueError(f"columns {fields}")
                if number > 0 and _row(fields)[0] > iteration:
                    break
                end += len(line)
        if end == 0:
            raise ValueError("it is empty")
    except (StopIteration, ValueError, csv.Error) as error:
        fix = "Fix: move it away, and the resumed run begins a new one."
        raise ValueError(f"{path}: is no history of a training ({error!r}). {fix}") from None
    return end


def _row(fields: list[str]) -> tuple[int, int, str, float]:
    iteration, epoch, name, value = fields
    return int(iteration), int(epoch), name, float(value)
