"""The search for patch, spacing and batch: the largest that memory and time leave room for, measured."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from . import rules
from .choice import Choice
from .guide import Guide
from .probe import Measurement, NoRoomError
from .traits import Traits

STEPS_KEPT = 0.5  # share of the steps at the smallest size below which sizes do not grow, in the guide's bounds
CACHE = 0.4  # share of the memory that prepared images may take, at most
TARGET = 0.85  # share of the memory that a plan aims at: images differ, and so do allocators
EPOCHS = rules.EPOCHS
VALIDATIONS = 5
VALIDATING = 0.2  # share of the time, at most
LARGEST_PATCH = 192**3  # voxels
SMALLEST = {2: 9, 3: 4}  # patch, in cubes or squares of the multiple, by number of axes: 48 x 48 and 32 x 32 x 16
GROWTH = 1.25  # from one size to the next
MOST_PROBES = 6
SECONDS = 8.0  # of timed steps in a probe, about


@dataclass(frozen=True)
class Limits:
    """What a training may take.

    Attributes:
        memory: bytes.
        seconds: of the whole run; None: as long as the paper's iterations take.
        host: bytes of the process's memory where ``memory`` is a GPU's.
    """

    memory: float
    seconds: float | None
    host: float


@dataclass(frozen=True)
class Candidate:
    """A size of patch or slice, and what goes with it.

    Attributes:
        choices: settings.
        work: voxels of a batch.
        prepared: mean voxels of a case after resampling or resizing.
    """

    choices: Mapping[str, Choice]
    work: float
    prepared: float

    @property
    def settings(self) -> dict[str, Any]:
        """The settings without their reasons."""
        return {key: choice.value for key, choice in self.choices.items()}


@dataclass(frozen=True)
class Outcome:
    """A measured candidate.

    Attributes:
        candidate: the settings.
        measured: its time and memory.
        seconds: of the whole run, as predicted.
        memory: bytes at its peak, as predicted from what was measured.
        short: whether there is time for less than the paper's iterations even at the smallest size.
    """

    candidate: Candidate
    measured: Measurement
    iterations: int
    validations: int
    cache_rate: float
    seconds: float
    memory: float
    short: bool


def candidates(traits: Traits, guide: Guide, short: bool = False) -> list[Candidate]:
    """All sizes from the smallest to the whole image, then with batches up to the paper's: each needs more."""
    found: list[Candidate] = []
    sizes = _sizes(traits, guide)
    for size in sizes:
        found.append(_with_batch(traits, guide, size, 1, short))
    for times in range(2, rules.most_times(guide, short) + 1):
        found.append(_with_batch(traits, guide, sizes[-1], times, short))
    return found


def _sizes(traits: Traits, guide: Guide) -> list[dict[str, Choice]]:
    found: list[dict[str, Choice]] = []
    axes = 2 if guide.sliced else 3
    voxels = float(guide.multiple**axes * SMALLEST[axes])
    while voxels <= LARGEST_PATCH:
        size = _slices(traits, guide, voxels) if guide.sliced else _patches(traits, guide, voxels)
        if not found or [c.value for c in size.values()] != [c.value for c in found[-1].values()]:
            found.append(size)
        voxels *= GROWTH
    return found


def _patches(traits: Traits, guide: Guide, voxels: float) -> dict[str, Choice]:
    """The finest spacing at which a patch of so many voxels shows enough of the median image, and that patch."""
    native = rules.native_spacing(traits)
    last = max(rules.coarsest(traits, native.value), min(native.value))
    for least in np.geomspace(min(native.value), last, 40).tolist():
        spacing = rules.coarsened(native.value, least)
        size = rules.resampled_size(traits, spacing)
        patch = rules.grow_patch(size, voxels, guide.multiple)
        if rules.coverage(patch, size) >= rules.COVERAGE:
            break
    share = f"{100 * rules.coverage(patch, size):.0f}% of the median image, {' x '.join(map(str, size))} voxels"
    why = f"mm; {native.reason}"
    if spacing != native.value:
        why = (
            f"mm; {native.reason} is {native.value}; coarser, so that a patch shows "
            f"{100 * rules.COVERAGE:.0f}% of it, as far as structures keep {rules.LEAST_VOXELS:g} voxels"
        )
    return {
        "spacing": Choice(spacing, why),
        "patch_size": Choice(patch, f"voxels; {share}; multiples of {guide.multiple} in its proportions"),
    }


def _slices(traits: Traits, guide: Guide, pixels: float) -> dict[str, Choice]:
    axis = rules.slice_axis(traits, guide.config["slice_axis"])
    size = rules.grow_slice(traits, axis.value, pixels, guide.multiple)
    plane = np.median(np.delete(traits.shapes, axis.value, axis=1), axis=0)
    reason = f"pixels; the median slice has {plane[0]:g} x {plane[1]:g}; multiples of {guide.multiple}"
    return {"slice_axis": axis, "slice_size": Choice(size, reason), **rules.windows(guide, size)}


def _with_batch(traits: Traits, guide: Guide, size: dict[str, Choice], times: int, short: bool) -> Candidate:
    batch = rules.streams(traits, guide, times, short)
    patch = size["slice_size" if guide.sliced else "patch_size"].value
    if guide.sliced:
        prepared = traits.shapes[:, size["slice_axis"].value] * math.prod(patch)
    else:
        voxels = np.rint(traits.extents / np.array(size["spacing"].value))
        prepared = np.maximum(voxels, np.array(patch)).prod(axis=1)
    work = math.prod(patch) * sum(choice.value for choice in batch.values())
    return Candidate({**size, **batch}, float(work), float(prepared.mean()))


