"""The last words of a program that fails, or that Ctrl-C ends."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from common.data.contract.faults import DataError
from common.errors import TRACEBACK, Fault, FaultsError, how_to_go_on, is_expected, remember_run, root_cause
from common.settings import SettingsError
from common.training.trainer import NonFiniteLossError

WRAPPED = """
from common.errors import short_last_words
short_last_words()
try:
    raise ValueError({message!r})
except ValueError as error:
    raise RuntimeError("Failed to evaluate") from error
"""


def ended(program: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=os.environ | environment)


def test_an_expected_error_is_its_cause_alone() -> None:
    message = "x.nii.gz: is empty. Fix: give another."
    done = ended(WRAPPED.format(message=message))
    assert (done.returncode, done.stderr) == (1, message + "\n")


def test_its_traceback_can_be_asked_for() -> None:
    done = ended(WRAPPED.format(message="Fix: so."), **{TRACEBACK: "1"})
    assert done.returncode == 1 and "Traceback" in done.stderr


def test_an_unexpected_error_keeps_its_traceback_and_tells_the_cause_last() -> None:
    done = ended(WRAPPED.format(message="a bug"))
    assert done.returncode == 1 and "Traceback" in done.stderr
    assert done.stderr.splitlines()[-1] == "The cause: ValueError: a bug"


def test_what_is_expected() -> None:
    fault = Fault("a", "is bad", "mend it")
    assert all(map(is_expected, (DataError([fault]), SettingsError([fault]), NonFiniteLossError("nan"))))
    assert is_expected(FileNotFoundError("x: no weights. Fix: train first."))
    assert not any(map(is_expected, (ValueError("x"), RuntimeError("Fix: x"), KeyboardInterrupt())))


def test_an_expected_error_made_from_another_is_the_cause() -> None:
    error = RuntimeError("wrapper")
    error.__cause__ = ValueError("x. Fix: y.")
    error.__cause__.__cause__ = EOFError("end of file")
    assert root_cause(error) is error.__cause__


@pytest.mark.parametrize("kind", [FaultsError, DataError, SettingsError])
def test_faults_survive_pickling(kind: type[FaultsError]) -> None:
    error = kind([Fault("a", "b", "c"), Fault("d", "e", "f")], "file")
    copied = pickle.loads(pickle.dumps(error))
    assert type(copied) is kind and copied.faults == error.faults and str(copied) == str(error)


def test_how_to_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["python", "-m", "monai.bundle", "run", "training", "--config_file", "['a.yaml','b.yaml']"]
    monkeypatch.setattr(sys, "orig_argv", words)
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    typed = "python -m monai.bundle run training --config_file '['\"'\"'a.yaml'\"'\"','\"'\"'b.yaml'\"'\"']'"
    remember_run(None)
    assert how_to_go_on() == f"Stopped. To start again: {typed}"
    remember_run(str(tmp_path))
    assert how_to_go_on() == f"Stopped before the first checkpoint. To start again: {typed}"
    (tmp_path / "last.ckpt").touch()
    os.utime(tmp_path / "last.ckpt", (1, 1))  # an earlier run's
    assert "before the first checkpoint" in how_to_go_on()
    (tmp_path / "last.ckpt").touch()
    assert how_to_go_on() == f"Stopped. To resume: {typed} --resume true"
    remember_run(None)


@pytest.mark.parametrize(
    ("typed", "settings", "printed"),
    [
        ("--resume false --seed 1", {"resume": False}, "--seed 1 --resume true"),
        ("--resume=False --seed 1", {"resume": False}, "--seed 1 --resume true"),
        ("--resume=true", {"resume": True}, "--resume=true"),
        ("--seed 1", {"resume": True}, "--seed 1"),  # a config file says so
    ],
)
def test_how_to_go_on_asks_the_settings(
    typed: str, settings: dict[str, Any], printed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["python", "train.py", *typed.split()]
    monkeypatch.setattr(sys, "orig_argv", words)
    monkeypatch.setattr(sys, "argv", words[1:])
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    remember_run(str(tmp_path), settings)
    (tmp_path / "last.ckpt").touch()
    if settings["resume"]:
        os.utime(tmp_path / "last.ckpt", (1, 1))  # of the run that this one goes on with
    assert how_to_go_on() == f"Stopped. To resume: python train.py {printed}"
    remember_run(None)


def test_an_earlier_runs_checkpoint_is_not_resumed_by_resume_false(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["train.py", "--resume", "false"])
    remember_run(str(tmp_path), {"resume": False})
    (tmp_path / "last.ckpt").touch()
    os.utime(tmp_path / "last.ckpt", (1, 1))
    assert how_to_go_on().startswith("Stopped before the first checkpoint.")
    remember_run(None)


def test_ctrl_c_ends_with_one_line() -> None:
    # a job in the background of a shell is born deaf to SIGINT, and so are its tests
    program = "import signal, time\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n"
    program += "from common.errors import short_last_words\nshort_last_words()\nprint('on', flush=True)\n"
    words = [sys.executable, "-c", program + "time.sleep(60)"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "on\n"
        time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        _, last = process.communicate(timeout=30)
    assert process.returncode == 130
    assert last.startswith("\nStopped. To start again: python -c") and "Traceback" not in last
