"""One training at a time in a folder."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from common.training.lock import LOCK_FILE, FolderInUseError, FolderLock, lock_folders
from tests.bundles.conftest import ROOT

HOLD = """
import sys
from common.training.lock import lock_folders
held = lock_folders(sys.argv[1])
print("held", flush=True)
input()
"""


def other_process(folder: Path) -> subprocess.Popen[str]:
    """A process that holds the lock of a folder until it is told to go."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    return process


def test_the_lock_names_its_owner_and_goes_with_him(tmp_path: Path) -> None:
    process = other_process(tmp_path)
    message = rf"training.lock: another training writes to this folder \(process {process.pid} on .*, since 20"
    with pytest.raises(FolderInUseError, match=message + r".*Fix: wait for its end, or give another --ckpt_dir"):
        FolderLock(tmp_path).acquire()
    process.communicate("go\n")
    assert not (tmp_path / LOCK_FILE).exists()
    with lock_folders(tmp_path):
        assert (tmp_path / LOCK_FILE).exists()
    assert not (tmp_path / LOCK_FILE).exists()


@pytest.mark.skipif(os.name != "posix", reason="there is no SIGKILL")
def test_a_lock_that_a_kill_left_is_told_and_taken_over(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    process = other_process(tmp_path)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert (tmp_path / LOCK_FILE).exists()
    lock = FolderLock(tmp_path)
    lock.acquire()
    assert f"left by process {process.pid} on" in caplog.text and "taken over" in caplog.text
    lock.release()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="the system does not tell when a process began")
def test_a_later_process_of_the_same_number_is_not_the_owner(tmp_path: Path) -> None:
    lock = FolderLock(tmp_path)
    dead = FolderLock(tmp_path)
    dead.owner = dataclasses.replace(dead.owner, process=os.getppid(), birth=1)
    dead.acquire()
    lock.acquire()
    lock.release()


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="zombies are told from the living by /proc")
def test_a_killed_process_that_nobody_has_waited_for_is_dead(tmp_path: Path) -> None:
    process = other_process(tmp_path)
    process.send_signal(signal.SIGKILL)
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # it has ended, and is a zombie until waited for
    with lock_folders(tmp_path):
        pass
    process.wait()


def test_a_lock_of_another_machine_is_refused(tmp_path: Path) -> None:
    elsewhere = FolderLock(tmp_path)
    elsewhere.owner = dataclasses.replace(elsewhere.owner, host="node7", process=1)
    elsewhere.acquire()
    with pytest.raises(FolderInUseError, match=r"process 1 on node7, since .*remove the file if that training has"):
        FolderLock(tmp_path).acquire()
    elsewhere.release()


def test_a_lock_without_content_is_refused(tmp_path: Path) -> None:
    (tmp_path / LOCK_FILE).touch()
    with pytest.raises(FolderInUseError, match=r"an unknown machine.*remove the file if that training has ended"):
        FolderLock(tmp_path).acquire()


def test_a_process_may_lock_twice_and_one_folder_for_two_purposes(tmp_path: Path) -> None:
    with lock_folders(tmp_path, tmp_path / "sub" / "..", tmp_path / "new"):
        FolderLock(tmp_path).acquire()
        assert (tmp_path / "new" / LOCK_FILE).exists()
    assert not list(tmp_path.rglob(LOCK_FILE))


def test_nothing_is_kept_when_one_folder_is_in_use(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    process = other_process(tmp_path / "b")
    with pytest.raises(FolderInUseError):
        lock_folders(tmp_path / "a", tmp_path / "b")
    assert not (tmp_path / "a" / LOCK_FILE).exists()
    process.communicate("go\n")


@pytest.mark.parametrize("name", ["file", "file/models"])
def test_a_file_in_the_way_of_a_folder_is_told(name: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError, match="a file stands where a folder goes. Fix: give another --ckpt"):
        lock_folders(tmp_path / name)
