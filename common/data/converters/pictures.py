"""Photographs (PNG, JPEG, TIFF) as volumes of depth 1."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from ..contract.output import fault
from .base import binary_mask
from .cases import Volume

COLOURS = ("red", "green", "blue")


@lru_cache(maxsize=1)  # its three channels are written one after the other
def read_colours(path: Path) -> np.ndarray:
    """Pixels (H, W, 3) uint8.

    Raises:
        DataError: when it cannot be read.
    """
    return _read(path, "RGB")


def read_channel(path: Path, channel: int) -> Volume:
    """One colour of a photograph.

    Args:
        path: the file.
        channel: 0 red, 1 green, 2 blue.

    Returns:
        (H, W, 1): rows, columns, one slice. A photograph has no known spacing: the affine is the identity.

    Raises:
        DataError: when it cannot be read.
    """
    return Volume(read_colours(path)[..., channel, None], np.eye(4), path)


def read_mask(path: Path) -> Volume:
    """A mask stored as a picture of 0 and 255, or 0 and 1.

    Returns:
        (H, W, 1) uint8 of 0 and 1.

    Raises:
        DataError: when it cannot be read or holds other values.
    """
    return Volume(binary_mask(_read(path, "L"), path)[..., None], np.eye(4), path)


def _read(path: Path, mode: str) -> np.ndarray:
    try:
        with Image.open(path) as picture:
            return np.asarray(picture.convert(mode))
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        raise fault(path, f"cannot be read as a picture ({error})", "download it again") from error
