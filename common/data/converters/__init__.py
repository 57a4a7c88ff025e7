"""Converters to the data contract; each writes a new folder with NIfTI files and ``dataset.json``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from .acdc import convert_acdc
from .chaos import convert_chaos
from .decathlon import convert_decathlon
from .la import convert_la2018, convert_la_h5
from .nnunet import convert_nnunet
from .pancreas import convert_pancreas

#: converter by the name that the command line knows it by; each is called with (source, output, further options)
CONVERTERS: dict[str, Callable[..., Path]] = {
    "acdc": convert_acdc,
    "chaos": convert_chaos,
    "la2018": convert_la2018,
    "la_h5": convert_la_h5,
    "pancreas": convert_pancreas,
    "decathlon": convert_decathlon,
    "nnunet": convert_nnunet,
}

__all__ = [
    "CONVERTERS",
    "convert_acdc",
    "convert_chaos",
    "convert_decathlon",
    "convert_la2018",
    "convert_la_h5",
    "convert_nnunet",
    "convert_pancreas",
]
