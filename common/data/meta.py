"""What the header of an image tells: which case it is, how large its voxels are."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch


def case_name(meta: dict[str, Any]) -> str:
    """Name of a case: the file name of its (first) image without its ending."""
    source: str | Sequence[str] = meta["filename_or_obj"]
    name = Path(source if isinstance(source, str) else source[0]).name
    return name.removesuffix(".gz").removesuffix(".nii")


def voxel_size(label: Any) -> tuple[float, ...] | None:
    """Voxel size in mm; None where the file has no affine of its own (identity), so that distances are in voxels."""
    if torch.equal(label.affine.double().cpu(), torch.eye(4, dtype=torch.float64)):
        return None
    return tuple(float(size) for size in label.pixdim)
