"""Command line: ``python -m common.data check|plan|split|phantom|corrupt|convert``."""

from __future__ import annotations

import functools
import inspect
import logging
import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fire
import yaml
from fire.decorators import SetParseFn
from fire.parser import DefaultParseValue
from tqdm.contrib.logging import logging_redirect_tqdm

from .contract import dataset as contract
from .contract import split as splitting
from .contract.agreement import format_agreement, rater_agreement
from .contract.checks import Case, compare_cases, inspect_cases, other_axes
from .contract.dataset import SegmentationData
from .contract.faults import DataError, Fault
from .contract.fingerprint import format_fingerprint
from .contract.plan import make_plan
from .simulation import phantom
from .simulation.corrupt import corrupt as corrupt_data
from .simulation.corrupt import join_pairs
from .usage import PROGRAM, help_asked

#: annotations of what stays as it was typed: Fire makes 20240512 of the folder 2024_05_12, and out of out#2
TEXT = ("str", "str | None")
SWITCH = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


def check(
    dataset_dir: str,
    datalist: str = "dataset.json",
    num_classes: int | None = None,
    in_channels: int | None = None,
    bundles: str = "bundles",
) -> None:
    """Print what a data set holds, every fault with its fix, and which bundles fit; exit status 1 with faults.

    Args:
        dataset_dir: folder of the data set.
        datalist: name of the JSON in that folder.
        num_classes: classes of the network, background included; not compared without it.
        in_channels: image channels of the network; not compared without it.
        bundles: folder of the bundles.
    """
    data, faults = contract.read_data(dataset_dir, datalist)
    faults += contract.missing_needs(data, ())
    faults += contract.compare_classes(data, num_classes, datalist)
    cases = inspect_cases(data, in_channels)
    faults += [fault for case in cases for fault in case.faults] + compare_cases(data, cases, in_channels)
    print(format_fingerprint(data, cases), end="\n\n")
    for note in [*data.notes, *(note for case in cases for note in case.notes)]:
        print(f"Note: {note}.")
    rated = [rater_agreement(case.record, _structures(data)) for case in cases if "labels" in case.record]
    if agreements := [one for one in rated if one is not None]:
        print(format_agreement(agreements), end="\n\n")
    print("\n".join(_bundle_lines(data, cases, Path(bundles))), end="\n\n")
    if faults:
        print(f"{len(faults)} fault{'s' * (len(faults) > 1)}:")
        print("\n".join(f"  {number}. {fault}" for number, fault in enumerate(faults, 1)))
        sys.exit(1)
    print(f"No faults found in {len(cases)} cases.")


def _structures(data: SegmentationData) -> list[int]:
    return [value for value in data.labels if value > 0]


def _bundle_lines(data: SegmentationData, cases: list[Case], bundles: Path) -> list[str]:
    """One line a bundle: whether the data meet what its train.yaml needs."""
    lines = []
    for path in sorted(bundles.glob("*/configs/train.yaml")):
        needs, spatial_dims = _needs(path)
        unmet = [fault.what.removeprefix("the method ") for fault in contract.missing_needs(data, needs)]
        unmet += [fault.what for fault in other_axes(data, cases, spatial_dims)]
        lines.append(f"Bundle {path.parts[-3]}: " + (f"does not fit: {'; '.join(unmet)}" if unmet else "fits"))
    return lines or [f"No bundle found in {bundles}."]


def _needs(path: Path) -> tuple[list[str], int | None]:
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
        needs = config["train"]["dataset"]["data"]["needs"]
        if isinstance(needs, str):  # a reference to a top-level list
            needs = config[needs.removeprefix("@")]
    except (KeyError, TypeError):
        return [], None
    return [need for need in needs if need in contract.NEEDS], config["data"].get("spatial_dims")


def split(
    dataset_dir: str,
    fraction: float | None = None,
    seed: int = 0,
    folds: int | None = None,
    output: str | None = None,
    datalist: str = "dataset.json",
    *,
    test_fraction: float | None = None,
) -> None:
    """Write a JSON in which some training groups (patients) form the validation section, or one for each fold.

    Args:
        dataset_dir: folder of the data set.
        fraction: share of the groups with clean labels to draw; default 0.2.
        seed: seed of the draw.
        folds: write as many JSONs, each of which validates on another part (cross-validation); the parts are drawn, or
            given by `fold` (0, 1, ...) in the training records.
        output: name of the JSON to write, in the same folder; never overwritten. Default dataset_split.json, with
            folds dataset_fold{fold}.json.
        datalist: name of the JSON to read.
        test_fraction: share of the groups with clean labels to draw for a test section, where there is none.
    """
    for path in splitting.split(dataset_dir, fraction, seed, folds, output, datalist, test_fraction=test_fraction):
        data, _ = contract.read_data(path.parent, path.name)
        counts = f"{len(data.training)} training and {len(data.validation)} validation records"
        counts += "" if test_fraction is None else f", {len(data.test)} to test on"
        print(f"{path}: {counts}. Use it with --datalist {path.name}")


