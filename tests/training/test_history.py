"""The history of a training, on the tiny trainer."""

from __future__ import annotations

import csv
import io
import math
from pathlib import Path
from typing import Any

import pytest
from ignite.engine import Engine, Events

from common.training import history
from common.training.history import TrainingHistory
from tests.tiny import tiny_trainer
from tests.training.whole_run import Run

pytestmark = pytest.mark.usefixtures("every_precision")


def test_history_has_every_scalar_of_every_iteration(tmp_path: Path) -> None:
    rows = Run(tmp_path).go().history()
    assert list(rows[0]) == ["iteration", "epoch", "name", "value"]
    names = {"loss/fit", "loss/size", "loss/total", "weight/fit", "weight/size", "monitor/mean", "learning_rate"}
    for iteration in range(1, 13):
        here = {row["name"]: row for row in rows if row["iteration"] == str(iteration)}
        assert set(here) == (names | {"validation/score"} if iteration % 3 == 0 else names)
        assert {row["epoch"] for row in here.values()} == {str((iteration - 1) // 3 + 1)}
    assert all(math.isfinite(float(row["value"])) for row in rows)


def test_history_has_the_learning_rate_of_the_step_taken(tmp_path: Path) -> None:
    rates = [float(row["value"]) for row in Run(tmp_path).go().history() if row["name"] == "learning_rate"]
    assert rates == pytest.approx([rates[0]] * 5 + [rates[0] / 2] * 5 + [rates[0] / 4] * 2)  # StepLR(5, 0.5)


def test_history_is_kept_when_training_fails(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.fail_at(5)
    assert {row["iteration"] for row in run.history()} == {"1", "2", "3", "4"}


def test_an_epochs_rows_are_appended(tmp_path: Path) -> None:
    """All rows in memory, and all written anew each epoch, would be a million and more at a paper's length."""
    run = Run(tmp_path)
    kept, files, lengths = run.added[2], [], []

    def look(_: Engine) -> None:
        status = (tmp_path / "history.csv").stat()
        files.append(status.st_ino)
        lengths.append(status.st_size)
        assert kept.rows == []

    run.trainer.add_event_handler(Events.EPOCH_COMPLETED, look)
    run.go()
    assert len(files) == 4 and len(set(files)) == 1 and lengths == sorted(set(lengths))
    text = (tmp_path / "history.csv").read_bytes()
    assert text.startswith(b"iteration,epoch,name,value\r\n1,1,") and text.count(b"iteration") == 1


@pytest.mark.parametrize("lost", [1, 2, 9, 200])
def test_what_a_kill_left_half_written_is_repaired(lost: int, tmp_path: Path) -> None:
    """The kill comes while the second epoch's rows are appended, before its checkpoint is written."""
    Run(tmp_path / "whole").go()
    Run(tmp_path / "broken").fail_at(6)
    path = tmp_path / "broken/history.csv"
    path.write_bytes(path.read_bytes()[:-lost])
    Run(tmp_path / "broken", resume=True, weights=1).go()
    assert path.read_bytes() == (tmp_path / "whole/history.csv").read_bytes()


def test_rows_that_cannot_be_written_leave_no_half_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "history.csv"
    path.write_bytes(b"iteration,epoch,name,value\r\n")

    class FullDisk(io.FileIO):
        def write(self, content: Any) -> int:
            super().write(content[:5])
            raise OSError("no space left")

    with monkeypatch.context() as full:
        full.setattr(Path, "open", lambda self, mode: FullDisk(self, "a"))
        with pytest.raises(OSError, match="no space left"):
            history._append(path, b"1,1,loss/total,0.5\r\n")
    assert path.read_bytes() == b"iteration,epoch,name,value\r\n"


BROKEN_HISTORIES = [b"text", b"", b"iteration,epoch,name,value\r\n3,1,loss\r\n4,1,loss/total,0.5\r\n", b"\xff\x00"]


@pytest.mark.parametrize("content", BROKEN_HISTORIES)
def test_a_broken_history_is_told_and_kept(content: bytes, tmp_path: Path) -> None:
    Run(tmp_path).fail_at(5)
    (tmp_path / "history.csv").write_bytes(content)
    with pytest.raises(ValueError, match="history.csv: is no history of a training .* Fix: move it away"):
        Run(tmp_path, resume=True).go()
    assert (tmp_path / "history.csv").read_bytes() == content


def test_a_new_run_starts_a_new_history(tmp_path: Path) -> None:
    Run(tmp_path).go()
    run = Run(tmp_path, max_epochs=1).go()
    assert {row["epoch"] for row in run.history()} == {"1"}
    kept = list((tmp_path / "previous").rglob("history.csv"))
    assert len(kept) == 1 and kept[0].read_text().count("loss/total") == 12


def test_tensorboard_gets_the_same(tmp_path: Path) -> None:
    tiny_trainer(max_epochs=1, train_handlers=[TrainingHistory(tmp_path / "history.csv")]).run()
    with (tmp_path / "history.csv").open() as file:
        rows = [(row["name"], float(row["value"])) for row in csv.DictReader(file)]
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert set(events.Tags()["scalars"]) == {name for name, _ in rows}
    expected = [value for name, value in rows if name == "loss/total"]
    assert [event.value for event in events.Scalars("loss/total")] == pytest.approx(expected)
