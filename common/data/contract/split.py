"""Takes a validation section, and a test section if asked for, out of the training section; no patient is cut."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...files import atomic_path
from .dataset import load_json, read_data
from .faults import DataError, Fault
from .output import check_seed, write_json
from .records import is_kind


def split(
    dataset_dir: str,
    fraction: float | None = None,
    seed: int = 0,
    folds: int | None = None,
    output: str | None = None,
    datalist: str = "dataset.json",
    *,
    test_fraction: float | None = None,
) -> list[Path]:
    """Write a JSON beside ``datalist`` in which some training groups form the ``validation`` section.

    With ``test_fraction`` others form the ``test`` section.

    With ``folds`` as many are written, for cross-validation: each group validates in one of them. The folds are drawn,
    or, where training records have ``fold`` (0, 1, ...), taken from there.

    Only groups whose every record has a clean label, or masks of several raters, validate: validation on noisy labels
    would prefer the model that repeats the noise. Noisy, unlabelled and scribbled records stay in training.

    Args:
        dataset_dir: folder of the data set.
        fraction: share of these groups to draw, above 0 and below 1; at least one is drawn and one stays. Default 0.2.
        seed: seed of the draw.
        folds: number of folds, at least 2; excludes ``fraction``.
        output: name of the JSON to write, in the same folder as its paths are relative to it. With folds it has
            ``{fold}`` where the number goes. Default ``dataset_split.json`` or ``dataset_fold{fold}.json``.
        datalist: name of the JSON to read.
        test_fraction: share of these groups to draw for a ``test`` section, of data that have none; excludes ``folds``.

    Returns:
        paths of the JSONs written.

    Raises:
        DataError: the JSON has faults or such a section already, too few groups are clean, a fold is empty or cuts
            through a group, or a file to write exists.
    """
    root = Path(dataset_dir)
    targets = _targets(root, output, folds)
    fractions = _fractions(fraction, test_fraction, folds)
    check_seed(seed)
    content = load_json(root, datalist)
    data, faults = read_data(root, datalist)
    if not data.training and not faults:
        faults.append(Fault(datalist, "has no `training` section to draw from", "add one"))
    if data.validation:
        faults.append(Fault(datalist, "has a `validation` section already", "use it as it is, nothing is to be split"))
    if data.test and test_fraction is not None:
        faults.append(Fault(datalist, "has a `test` section already", "leave --test_fraction out"))
    for target in targets:
        if target.exists():
            faults.append(Fault(str(target), "is there already", "remove it, or choose another name with --output"))
    if faults:
        raise DataError(faults, str(root / datalist))
    records = content["training"]
    eligible = _eligible(data.training)
    testing: set[str] = set()
    if folds is None:
        drawn = _draw(eligible, fractions, seed)
        validating, testing = [drawn[0]], set().union(*drawn[1:])
    else:
        listed = any("fold" in record for record in records)
        groups = [record["group"] for record in data.training]
        validating = _listed(records, groups, eligible, folds) if listed else _draw_folds(eligible, folds, seed)
    for fold, (target, drawn_for_it) in enumerate(zip(targets, validating, strict=True)):
        sections: dict[str, list[Any]] = {"training": [], "validation": [], "test": []}
        for record, group in zip(records, (record["group"] for record in data.training), strict=True):
            place = "test" if group in testing else "validation" if group in drawn_for_it else "training"
            sections[place].append(record)
        content |= {name: found for name, found in sections.items() if found or name != "test"}
        how = (
            dict(zip(("fraction", "test_fraction"), fractions, strict=False))
            if folds is None
            else {"folds": folds, "fold": fold}
        )
        content["split"] = {"seed": seed, **how, "source": datalist}
        with atomic_path(target) as temporary:
            write_json(content, temporary)
    return targets


def _targets(root: Path, output: str | None, folds: int | None) -> list[Path]:
    if folds is None:
        names = ["dataset_split.json" if output is None else str(output)]
    elif not isinstance(folds, int) or folds < 2:
        raise DataError([Fault("--folds", f"is {folds!r}", "use a whole number of 2 or more, such as 5")])
    else:
        pattern = "dataset_fold{fold}.json" if output is None else str(output)
        if "{fold}" not in pattern:
            what = "has no place for the number of the fold"
            raise DataError([Fault(f"--output {pattern}", what, "use a name such as dataset_fold{fold}.json")])
        names = [pattern.replace("{fold}", str(fold)) for fold in range(folds)]
    for name in names:
        if (root / name).parent != root or Path(name).suffix != ".json":
            what = "must be the name of a JSON in the data set's folder, as paths in it are relative to that folder"
            raise DataError([Fault(f"--output {name}", what, "use a name such as dataset_split.json")])
    return [root / name for name in names]


def _eligible(records: list[dict[str, Any]]) -> list[str]:
    """Groups that have clean labels (masks of several raters are taken as such) throughout, in a fixed order."""
    clean: dict[str, bool] = {}
    for record in records:
        clean[record["group"]] = clean.get(record["group"], True) and _is_clean(record)
    return sorted(group for group, is_clean in clean.items() if is_clean)


def _is_clean(record: dict[str, Any]) -> bool:
    return is_kind(record, "clean") or (is_kind(record, "raters") and not is_kind(record, "noisy"))


def _fractions(fraction: float | None, test_fraction: float | None, folds: int | None) -> list[float]:
    """Shares for validation and, if asked for, for testing."""
    if folds is not None and (fraction, test_fraction) != (None, None):
        name = "--test_fraction" if fraction is None else "--fraction"
        raise DataError([Fault(name, "does not go with --folds", "give one of them")])
    given = {"--fraction": 0.2 if fraction is None else fraction}
    given |= {} if test_fraction is None else {"--test_fraction": test_fraction}
    for name, share in given.items():
        if not isinstance(share, float) or not 0 < share < 1:
            raise DataError([Fault(name, f"is {share!r}", "use a number above 0 and below 1, such as 0.2")])
    if sum(given.values()) >= 1:
        what = f"leaves nothing to train on beside --fraction {given['--fraction']}"
        raise DataError([Fault(f"--test_fraction {test_fraction}", what, "give shares whose sum is below 1")])
    return list(given.values())


def _draw(groups: list[str], fractions: Sequence[float], seed: int) -> list[set[str]]:
    """Groups for each share, none in two; at least one for each, and one stays."""
    least = len(fractions) + 1
    _require(groups, least, "one to draw and one to keep" if least == 2 else "one for each section")
    shuffled, drawn = _shuffled(groups, seed), list[set[str]]()
    for number, fraction in enumerate(fractions, start=1):
        most = len(shuffled) - (least - number)
        count = min(max(1, round(fraction * len(groups))), most)
        drawn.append(set(shuffled[:count]))
        del shuffled[:count]
    return drawn


def _draw_folds(groups: list[str], folds: int, seed: int) -> list[set[str]]:
    _require(groups, folds, "one for each fold")
    shuffled = _shuffled(groups, seed)
    return [set(shuffled[fold::folds]) for fold in range(folds)]


def _listed(records: list[dict[str, Any]], groups: list[str], eligible: list[str], folds: int) -> list[set[str]]:
    """The folds that the records name; a record without one always trains."""
    places: dict[str, set[Any]] = {}
    for record, group in zip(records, groups, strict=True):
        fold = record.get("fold")
        places.setdefault(group, set()).add(fold if isinstance(fold, int | None) else repr(fold))
    faults = []
    for group, found in places.items():
        if len(found) > 1:
            what = f"its records name several folds: {', '.join(sorted(map(str, found)))}"
            faults.append(Fault(f"training, group {group}", what, "give all records of a group the same `fold`"))
        elif not all(fold is None or fold in range(folds) for fold in found):
            what = f"names fold {found.pop()!r}"
            faults.append(Fault(f"training, group {group}", what, f"use whole numbers from 0 to {folds - 1}"))
    if faults:
        raise DataError(faults)
    validating = [{group for group in eligible if places[group] == {fold}} for fold in range(folds)]
    for fold, drawn in enumerate(validating):
        if not drawn:
            what = f"no group with clean labels throughout is in fold {fold}"
            raise DataError([Fault("training", what, f"correct `fold` of the records, or --folds {folds}")])
    return validating


def _require(groups: list[str], least: int, why: str) -> None:
    if len(groups) < least:
        what = f"{len(groups)} group(s) have clean labels throughout, {least} are needed: {why}"
        raise DataError([Fault("training", what, "add cases with a clean label, or masks of several raters")])


def _shuffled(groups: list[str], seed: int) -> list[str]:
    drawn: list[str] = np.random.default_rng(seed).permutation(np.array(groups, dtype=object)).tolist()
    return drawn
