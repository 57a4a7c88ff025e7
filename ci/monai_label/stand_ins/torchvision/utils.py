"""The two functions that MONAI Label imports; called, they say what is missing."""

from __future__ import annotations

from typing import Any, NoReturn


def make_grid(*arguments: Any, **options: Any) -> NoReturn:
    """Refuse."""
    raise NotImplementedError("This server runs without torchvision. Fix: pip install torchvision.")


def save_image(*arguments: Any, **options: Any) -> NoReturn:
    """Refuse."""
    raise NotImplementedError("This server runs without torchvision. Fix: pip install torchvision.")
