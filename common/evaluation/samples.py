"""Metrics of a set of segmentations against the masks of several raters, for one structure.

For samples P (n of them, probabilities; a mask is probability > 0.5) and raters' masks A (r of them), from Sec. 4.4 of
Kumari and Singh, AmbiSSL, CVPR 2025, and the works that it cites:

- d(a, b) = 1 - IoU(a, b); GED = 2 E d(P, A) - E d(P, P') - E d(A, A') (Eq. 22). The means run over all ordered pairs, a
  mask with itself included (Kohl et al., NeurIPS 2018). That makes E d(P, P') smaller by (n - 1) / n: GED depends on
  n, which belongs beside every value. The unbiased form leaves a mask's pair with itself out.
- Dice_soft (Eq. 23): mean Dice of mean probability and share of raters over the thresholds .1 .3 .5 .7 .9.
- Dice_max: mean over the raters of the best sample's Dice.
- Dice_match: mean Dice of the best one-to-one matching of raters and samples; min(n, r) pairs. Never above Dice_max
  when there are at least as many samples as raters.

IoU and Dice of two empty masks are 1.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import linear_sum_assignment

from .metrics.cases import write_rows

TENTHS = (1, 3, 5, 7, 9)  # thresholds of Dice_soft; whole numbers, as 3 of 10 raters > 0.3 is a rounding accident
MEASURES = (
    "ged",
    "ged_unbiased",
    "dice_soft",
    "dice_max",
    "dice_match",
    *("spread", "rater_spread"),
    "spread_correlation",
)
SET_COLUMNS = ("case", "structure", "samples", "raters", *MEASURES)
_CHUNK = 1 << 15  # voxels a matrix product: what it reads stays in the cache, and its counts are exact in float32


def generalised_energy_distance(
    samples: ArrayLike, raters: ArrayLike, unbiased: bool = False, empty_iou: float = 1.0
) -> float:
    """Generalised energy distance with d = 1 - IoU (Eq. 22).

    Args:
        samples: (n, *S), probabilities of the structure in [0, 1].
        raters: (r, *S), masks.
        unbiased: leave the pairs of a mask with itself out; a set of one then has no spread: 0.
        empty_iou: IoU of two empty masks; some published tables have 0.

    Returns:
        at least 0 (the unbiased form may be below), 0 for equal sets.

    Raises:
        ValueError: when a set is empty or the shapes differ.
    """
    return _ged(_Overlaps.of(*_checked(samples, raters)), unbiased, empty_iou)


def dice_soft(samples: ArrayLike, raters: ArrayLike) -> float:
    """Mean Dice of the mean probability and the share of raters over five thresholds (Eq. 23).

    Args:
        samples: (n, *S), probabilities of the structure in [0, 1].
        raters: (r, *S), masks.

    Returns:
        in [0, 1].

    Raises:
        ValueError: when a set is empty or the shapes differ.
    """
    return _dice_soft(*_checked(samples, raters))


def dice_max(samples: ArrayLike, raters: ArrayLike) -> float:
    """Mean over the raters of the Dice of the sample that fits best; arguments as :func:`dice_soft`."""
    return float(_Overlaps.of(*_checked(samples, raters)).dice.max(axis=0).mean())


def dice_match(samples: ArrayLike, raters: ArrayLike) -> float:
    """Mean Dice of the best one-to-one matching of min(n, r) pairs; arguments as :func:`dice_soft`."""
    return _dice_match(_Overlaps.of(*_checked(samples, raters)))


def variance_map(masks: ArrayLike) -> NDArray[np.float32]:
    """Variance (divided by the number) of a set at each voxel, (*S) from (n, *S)."""
    return _variance(np.asarray(masks).astype(np.float32, copy=False))


def spread_correlation(samples: ArrayLike, raters: ArrayLike) -> float:
    """Pearson correlation over the voxels of the two sets' variance maps.

    Args:
        samples: (n, *S), probabilities of the structure in [0, 1].
        raters: (r, *S), masks.

    Returns:
        in [-1, 1]; 1 when neither set varies, 0 when one alone does (or varies alike everywhere).

    Raises:
        ValueError: when a set is empty or the shapes differ.
    """
    chosen, masks = _checked(samples, raters)
    return _correlation(_variance(chosen), _variance(masks.astype(np.float32)))


def set_measures(samples: ArrayLike, raters: ArrayLike) -> dict[str, float]:
    """All measures of one structure, by their names in ``MEASURES``.

    ``spread`` and ``rater_spread`` are E d(P, P') and E d(A, A') over pairs of different masks.

    Args:
        samples: (n, *S), probabilities of the structure in [0, 1].
        raters: (r, *S), masks.

    Raises:
        ValueError: when a set is empty or the shapes differ.
    """
    chosen, masks = _checked(samples, raters)
    overlaps = _Overlaps.of(chosen, masks)
    within, between = overlaps.distances(1.0)[:2]
    return {
        "ged": _ged(overlaps, False, 1.0),
        "ged_unbiased": _ged(overlaps, True, 1.0),
        "dice_soft": _dice_soft(chosen, masks),
        "dice_max": float(overlaps.dice.max(axis=0).mean()),
        "dice_match": _dice_match(overlaps),
        "spread": _pair_mean(within, True),
        "rater_spread": _pair_mean(between, True),
        "spread_correlation": _correlation(_variance(chosen), _variance(masks.astype(np.float32))),
    }


def set_rows(case: str, samples: ArrayLike, raters: ArrayLike, structures: Sequence[str]) -> list[dict[str, Any]]:
    """One row a structure, with the columns ``SET_COLUMNS``.

    Args:
        case: its name.
        samples: (n, C, *S), probabilities, background first.
        raters: (r, *S), class numbers.
        structures: names of the classes 1 to C - 1.

    Raises:
        ValueError: when shapes or the number of names do not fit.
    """
    probabilities, classes = np.asarray(samples), np.asarray(raters)
    if probabilities.ndim < 3 or probabilities.shape[1] != len(structures) + 1:
        raise ValueError(
            f"samples {probabilities.shape} need a channel for the background and each of {', '.join(structures)}."
        )
    counts = {"samples": len(probabilities), "raters": len(classes)}
    return [
        {"case": case, "structure": name, **counts, **set_measures(probabilities[:, number], classes == number)}
        for number, name in enumerate(structures, start=1)
    ]


def write_set_rows(path: str | os.PathLike[str], rows: Iterable[dict[str, Any]]) -> None:
    """Write rows of :func:`set_rows` as CSV; the file is there complete or not at all."""
    write_rows(list(rows), path, SET_COLUMNS)


def read_set_rows(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Read a file of :func:`write_set_rows` back into rows with numbers."""
    with open(path, newline="", encoding="utf-8") as file:
        rows: list[dict[str, Any]] = [dict(row) for row in csv.DictReader(file)]
    for row in rows:
        row.update({name: int(row[name]) for name in ("samples", "raters")})
        row.update({name: float(row[name]) if row[name] else None for name in row if name not in SET_COLUMNS[:4]})
    return rows


