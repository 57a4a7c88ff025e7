"""The check of all settings, before data are opened or a folder is touched.

A config names it as ``settings: {_target_: scripts.settings.check}``, and its lists of things to run (``training``,
``run``, ...) begin with ``$@settings``. That is the first moment at which both the bundle's ``scripts`` can be imported
and nothing is done yet but ``initialize``. Network verification, export, ``check_properties`` and inference by an
annotation server resolve single ids, and so never come here.

What is checked is the merged config, with its expressions evaluated, and what was typed. MONAI hands neither to a
component, so they are taken from the calls that lead here: :class:`~monai.bundle.ConfigParser`'s, which holds the
config, and :func:`monai.bundle.run`'s, whose arguments are what was typed, on a command line or in Python (where the
config is run otherwise, nothing was typed). The values in their right types replace those of the parser, so that
``--dataset_dir 2024``, a number to the command line, is a path to all that refer to it, and ``--datalist None``, which
MONAI leaves out, is null.
"""

from __future__ import annotations

import difflib
import inspect
import json
import re
import sys
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from pydoc import locate
from types import FrameType
from typing import Any

from monai.bundle import ConfigParser
from monai.bundle.scripts import run as bundle_run
from monai.bundle.scripts import update_kwargs

from ..errors import Fault, FaultsError, remember_run, short_last_words
from .setting import BadValueError
from .table import SettingsTable

ARGUMENTS = set(inspect.signature(bundle_run).parameters) - {"override"} | {"workflow_name", "workflow_type"}
STRUCTURE = {"imports", "initialize", "finalize", "_meta_", "displayable_configs", "experiment_name", "run_name"}
BASES = ("train", "inference")  # config files that others go on top of
TRACKING = ("tracking_uri", "experiment_name", "run_name")  # what MONAI's --tracking adds to a config
SEPARATORS = re.compile("#|::")


class SettingsError(FaultsError):
    """All faults of the settings at once, each with its fix."""


class CheckedSettings(dict[str, Any]):
    """The settings of the config that is being run, checked; made by that config alone, see above.

    Args:
        table: the bundle's settings.

    Raises:
        SettingsError: with every fault and its fix.
        RuntimeError: when no config is being run.
    """

    def __init__(self, table: SettingsTable) -> None:
        super().__init__()
        short_last_words()
        parser, run_id, arguments = _what_runs(inspect.currentframe())
        if misplaced := [*_misplaced(parser, arguments)]:
            raise SettingsError(misplaced, "the config files")
        self._table, self._parser = table, parser
        self._nulls = {name for name, value in arguments.items() if value is None}
        faults = [*_strange_keys(table, parser, arguments), *self._plain(), *self._evaluated()]
        # what an overlay made useless, such as another network's stages, may be as it is
        references = _references(parser.get())
        used = {name: value for name, value in self.items() if name in references}
        faults += [] if faults else [fault for check in table.checks for fault in check(used)]
        if faults:
            raise SettingsError(faults, "the settings")
        trains = "train" in parser and "train#trainer" in json.dumps(parser.get(run_id), default=str).replace("::", "#")
        tracking = {name: parser.get_parsed_content(name) for name in TRACKING} if TRACKING[0] in parser else None
        remember_run(self["ckpt_dir"] if trains and "ckpt_dir" in self else None, dict(self), tracking)

    def _plain(self) -> Iterator[Fault]:
        for name in self._names(expressions=False):
            value = self._given(name)
            value = _as_typed(name, value) if self._table[name].kind == "path" else value
            yield from self._check(name, value)

    def _evaluated(self) -> Iterator[Fault]:
        # after the plain ones, so that expressions see those in their right types
        for name in self._names(expressions=True):
            try:
                value = self._parser.get_parsed_content(name)
            except Exception as error:
                if set(self._names(expressions=False)) <= set(self):  # else the faults of the others may be the reason
                    what = f"{self._parser[name]!r} cannot be evaluated ({_cause(error)})"
                    yield Fault(name, what, "correct the expression, or give a value")
                continue
            yield from self._check(name, value)

    def _names(self, expressions: bool) -> list[str]:
        present = [setting.name for setting in self._table if setting.name in self._parser]
        return [name for name in present if _is_evaluated(self._given(name)) == expressions]

    def _given(self, name: str) -> Any:
        return None if name in self._nulls else self._parser[name]

    def _check(self, name: str, value: Any) -> Iterator[Fault]:
        try:
            self[name] = self._table[name].check(value)
        except BadValueError as error:
            yield error.fault
            return
        self._parser.ref_resolver.resolved_content[name] = self[name]


def _what_runs(frame: FrameType | None) -> tuple[ConfigParser, str, dict[str, Any]]:
    """The parser, the id that is run and the arguments of ``monai.bundle.run``, from the calls that lead to a frame."""
    parser: ConfigParser | None = None
    while frame is not None:
        if parser is None and isinstance(frame.f_locals.get("self"), ConfigParser):
            parser = frame.f_locals["self"]
        if parser is not None and frame.f_code is bundle_run.__code__:
            given = {name: frame.f_locals[name] for name in ("args_file", "config_file", "run_id")}
            override = frame.f_locals["override"]
            arguments = update_kwargs(given.pop("args_file"), **given, **override)
            # these it leaves out, and says nothing
            arguments |= {name: None for name in override if override[name] is None and not SEPARATORS.search(name)}
            return parser, str(arguments.get("run_id", "run")), arguments
        frame = frame.f_back
    if parser is None:
        raise RuntimeError("Settings are checked by a config: settings: {_target_: scripts.settings.check}.")
    return parser, "run", {}


