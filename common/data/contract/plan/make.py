"""A plan for a data set and a bundle, as a config overlay."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ....device import device_name
from ....files import atomic_path
from ....ops.threads import usable_cores
from ..checks import Case, compare_cases, inspect_cases, other_axes
from ..dataset import SegmentationData, missing_needs, read_data
from ..faults import DataError, Fault
from ..records import is_kind
from ..volumes import physical_memory
from . import rules
from .choice import Choice, write_overlay
from .guide import Guide, read_guide
from .probe import Probe, own_peak
from .search import Limits, Outcome, Search
from .traits import Traits, measure_traits

GIGABYTE = 1e9


@dataclass(frozen=True)
class Plan:
    """A plan as it was written.

    Attributes:
        path: of the overlay.
        choices: settings with their reasons.
        outcome: what was measured for it.
        doubts: what it would not do.
        notes: what is odd in the data set but allowed.
    """

    path: Path
    choices: dict[str, Choice]
    outcome: Outcome
    doubts: list[str]
    notes: list[str]


def make_plan(
    dataset_dir: str | os.PathLike[str],
    bundle: str,
    memory: float | None = None,
    minutes: float | None = None,
    output: str | os.PathLike[str] = "plan.yaml",
    datalist: str = "dataset.json",
    bundles: str = "bundles",
) -> Plan:
    """Measure a data set and a few training steps, and write the settings that fit as an overlay on train.yaml.

    Args:
        dataset_dir: folder of the data set.
        bundle: name of the bundle.
        memory: GB (1e9 bytes) that the training may take at its peak, on CUDA of the GPU; default: half of this
            machine's, or nine tenths of the GPU's.
        minutes: of the whole training, its start and validations included; default: as long as the paper's steps take.
        output: file to write; never overwritten.
        datalist: name of the JSON in the data set's folder.
        bundles: folder of the bundles.

    Raises:
        DataError: with every fault of the data set, of the bundle or of the limits, and its fix.
    """
    target = Path(output)
    if target.exists():
        raise DataError([Fault(str(target), "exists already", "give another --output, or remove it")])
    limits = _limits(memory, minutes)
    guide = read_guide(bundle, bundles)
    began = time.perf_counter()
    data, cases = _checked(dataset_dir, datalist, guide)
    overhead = (time.perf_counter() - began, own_peak())
    traits = measure_traits(data, cases, reoriented=not guide.sliced)
    fixed = _fixed(traits, guide)
    usable = [case for case in cases if case.section == "training" and _drawn(case, guide)]
    validation = [case for case in cases if case.section == "validation"]
    settings = {key: choice.value for key, choice in fixed.items()}
    settings |= {"dataset_dir": str(data.root), "datalist": datalist}
    probe = Probe(guide.root, _spread(usable, guide), [case.record for case in _ends(validation)], settings)
    outcome = Search(traits, guide, limits, (len(usable), len(validation)), overhead).run(probe)
    if outcome is None:
        what = f"is {limits.memory / GIGABYTE:.3g}, too little for a batch of the smallest patches"
        raise DataError(
            [Fault("--memory", what, "give more, or fewer cases a batch in a copy of the bundle's train.yaml")]
        )
    choices = _choices(guide, fixed, outcome)
    doubts = rules.doubts(traits, guide, choices) + _of_time(guide, limits, outcome)
    notes = [*data.notes, *(note for case in cases for note in case.notes)]
    head = _head(data, guide, limits, outcome, doubts)
    with atomic_path(target) as temporary:
        temporary.write_text(write_overlay(head, choices), encoding="utf-8")
    return Plan(target, choices, outcome, doubts, notes)


def _limits(memory: float | None, minutes: float | None) -> Limits:
    for name, value in (("--memory", memory), ("--minutes", minutes)):
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if value is not None and not (number and 0 < value < float("inf")):
            unit = "GB" if name == "--memory" else "minutes"
            raise DataError([Fault(name, f"is {value!r}", f"give a number of {unit} above 0")])
    host = physical_memory() or int(8 * GIGABYTE)
    if memory is not None:
        room = memory * GIGABYTE
    elif torch.cuda.is_available():
        room = 0.9 * torch.cuda.get_device_properties(0).total_memory
    else:
        room = 0.5 * host
    return Limits(room, None if minutes is None else 60.0 * minutes, host)


def _checked(dataset_dir: str | os.PathLike[str], datalist: str, guide: Guide) -> tuple[SegmentationData, list[Case]]:
    """The data set and its cases, if nothing is wrong with either, or with both beside the bundle."""
    data, faults = read_data(dataset_dir, datalist)
    faults += missing_needs(data, guide.needs)
    cases = inspect_cases(data)
    faults += [fault for case in cases for fault in case.faults] + compare_cases(data, cases)
    faults += other_axes(data, cases, guide.config["data"].get("spatial_dims"))
    if faults:
        raise DataError(faults, str(data.root / datalist))
    return data, cases


def _drawn(case: Case, guide: Guide) -> bool:
    """Whether a training takes this record; those of none of the bundle's kinds go to the last stream."""
    kinds = guide.config["train"]["dataset"]["data"].get("kinds", [])
    return not kinds or any(is_kind(case.record, kind) for kind in kinds)


