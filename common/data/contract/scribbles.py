"""What a scribble file must show, and the scribbles of a training set together."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from .faults import Fault
from .volumes import Report

DENSE = 0.9  # share of background in a scribble file beyond which 0 must stand for unlabelled


def check_scribble(counts: Mapping[int, int], unlabelled: int, report: Report) -> set[int]:
    """Report a scribble that marks nothing, or everything because 0 stands for unlabelled.

    Args:
        counts: voxels of each value in the file.
        unlabelled: value of voxels without a scribble.
        report: called with each fault.

    Returns:
        the label values that are marked.
    """
    marked = set(counts) - {unlabelled}
    share = counts.get(0, 0) / sum(counts.values())
    if not marked:
        what = f"the scribble marks no voxel: all are {unlabelled} (unlabelled)"
        report(what, "draw scribbles, or remove `scribble` from the record")
    elif unlabelled not in counts and share > DENSE:
        what = f"the scribble marks every voxel: {share:.1%} are 0 (background), none is {unlabelled} (unlabelled)"
        report(what, f"store {unlabelled} where nothing was drawn, or give the file as `label` if all of it is known")
    return marked


def one_sided(scribbles: Iterable[set[int]], labels: Mapping[int, str]) -> list[Fault]:
    """A fault if all scribbles together mark the background alone, or never mark it.

    Args:
        scribbles: label values that each training record's scribble marks, no record having another label.
        labels: name of each label value.
    """
    marked = set().union(*scribbles)
    names = ", ".join(f"{value} ({labels.get(value, '?')})" for value in sorted(marked))
    if marked == {0}:
        what = f"the scribbles mark {names} alone, so that a network learns to find nothing"
        return [Fault("training", what, "draw strokes on the structures too")]
    if marked and 0 not in marked:
        what = f"the scribbles mark {names} and nowhere the background (0), so that a network finds them everywhere"
        return [Fault("training", what, "draw strokes of value 0 on the background too")]
    return []
