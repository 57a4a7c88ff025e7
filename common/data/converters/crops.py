"""Crops of several raters as a pickle: a mapping of name to image, masks and series.

A pickle is a program: reading it with ``pickle.load`` runs whatever its author wrote. Here it is read with an
unpickler that knows NumPy arrays and nothing else, so that all else in a file is refused before it runs.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ..contract.output import fault
from .base import Case, Volume, binary_mask

PICKLES = (".pkl", ".pickle")
# what rebuilds an array; modules as NumPy 1 and NumPy 2 name them
_ARRAYS: dict[tuple[str, str], Any] = {
    **{(f"numpy.{core}.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0] for core in ("core", "_core")},
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
}
_NUMBERS = "biuf"  # kinds of NumPy types: truth values, integers, floating point
_DAMAGED = (EOFError, AttributeError, ImportError, IndexError, KeyError, OverflowError, TypeError, ValueError)


class ArrayUnpickler(pickle.Unpickler):
    """Reads Python's containers, strings, numbers and NumPy arrays; anything else is an ``UnpicklingError``."""

    def find_class(self, module: str, name: str) -> Any:
        """The class or function of a name, if it belongs to NumPy's arrays.

        Raises:
            pickle.UnpicklingError: for all others.
        """
        if (module, name) not in _ARRAYS:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return _ARRAYS[module, name]


def find_pickle(path: Path) -> Path | None:
    """The pickle itself, or the only one in a folder; None where there is none.

    Raises:
        DataError: when a folder holds several.
    """
    if path.is_file() and path.suffix in PICKLES:
        return path
    found = sorted(file for file in path.glob("[!.]*") if file.suffix in PICKLES) if path.is_dir() else []
    if len(found) > 1:
        raise fault(path, f"holds {len(found)} pickles", f"give one of them, for example {found[0]}")
    return found[0] if found else None


def read_pickle(path: Path) -> dict[str, dict[str, Any]]:
    """Entries by name; nothing in the file is executed.

    Raises:
        DataError: when the file holds something other than arrays, is damaged, or is no mapping.
    """
    try:
        with path.open("rb") as file:
            content = ArrayUnpickler(file).load()
    except pickle.UnpicklingError as error:
        what = f"is refused: it is no pickle of plain arrays ({error})"
        raise fault(path, what, "do not open it elsewhere unless you trust its source; download it again") from error
    except (*_DAMAGED, OSError, MemoryError) as error:
        raise fault(path, f"cannot be read as a pickle ({error})", "download it again") from error
    if not isinstance(content, dict) or not content or not all(isinstance(one, dict) for one in content.values()):
        raise fault(path, "is no mapping of names to entries", "give the pickle of crops as published")
    return {str(name): entry for name, entry in content.items()}


def read_crops(path: Path, channels: int) -> dict[str, dict[str, Any]]:
    """Entries of a pickle of crops, by names that files can have.

    Args:
        path: pickle whose entries have ``image`` (H, W) or (H, W, 3), ``masks`` (a list of (H, W), one a rater) and
            ``series_uid``.
        channels: 1 for grey images, 3 for colour.

    Raises:
        DataError: naming the first entry of another form.
    """
    found: dict[str, dict[str, Any]] = {}
    for key, entry in read_pickle(path).items():
        image, masks, series = (entry.get(name) for name in ("image", "masks", "series_uid"))
        if not isinstance(image, np.ndarray) or image.shape[2:] != ((3,) if channels == 3 else ()) or image.ndim < 2:
            shape = f"has an image of shape {image.shape}" if isinstance(image, np.ndarray) else "has no image"
            raise fault(path, f"{key} {shape}", f"give images of {'(H, W, 3)' if channels == 3 else '(H, W)'}")
        if not isinstance(masks, list | tuple | np.ndarray) or not len(masks) or not isinstance(series, str):
            raise fault(path, f"{key} lacks masks or series_uid", "give the pickle of crops as published")
        if any(not isinstance(mask, np.ndarray) or mask.ndim != 2 for mask in masks):
            raise fault(path, f"{key} has a mask that is no array of 2 axes", "give the pickle of crops as published")
        if strange := [array.dtype for array in (image, *masks) if array.dtype.kind not in _NUMBERS]:
            raise fault(path, f"{key} stores {strange[0]} where numbers are expected", "download it again")
        name = re.sub(r"[^\w.-]+", "_", key)
        if name in found:
            raise fault(path, f"{key} is a second entry of the name {name}", "rename it")
        found[name] = entry
    return found


def crop_cases(path: Path, entries: dict[str, dict[str, Any]], group: Callable[[str], str]) -> Iterator[Case]:
    """Cases of the entries of a pickle; a crop has no known spacing, its affine is the identity.

    Args:
        path: pickle, for messages.
        entries: from :func:`read_crops`.
        group: patient of a ``series_uid``.

    Raises:
        DataError: when a mask holds other values than 0 and 1.
    """
    for name, entry in entries.items():
        image = entry["image"]
        pixels = image if image.dtype.kind in "iu" and image.dtype.itemsize < 8 else image.astype(np.float32)
        planes = np.moveaxis(pixels.reshape((*image.shape[:2], -1)), 2, 0)
        channels = [Volume(plane[..., None], np.eye(4), path) for plane in planes]
        raters = [Volume(binary_mask(mask, path)[..., None], np.eye(4), path) for mask in entry["masks"]]
        yield Case(name, channels, group=group(entry["series_uid"]), raters=raters)
