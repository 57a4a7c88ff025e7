"""Configs as text: keys replaced, comments kept; what a run was given on top of them.

Values are written by PyYAML, which MONAI reads them with. (ruamel.yaml writes YAML 1.2, of which PyYAML takes 1e-05 for
text and off for no.)
"""

from __future__ import annotations

import itertools
import json
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from .package import ROOT, ExportError


def set_keys(text: str, values: dict[str, Any]) -> str:
    """Replace top-level keys of a YAML text that has them; its other lines and comments stay.

    Args:
        text: content of a YAML file, top-level keys at the beginnings of lines.
        values: key to value; keys that the text lacks are left out.
    """
    lines = text.splitlines()
    starts = [i for i, line in enumerate(lines) if re.match(r"[^\s#-]", line)] + [len(lines)]
    result = lines[: starts[0]]
    for start, end in itertools.pairwise(starts):
        key = lines[start].partition(":")[0]
        if key in values:
            result += key_lines(key, values[key])
            # blank lines and comments before the next key are not the value's
            while end > start + 1 and re.match(r"#|$", lines[end - 1]):
                end -= 1
            start = end
            end = next(place for place in starts if place >= end)
        result += lines[start:end]
    return "\n".join(result) + "\n"


def prepend(text: str, key: str, items: Sequence[str]) -> str:
    """Put items at the beginning of a top-level list of a YAML text; without such a key it comes last.

    Args:
        text: content of a YAML file, each item of the list a line beginning with ``- ``, or all on the key's line.
        key: of the list.
        items: texts; those that the list has already are left out.
    """
    there = (yaml.safe_load(text) or {}).get(key, [])
    lines = [f"- {json.dumps(item) if '@' in item else item}" for item in items if item not in there]
    if not there:
        return "\n".join([text.rstrip("\n"), "", f"{key}:", *lines]) + "\n"
    own = "\n".join(f"- {item}" for item in there)
    text = re.sub(rf"(?m)^{key}: *\[.*\] *$", lambda _: f"{key}:\n{own}", text, count=1)
    return re.sub(rf"(?m)^{key}:.*$", lambda match: "\n".join([match[0], *lines]), text, count=1)


def key_lines(key: str, value: Any) -> list[str]:
    """A top-level key and its value as lines of YAML."""
    if isinstance(value, list) and not any(isinstance(item, (dict, list)) for item in value):
        return [f"{key}: {yaml.safe_dump(value, default_flow_style=True, width=10**6).strip()}"]
    return _as_lines(f"{key}:", value)


def _as_lines(key: str, block: Any) -> list[str]:
    if not isinstance(block, (dict, list)) or not block:
        value = yaml.safe_dump(block, default_flow_style=True, width=10**6).strip().removesuffix("...").strip()
        return [f"{key} {value}"]
    dumped = yaml.safe_dump(block, sort_keys=False, width=110).splitlines()
    return [key, *(f"  {line}" for line in dumped)]


def strings(content: Any) -> Iterator[str]:
    """Every string among the values of a config."""
    if isinstance(content, str):
        yield content
    elif isinstance(content, (dict, list)):
        for value in content.values() if isinstance(content, dict) else content:
            yield from strings(value)


def read_overlays(paths: Iterable[Path]) -> dict[str, Any]:
    """Top-level keys of overlays, the later before the earlier.

    Raises:
        ExportError: a key reaches into a block.
    """
    values: dict[str, Any] = {}
    for path in paths:
        overlay = yaml.safe_load(path.read_text()) or {}
        if nested := [key for key in overlay if re.search(r"#|::|^\+", key)]:
            raise ExportError(
                f"{path}: {nested[0]} reaches into a block, which an export cannot write. Fix: leave it out."
            )
        values |= overlay
    return values


def read_labels(dataset_dir: Path, datalist: str) -> dict[str, str]:
    """Classes of a data set, value to name.

    Raises:
        ExportError: its JSON is missing or at fault.
    """
    sys.path.insert(0, str(ROOT))  # not there when this file is run as a script
    from common.data.contract.dataset import load_json
    from common.data.contract.faults import DataError, Fault
    from common.data.contract.records import normalise_labels

    faults: list[Fault] = []
    try:
        labels = normalise_labels(load_json(dataset_dir, datalist).get("labels"), datalist, faults)
        if faults:
            raise DataError(faults)
    except DataError as error:
        raise ExportError(str(error)) from error
    finally:
        sys.path.remove(str(ROOT))
    return {str(value): name for value, name in labels.items()}