def _spread(cases: Sequence[Case], guide: Guide) -> list[dict[str, Any]]:
    """Records of the largest, the median and the smallest case of each stream."""
    found: list[dict[str, Any]] = []
    for kind in guide.streams:
        chosen = _ends([case for case in cases if is_kind(case.record, kind)])
        found += [case.record for case in chosen if case.record not in found]
    return found


def _ends(cases: Sequence[Case]) -> list[Case]:
    """The largest, the median and the smallest case, each once."""

    def volume(case: Case) -> float:
        return float(torch.tensor(case.shape or (0,)).prod() * torch.tensor(case.spacing or (0.0,)).prod())

    ordered = sorted(cases, key=volume, reverse=True)
    places = dict.fromkeys([0, len(ordered) // 2, len(ordered) - 1]) if ordered else {}
    return [ordered[place] for place in places]


def _fixed(traits: Traits, guide: Guide) -> dict[str, Choice]:
    """What the data set alone decides."""
    worker = 0 if not torch.cuda.is_available() else min(4, usable_cores() - 1)
    why = "the CPU's cores train" if worker == 0 else "the GPU trains, the CPU's cores load"
    return {
        "num_classes": Choice(traits.num_classes, "background included; the data set declares them"),
        "in_channels": Choice(traits.channels, "as the images have"),
        "intensity": rules.intensity(traits, guide.config["intensity"]),
        "num_workers": Choice(worker, why),
    }


def _choices(guide: Guide, fixed: dict[str, Choice], outcome: Outcome) -> dict[str, Choice]:
    """All settings in the order in which they are written."""
    kept = {**guide.keep, **(guide.short if outcome.short else {})}
    rate = outcome.cache_rate
    why = "all prepared images fit into the memory" if rate == 1 else "more prepared images do not fit into the memory"
    cache = {"cache_rate": Choice(rate, why)}
    scheduled = rules.schedule(guide, outcome.iterations, outcome.validations)
    return {**fixed, **outcome.candidate.choices, **cache, **kept, **scheduled}


def _of_time(guide: Guide, limits: Limits, outcome: Outcome) -> list[str]:
    if limits.seconds is None or outcome.iterations >= guide.least_iterations:
        return []
    what = f"{outcome.iterations} steps fit into the time, of {guide.least_iterations} at least that the bundle wants"
    wanted = outcome.seconds + (guide.least_iterations - outcome.iterations) * outcome.measured.step
    return [f"{what}: give --minutes {wanted / 60:.2g} or more"]


def _head(data: SegmentationData, guide: Guide, limits: Limits, outcome: Outcome, doubts: Sequence[str]) -> list[str]:
    """What stands above the settings."""
    device = device_name() if outcome.measured.cuda else f"CPU, {torch.get_num_threads()} threads"
    asked = f"{limits.memory / GIGABYTE:.3g} GB"
    asked += "" if limits.seconds is None else f" and {limits.seconds / 60:.3g} minutes"
    expected = (
        f"Expected: {outcome.seconds / 60:.3g} minutes, of which {outcome.measured.step:.3g} s a step, and "
        f"{outcome.memory / GIGABYTE:.2g} GB at the peak."
    )
    return [
        f"Settings of {guide.name} for {data.name}, made by `python -m common.data plan`. Overlay on train.yaml, after",
        "evaluate.yaml, and on inference.yaml.",
        f"Asked for: {asked}. {expected}",
        f"Measured on: {device}, torch {torch.__version__}.",
        *[f"Would not do: {doubt}." for doubt in doubts],
    ]
