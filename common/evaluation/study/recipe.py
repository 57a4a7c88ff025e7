"""What a study compares: its YAML file, read and checked before anything runs.

A study file names rows (methods), seeds, and how the data are made::

    title: Left atrium, 4 labelled cases of 64
    bundle: multicure
    overlays: [la_quarter]        # of every row, of bundles/<bundle>/configs; or a file of yours: plan.yaml
    settings: {max_epochs: 40}    # of every row, as on the command line
    data:                         # commands of `python -m common.data`, made once a seed
    - split {source} --fraction 0.2 --seed 0 --output dataset_split.json
    - corrupt {source} --datalist dataset_split.json --kind unlabelled --fraction 0.9375 --seed {seed} --output {made}
    seeds: [0, 1, 2]
    measure: {section: validation, weights: model_final.pt}
    reference: supervised         # the row that the others are compared with
    rows:
      supervised: {overlays: [supervised]}
      both: {}

``calibrate: true`` in ``measure`` fits a temperature to each run's weights on the validation section first, for the
metrics ``*_calibrated``; then another section is to be measured.

``{source}`` is a linked copy of ``--dataset_dir``, ``{made}`` the folder that the row trains on, ``{seed}`` and
``{fold}`` the run's numbers, and any key of a row's ``values`` its value, so that one recipe of data serves rows that
differ in a number.
"""

from __future__ import annotations

import difflib
import os
import string
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from ...data.contract.faults import DataError, Fault
from ..metrics import METRICS
from ..samples import MEASURES

DEFAULT_METRICS = ("dice", "hd95", "asd", "ece")
KNOWN_METRICS = (*METRICS, *MEASURES)  # of a segmentation, and of a set of them
DEFAULT_WEIGHTS = "model.pt"
_PLACES = ("source", "made", "seed", "fold")
_STUDY_KEYS = {
    *("title", "bundle", "overlays", "settings", "data", "datalist", "seeds", "folds", "measure", "reference"),
    *("metrics", "rows"),
}
_ROW_KEYS = {"bundle", "overlays", "settings", "data", "datalist", "values", "labels", "curve"}
_MEASURE_KEYS = {"section", "weights", "settings", "calibrate"}
# key: what it holds, and how that is written
_FORMS: dict[str, tuple[type, str]] = {
    "overlays": (list, "a list of names, such as [supervised]"),
    "metrics": (list, "a list of names, such as [dice, hd95]"),
    "data": (list, "a list of commands, such as ['split {source} --fraction 0.2']"),
    "datalist": (str, "the name of a JSON, such as dataset_split.json"),
    "settings": (dict, "a mapping, such as {max_epochs: 40}"),
    "values": (dict, "a mapping, such as {noisy: 0.9}"),
    "measure": (dict, "a mapping, such as {section: validation}"),
    "section": (str, "the name of a section, such as validation"),
    "weights": (str, "the name of a file, such as model_final.pt"),
}


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        name: as it stands in the table.
        bundle: whose configs train it.
        overlays: config files on top of train.yaml, the later before the earlier.
        settings: keys and values of the command line.
        data: commands of ``python -m common.data``, with places to fill.
        datalist: JSON to train on, in the folder made (or in the source where none is made).
        values: what the places of its data commands are filled with.
        labels: number of labels that it learns from, for learning curves; None: not on a curve.
        curve: name of the curve that the row is a point of.
    """

    name: str
    bundle: str
    overlays: tuple[Path, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    data: tuple[str, ...] = ()
    datalist: str = "dataset.json"
    values: Mapping[str, Any] = field(default_factory=dict)
    labels: int | None = None
    curve: str | None = None

    @property
    def configs(self) -> Path:
        """Folder of the bundle's configs, from the repository's root."""
        return _configs(self.bundle)

    def files(self, *last: str) -> list[Path]:
        """train.yaml, the overlays, and what of the bundle's configs comes last."""
        return [self.configs / "train.yaml", *self.overlays, *(self.configs / f"{name}.yaml" for name in last)]


@dataclass(frozen=True)
class Run:
    """One training and evaluation: a row with a seed and, in cross-validation, a fold."""

    row: Row
    seed: int
    fold: int | None = None

    @property
    def name(self) -> str:
        """Of its folder below the row's."""
        return f"seed_{self.seed}" + ("" if self.fold is None else f"_fold_{self.fold}")


