"""What a study trains on: a linked copy of its data set, the record of its source, and data made whole or undone."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ...data.contract.faults import DataError, Fault
from ...files import atomic_path, file_digest

RECORD = "source.json"  # beside the linked copy
BEGUN = ".begun.json"  # what lay in the folder of data when the command began that writes there


def link_source(source: Path, linked: Path) -> None:
    """Make a copy of a data set that new JSONs can be written into: its folders are links, its JSONs copies.

    Args:
        source: folder of the data set.
        linked: folder to make; ``source.json`` beside it says what it was made from.

    Raises:
        DataError: when there is no such data set.
    """
    if not source.is_dir():
        raise DataError([Fault(str(source), "there is no such folder", "give the data set's folder as --dataset_dir")])
    temporary = linked.with_name(".linking")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    for path in source.iterdir():
        if path.suffix == ".json":
            shutil.copyfile(path, temporary / path.name)
        else:
            (temporary / path.name).symlink_to(path)
    write_json(_record(source, temporary), linked.with_name(RECORD))
    temporary.rename(linked)


def check_source(source: Path, linked: Path) -> None:
    """Refuse a linked copy that was made from another data set, or before a JSON of this one changed.

    Copies of earlier versions have no record: they are accepted, and get one where they hold what the source does now.

    Args:
        source: folder of the data set.
        linked: as :func:`link_source` made it, if it is there.

    Raises:
        DataError: when it was made from something else.
    """
    record = linked.with_name(RECORD)
    if not linked.is_dir():
        return
    if not record.is_file():
        if source.is_dir() and _holds(linked, source):
            write_json(_record(source, linked), record)
        return
    known = json.loads(record.read_text())
    if known["folder"] != str(source.resolve()):
        what = f"was made from another data set, {known['folder']}"
    elif changed := _changed(source, known["jsons"]):
        what = f"was made before {', '.join(changed)} of {source} changed"
    else:
        return
    raise DataError([Fault(str(linked), what, "give another --output")])


def _record(source: Path, linked: Path) -> dict[str, Any]:
    """The source and the JSONs that the copy has of it; a study's commands write further ones there."""
    names = sorted(path.name for path in source.iterdir() if path.suffix == ".json" and (linked / path.name).is_file())
    return {"folder": str(source.resolve()), "jsons": {name: file_digest(linked / name) for name in names}}


def _changed(source: Path, known: dict[str, str]) -> list[str]:
    """JSONs that are not what they were; none where the source is away, as results can be read without it."""
    if not source.is_dir():
        return []
    return [name for name, was in known.items() if not (source / name).is_file() or file_digest(source / name) != was]


def _holds(linked: Path, source: Path) -> bool:
    """Whether all that is in both is the same."""
    pairs = [(path, linked / path.name) for path in source.iterdir() if (linked / path.name).exists()]
    return bool(pairs) and all(
        file_digest(path) == file_digest(copy) if path.suffix == ".json" else path.resolve() == copy.resolve()
        for path, copy in pairs
    )


@contextmanager
def marked_or_undone(folder: Path, mark: Path) -> Iterator[None]:
    """Mark what is written to the folder meanwhile as made, or remove it on error; after a kill :func:`undo` does.

    Args:
        folder: of all data; one command at a time writes there.
        mark: file in the folder, which is there once the command has come to its end.
    """
    write_json([str(path.relative_to(folder)) for path in _entries(folder)], folder / BEGUN)
    try:
        yield
        (folder / BEGUN).replace(mark)
    except BaseException:
        undo(folder)
        raise


def undo(folder: Path) -> None:
    """Remove what a command wrote to the folder that did not come to its end, if there was one."""
    begun = folder / BEGUN
    if not begun.is_file():
        return
    known = {*json.loads(begun.read_text()), BEGUN}
    for path in _entries(folder):
        if str(path.relative_to(folder)) in known:
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
    begun.unlink()


def _entries(folder: Path) -> list[Path]:
    """What lies in a folder and in the folders there; links lead elsewhere, and are not followed."""
    own = sorted(folder.iterdir())
    return own + [path for each in own if each.is_dir() and not each.is_symlink() for path in sorted(each.iterdir())]


def write_json(content: Any, path: Path) -> None:
    """Write a JSON that a kill at any moment cannot leave half written."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n")