class Search:
    """Finds the largest candidate that fits, by measuring a few.

    Each measurement tells how far the next may go: time and memory are taken to grow in a straight line with the
    voxels of a batch. What is found was measured itself.

    Args:
        traits: of the data set.
        guide: of the bundle.
        limits: what the training may take.
        cases: numbers of training and of validation images.
        overhead: seconds and bytes that a run needs for the check of the data set, before it trains.
    """

    def __init__(
        self,
        traits: Traits,
        guide: Guide,
        limits: Limits,
        cases: tuple[int, int],
        overhead: tuple[float, float] = (0.0, 0.0),
    ) -> None:
        self.traits = traits
        self.guide = guide
        self.limits = limits
        self.cases = cases
        self.overhead = overhead
        self.listed = candidates(traits, guide)
        self.measured: dict[int, Outcome] = {}
        self.too_large = len(self.listed)
        self.short = False
        self.least = guide.least_iterations

    def run(self, probe: Callable[[Mapping[str, Any], int], Measurement]) -> Outcome | None:
        """Search.

        Args:
            probe: measures settings, in so many timed steps.

        Returns:
            the outcome; None if not even the smallest fits into the memory.
        """
        place: int | None = 0
        for _ in range(MOST_PROBES):
            if place is None:
                break
            try:
                found = probe(self._settings(place), self._steps(place))
            except NoRoomError:
                self.too_large = place
            else:
                outcome = self._outcome(place, found)
                if not self.measured:
                    again = self._begin(outcome)
                    if again:
                        continue
                self.measured[place] = outcome
                if not self._fits(outcome, place):
                    self.too_large = min(self.too_large, place)
            place = self._next()
        fitting = [place for place in self.measured if place < self.too_large]
        return self.measured[max(fitting)] if fitting else None

    def _begin(self, smallest: Outcome) -> bool:
        """See from the smallest size what kind of training it will be; whether that is to be measured anew."""
        if not self.short and smallest.iterations < self.guide.iterations:
            self.short = True
            if self.guide.short or self.guide.short_batch:
                self.listed = candidates(self.traits, self.guide, short=True)
                self.too_large = len(self.listed)
                return True
        most = max(self.guide.least_iterations, self.guide.iterations // 2)
        self.least = int(np.clip(smallest.iterations * STEPS_KEPT, self.guide.least_iterations, most))
        return False

    def _settings(self, place: int) -> dict[str, Any]:
        kept = {**self.guide.keep, **(self.guide.short if self.short else {})}
        choices = {**kept, **self.listed[place].choices}
        return {key: choice.value for key, choice in choices.items()}

    def _outcome(self, place: int, found: Measurement) -> Outcome:
        """How long and how large the whole training will be."""
        candidate, limits = self.listed[place], self.limits
        training, validation = self.cases
        images = training + validation
        room = CACHE * (limits.host if found.cuda else limits.memory)
        cache_rate = min(1.0, math.floor(100 * room / max(images * found.cached, 1)) / 100)
        batch = sum(candidate.choices[key].value for key in self.guide.streams.values())
        step = found.step + (1 - cache_rate) * batch * found.load  # what is not kept is read and prepared again
        validating = validation * (found.validate + (1 - cache_rate) * found.load)
        fixed = found.start + self.overhead[0] + cache_rate * images * found.load + EPOCHS * found.save
        if limits.seconds is None:
            iterations, validations = self.guide.iterations, VALIDATIONS
        else:
            left = max(0.0, limits.seconds - fixed)
            validations = int(min(VALIDATIONS, max(1, VALIDATING * left // max(validating, 1e-9))))
            iterations = max(1, int((left - validations * validating) / step))
        seconds = fixed + validations * validating + iterations * step
        memory = max(found.memory + (0 if found.cuda else cache_rate * images * found.cached), self.overhead[1])
        return Outcome(candidate, found, iterations, validations, cache_rate, seconds, memory, self.short)

    def _fits(self, outcome: Outcome, place: int) -> bool:
        """Enough memory, and enough iterations; where even the smallest has too few there is no better."""
        enough = self.limits.seconds is None or outcome.iterations >= self.least or place == 0
        return outcome.memory <= TARGET * self.limits.memory and enough

    def _next(self) -> int | None:
        """The largest candidate not measured yet that should fit; None if the largest that fits is measured."""
        fitting = [place for place in self.measured if place < self.too_large]
        if not fitting:
            return None if self.too_large == 0 else 0
        for place in range(self.too_large - 1, max(fitting), -1):
            if self._fits(self._outcome(place, self._predict(place)), place):
                return place
        return None

    def _predict(self, place: int) -> Measurement:
        """Time and memory of a candidate, along the line through the two largest measured ones."""
        *before, last = sorted(self.measured)
        known, work = self.measured[last].measured, self.listed[place].work
        prepared = self.listed[place].prepared / self.listed[last].prepared

        def line(read: Callable[[Measurement], float], fixed: float) -> float:
            if not before:  # in proportion: more than it will be, for there is more that does not grow
                return fixed + (read(known) - fixed) * work / self.listed[last].work
            rise = read(known) - read(self.measured[before[-1]].measured)
            slope = rise / (self.listed[last].work - self.listed[before[-1]].work)
            return read(known) + max(slope, 0.0) * (work - self.listed[last].work)

        return replace(
            known,
            load=known.load * max(1.0, prepared),
            step=line(lambda found: found.step, 0.0),
            validate=known.validate * max(1.0, prepared),
            memory=int(line(lambda found: found.memory, known.base)),
            cached=int(known.cached * prepared),
        )

    def _steps(self, place: int) -> int:
        """Timed steps of the next probe: more where they are short."""
        return int(np.clip(SECONDS / max(self._predict(place).step, 1e-6), 3, 20)) if self.measured else 6
