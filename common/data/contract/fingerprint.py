"""What a data set holds, as a printable table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .checks import Case
from .dataset import SegmentationData
from .records import SECTIONS, is_kind


def format_fingerprint(data: SegmentationData, cases: Sequence[Case]) -> str:
    """Describe a data set: its sections, its structures, and every case.

    Args:
        data: the data set.
        cases: from :func:`common.data.contract.checks.inspect_cases`.

    Returns:
        several lines: a table of sections, one of structures (volumes in ml) and one of cases.
    """
    parts = [
        f"{data.name} ({data.root})",
        f"{data.num_classes} classes: " + ", ".join(f"{value} {name}" for value, name in data.labels.items()),
        _table(("section", "cases", "groups", "targets", "shape (voxels)", "spacing (mm)"), _section_rows(cases)),
        _table(("structure", "cases", "median ml", "smallest ml", "largest ml"), _structure_rows(data, cases)),
        _table(
            ("section", "case", "shape", "spacing", "intensity", "target", "volumes (ml)", "defects"),
            [_case_row(data, case) for case in cases],
        ),
    ]
    return "\n\n".join(part for part in parts if part)


def _section_rows(cases: Sequence[Case]) -> list[Sequence[str]]:
    rows: list[Sequence[str]] = []
    for section in SECTIONS:
        members = [case for case in cases if case.section == section]
        if not members:
            continue
        targets = Counter(_target(case.record) for case in members)
        groups = len({case.record["group"] for case in members})
        rows.append(
            (
                section,
                str(len(members)),
                str(groups),
                ", ".join(f"{count} {target}" for target, count in targets.items()),
                _range([case.shape for case in members if case.shape], lambda size: f"{size:.0f}"),
                _range([case.spacing for case in members if case.spacing], lambda size: f"{size:.3g}"),
            )
        )
    return rows


def _structure_rows(data: SegmentationData, cases: Sequence[Case]) -> list[Sequence[str]]:
    """Volumes over all dense labels; scribbles have no volume."""
    dense = [case for case in cases if _volumes(data, case)]
    rows: list[Sequence[str]] = []
    for value, name in data.labels.items():
        if value == 0:
            continue
        found = [volumes[value] for case in dense if value in (volumes := _volumes(data, case))]
        numbers = (f"{np.median(found):.3g}", f"{min(found):.3g}", f"{max(found):.3g}") if found else ("-", "-", "-")
        rows.append((f"{value} {name}", f"{len(found)} of {len(dense)}", *numbers))
    return rows


def _case_row(data: SegmentationData, case: Case) -> Sequence[str]:
    volumes = _volumes(data, case)
    defects = len(case.faults)
    return (
        case.section,
        Path(case.image).name.removesuffix(".gz").removesuffix(".nii"),
        "x".join(map(str, case.shape or ())) or "?",
        "x".join(f"{size:.3g}" for size in case.spacing) or "?",
        f"{case.intensities[0]:.4g} to {case.intensities[1]:.4g}" if case.intensities else "?",
        _target(case.record),
        " ".join(f"{volumes.get(value, 0):.3g}" for value in data.labels if value) if volumes else "-",
        f"{defects} fault{'s' * (defects > 1)}" if defects else "-",
    )


def _volumes(data: SegmentationData, case: Case) -> dict[int, float]:
    """Volume of each structure that the dense label holds, in ml; empty without one."""
    if case.counts is None or len(case.spacing) < 2 or not ("label" in case.record or "labels" in case.record):
        return {}
    voxel = float(np.prod(case.spacing)) / 1000
    return {value: count * voxel for value, count in case.counts.items() if value in data.labels and value}


def _target(record: dict[str, Any]) -> str:
    """What a method learns from, in the words of the kinds of records: ``noisy + 3 raters``."""
    found = [kind for kind in ("clean", "noisy", "raters", "scribble", "unlabelled") if is_kind(record, kind)]
    return " + ".join(f"{len(record['labels'])} raters" if kind == "raters" else kind for kind in found)


def _range(values: Sequence[tuple[float, ...]], write: Callable[[float], str]) -> str:
    """Smallest and largest value along each axis, once where they are equal."""
    if not values or len({len(value) for value in values}) > 1:
        return "?"
    ends = [(write(min(axis)), write(max(axis))) for axis in zip(*values, strict=True)]
    return " x ".join(low if low == high else f"{low}-{high}" for low, high in ends)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns as wide as their longest entry; empty without rows."""
    if not rows:
        return ""
    widths = [max(len(line[column]) for line in (head, *rows)) for column in range(len(head))]

    def write(line: Sequence[str]) -> str:
        return "  ".join(entry.ljust(width) for entry, width in zip(line, widths, strict=True)).rstrip()

    return "\n".join([write(head), write(["-" * width for width in widths]), *map(write, rows)])
