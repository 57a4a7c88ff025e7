"""Converters to the data contract; each writes a new folder with NIfTI files and ``dataset.json``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from .acdc import convert_acdc
from .atlas import convert_atlas2023
from .brats import convert_brats2020
from .chaos import convert_chaos
from .curious import convert_curious2022
from .decathlon import convert_amos22, convert_decathlon
from .flare21 import convert_flare2021
from .iseg import convert_iseg2017
from .isic import convert_isic
from .isles import convert_isles2022
from .la import convert_la2018, convert_la_h5
from .lidc import convert_lidc
from .myops import convert_myops2020
from .nnunet import convert_nnunet
from .pancreas import convert_pancreas
from .promise12 import convert_promise12
from .qubiq import convert_qubiq
from .riga import convert_riga

#: converter by the name that the command line knows it by; each is called with (source, output, further options)
CONVERTERS: dict[str, Callable[..., Path]] = {
    "acdc": convert_acdc,
    "amos22": convert_amos22,
    "atlas2023": convert_atlas2023,
    "brats2020": convert_brats2020,
    "chaos": convert_chaos,
    "curious2022": convert_curious2022,
    "decathlon": convert_decathlon,
    "flare2021": convert_flare2021,
    "iseg2017": convert_iseg2017,
    "isic": convert_isic,
    "isles2022": convert_isles2022,
    "la2018": convert_la2018,
    "la_h5": convert_la_h5,
    "lidc": convert_lidc,
    "myops2020": convert_myops2020,
    "nnunet": convert_nnunet,
    "pancreas": convert_pancreas,
    "promise12": convert_promise12,
    "qubiq": convert_qubiq,
    "riga": convert_riga,
}

__all__ = [
    "CONVERTERS",
    "convert_acdc",
    "convert_amos22",
    "convert_atlas2023",
    "convert_brats2020",
    "convert_chaos",
    "convert_curious2022",
    "convert_decathlon",
    "convert_flare2021",
    "convert_iseg2017",
    "convert_isic",
    "convert_isles2022",
    "convert_la2018",
    "convert_la_h5",
    "convert_lidc",
    "convert_myops2020",
    "convert_nnunet",
    "convert_pancreas",
    "convert_promise12",
    "convert_qubiq",
    "convert_riga",
]
