"""The defects that ``corrupt`` puts into labels: each draws a case's parameters, replays and records them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from ..contract.output import fault
from .noise import apply_noise, sample_noise, settle_noise
from .raters import STYLES, apply_raters, sample_border, sample_boundary, sample_raters
from .scribbles import MARGIN, apply_scribbles, sample_scribbles

Parameters = list[dict[str, Any]]


@dataclass
class Noise:
    """Dilated and eroded structures.

    Args:
        radius: least and greatest radius of the ball in voxels; one number means exactly that radius.
    """

    radius: Sequence[float] | float = (3, 15)

    folder: ClassVar[str] = "noisy"
    fraction: ClassVar[float] = 0.9
    spared: ClassVar[int] = 1  # cases that stay clean, at the least

    def __post_init__(self) -> None:
        self.radius = _pair(self.radius)

    def sample(self, rng: np.random.Generator, structures: Sequence[int]) -> Parameters:
        """Draw one case's parameters."""
        return sample_noise(rng, _pair(self.radius), structures)

    def apply(self, label: np.ndarray, parameters: Parameters, unlabelled: int) -> tuple[np.ndarray, Parameters]:
        """Replay them on a label; returns what to write, and the parameters with what was really applied."""
        settled = settle_noise(label, parameters)
        return apply_noise(label, settled), settled

    def note(self, record: dict[str, Any], written: str) -> None:
        """Enter the file written into the case's record."""
        record.update(label=written, label_quality="noisy", reference=record["label"])


@dataclass
class Scribbles:
    """Skeletons of the structures and of the background around them.

    Args:
        dims: 2 scribbles slice by slice, 3 the volume as a whole.
        slice_axis: axis of the file's array across which the slices lie; default 2, none in 3D.
        margin: how far the structures' convex hull is grown to bound the background's scribble, in voxels.
        keep: least share of a skeleton that is traced, above 0; 1 traces all of it.
        width: of the strokes, in voxels.
    """

    dims: int = 2
    slice_axis: int | None = None
    margin: float = MARGIN
    keep: float = 1.0
    width: int = 1

    folder: ClassVar[str] = "simulated_scribbles"
    fraction: ClassVar[float] = 1.0
    spared: ClassVar[int] = 0

    def __post_init__(self) -> None:
        if self.dims == 2 and self.slice_axis is None:
            self.slice_axis = 2
        if self.dims not in (2, 3) or self.slice_axis not in ((0, 1, 2) if self.dims == 2 else (None,)):
            what = f"{self.slice_axis!r} does not go with --dims {self.dims!r}"
            raise fault("--slice_axis", what, "give --slice_axis 0, 1 or 2, or --dims 3 without it")
        _check_number("--margin", self.margin, 0, math.inf)
        _check_number("--keep", self.keep, 1e-3, 1)
        _check_number("--width", self.width, 1, math.inf)

    def sample(self, rng: np.random.Generator, structures: Sequence[int]) -> Parameters:
        """Draw one case's parameters."""
        return sample_scribbles(rng, structures, self.keep)

    def apply(self, label: np.ndarray, parameters: Parameters, unlabelled: int) -> tuple[np.ndarray, Parameters]:
        """Replay them on a label; returns what to write, and the parameters with what was really applied."""
        scribble = apply_scribbles(label, parameters, self.slice_axis, self.margin, self.width, unlabelled)
        if (scribble == unlabelled).all():
            raise ValueError("the label holds no structure to scribble on")
        return scribble, parameters

    def note(self, record: dict[str, Any], written: str) -> None:
        """Enter the file written into the case's record."""
        record.pop("label_quality")
        record.update(scribble=written, reference=record.pop("label"))


@dataclass
class Unlabelled:
    """Labels taken away: semi-supervised learning."""

    folder: ClassVar[None] = None  # no file is written
    fraction: ClassVar[float] = 0.8
    spared: ClassVar[int] = 1

    def sample(self, rng: np.random.Generator, structures: Sequence[int]) -> Parameters:
        """Nothing is drawn."""
        return []

    def note(self, record: dict[str, Any]) -> None:
        """Enter the defect into the case's record."""
        record.pop("label_quality", None)
        record.pop("labels", None)  # of several raters
        record.pop("scribble", None)
        if "label" in record:
            record.update(reference=record.pop("label"))


