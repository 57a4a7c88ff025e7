"""Output of whole data sets: a folder that is there complete, or not at all."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .faults import DataError, Fault


def fault(where: str | os.PathLike[str], what: str, fix: str) -> DataError:
    """The error for a single fault, to be raised."""
    return DataError([Fault(os.fspath(where), what, fix)])


def check_seed(seed: object) -> None:
    """Raise a :class:`DataError` unless the seed is one that NumPy takes."""
    if not isinstance(seed, int) or seed < 0:
        raise fault("--seed", f"is {seed!r}", "use a whole number of 0 or more")


@contextmanager
def new_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary folder beside ``path`` that becomes it on success and is removed on error.

    Args:
        path: folder to make, or a link to it; missing parents are made. It may be there only if it is empty.

    Yields:
        the temporary folder to write to.

    Raises:
        DataError: when there is something at ``path`` already, as nothing is overwritten; or it is a mount point, which
            no folder can become.
    """
    target = Path(path).resolve()
    if _is_mount(target):
        raise fault(path, "is a mount point, which cannot be replaced", "give a folder below it")
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise fault(path, "the output is there already", "remove it, or give another --output")
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".writing-{target.name}-", dir=target.parent))
    try:
        yield temporary
        # mkdtemp makes folders private to the user; a data set is meant to be shared as any other folder
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o777 & ~umask)
        os.replace(temporary, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _is_mount(folder: Path) -> bool:
    """Whether something is mounted there; a folder of the same file system shows only in Linux's list of mounts."""
    mounts = Path("/proc/self/mountinfo")
    listed = mounts.read_text(encoding="utf-8", errors="replace").splitlines() if mounts.is_file() else []
    return os.path.ismount(folder) or str(folder).replace(" ", r"\040") in [line.split()[4] for line in listed]


def write_json(content: dict[str, Any], path: Path) -> None:
    """Write a data list as indented JSON."""
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def place(source: Path, target: Path, link: bool = False) -> None:
    """Copy a file to a new place, or hard-link it where asked and possible; the target's folder is made.

    Raises:
        DataError: when there is a file at the target, as writing to one that is a hard link would change its source.
    """
    if target.exists():
        raise fault(source, f"a second file for {target.name}", "give the two files different names")
    target.parent.mkdir(parents=True, exist_ok=True)
    if link:
        try:
            os.link(source.resolve(), target)
            return
        except OSError:  # another file system, or one without hard links
            pass
    shutil.copyfile(source, target)
