"""Running a study: each row and seed is the real command line in a process of its own; it can be killed at any time."""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import torch
from monai.bundle import ConfigParser

from ...data.contract.faults import DataError, Fault
from ...ops.threads import usable_cores
from ...training.lock import lock_folders
from ...training.runs import FINAL_FILE, RESUME_FILE
from .data import check_source, link_source, marked_or_undone, undo, write_json
from .provenance import made_by
from .recipe import Run, Study

LOG_LINES = 25  # of a failed run's log that are shown
_MEBI = 2**20


@dataclass
class State:
    """How far a run is.

    Attributes:
        word: waiting, running, done or failed.
        seconds: of its commands so far, those that failed or were stopped included.
        peak_mib: its largest memory.
        made_by: commit, versions and device of a run that is done.
        message: why it failed.
    """

    word: str = "waiting"
    seconds: float = 0.0
    peak_mib: float = 0.0
    made_by: str = "not recorded"
    message: str = ""

    @property
    def spent(self) -> dict[str, float]:
        """What its commands have taken."""
        return {"seconds": self.seconds, "peak_mib": self.peak_mib}


class Runner:
    """Runs what of a study is not there yet.

    Below ``output``: ``data`` holds the data sets made, with ``source.json`` (of which data set; another is refused),
    ``runs/<row>/<seed>`` each run's weights, logs and results, with ``run.json`` (its commands and what its configs
    said; a run made by others is refused, not mixed in), ``spent.json`` (time and memory of its commands until now; one
    that is killed together with the study is not counted) and ``done.json`` (these, commit, versions and device).

    Args:
        study: what to run.
        dataset_dir: folder of the data set.
        output: folder to write to.
        jobs: runs at a time; the cores, or the GPUs, are shared out among them.
        show: called with every line for people.
    """

    def __init__(
        self,
        study: Study,
        dataset_dir: str | os.PathLike[str] | None,
        output: str | os.PathLike[str],
        jobs: int = 1,
        show: Callable[[str], None] = print,
    ) -> None:
        self.study = study
        self.source = None if dataset_dir is None else Path(dataset_dir).absolute()
        self.output = Path(output).absolute()
        self.jobs = jobs
        self.show = show
        self.states: dict[tuple[str, str], State] = {}
        self._making = threading.Lock()
        self._starting = threading.Lock()
        self._telling = threading.Lock()
        self._children: set[subprocess.Popen[bytes]] = set()
        self._stopped = False

    def folder(self, run: Run) -> Path:
        """Where a run writes."""
        return self.output / "runs" / run.row.name.replace("/", "_") / run.name

    def results(self, run: Run) -> Path:
        """Its table of cases."""
        return self.folder(run) / "eval" / self.study.section / "metrics.csv"

    def run(self, runs: Sequence[Run]) -> bool:
        """Run all that is not complete.

        Returns:
            whether every run is complete.

        Raises:
            DataError: when a run is there that other commands or configs made, or data of another data set.
            FolderInUseError: when another study writes to the folder.
        """
        with lock_folders(self.output, what="study", options="--output"):
            return self._run(list(runs))

    def _run(self, runs: list[Run]) -> bool:
        if self.source is not None:
            check_source(self.source, self._linked)
            undo(self._linked.parent)
        for run in runs:
            self._check(run)
            self.states[run.row.name, run.name] = self.known_state(run)
        waiting = [run for run in runs if self._state(run).word == "waiting"]
        self.show(self.overview())
        places: SimpleQueue[int] = SimpleQueue()
        for place in range(self.jobs):
            places.put(place)
        with ThreadPoolExecutor(self.jobs) as pool:
            try:
                list(pool.map(lambda run: self._work(run, places), waiting))
            except BaseException:
                with self._starting:
                    self._stopped = True
                for child in list(self._children):
                    child.terminate()
                raise
        return all(self._state(run).word == "done" for run in runs)

    def overview(self) -> str:
        """A table of what runs, what is done, and how long the rest will take."""
        seeds = list(dict.fromkeys(name for _, name in self.states))
        rows = list(dict.fromkeys(row for row, _ in self.states))
        width = max(len(row) for row in rows) if rows else 0
        lines = [" " * width + "  " + "  ".join(f"{seed:<14}" for seed in seeds)]
        for row in rows:
            cells = [self.states.get((row, seed), State("")) for seed in seeds]
            shown = [f"{cell.word} {_clock(cell.seconds)}" if cell.word == "done" else cell.word for cell in cells]
            lines.append(f"{row:<{width}}  " + "  ".join(f"{text:<14}" for text in shown))
        done = [state.seconds for state in self.states.values() if state.word == "done"]
        left = sum(state.word in ("waiting", "running") for state in self.states.values())
        if left:
            each = f", about {_clock(left * sum(done) / len(done) / self.jobs)} to go" if done else ""
            lines.append(f"{len(done)} of {len(self.states)} runs done{each}")
        return "\n".join(lines)

    def _state(self, run: Run) -> State:
        return self.states[run.row.name, run.name]

    def known_state(self, run: Run) -> State:
        """What the folder tells of a run: done, or waiting, and what it has taken."""
        done, spent = self.folder(run) / "done.json", self.folder(run) / "spent.json"
        if done.is_file() and self.results(run).is_file():
            return State("done", **json.loads(done.read_text()))
        return State(**json.loads(spent.read_text())) if spent.is_file() else State()

    def _check(self, run: Run) -> None:
        """Refuse a folder that other commands or configs made."""
        path = self.folder(run) / "run.json"
        if path.is_file() and json.loads(path.read_text()) != self._recipe(run):
            what = "a run with other settings is there"
            raise DataError([Fault(str(path.parent), what, "remove it, or give another --output")])

    def _recipe(self, run: Run) -> dict[str, Any]:
        recipe = {
            "data": self._data_commands(run),
            "train": self._train(run),
            "evaluate": self._evaluate(run),
            "configs": _digest([ConfigParser.load_config_file(path) for path in run.row.files("evaluate")]),
        }
        return recipe | ({"calibrate": self._calibrate(run)} if self.study.calibrate else {})

    def _work(self, run: Run, places: SimpleQueue[int]) -> None:
        if self._stopped:
            return
        place = places.get()
        state, folder = self._state(run), self.folder(run)
        try:
            state.word, state.made_by = "running", made_by()  # the code that it starts with
            folder.mkdir(parents=True, exist_ok=True)
            write_json(self._recipe(run), folder / "run.json")
            with self._telling:
                self.show(self.overview())
            self._make_data(run)
            self._call(run, self._train(run), state, place, resume=True)
            if self.study.calibrate:
                self._call(run, self._calibrate(run), state, place)
            self._call(run, self._evaluate(run), state, place)
            write_json({**state.spent, "made_by": state.made_by}, folder / "done.json")
            state.word = "done"
        except (DataError, RuntimeError) as error:
            state.word, state.message = "failed", str(error)
            self.show(f"FAILED: {run.row.name}, {run.name}: {error}")
        finally:
            places.put(place)
            with self._telling:
                self.show(self.overview())

    # data

    def _made(self, run: Run) -> Path:
        """The folder that the run's data commands write, one for each different list of commands."""
        if not any("{made}" in command for command in run.row.data):
            return self._linked
        return self.output / "data" / f"{_digest([*run.row.data, run.row.values])}_{run.name}"

    @property
    def _linked(self) -> Path:
        return self.output / "data" / "source"

    def _fill(self, text: str, run: Run) -> str:
        places = {"source": self._linked, "made": self._made(run), "seed": run.seed, "fold": run.fold}
        return text.format(**places, **run.row.values)

    def _data_commands(self, run: Run) -> list[str]:
        return [self._fill(text, run) for text in run.row.data]

    def _make_data(self, run: Run) -> None:
        """Link the source and run the row's data commands, each once for all rows that share it."""
        with self._making:
            if self.source is None:
                return
            if not self._linked.exists():
                link_source(self.source, self._linked)
            for command in self._data_commands(run):
                mark = self._linked.with_name(f".{_digest(command)}.made")
                if not mark.exists():
                    with marked_or_undone(mark.parent, mark):
                        self._call_data(command)

    def _call_data(self, command: str) -> None:
        words = ["-m", "common.data", *shlex.split(command)]
        with self._child(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as child:
            shown, _ = child.communicate()
        if child.returncode != 0:
            raise RuntimeError(f"python -m common.data {command}\n{shown.decode(errors='replace').strip()}")

    # commands

    def _train(self, run: Run) -> list[str]:
        return self._command(run, "training", run.row.files(), {"seed": run.seed, **run.row.settings})

    def _calibrate(self, run: Run) -> list[str]:
        return [word if word != "evaluating" else "calibrating" for word in self._evaluate(run)]

    def _evaluate(self, run: Run) -> list[str]:
        weights = str(self.folder(run) / "models" / self.study.weights)
        measure = {"section": self.study.section, "weights": weights, **self.study.measure_settings}
        return self._command(run, "evaluating", run.row.files("evaluate"), {**run.row.settings, **measure})

    def _command(self, run: Run, run_id: str, configs: list[Path], settings: dict[str, Any]) -> list[str]:
        folder = self.folder(run)
        given: dict[str, Any] = {"ckpt_dir": str(folder / "models"), "output_dir": str(folder / "eval")}
        if self.source is not None:
            given |= {"dataset_dir": str(self._made(run)), "datalist": self._fill(run.row.datalist, run)}
        command = ["-m", "monai.bundle", "run", run_id, "--config_file", str([str(path) for path in configs])]
        for key, value in {**given, **settings}.items():
            command += [f"--{key}", value if isinstance(value, str) else json.dumps(value)]
        return command

    def _call(self, run: Run, command: list[str], state: State, place: int, resume: bool = False) -> None:
        """Run one command to its end, its output in a log; time and memory are added to the state, and kept."""
        models = self.folder(run) / "models"
        if resume and (models / FINAL_FILE).is_file() and (models / self.study.weights).is_file():
            return
        if resume and (models / RESUME_FILE).is_file():
            command = [*command, "--resume", "true"]
        log, started = self.folder(run) / f"{command[3]}.log", time.monotonic()
        environment = self._environment(place)
        try:
            with log.open("ab") as file, self._child(command, stdout=file, stderr=file, env=environment) as child:
                code, peak = _wait(child)
            state.peak_mib = max(state.peak_mib, peak)
        finally:
            state.seconds += time.monotonic() - started
            write_json(state.spent, self.folder(run) / "spent.json")
        if code != 0:
            lines = log.read_text(errors="replace").replace("\r", "\n").strip().splitlines()
            raise RuntimeError(f"exit status {code}, the end of {log}:\n" + "\n".join(lines[-LOG_LINES:]))

    @contextmanager
    def _child(self, words: list[str], **options: Any) -> Iterator[subprocess.Popen[bytes]]:
        """A Python process that is stopped with the study; afterwards none is started."""
        with self._starting:
            if self._stopped:
                raise RuntimeError("the study was stopped")
            child = subprocess.Popen([sys.executable, *words], **options)
            self._children.add(child)
        try:
            yield child
        finally:
            self._children.discard(child)

    def _environment(self, place: int) -> dict[str, str]:
        """The cores are shared out, or each job has a GPU of its own as far as they go."""
        threads = str(max(1, usable_cores() // self.jobs))
        environment = {**os.environ, "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
        if torch.cuda.device_count() > 1:
            environment["CUDA_VISIBLE_DEVICES"] = str(place % torch.cuda.device_count())
        return environment


def _wait(child: subprocess.Popen[bytes]) -> tuple[int, float]:
    """Exit status and peak memory in MiB; 0 MiB where the system does not tell."""
    if not hasattr(os, "wait4"):
        return child.wait(), 0.0
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    bytes_each = 1 if sys.platform == "darwin" else 1024
    return child.returncode, usage.ru_maxrss * bytes_each / _MEBI


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:8]


def _clock(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02d}" if minutes >= 60 else f"{minutes} min"
