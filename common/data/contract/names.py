"""Names and sizes of a case: what it is called by its image, how its structures are called, how large voxels are."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray


def case_name(image: str | Sequence[str]) -> str:
    """Name of a case, by which its results are called: the file name of its (first) image without its ending."""
    name = Path(image if isinstance(image, str) else image[0]).name
    return name.removesuffix(".gz").removesuffix(".nii")


def shared_names(images: Iterable[str | Sequence[str]]) -> dict[str, list[str]]:
    """Images whose cases have one name, by that name: the results of one would overwrite those of another."""
    named: dict[str, list[str]] = defaultdict(list)
    for image in images:
        named[case_name(image)].append(image if isinstance(image, str) else image[0])
    return {name: same for name, same in named.items() if len(set(same)) > 1}


def structure_names(structures: Mapping[int, str] | Sequence[str] | None, num_classes: int) -> dict[int, str]:
    """Names of the structures by class number, background left out.

    Args:
        structures: names by class number, or names of the classes from 1 on, or None: "class 1", "class 2", ...
        num_classes: background included.

    Example:
        >>> structure_names(["liver", "spleen"], 3), structure_names(None, 2)
        ({1: 'liver', 2: 'spleen'}, {1: 'class 1'})
    """
    if structures is None:
        return {value: f"class {value}" for value in range(1, num_classes)}
    if isinstance(structures, Mapping):
        return {int(value): name for value, name in structures.items() if int(value) != 0}
    return dict(enumerate(structures, start=1))


def voxel_size(label: Any) -> tuple[float, ...] | None:
    """Voxel size in mm; None where the file states none, so that distances are in voxels.

    That is an identity affine, or a NIfTI file without one (both codes 0), whose voxels have size 1.
    """
    size = tuple(float(step) for step in label.pixdim)
    coded = any(int(label.meta.get(code, 1)) for code in ("qform_code", "sform_code"))
    if torch.equal(label.affine.double().cpu(), torch.eye(4, dtype=torch.float64)):
        return None
    return size if coded or any(abs(step - 1.0) > 1e-6 for step in size) else None


def voxel_ml(affine: NDArray[Any]) -> float:
    """Volume of a voxel in ml, of an affine (4, 4) to mm that may be sheared."""
    return abs(float(np.linalg.det(affine[:3, :3]))) / 1000.0
