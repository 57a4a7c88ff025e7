"""One training, or one study, at a time in a folder."""

from __future__ import annotations

import atexit
import json
import logging
import os
import socket
import time
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path

TRAINING, FOLDERS = "training", "--ckpt_dir and --output_dir"
LOCK_FILE = f"{TRAINING}.lock"
logger = logging.getLogger(__name__)


class FolderInUseError(RuntimeError):
    """Another process writes to the folder."""


@dataclass(frozen=True)
class Owner:
    """The process that holds a lock.

    Attributes:
        host: name of its machine.
        process: its number there.
        started: when the lock was taken, local time.
        birth: when the process began, in the kernel's ticks, 0 if unknown: tells it from a later one of that number.
    """

    host: str
    process: int
    started: str
    birth: int = 0

    def __str__(self) -> str:
        return f"process {self.process} on {self.host}, since {self.started}"


class FolderLock:
    """A file ``<what>.lock`` in a folder that says which process writes there.

    It is left behind by a process that was killed; the next one on the same machine sees that and takes it over.

    Args:
        folder: an existing folder.
        what: the process does there, such as training.
        options: by which the user gives another folder.
    """

    def __init__(self, folder: str | os.PathLike[str], what: str = TRAINING, options: str = FOLDERS) -> None:
        self.path = Path(folder) / f"{what}.lock"
        self.what, self.options = what, options
        process = os.getpid()
        now = datetime.now().isoformat(sep=" ", timespec="seconds")
        self.owner = Owner(socket.gethostname(), process, now, _birth(process) or 0)

    def acquire(self) -> None:
        """Take the lock; a process may take its own again.

        Raises:
            FolderInUseError: when another process holds it, or one of another machine may hold it.
        """
        for _ in range(3):  # each time another process was faster
            if self._create():
                atexit.register(self.release)
                return
            found = self._read()
            if found is None:
                continue
            if self._mine(found):
                return
            if found.host != self.owner.host:
                raise FolderInUseError(
                    f"{self.path}: a {self.what} writes to this folder ({found}), and this machine ({self.owner.host}) "
                    f"cannot tell whether it still runs. Fix: give another {self.options}, or remove the "
                    f"file if that {self.what} has ended."
                )
            if _is_alive(found):
                break
            self._remove_stale(found)
        raise FolderInUseError(
            f"{self.path}: another {self.what} writes to this folder ({self._read() or 'owner unknown'}). "
            f"Fix: wait for its end, or give another {self.options}."
        )

    def release(self) -> None:
        """Give the lock back; nothing happens to another process's."""
        atexit.unregister(self.release)
        found = self._read(patience=0.0)
        if found is not None and self._mine(found):
            self.path.unlink(missing_ok=True)

    def _create(self) -> bool:
        try:
            handle = os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
        except FileExistsError:
            return False
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump(asdict(self.owner), file)
        return True

    def _read(self, patience: float = 1.0) -> Owner | None:
        """Who holds the lock; None if nobody does any more.

        A file that is still empty after a second of patience was left by a process that died while it wrote.
        """
        end = time.monotonic() + patience
        while True:
            try:
                return Owner(**json.loads(self.path.read_text(encoding="utf-8")))
            except FileNotFoundError:
                return None
            except (ValueError, TypeError):
                if time.monotonic() >= end:
                    return Owner("an unknown machine", 0, "an unknown time")
                time.sleep(0.05)

    def _mine(self, found: Owner) -> bool:
        me = self.owner
        return (found.host, found.process, found.birth) == (me.host, me.process, me.birth)

    def _remove_stale(self, found: Owner) -> None:
        """Remove a dead process's lock, unless another process has just done so and taken its place."""
        aside = self.path.with_name(f"{self.path.name}.{self.owner.process}")
        try:
            os.replace(self.path, aside)
        except FileNotFoundError:
            return
        if json.loads(aside.read_text(encoding="utf-8")) != asdict(found):
            os.replace(aside, self.path)
            return
        aside.unlink()
        logger.warning(f"{self.path}: left by {found}, which has ended without removing it: taken over.")


def _birth(process: int) -> int | None:
    """When a process began, in clock ticks since the machine's start; 0 where that is not told, None if it is dead."""
    try:
        # after the command's name, which may hold anything: state, ..., and as the 20th the time of start
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None if Path("/proc/self/stat").exists() else 0
    return None if fields[0] in "ZX" else int(fields[19])  # a zombie only waits to be counted


def _is_alive(owner: Owner) -> bool:
    birth = _birth(owner.process)
    if birth is None or (owner.birth and birth and birth != owner.birth):
        return False
    if birth == 0 and os.name == "posix":  # no /proc, as on macOS; on Windows `kill` would end the process
        try:
            os.kill(owner.process, 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            return True
    return True


def lock_folders(*folders: str | os.PathLike[str], what: str = TRAINING, options: str = FOLDERS) -> ExitStack:
    """Make folders where there are none and take the lock of each.

    Args:
        folders: any number; one that is given twice is locked once.
        what: the process does there.
        options: by which the user gives other folders.

    Returns:
        gives the locks back when it is closed; so does the end of the process.

    Raises:
        FolderInUseError: when another process holds one of them; then none is kept.
        NotADirectoryError: when a file is in the way of a folder.
    """
    with ExitStack() as held:
        for folder in sorted({Path(given).resolve() for given in folders}):
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except (FileExistsError, NotADirectoryError):
                raise NotADirectoryError(
                    f"{folder}: a file stands where a folder goes. Fix: give another {options}."
                ) from None
            lock = FolderLock(folder, what, options)
            lock.acquire()
            held.callback(lock.release)
        return held.pop_all()