@dataclass(frozen=True)
class Study:
    """A whole comparison.

    Attributes:
        title: of table and figure.
        rows: in the order of the table.
        seeds: of training; data commands read them too.
        folds: number of folds; 0: no cross-validation.
        section: of the data set that is measured.
        weights: file that is measured, in a run's folder of weights.
        measure_settings: further settings of the evaluation.
        reference: name of the row that the others are compared with.
        metrics: columns of the table, from those of an evaluation.
        file: where it was read.
        calibrate: fit a temperature on the validation section before, so that the metrics ``*_calibrated`` are there.
    """

    title: str
    rows: tuple[Row, ...]
    seeds: tuple[int, ...]
    folds: int
    section: str
    weights: str
    measure_settings: Mapping[str, Any]
    reference: str
    metrics: tuple[str, ...]
    file: Path
    calibrate: bool = False

    def runs(self, rows: tuple[str, ...] = (), seeds: tuple[int, ...] = ()) -> Iterator[Run]:
        """All runs, seed by seed so that a table with every row is there early.

        Args:
            rows: only these; empty: all.
            seeds: only these; empty: all.
        """
        for seed in self.seeds:
            for fold in range(self.folds) if self.folds else (None,):
                for row in self.rows:
                    if (not rows or row.name in rows) and (not seeds or seed in seeds):
                        yield Run(row, seed, fold)


def read_study(path: str | os.PathLike[str]) -> Study:
    """Read a study file and check it against the bundles that are there.

    Args:
        path: the YAML file; overlays are looked for below ``bundles`` in the working directory, those that end in
            ``.yaml`` from the study file's folder.

    Raises:
        DataError: with every fault of the file and its fix.
    """
    file = Path(path)
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError([Fault(str(file), "cannot be read", "give the path of a study file")]) from error
    except yaml.YAMLError as error:
        what = f"is no YAML ({str(error).splitlines()[0]})"
        raise DataError([Fault(str(file), what, "correct it there")]) from error
    if not isinstance(content, dict):
        raise DataError([Fault(str(file), "holds no mapping", "write title, bundle, seeds, rows, ...")])
    faults = _unknown(content, _STUDY_KEYS, str(file))
    rows = _read_rows(content, str(file), faults)
    measure = _read_measure(content, str(file), faults)
    seeds = content.get("seeds", [0])
    if not isinstance(seeds, list) or not seeds or not all(_is_count(seed) for seed in seeds):
        faults.append(Fault(f"{file}, seeds", f"is {seeds!r}", "write a list of whole numbers, such as [0, 1, 2]"))
        seeds = []
    folds = content.get("folds", 0)
    if not _is_count(folds) or folds == 1:
        faults.append(Fault(f"{file}, folds", f"is {folds!r}", "write a whole number of 2 or more, or leave it out"))
    reference = content.get("reference", rows[0].name if rows else "")
    if rows and reference not in [row.name for row in rows]:
        names = ", ".join(row.name for row in rows)
        faults.append(Fault(f"{file}, reference", f"{reference!r} is no row", f"name one of {names}"))
    for row in rows:
        faults += _check_row(row, str(file), folds)
    metrics = _typed(content, "metrics", DEFAULT_METRICS, str(file), faults)
    faults += [_unknown_metric(name, str(file)) for name in metrics if name not in KNOWN_METRICS]
    if faults:
        raise DataError(faults, str(file))
    return Study(
        title=str(content.get("title", file.stem)),
        rows=tuple(rows),
        seeds=tuple(seeds),
        folds=folds,
        section=measure["section"],
        weights=measure["weights"],
        measure_settings=measure["settings"],
        reference=reference,
        metrics=tuple(metrics),
        file=file,
        calibrate=measure["calibrate"],
    )


def _read_measure(content: dict[str, Any], file: str, faults: list[Fault]) -> dict[str, Any]:
    measure, where = _typed(content, "measure", {}, file, faults), f"{file}, measure"
    faults += _unknown(measure, _MEASURE_KEYS, where)
    default: dict[str, Any] = {"section": "test", "weights": DEFAULT_WEIGHTS, "settings": {}}
    found = {key: _typed(measure, key, value, where, faults) for key, value in default.items()}
    calibrate = measure.get("calibrate", False)
    if not isinstance(calibrate, bool):
        faults.append(Fault(where, f"calibrate is {calibrate!r}", "write true or false"))
    if calibrate and found["section"] == "validation":
        what = "the temperature is fitted on the validation section, which is measured"
        faults.append(Fault(where, what, "measure the test section, or leave calibrate out"))
    return {**found, "calibrate": calibrate}


