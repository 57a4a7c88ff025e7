"""Files are there complete, or not at all."""

from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path

import pytest
import torch

from common.files import UNFINISHED, atomic_path, file_digest, save_atomically


@pytest.mark.parametrize("name", ["a.csv", "a.nii.gz", "case.1.nii.gz", "model.pt", "plain"])
def test_the_file_appears_only_when_complete(name: str, tmp_path: Path) -> None:
    target = tmp_path / name
    with atomic_path(target) as temporary:
        assert temporary.parent == target.parent, "another folder may be another disk"
        assert temporary.name.startswith(UNFINISHED)
        ending = ".nii.gz" if name.endswith(".nii.gz") else target.suffix
        assert temporary.name.endswith(ending)
        temporary.write_text("new")
        assert not target.exists()
    assert target.read_text() == "new"
    assert list(tmp_path.iterdir()) == [target]


def test_an_error_leaves_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "a.csv"
    target.write_text("old")
    with pytest.raises(OSError, match="disk full"), atomic_path(target) as temporary:
        temporary.write_text("ne")
        raise OSError("disk full")
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_missing_folders_are_made(tmp_path: Path) -> None:
    with atomic_path(tmp_path / "a" / "b" / "c.txt") as temporary:
        temporary.write_text("x")
    assert (tmp_path / "a" / "b" / "c.txt").read_text() == "x"


@pytest.mark.skipif(os.name != "posix", reason="permissions of another system")
def test_others_may_read_as_the_umask_says(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        save_atomically({}, tmp_path / "a.pt")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a.pt").stat().st_mode) == 0o640


def test_tensors_come_back(tmp_path: Path) -> None:
    save_atomically({"weight": torch.arange(3)}, tmp_path / "a.pt")
    assert torch.load(tmp_path / "a.pt", weights_only=True)["weight"].tolist() == [0, 1, 2]


def test_what_cannot_be_saved_leaves_the_old_weights(tmp_path: Path) -> None:
    save_atomically({"weight": 1}, tmp_path / "a.pt")
    with pytest.raises(Exception, match="lambda|local object"):
        save_atomically({"weight": torch.zeros(1), "function": lambda: None}, tmp_path / "a.pt")
    assert torch.load(tmp_path / "a.pt", weights_only=True) == {"weight": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["a.pt"]


def test_digest_of_a_large_file(tmp_path: Path) -> None:
    content = bytes(range(256)) * 10_000
    (tmp_path / "a").write_bytes(content)
    assert file_digest(tmp_path / "a") == hashlib.sha256(content).hexdigest()
