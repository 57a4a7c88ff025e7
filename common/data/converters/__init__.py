"""Converters to the data contract; each writes a new folder with NIfTI files and ``dataset.json``.

Every file of this folder is read; one with a :func:`~common.data.converters.base.converter` is known by its name.
"""

from __future__ import annotations

import pkgutil
from importlib import import_module

from .base import CONVERTERS

for _module in pkgutil.iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")

__all__ = ["CONVERTERS"]