def _checked(samples: ArrayLike, raters: ArrayLike) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Both sets flattened to (n, V) float32 and (r, V) bool."""
    probabilities, masks = np.asarray(samples), np.asarray(raters)
    if probabilities.ndim < 2 or masks.ndim < 2 or len(probabilities) == 0 or len(masks) == 0:
        raise ValueError(
            f"Sets are (number, *S) with at least one member, got {probabilities.shape} and {masks.shape}."
        )
    if probabilities.shape[1:] != masks.shape[1:]:
        raise ValueError(f"Samples {probabilities.shape} and raters {masks.shape} differ in their spatial shape.")
    flat = np.ascontiguousarray(probabilities.reshape(len(probabilities), -1), dtype=np.float32)
    return flat, masks.reshape(len(masks), -1).astype(bool, copy=False)


@dataclass(frozen=True)
class _Overlaps:
    """Common voxels of every two of the n + r masks, samples first: (n + r, n + r), and n."""

    common: NDArray[np.float64]
    samples: int

    @classmethod
    def of(cls, samples: NDArray[np.float32], raters: NDArray[np.bool_]) -> _Overlaps:
        number, voxels = len(samples), samples.shape[1]
        common = np.zeros((number + len(raters),) * 2)
        block = np.empty((len(common), min(_CHUNK, voxels)), dtype=np.float32)
        for start in range(0, voxels, _CHUNK):
            part = block[:, : min(_CHUNK, voxels - start)]
            np.greater(samples[:, start : start + _CHUNK], 0.5, out=part[:number], casting="unsafe")
            part[number:] = raters[:, start : start + _CHUNK]
            common += part @ part.T
        return cls(common, number)

    def distances(self, empty_iou: float) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
        """1 - IoU of samples among themselves (n, n), raters among themselves (r, r), samples and raters (n, r)."""
        sizes = self.common.diagonal()
        union = sizes[:, None] + sizes[None, :] - self.common
        iou = np.divide(self.common, union, out=np.full_like(union, empty_iou), where=union > 0)
        distance, n = 1.0 - iou, self.samples
        return distance[:n, :n], distance[n:, n:], distance[:n, n:]

    @property
    def dice(self) -> NDArray[np.float64]:
        """Dice of every sample with every rater, (n, r)."""
        sizes, n = self.common.diagonal(), self.samples
        total = sizes[:n, None] + sizes[None, n:]
        return np.divide(2 * self.common[:n, n:], total, out=np.ones_like(total), where=total > 0)


def _pair_mean(distances: NDArray[np.float64], unbiased: bool) -> float:
    if not unbiased:
        return float(distances.mean())
    number = len(distances)
    return float((distances.sum() - distances.trace()) / (number * (number - 1))) if number > 1 else 0.0


def _ged(overlaps: _Overlaps, unbiased: bool, empty_iou: float) -> float:
    within, between, across = overlaps.distances(empty_iou)
    return 2 * float(across.mean()) - _pair_mean(within, unbiased) - _pair_mean(between, unbiased)


def _dice_soft(samples: NDArray[np.float32], raters: NDArray[np.bool_]) -> float:
    # sums instead of means, so that thresholds meet whole numbers exactly
    total, votes = 10 * samples.sum(axis=0), 10 * raters.sum(axis=0, dtype=np.int32)
    values = []
    for tenth in TENTHS:
        prediction, annotation = total > tenth * len(samples), votes > tenth * len(raters)
        sizes = np.count_nonzero(prediction) + np.count_nonzero(annotation)
        values.append(2 * np.count_nonzero(prediction & annotation) / sizes if sizes else 1.0)
    return float(np.mean(values))


def _dice_match(overlaps: _Overlaps) -> float:
    dice = overlaps.dice
    return float(dice[linear_sum_assignment(dice, maximize=True)].mean())


def _variance(values: NDArray[np.float32]) -> NDArray[np.float32]:
    mean = values.mean(axis=0)
    # E (x - m)^2 and not E x^2 - m^2, which cancels
    total = np.zeros_like(mean)
    for value in values:
        total += np.square(value - mean)
    return np.asarray(total / len(values), dtype=np.float32)


def _correlation(first: NDArray[np.float32], second: NDArray[np.float32]) -> float:
    a, b = (each - each.mean(dtype=np.float64).astype(np.float32) for each in (first.ravel(), second.ravel()))
    varies = [bool(np.ptp(each) > 1e-7) for each in (first, second)]
    if not all(varies):
        return 0.0 if any(varies) else 1.0
    norm = float(np.linalg.norm(a)) * float(np.linalg.norm(b))
    return float(np.clip(float(np.dot(a, b)) / norm, -1.0, 1.0)) if norm > 0.0 else 0.0
