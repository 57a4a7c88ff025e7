"""The data of studies: linked copies that know their source, and commands that were killed."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from common.data.contract.faults import DataError
from common.evaluation.study.data import BEGUN, RECORD, check_source, link_source, marked_or_undone, undo

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    (folder / "images").mkdir(parents=True)
    (folder / "images" / "a.nii").touch()
    (folder / "dataset.json").write_text("{}")
    return folder


@pytest.fixture
def linked(source: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "data" / "source"
    link_source(source, folder)
    return folder


def tree(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_a_copy_of_this_source_is_accepted(source: Path, linked: Path, tmp_path: Path) -> None:
    """Whatever is written into it, by whatever name the source is called, and without the source at all."""
    assert (linked / "images").resolve() == source / "images" and not (linked / "dataset.json").is_symlink()
    (linked / "dataset.json").write_text("a command's")
    (linked / "dataset_split.json").write_text("{}")
    (source / "dataset_split.json").write_text("of the user's own")
    (tmp_path / "alias").symlink_to(source)
    check_source(source, linked)
    check_source(tmp_path / "alias", linked)
    check_source(source, tmp_path / "nothing" / "source")
    source.rename(tmp_path / "away")
    check_source(source, linked)


def test_a_copy_of_something_else_is_refused(source: Path, linked: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=f"was made from another data set, {source}. Fix: give another --output"):
        check_source(tmp_path, linked)
    (source / "dataset.json").unlink()
    with pytest.raises(DataError, match=r"was made before dataset\.json of .* changed"):
        check_source(source, linked)


def test_a_copy_of_an_earlier_version_gets_its_record(source: Path, linked: Path) -> None:
    record = linked.with_name(RECORD)
    written = json.loads(record.read_text())
    record.unlink()
    (linked / "dataset_split.json").write_text("a command's")
    check_source(source, linked)
    assert json.loads(record.read_text()) == written
    (source / "dataset.json").write_text("[]")
    with pytest.raises(DataError, match="changed"):
        check_source(source, linked)


@pytest.mark.parametrize("change", ["JSON", "folder", "all"])
def test_a_copy_without_a_record_is_not_refused(change: str, source: Path, linked: Path, tmp_path: Path) -> None:
    """What it was made from is not known, and not made up."""
    linked.with_name(RECORD).unlink()
    if change == "JSON":
        (linked / "dataset.json").write_text("a command's")
    else:
        source = source.rename(tmp_path / "other")
        (tmp_path / "source" / "images").mkdir(parents=True)  # where the link still leads
    if change == "all":
        (source / "images").rename(source / "volumes")
        (source / "dataset.json").unlink()
    check_source(source, linked)
    assert not linked.with_name(RECORD).exists()


def test_what_a_killed_command_wrote_is_removed(linked: Path) -> None:
    """And nothing else: no file that was there, nothing where links lead."""
    data, before = linked.parent, tree(linked.parent)
    program = "import os, pathlib, sys; from common.evaluation.study.data import marked_or_undone\n"
    program += "data = pathlib.Path(sys.argv[1])\n"
    program += "with marked_or_undone(data, data / '.1.made'):\n"
    program += "    (data / 'made' / 'labels').mkdir(parents=True), (data / 'made' / 'labels' / 'a.nii').touch()\n"
    program += "    (data / 'source' / 'fold0.json').touch(), (data / 'source' / 'images' / 'b.nii').touch()\n"
    program += "    (data / 'to').symlink_to(data / 'source'), os.kill(os.getpid(), 9)"
    killed = subprocess.run([sys.executable, "-c", program, data], cwd=ROOT)
    assert killed.returncode == -signal.SIGKILL
    assert {"made/labels", "source/fold0.json", BEGUN} <= set(tree(data))
    for _ in range(2):
        undo(data)
        assert tree(data) == before
    assert (linked / "images" / "b.nii").is_file(), "it lies in the source"


def test_a_command_is_marked_or_undone(linked: Path) -> None:
    data, before = linked.parent, tree(linked.parent)
    with pytest.raises(RuntimeError), marked_or_undone(data, data / ".1.made"):
        (data / "made").mkdir()
        raise RuntimeError
    assert tree(data) == before
    with marked_or_undone(data, data / ".1.made"):
        (data / "made").mkdir()
    undo(data)
    assert tree(data) == sorted([*before, ".1.made", "made"])
