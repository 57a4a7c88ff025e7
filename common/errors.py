"""Faults with their fixes, and the last words of a program that fails.

An error is *expected* when it tells what the user can mend. At the end of a program such an error is its cause and the
fix alone, without a traceback, unless the environment variable ``IMPERFECT_LABELS_TRACEBACK`` is 1; the exit code is 1.
Any other error keeps its traceback. Who calls from Python gets the exceptions as they are.
"""

from __future__ import annotations

import logging
import os
import shlex
import sys
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from .files import RESUME_FILE

TRACEBACK = "IMPERFECT_LABELS_TRACEBACK"
INTERRUPTED = 130  # exit code of programs that Ctrl-C ended
CLOCK_SLACK = 1.0  # seconds: a file's time is of a coarser clock than time.time(), or of a server's


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong.

    Args:
        where: the file, the section, record and key of the JSON, or the setting.
        what: what is wrong, without a full stop.
        fix: what to do about it, without a full stop.
    """

    where: str
    what: str
    fix: str

    def __str__(self) -> str:
        return f"{self.where}: {self.what}. Fix: {self.fix}."


class ExpectedError(Exception):
    """An error whose message tells the user what to do."""


class FaultsError(ExpectedError, ValueError):
    """Several faults at once, each with its fix.

    Args:
        faults: the faults, in the order in which they are printed.
        source: the file or folder that they belong to.
    """

    def __init__(self, faults: Sequence[Fault], source: str = "") -> None:  # noqa: B042 - see __reduce__
        self.faults = list(faults)
        self.source = source
        super().__init__(self._text())

    def _text(self) -> str:
        if len(self.faults) == 1:
            return str(self.faults[0])
        head = f"{len(self.faults)} faults" + (f" in {self.source}" if self.source else "") + ":"
        return "\n".join([head, *(f"  {number}. {fault}" for number, fault in enumerate(self.faults, 1))])

    def __reduce__(self) -> tuple[type[FaultsError], tuple[list[Fault], str]]:
        # the default would pickle the message in place of the faults (worker processes send errors so)
        return type(self), (self.faults, self.source)


def root_cause(error: BaseException) -> BaseException:
    """The error that others were raised from."""
    while error.__cause__ is not None:
        # an expected error was made from what caused it, which says less
        if is_expected(error):
            return error
        error = error.__cause__
    return error


def is_expected(error: BaseException) -> bool:
    """Whether an error itself tells what to do."""
    return isinstance(error, ExpectedError) or (isinstance(error, (ValueError, OSError)) and "Fix: " in str(error))


def short_last_words() -> None:
    """Let a program end with the cause of its error: alone where that is expected, else after the traceback.

    MONAI's config parser wraps what goes wrong in errors of its own, and those come last on the screen.
    """
    if sys.excepthook is sys.__excepthook__:
        sys.excepthook = _show
    # MONAI's statistics have a logger with a handler of their own
    places: list[logging.Filterer] = [logging.getLogger("monai.handlers.StatsHandler"), *logging.getLogger().handlers]
    for place in [*places, *filter(None, [logging.lastResort])]:
        if not any(isinstance(known, _NoTraceback) for known in place.filters):
            place.addFilter(_NoTraceback())


class _NoTraceback(logging.Filter):
    """Leaves out what the engines log of an expected error or Ctrl-C, which the program's last words tell."""

    def filter(self, record: logging.LogRecord) -> bool:
        error = sys.exc_info()[1]
        if error is None or record.levelno < logging.ERROR or os.environ.get(TRACEBACK) == "1":
            return True
        return not (isinstance(error, KeyboardInterrupt) or is_expected(root_cause(error)))


def remember_run(
    ckpt_dir: str | None, settings: dict[str, Any] | None = None, tracking: dict[str, Any] | None = None
) -> None:
    """Note what begins.

    Args:
        ckpt_dir: folder of the weights of a training, for what Ctrl-C says; None: nothing to resume.
        settings: all of them, checked.
        tracking: what ``--tracking`` added to the config; None: nothing is tracked.
    """
    _RUN.update(ckpt_dir=ckpt_dir, start=time.time() - CLOCK_SLACK, settings=settings or {}, tracking=tracking)


_RUN: dict[str, Any] = {"ckpt_dir": None, "start": 0.0, "settings": {}, "tracking": None}


def current_run() -> dict[str, Any]:
    """What :func:`remember_run` noted last, by the names of its arguments."""
    return dict(_RUN)


def how_to_go_on() -> str:
    """One line for who stopped this program: the command that goes on with it."""
    torchrun = "TORCHELASTIC_RUN_ID" in os.environ  # this process knows only the worker's command
    command = "the torchrun command" if torchrun else shlex.join(["python", *sys.orig_argv[1:]])
    if _RUN["ckpt_dir"] is None:
        return f"Stopped. To start again: {command}"
    last = Path(_RUN["ckpt_dir"]) / RESUME_FILE
    resumed = _RUN["settings"].get("resume", False)
    # an older checkpoint is of an earlier run, unless this one resumes it
    if not last.is_file() or not (resumed or last.stat().st_mtime >= _RUN["start"]):
        return f"Stopped before the first checkpoint. To start again: {command}"
    if not resumed:
        command = command if torchrun else shlex.join(["python", *_without_resume(sys.orig_argv[1:])])
        command += " --resume true"
    return f"Stopped. To resume: {command}"


def _without_resume(words: Sequence[str]) -> list[str]:
    """The words of a command without ``--resume false`` or ``--resume=false``."""
    kept: list[str] = []
    value = False  # whether a word may be that of the flag before it
    for word in words:
        if value and not word.startswith("--"):
            value = False
            continue
        value = word == "--resume"
        if not value and not word.startswith("--resume="):
            kept.append(word)
    return kept


def _show(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if isinstance(error, KeyboardInterrupt):
        if int(os.environ.get("RANK", "0")) == 0:
            print(f"\n{how_to_go_on()}", file=sys.stderr)
        raise SystemExit(INTERRUPTED)  # Python ends with this code when the hook raises it
    cause = root_cause(error)
    if is_expected(cause) and os.environ.get(TRACEBACK) != "1":
        print(cause, file=sys.stderr)
        return
    sys.__excepthook__(kind, error, trace)
    if cause is not error:
        print("\nThe cause: " + "".join(traceback.format_exception_only(cause)).strip(), file=sys.stderr)