def plan(
    dataset_dir: str,
    bundle: str,
    memory: float | None = None,
    minutes: float | None = None,
    output: str = "plan.yaml",
    datalist: str = "dataset.json",
    bundles: str = "bundles",
) -> None:
    """Write the settings of a bundle that fit a data set, the memory and the time, each with its reason.

    Measures a few training steps, which takes some minutes.

    Args:
        dataset_dir: folder of the data set.
        bundle: name of the bundle, such as alc.
        memory: GB (1e9 bytes) that the training may take, on CUDA of the GPU; default: half of this machine's, or nine
            tenths of the GPU's.
        minutes: that the training may take; default: as long as the paper's steps take.
        output: file to write, an overlay on train.yaml; never overwritten.
        datalist: name of the JSON in the folder.
        bundles: folder of the bundles.
    """
    made = make_plan(dataset_dir, bundle, memory, minutes, output, datalist, bundles)
    print(made.path.read_text(encoding="utf-8"))
    for note in made.notes:
        print(f"Note: {note}.")
    files = f"['{Path(bundles) / bundle / 'configs' / 'train.yaml'}','{made.path}']"
    given = ["--dataset_dir", dataset_dir] + ["--datalist", datalist] * (datalist != "dataset.json")
    print(f'Next: python -m monai.bundle run training --config_file "{files}" {shlex.join(given)}')


def make(output: str, kind: str = "noisy", seed: int = 0) -> None:
    """Write the phantom data set.

    Args:
        output: folder to make.
        kind: dense, noisy, unlabelled, scribbles, raters or boundary.
        seed: seed of everything random.
    """
    print(f"Phantom ({kind}) in {phantom.make_phantom(output, kind, seed)}")


def corrupt(
    dataset_dir: str,
    output: str,
    *,
    kind: str = "noise",
    seed: int = 0,
    datalist: str = "dataset.json",
    **options: Any,
) -> None:
    """Write a copy of a data set with labels made worse on purpose; its JSON says what was done.

    Args:
        dataset_dir: folder of the data set.
        output: folder to make; never overwritten.
        kind: noise, scribble, unlabelled, raters or boundary.
        seed: seed of everything random.
        datalist: name of the JSON in that folder.
    """
    folder = corrupt_data(dataset_dir, output=output, kind=kind, seed=seed, datalist=datalist, **options)
    print(f"Corrupted data set in {folder}")


def convert(kind: str, source: str, output: str, **options: str) -> None:
    """Convert a published data set to the data contract.

    Args:
        kind: name of the converter.
        source: folder as it was downloaded.
        output: folder to make; never overwritten.
    """
    from .converters import CONVERTERS  # the readers of other formats are optional for everything else

    if kind not in CONVERTERS:
        raise DataError([Fault("convert", f"unknown kind {kind!r}", f"use one of {', '.join(CONVERTERS)}")])
    known = CONVERTERS[kind].options
    for name in options:
        if name not in known:
            fix = f"leave it out; it has {', '.join(f'--{name}' for name in known) or 'none'}"
            raise DataError([Fault(f"--{name}", f"is no option of {kind}", fix)])
    parameters = inspect.signature(CONVERTERS[kind].convert).parameters
    values = {name: _option_value(typed, parameters[name]) for name, typed in options.items()}
    folder = CONVERTERS[kind].convert(source, output, **values)
    print(f"Converted data set in {folder}. Next: python -m common.data check {shlex.quote(str(folder))}")


def _option_value(typed: str, option: inspect.Parameter) -> Any:
    """What was typed for a converter's option, in the option's type.

    Raises:
        DataError: when it is neither yes nor no where that is asked for; any word would be true to Python.
    """
    if isinstance(option.default, bool):
        if typed.lower() not in SWITCH:
            raise DataError([Fault(f"--{option.name}", f"is {typed!r}", "give true or false")])
        return SWITCH[typed.lower()]
    return typed if option.annotation in TEXT else DefaultParseValue(typed)


@dataclass
class _Call:
    """A command and what it was given."""

    _command: Callable[..., None]
    _given: tuple[Any, ...]
    _options: dict[str, Any]


def _postpone(command: Callable[..., None]) -> Callable[..., _Call]:
    """The command, which is only noted: Fire would run it first and then find that an argument is left over."""

    @functools.wraps(command)
    def note(*given: Any, **options: Any) -> _Call:
        return _Call(command, given, options)

    for name, parameter in inspect.signature(command).parameters.items():
        if parameter.annotation in TEXT:  # SetParseFn without a name is for options that have none in the signature
            SetParseFn(str, *([name] if parameter.kind is not parameter.VAR_KEYWORD else []))(note)
    return note


@contextmanager
def _shown_log() -> Iterator[None]:
    """Show what this package logs, the message alone and bars whole; others keep to what Python shows, warnings."""
    logger = logging.getLogger(str(__package__).rpartition(".")[0])
    before = logger.level, logger.propagate
    logger.setLevel(logging.INFO)
    logger.propagate = False  # a handler of the application that calls this would show it once more
    try:
        with logging_redirect_tqdm([logger]):
            yield
    finally:
        logger.level, logger.propagate = before


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; faults are printed in plain words and give exit status 1."""
    commands: dict[str, Callable[..., None]] = {
        "check": check,
        "plan": plan,
        "split": split,
        "phantom": make,
        "corrupt": corrupt,
        "convert": convert,
    }
    given = sys.argv[1:] if arguments is None else arguments
    if (text := help_asked(given, commands)) is not None:
        print(text)
        return
    postponed = {name: _postpone(command) for name, command in commands.items()}
    shown = {
        "serialize": lambda result: "" if isinstance(result, _Call) else result
    }  # usage, where no command is given
    call = fire.Fire(postponed, command=join_pairs(given), name=PROGRAM, **shown)
    if not isinstance(call, _Call):
        return
    try:
        with _shown_log():
            call._command(*call._given, **call._options)
    except (DataError, OSError) as error:  # OSError: a full disk, a folder that may not be written to
        print(error, file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
