"""How far the raters of a case agree, and who stands apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .names import case_name
from .volumes import read_header, read_voxels


@dataclass(frozen=True)
class Agreement:
    """Agreement of one case's raters.

    Attributes:
        case: its name.
        dice: (r, r) symmetric, the Dice of each pair, mean over structures; 1 on the diagonal.
    """

    case: str
    dice: np.ndarray

    @property
    def raters(self) -> int:
        """Number of raters."""
        return len(self.dice)

    @property
    def mean(self) -> float:
        """Mean Dice over pairs; 1 for a single rater."""
        pairs = self.dice[np.triu_indices(self.raters, 1)]
        return float(pairs.mean()) if len(pairs) else 1.0

    @property
    def outlier(self) -> int | None:
        """Place in the list, from 0, of the rater who agrees least with the others; None for fewer than three."""
        if self.raters < 3:
            return None
        return int(np.argmin(self.dice.sum(axis=1)))


def rater_dice(masks: Sequence[np.ndarray], structures: Sequence[int]) -> np.ndarray:
    """Dice of each pair of raters, mean over structures.

    Args:
        masks: (r) label maps of one shape.
        structures: label values.

    Returns:
        (r, r), in [0, 1]; a structure that neither of two raters drew counts 1.

    Example:
        >>> rater_dice([np.array([1, 1, 0, 0]), np.array([1, 0, 0, 0])], [1]).round(2).tolist()
        [[1.0, 0.67], [0.67, 1.0]]
    """
    total = np.zeros((len(masks), len(masks)))
    for structure in structures:
        flat = np.stack([np.asarray(mask == structure).ravel() for mask in masks]).astype(np.float32)
        common = flat @ flat.T
        sizes = np.diag(common)
        both = sizes[:, None] + sizes[None, :]
        total += np.where(both > 0, 2.0 * common / np.maximum(both, 1.0), 1.0)
    return total / max(1, len(structures))


def rater_agreement(record: dict[str, Any], structures: Sequence[int]) -> Agreement | None:
    """Agreement of a record's raters.

    Args:
        record: with ``labels``, absolute paths.
        structures: label values.

    Returns:
        None when a mask cannot be read, or shapes differ: that is told elsewhere.
    """
    masks = []
    for path in record["labels"]:
        header = read_header(path, _nothing)
        voxels = None if header is None else read_voxels(header, _nothing)
        if voxels is None:
            return None
        masks.append(voxels)
    if len({mask.shape for mask in masks}) != 1:
        return None
    return Agreement(case_name(record["image"]), rater_dice(masks, structures))


def format_agreement(found: Sequence[Agreement]) -> str:
    """Lines on the raters of a data set: overall agreement, cases of least agreement, and who is the outlier how often.

    Args:
        found: one a case, at least one.
    """
    counts = sorted({one.raters for one in found})
    number = str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    means = [one.mean for one in found]
    lines = [f"Raters: {number} a case in {len(found)} cases; mean pairwise Dice {np.mean(means):.3f}."]
    worst = sorted(found, key=lambda one: one.mean)[:5]
    lines.append("  least agreement: " + ", ".join(f"{one.case} {one.mean:.3f}" for one in worst))
    outliers = [one.outlier for one in found if one.outlier is not None]
    if outliers:
        often = [(outliers.count(place), place) for place in sorted(set(outliers))]
        told = ", ".join(f"number {place + 1} in {count}" for count, place in sorted(often, reverse=True))
        lines.append(f"  farthest from the others, by place in `labels`: {told} of {len(outliers)} cases")
    return "\n".join(lines)


def _nothing(what: str, fix: str) -> None:
    """Faults of files are told by the checks."""