def _read_rows(content: dict[str, Any], file: str, faults: list[Fault]) -> list[Row]:
    listed = content.get("rows")
    if not isinstance(listed, dict) or not listed:
        faults.append(Fault(f"{file}, rows", "names no row", "write rows: {supervised: {overlays: [supervised]}, ...}"))
        return []
    rows: list[Row] = []
    default: dict[str, Any] = {"overlays": [], "settings": {}, "data": [], "datalist": "dataset.json"}
    shared = {key: _typed(content, key, value, file, faults) for key, value in default.items()}
    for name, entry in listed.items():
        own = entry or {}
        where = f"{file}, row {name}"
        if not isinstance(own, dict):
            faults.append(Fault(where, f"is {own!r}", "write {overlays: [...], settings: {...}}"))
            continue
        faults += _unknown(own, _ROW_KEYS, where)
        if not (bundle := own.get("bundle", content.get("bundle"))):
            faults.append(Fault(where, "names no bundle", "write bundle: NAME, in the row or for all rows"))
            continue
        # a row adds to the overlays and settings of all; data of its own take the place of theirs
        entries = {"data": shared["data"], "datalist": shared["datalist"], **own}
        mine = {key: _typed(entries, key, value, where, faults) for key, value in {**default, "values": {}}.items()}
        rows.append(
            Row(
                name=str(name),
                bundle=str(bundle),
                overlays=tuple(_overlay(each, str(bundle), file) for each in (*shared["overlays"], *mine["overlays"])),
                settings={**shared["settings"], **mine["settings"]},
                data=tuple(mine["data"]),
                datalist=mine["datalist"],
                values=mine["values"],
                labels=own.get("labels"),
                curve=own.get("curve"),
            )
        )
    return rows


def _typed(content: Mapping[str, Any], key: str, default: Any, where: str, faults: list[Fault]) -> Any:
    """An entry as its key wants it; the default where there is none or, with a fault, something else."""
    value, (kind, form) = content.get(key), _FORMS[key]
    if value is None:
        return default
    if not isinstance(value, kind) or (isinstance(value, list) and not all(isinstance(text, str) for text in value)):
        faults.append(Fault(f"{where}, {key}", f"is {value!r}", f"write {form}"))
        return default
    return value or default


def _configs(bundle: str) -> Path:
    return Path("bundles") / bundle / "configs"


def _overlay(name: str, bundle: str, file: str) -> Path:
    """A file of the user's own by its path, one of the bundle's by its name."""
    own = name.endswith(".yaml")
    return Path(file).parent / name if own else _configs(bundle) / f"{name}.yaml"


def _check_row(row: Row, file: str, folds: int) -> list[Fault]:
    """Faults of one row: bundle, overlays, places of its data commands."""
    where = f"{file}, row {row.name}"
    faults: list[Fault] = []
    if not (row.configs / "train.yaml").is_file():
        known = sorted(path.parents[1].name for path in Path("bundles").glob("*/configs/train.yaml"))
        faults.append(Fault(where, f"no bundle {row.bundle!r} here", f"use one of {', '.join(known)}, from the root"))
        return faults
    for overlay in row.overlays:
        if not overlay.is_file():
            faults.append(Fault(where, f"{overlay.parent} has no {overlay.name}", "correct `overlays`"))
    fillable = {*_PLACES, *row.values}
    if not folds:
        fillable.discard("fold")
    for text in (*row.data, row.datalist):
        places = {name for _, name, _, _ in string.Formatter().parse(text) if name}
        if strange := sorted(places - fillable):
            faults.append(Fault(where, f"{text!r} has places {strange} that nothing fills", "add them to its `values`"))
    return faults


def _unknown(content: Any, known: set[str], where: str) -> list[Fault]:
    if not isinstance(content, dict):
        return [Fault(where, f"is {content!r}", "write a mapping")]
    faults = []
    for key in content:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, 1)
            fix = f"write {near[0]}" if near else f"use some of {', '.join(sorted(known))}"
            faults.append(Fault(where, f"has an unknown key {key!r}", fix))
    return faults


def _unknown_metric(name: Any, file: str) -> Fault:
    near = difflib.get_close_matches(str(name), KNOWN_METRICS, 1)
    fix = f"write {near[0]}" if near else f"use some of {', '.join(KNOWN_METRICS)}"
    return Fault(f"{file}, metrics", f"names {name!r}, which is not measured", fix)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
