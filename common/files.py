"""Atomic file output: a file is there complete, or not at all."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

RESUME_FILE = "last.ckpt"  # MONAI Label offers every *.pt as weights, the one with the shortest name first
CALIBRATION_FILE = "calibration.json"  # beside the weights that it was fitted to
UNFINISHED = ".writing-"  # how the names of files begin that are not complete yet


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside ``path`` that replaces it on success and is removed on error.

    The temporary name keeps the ending (``.nii.gz``, ``.csv``), as writers choose their format by it.

    Args:
        path: file to write; missing parent folders are made.

    Yields:
        the temporary path to write to.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    endings = "".join(target.suffixes[-2:]) if target.suffix == ".gz" else target.suffix
    handle, name = tempfile.mkstemp(prefix=UNFINISHED, suffix=endings, dir=target.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        # mkstemp makes files private to the user; results are meant to be shared as any other file
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def save_atomically(obj: Any, path: str | os.PathLike[str]) -> None:
    """``torch.save`` that a kill at any moment cannot leave half written."""
    with atomic_path(path) as temporary:
        torch.save(obj, temporary)


def file_digest(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()
