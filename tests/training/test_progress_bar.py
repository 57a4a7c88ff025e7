"""The progress bar of a training."""

from __future__ import annotations

import fcntl
import os
import re
import struct
import sys
import termios

import pytest
from ignite.engine import Engine, Events

from common.training import handlers
from common.training.handlers import LossProgressBar
from tests.tiny import tiny_trainer

pytestmark = pytest.mark.usefixtures("every_precision")


def test_the_progress_bar_shows_every_loss(capsys: pytest.CaptureFixture[str]) -> None:
    tiny_trainer(max_epochs=1, train_handlers=[LossProgressBar()]).run()
    shown = capsys.readouterr().err
    assert all(f"{name}=" in shown for name in ("fit", "size", "total"))
    assert "weight" not in shown and "monitor" not in shown


def test_one_process_alone_shows_a_progress_bar(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(handlers, "is_first_rank", lambda: False)
    tiny_trainer(max_epochs=1, train_handlers=[LossProgressBar()]).run()
    assert "fit=" not in capsys.readouterr().err


@pytest.mark.parametrize("columns", [80, 120])
def test_the_progress_bar_fits_the_terminal(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many terms there are, the total and the remaining time are there, and no term is cut off."""
    names = ["supervised", "cross_pseudo", "contrastive", "uncertainty", "consistency", "prototypes", "total"]
    scalars = {f"loss/{name}": 10 + index / 8 for index, name in enumerate(names)}
    master, slave = os.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    with os.fdopen(slave, "w") as terminal, os.fdopen(master, "rb") as screen:
        monkeypatch.setattr(sys, "stderr", terminal)
        engine = Engine(lambda engine, batch: [{"scalars": scalars}])
        LossProgressBar().attach(engine)
        engine.add_event_handler(Events.ITERATION_COMPLETED(once=4), lambda: engine.terminate())  # before it is full
        engine.run(range(50), max_epochs=100)
        terminal.flush()
        os.set_blocking(screen.fileno(), False)
        lines = re.split(r"[\r\n]+|\x1b\[A", (screen.read() or b"").decode())
    whole = [line for line in lines if "total=" in line]
    assert whole and all(len(line) < columns for line in lines)
    assert all(re.search(r"\d\d:\d\d<(\d\d:\d\d|\?), total=10\.750", line) for line in whole)
    terms = [term for line in whole for term in line.rstrip().split(", ")[1:]]
    assert all(re.fullmatch(r"[a-z_]+=\d\d\.\d{3}", term) for term in terms)
    assert ("supervised=10.000" in terms) == (columns == 120) and "prototypes=10.625" not in terms
