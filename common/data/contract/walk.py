"""What lies below a folder, that behind links to other folders too."""

from __future__ import annotations

import os
from collections import deque
from fnmatch import fnmatchcase
from pathlib import Path


def paths_below(folder: Path, pattern: str = "*") -> list[Path]:
    """Files and folders at any depth, in the order of their paths.

    Links to folders are followed. Each folder is entered once, however many links lead to it, by its own place if that
    is below ``folder``; none that ``folder`` itself lies in is entered.

    Args:
        folder: searched; not listed itself.
        pattern: of their names, with ``*``, ``?`` and ``[...]``; in capital and small letters as given.
    """
    found: list[Path] = []
    seen = {str(parent) for parent in folder.resolve().parents}
    waiting = deque([folder])
    while waiting:  # links wait until all that is there without them has been seen
        for here, folders, files in os.walk(waiting.popleft()):
            real = os.path.realpath(here)
            if real in seen:
                folders.clear()
                continue
            seen.add(real)
            folders.sort()
            found += [Path(here, name) for name in (*folders, *files) if fnmatchcase(name, pattern)]
            waiting += [path for name in folders if (path := Path(here, name)).is_symlink()]
    return sorted(found)
