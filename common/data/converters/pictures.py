"""Photographs (PNG, JPEG, TIFF) as volumes of depth 1."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from ..contract.output import fault
from .base import Volume, binary_mask

COLOURS = ("red", "green", "blue")


def read_photograph(path: Path) -> list[Volume]:
    """Red, green and blue of a photograph.

    Returns:
        three of (H, W, 1) uint8: rows, columns, one slice. A photograph has no known spacing: the affine is the
        identity.

    Raises:
        DataError: when it cannot be read.
    """
    return [Volume(colour[..., None], np.eye(4), path) for colour in np.moveaxis(_read(path, "RGB"), 2, 0)]


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
