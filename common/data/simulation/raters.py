"""Simulated raters in two steps: ``sample_*`` draws parameters, ``apply_raters`` replays them without chance.

Raters differ in style, which they keep from case to case: one draws tight, one generously, one leaves out what it is
not sure of, one sees more than there is. Within a case borders deviate smoothly, more where the border is ambiguous.
All parameters are plain JSON.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import ndimage

#: smoothness of deviations and of ambiguity: the Gaussian's sigma as a share of each axis
SMOOTHNESS = 0.1
#: deviation where the border is clear and where it is ambiguous, as shares of the largest
CLEAR = 0.25
CHANCE = 0.35  # of a border's shift that is chance and no style
SMALLEST = 0.05  # radius of a false structure as a share of the image; the largest is twice as large


@dataclass(frozen=True)
class RaterStyle:
    """What a rater does in every case.

    Attributes:
        offset: where the border is drawn, in shares of the largest shift; outwards is positive.
        misses: how readily a structure is left out, in multiples of the average given.
        adds: how readily something is drawn that is not there, in multiples of the average given.
    """

    offset: float
    misses: float
    adds: float


STYLES = (
    RaterStyle(-1.0, 0.5, 0.0),  # tight
    RaterStyle(1.0, 0.25, 0.5),  # generous
    RaterStyle(0.0, 2.0, 0.0),  # leaves out what is faint
    RaterStyle(0.35, 0.0, 2.0),  # sees more than there is
    RaterStyle(-0.35, 0.25, 0.0),
)
POPULATION = len(STYLES)


def rater_style(rater: int) -> RaterStyle:
    """Style of a rater by number, from 0; further raters repeat the five styles."""
    return STYLES[rater % len(STYLES)]


def sample_border(rng: np.random.Generator) -> int:
    """Draw where a case's borders are ambiguous: the seed of :func:`ambiguity`."""
    return int(rng.integers(2**31))


def sample_raters(
    rng: np.random.Generator,
    raters: Sequence[int],
    structures: Sequence[int],
    border: int,
    shift: float = 2.0,
    missed: float = 0.1,
    added: float = 0.1,
    visibility: Mapping[int, float] | None = None,
) -> list[dict[str, Any]]:
    """Draw the parameters of one case's raters.

    Args:
        rng: source of chance.
        raters: numbers of the raters who draw this case; a number stands for a style.
        structures: label values.
        border: seed of the case's ambiguity, from :func:`sample_border`.
        shift: largest shift of a border, in voxels.
        missed: average probability that a structure of middling visibility is left out.
        added: average probability that a rater adds a false structure.
        visibility: of structures, in [0, 1]: at 1 never missed, at 0 twice as often as at the default of 0.5.

    Returns:
        one mapping a rater: ``rater``, ``offset`` (voxels), ``waviness`` (voxels), ``shift`` (voxels), ``border`` and
        ``seed`` (of the deviation), ``missed`` (structures) and ``added`` (structures).
    """
    seen = {structure: (visibility or {}).get(structure, 0.5) for structure in structures}
    drawn = []
    for rater in raters:
        style = rater_style(rater)
        misses = [s for s in structures if rng.random() < style.misses * missed * 2.0 * (1.0 - seen[s])]
        adds = [s for s in structures if rng.random() < style.adds * added]
        chance = float(rng.uniform(-CHANCE, CHANCE))
        drawn.append(
            {
                "rater": int(rater),
                "offset": round(shift * (1.0 - CHANCE) * style.offset + shift * chance, 3),
                "waviness": round(float(rng.uniform(0.2, 0.5)) * shift, 3),
                "border": border,
                "seed": int(rng.integers(2**31)),
                "missed": [int(s) for s in misses],
                "added": [int(s) for s in adds],
            }
        )
    return drawn


def sample_boundary(rng: np.random.Generator, shift: float) -> dict[str, Any]:
    """Draw the parameters of one unreliable label: no style, nothing missed or added, borders off by up to ``shift``.

    Args:
        rng: source of chance.
        shift: largest shift of a border, in voxels.
    """
    fixed: dict[str, Any] = {"rater": 0, "offset": 0.0, "waviness": float(shift), "missed": [], "added": []}
    return {**fixed, "border": sample_border(rng), "seed": int(rng.integers(2**31))}


def ambiguity(shape: Sequence[int], border: int) -> np.ndarray:
    """How ambiguous a border is at each place, a smooth random field.

    Args:
        shape: (H, W[, D]).
        border: its seed.

    Returns:
        (H, W[, D]), in [0, 1].
    """
    field = _smooth(np.random.default_rng(border), shape)
    return np.asarray(0.5 + 0.5 * field)