def _misplaced(parser: ConfigParser, arguments: Mapping[str, Any]) -> Iterator[Fault]:
    """Config files without what they go on top of, or before it; a bundle that is not where its config says."""
    files = arguments.get("config_file") or []
    paths = [Path(file) for file in (files if isinstance(files, (list, tuple)) else str(files).split(","))]
    bases = [path for path in paths if path.stem in BASES]
    if missing := [
        name for name in ("data", "network_def") if name in _references(parser.get()) and name not in parser
    ]:
        path = paths[0] if paths else Path("configs/evaluate.yaml")
        first = path.with_stem("train")
        yield Fault(
            str(path),
            f"goes on top of train.yaml, and without it there is no {' and no '.join(missing)}",
            f"--config_file \"['{first}','{path}']\"",
        )
    elif bases and paths[0] not in bases:
        right = [*bases, *(path for path in paths if path not in bases)]
        yield Fault(
            str(bases[0]),
            f"comes after {paths[0].name}, whose keys it would replace",
            f'--config_file "{[*map(str, right)]}"',
        )
    if TRACKING[0] in parser and find_spec("mlflow") is None:
        yield Fault("tracking", "needs mlflow, which is not installed", "pip install mlflow, or leave --tracking out")
    root = parser.get("bundle_root")
    if isinstance(root, str) and not _is_evaluated(root) and not Path(root).is_dir():
        yield Fault(
            "bundle_root",
            f"there is no folder {root} in {Path.cwd()}",
            f"cd {Path(__file__).resolve().parents[2]}, or export the bundle (ci/export_bundle.py): that runs anywhere",
        )


def _strange_keys(table: SettingsTable, parser: ConfigParser, arguments: Mapping[str, Any]) -> Iterator[Fault]:
    """Keys that mean nothing: typed or in a file, no setting, and used nowhere in the config."""
    files = arguments.get("config_file")
    written = ConfigParser(ConfigParser.load_config_files(files)) if files is not None else None
    typed = {key.lstrip("+") for key in arguments if key not in ARGUMENTS} if written is not None else set()
    used = _references(parser.get())
    for key in dict.fromkeys([*parser.get(), *typed]):
        first, *path = SEPARATORS.split(key)
        if path:
            if written is not None and key not in written:
                yield from _strange_place(key, parser)
            continue
        if key in table or key in used or key in STRUCTURE:
            continue
        added = written is not None and key in typed and key not in written
        if added or _is_value(parser[key]):
            known = [setting.name for setting in table if setting.name in parser]
            yield Fault(key, "there is no such setting", _nearest(key, [*known, *parser.get()]))


def _strange_place(key: str, parser: ConfigParser) -> Iterator[Fault]:
    """A key inside a block that the files do not have: fine where it is an argument of the block's target."""
    place, leaf = "::".join(SEPARATORS.split(key)[:-1]), SEPARATORS.split(key)[-1]
    block = parser[place]
    if not isinstance(block, dict):
        return
    names = [name for name in block if name != leaf and not name.startswith("_")]
    target = block.get("_target_")
    if isinstance(target, str):
        modules = parser.locator.get_component_module_name(target)
        module = modules[0] if isinstance(modules, list) else modules
        component = locate(target if module is None else f"{module}.{target}")
        if not callable(component) or leaf.startswith("_"):
            return
        parameters = inspect.signature(component).parameters
        if leaf in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
            return
        names += parameters
    yield Fault(key, f"there is no {leaf!r} in {place.replace('::', '#')}", _nearest(leaf, names))


def _nearest(key: str, names: list[str]) -> str:
    others = [name for name in dict.fromkeys(names) if name != key]
    near = difflib.get_close_matches(key, others, n=1)
    return f"did you mean {near[0]}" if near else "leave it out"


def _references(config: Any) -> set[str]:
    """Top-level keys that something in a config refers to."""
    return set(re.findall(r"[@%](\w+)", json.dumps(config, default=str)))


def _is_evaluated(value: Any) -> bool:
    """Whether a value, or an item of a list, is an expression or a reference."""
    return any(
        isinstance(item, str) and item[:1] in "$@" for item in (value if isinstance(value, list) else [value]) if item
    )


def _is_value(value: Any) -> bool:
    """Whether a value is plain: a number, word, null, or a list of such."""
    if isinstance(value, (list, tuple)):
        return all(_is_value(item) for item in value)
    return not isinstance(value, dict) and not _is_evaluated(value)


def _as_typed(name: str, value: Any) -> Any:
    """A path as it was typed: the command line makes 1000 of 1_000, and 1.5 of 1.50."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return value
    for place, word in enumerate(sys.argv):
        key, equals, text = word.partition("=")
        if key == f"--{name}":
            return text if equals else sys.argv[place + 1] if place + 1 < len(sys.argv) else value
    return value


def _cause(error: BaseException) -> BaseException:
    while error.__cause__ is not None:
        error = error.__cause__
    return error
