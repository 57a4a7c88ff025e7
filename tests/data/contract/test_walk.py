"""What lies below a folder, with and without links."""

from __future__ import annotations

from pathlib import Path

import pytest

from common.data.contract.walk import paths_below
from common.data.converters.cases import find_parts


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """``root`` with files at two depths, beside a folder ``disk``."""
    for name in ("root/b.txt", "root/B.txt", "root/.hidden", "root/a/c.txt", "disk/d.txt", "disk/deep/e.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    return tmp_path / "root"


def below(folder: Path, pattern: str = "*") -> list[str]:
    return [path.relative_to(folder).as_posix() for path in paths_below(folder, pattern)]


@pytest.mark.parametrize("pattern", ["*", "*.txt", "b*", "[!.]*", "a"])
def test_without_links_it_is_rglob(pattern: str, folder: Path) -> None:
    assert paths_below(folder, pattern) == sorted(folder.rglob(pattern)) != []


def test_a_linked_folder_is_entered(folder: Path) -> None:
    (folder / "a" / "link").symlink_to(folder.parent / "disk")
    expected = ["a", "a/c.txt", "a/link", "a/link/d.txt", "a/link/deep", "a/link/deep/e.txt"]
    assert below(folder) == [".hidden", "B.txt", *expected, "b.txt"]
    assert below(folder / "a" / "link", "*.txt") == ["d.txt", "deep/e.txt"], "a link may be given"


def test_loops_end(folder: Path) -> None:
    (folder / "a" / "up").symlink_to(folder)
    (folder / "a" / "out").symlink_to(folder.parent)
    (folder / "a" / "here").symlink_to(".")
    (folder / "a" / "nowhere").symlink_to("nowhere")
    assert below(folder, "*.txt") == ["B.txt", "a/c.txt", "b.txt"]


def test_a_folder_is_entered_once_by_its_own_place(folder: Path) -> None:
    (folder / "Link").symlink_to(folder / "a")
    for name in ("x", "y"):
        (folder / name).symlink_to(folder.parent / "disk")
    assert below(folder, "*.txt") == ["B.txt", "a/c.txt", "b.txt", "x/d.txt", "x/deep/e.txt"]


def test_converters_find_the_files_of_linked_cases(folder: Path) -> None:
    (folder / "linked").symlink_to(folder.parent / "disk")
    (folder / "B.txt").unlink()  # to a converter the same case as b
    found = find_parts(folder, r"(?P<case>[a-z])(?P<part>)[.]txt", "c.txt")
    assert {"c": "a/c.txt", "d": "linked/d.txt", "e": "linked/deep/e.txt"}.items() <= {
        case: parts["image"].relative_to(folder).as_posix() for case, parts in found.items()
    }.items()