class Raters:
    """All that the raters of one case share, so that many of them can be replayed quickly.

    Args:
        label: (H, W[, D]) integers, the true label.
        border: seed of the case's ambiguity.
    """

    def __init__(self, label: np.ndarray, border: int) -> None:
        self.label = label
        self.deviation = CLEAR + (1.0 - CLEAR) * ambiguity(label.shape, border)
        self.structures = [int(value) for value in np.unique(label) if value != 0]
        self.heights = {value: _signed_distance(label == value) for value in self.structures}

    def draw(self, parameters: Mapping[str, Any]) -> np.ndarray:
        """One rater's mask.

        Args:
            parameters: of one rater, from :func:`sample_raters`.

        Returns:
            (H, W[, D]), of the label's type. A structure that is drawn at all keeps its innermost voxels.
        """
        rng = np.random.default_rng(parameters["seed"])
        heights, values = [], []
        for structure in self.structures:
            wave = parameters["waviness"] * _smooth(rng, self.label.shape)
            if structure in parameters["missed"]:
                continue
            signed = self.heights[structure]
            moved = signed + self.deviation * (parameters["offset"] + wave)
            heights.append(np.where(signed >= 0.9 * signed.max(), np.maximum(signed, 0.5), moved))
            values.append(structure)
        for structure in parameters["added"]:
            heights.append(self._false_structure(rng))
            values.append(structure)
        result = np.zeros_like(self.label)
        if heights:
            stacked = np.stack(heights)
            drawn = stacked.max(axis=0) > 0
            result[drawn] = np.asarray(values, dtype=self.label.dtype)[stacked.argmax(axis=0)[drawn]]
        return result

    def _false_structure(self, rng: np.random.Generator) -> np.ndarray:
        """Signed distance to a ball of a twentieth to a tenth of the image somewhere in the background.

        The image is as large as its shortest axis. A slice, or few thick ones, would make every ball a single voxel:
        their axis does not count, and the ball is as flat as the image.
        """
        shape = np.array(self.label.shape)
        thin = shape < min(1.0 / SMALLEST, shape.max() / 2)  # the smallest ball would be no voxel wide
        size = shape[~thin].min()
        radius = float(rng.uniform(SMALLEST, 2 * SMALLEST)) * size
        free = np.argwhere(self.label == 0)
        centre = free[rng.integers(len(free))] if len(free) else shape // 2
        grid = np.indices(self.label.shape)
        column = (-1, *([1] * self.label.ndim))
        offset = (grid - np.reshape(centre, column)) * np.reshape(np.where(thin, size / shape, 1.0), column)
        return np.asarray(radius - np.sqrt((offset**2).sum(axis=0)))


def apply_raters(label: np.ndarray, parameters: Sequence[Mapping[str, Any]]) -> list[np.ndarray]:
    """The masks of all raters of a case.

    Args:
        label: (H, W[, D]) integers, the true label.
        parameters: from :func:`sample_raters`.

    Returns:
        one mask a rater, of the label's shape and type.
    """
    shared = Raters(label, parameters[0]["border"]) if parameters else None
    return [shared.draw(one) for one in parameters] if shared is not None else []


def true_probability(
    label: np.ndarray,
    structures: Sequence[int],
    border: int,
    draws: int = 40,
    seed: int = 0,
    raters: int = POPULATION,
    **settings: Any,
) -> np.ndarray:
    """Probability that a rater of the population marks a voxel as a structure, by Monte Carlo.

    Args:
        label: (H, W[, D]) integers, the true label.
        structures: label values.
        border: seed of the case's ambiguity.
        draws: raters drawn; each style as often as the others.
        seed: of the draws.
        raters: size of the population.
        settings: shift, missed, added and visibility, as of :func:`sample_raters`.

    Returns:
        (structures, H, W[, D]), float32, in [0, 1].
    """
    rng = np.random.default_rng(seed)
    numbers = [draw % raters for draw in range(draws)]
    shared = Raters(label, border)
    total = np.zeros((len(structures), *label.shape), dtype=np.float32)
    for parameters in sample_raters(rng, numbers, structures, border, **settings):
        mask = shared.draw(parameters)
        total += np.stack([mask == structure for structure in structures])
    return total / draws


def _signed_distance(inside: np.ndarray) -> np.ndarray:
    """Voxels to the border between voxels, positive inside."""
    away = ndimage.distance_transform_edt(inside) - ndimage.distance_transform_edt(~inside)
    return np.asarray(away - 0.5 * np.sign(away))


def _smooth(rng: np.random.Generator, shape: Sequence[int]) -> np.ndarray:
    """Smooth random field in [-1, 1]."""
    field = ndimage.gaussian_filter(
        rng.normal(size=tuple(shape)), [SMOOTHNESS * size for size in shape], mode="reflect"
    )
    largest = float(np.abs(field).max())
    return np.asarray(field / largest if largest > 0 else field)