@dataclass
class Raters:
    """Several raters' masks; cases to measure with get them beside their label.

    Args:
        raters: raters a case, each with a style that it keeps.
        shift: largest shift of a border, in voxels.
        missed: average share of structures that a rater leaves out.
        added: average share of structures that a rater draws where there is none.
        others: what becomes of the other training cases: ``keep`` their label, or ``unlabelled``.
    """

    raters: int = 4
    shift: float = 2.0
    missed: float = 0.1
    added: float = 0.1
    others: str = "keep"

    folder: ClassVar[str] = "raters"
    fraction: ClassVar[float] = 1.0
    spared: ClassVar[int] = 0

    def __post_init__(self) -> None:
        if not isinstance(self.raters, int) or not 2 <= self.raters <= 100:
            raise fault("--raters", f"{self.raters!r} is no number of raters", "give a whole number from 2 to 100")
        _check_number("--shift", self.shift, 0, math.inf)
        _check_number("--missed", self.missed, 0, 1 / max(style.misses for style in STYLES))
        _check_number("--added", self.added, 0, 1 / max(style.adds for style in STYLES))
        if self.others not in ("keep", "unlabelled"):
            raise fault("--others", f"{self.others!r} is unknown", "give keep or unlabelled")

    def sample(self, rng: np.random.Generator, structures: Sequence[int]) -> Parameters:
        """Draw one case's parameters."""
        who = range(self.raters)
        return sample_raters(rng, who, structures, sample_border(rng), self.shift, self.missed, self.added)

    def apply(self, label: np.ndarray, parameters: Parameters, unlabelled: int) -> tuple[list[np.ndarray], Parameters]:
        """Replay them on a label; returns what to write, a mask a rater, and the parameters."""
        return apply_raters(label, parameters), parameters

    def note(self, record: dict[str, Any], written: list[str]) -> None:
        """Enter the files written into the case's record."""
        record.pop("label_quality")
        record.update(labels=written, reference=record.pop("label"))

    def note_held_out(self, record: dict[str, Any], written: list[str]) -> None:
        """Enter them into a case to measure with, which keeps its label."""
        record.update(labels=written)


@dataclass
class Boundary:
    """Borders that are unreliable in every label: shifted in and out by a smooth random field.

    Args:
        shift: largest shift, in voxels.
    """

    shift: float = 2.0

    folder: ClassVar[str] = "unreliable"
    fraction: ClassVar[float] = 1.0
    spared: ClassVar[int] = 0

    def __post_init__(self) -> None:
        _check_number("--shift", self.shift, 0, math.inf)

    def sample(self, rng: np.random.Generator, structures: Sequence[int]) -> Parameters:
        """Draw one case's parameters."""
        return [sample_boundary(rng, self.shift)]

    def apply(self, label: np.ndarray, parameters: Parameters, unlabelled: int) -> tuple[np.ndarray, Parameters]:
        """Replay them on a label; returns what to write, and the parameters."""
        return apply_raters(label, parameters)[0], parameters

    def note(self, record: dict[str, Any], written: str) -> None:
        """Enter the file written into the case's record."""
        record.update(label=written, label_quality="noisy", reference=record["label"])


Defect = Noise | Scribbles | Unlabelled | Raters | Boundary
KINDS: dict[str, type[Defect]] = {
    "noise": Noise,
    "scribble": Scribbles,
    "unlabelled": Unlabelled,
    "raters": Raters,
    "boundary": Boundary,
}


def _pair(radius: Sequence[float] | float) -> tuple[float, float]:
    values = [radius] * 2 if isinstance(radius, int | float) else list(radius)
    if len(values) != 2 or not all(isinstance(value, int | float) for value in values):
        raise fault("--radius", f"{radius!r} is not a pair of numbers", "give least and greatest, as in --radius 3 15")
    if not 0 <= values[0] <= values[1] < math.inf:
        raise fault("--radius", f"{radius!r} is no range", "give 0 <= least <= greatest, as in --radius 3 15")
    return float(values[0]), float(values[1])


def _check_number(option: str, value: Any, least: float, greatest: float) -> None:
    if not isinstance(value, int | float) or not least <= value <= greatest or math.isinf(value):
        bounds = f"of {least:g} or more" + ("" if math.isinf(greatest) else f" and at most {greatest:g}")
        raise fault(option, f"{value!r} is out of range", f"give a number {bounds}")
