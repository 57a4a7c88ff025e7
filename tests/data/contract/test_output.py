"""Output of whole data sets: a folder that is there complete, or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from common.data.contract.faults import DataError
from common.data.contract.output import new_folder


def test_a_link_to_an_empty_folder_is_that_folder(tmp_path: Path) -> None:
    (tmp_path / "disk" / "empty").mkdir(parents=True)
    (tmp_path / "out").symlink_to(tmp_path / "disk" / "empty")
    with new_folder(tmp_path / "out") as folder:
        (folder / "a.txt").write_text("a")
    assert (tmp_path / "out").is_symlink() and (tmp_path / "disk" / "empty" / "a.txt").read_text() == "a"
    assert [path.name for path in (tmp_path / "disk").iterdir()] == ["empty"]
    with (
        pytest.raises(DataError, match="out: the output is there already"),
        new_folder(tmp_path / "out"),
    ):
        pass


@pytest.mark.parametrize("link", [False, True])
def test_a_mount_point_is_refused_before_the_work(link: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mounted = tmp_path / "mounted"
    mounted.mkdir()
    (tmp_path / "out").symlink_to(mounted)
    monkeypatch.setattr("os.path.ismount", lambda path: path == mounted)
    started = False
    with (
        pytest.raises(DataError, match="is a mount point, which cannot be replaced. Fix: give a folder below it"),
        new_folder(tmp_path / "out" if link else mounted),
    ):
        started = True
    assert not started and not any(mounted.iterdir())
    with new_folder(mounted / "below") as folder:
        (folder / "a.txt").write_text("a")
    assert (mounted / "below" / "a.txt").is_file()
