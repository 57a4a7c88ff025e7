"""What a run began with: the settings and the data that a resumed run must share with it."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import current_run

#: settings that leave what is learnt as it is: folders (the records tell the data), the machine, what an evaluation
#: alone reads, and how many bad steps are forgiven
FREE = frozenset(
    {
        *("bundle_root", "ckpt_dir", "output_dir", "results_dir", "dataset_dir", "datalist"),
        *("num_workers", "cache_rate", "device", "resume", "max_skipped_steps"),
        *("section", "weights", "largest_component", "preview", "dicom_seg", "calibration"),
        *("quality", "confidence", "shown"),
        # compared by themselves, as the trainer has them
        *("max_epochs", "epoch_length", "seed"),
    }
)


def run_settings(ckpt_dir: Path, records: Sequence[Any] | None) -> dict[str, Any]:
    """The checked settings of the training in a folder that decide what it learns, and its records in short.

    Args:
        ckpt_dir: folder of its weights; the settings of a run in another folder are not its own.
        records: that it is trained with; None: unknown.
    """
    run, found = current_run(), {}
    if run["ckpt_dir"] is not None and Path(run["ckpt_dir"]) == ckpt_dir:
        found = {name: value for name, value in run["settings"].items() if name not in FREE and _is_plain(value)}
    if records is not None:
        found["training data"] = f"of {len(records)} records, digest {_digest(records)[:12]}"
    return found


def told_settings(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Plain values among attributes, as they are now; a module's ``training`` is none of its settings."""
    named = {key: value for key, value in attributes.items() if not key.startswith("_") and key != "training"}
    return {key: _copied(value) for key, value in named.items() if _is_plain(value)}


def step_settings(optimizer: dict[str, Any], schedule: dict[str, Any]) -> dict[str, Any]:
    """What states of an optimiser and a schedule were told, by its name in messages."""
    found: dict[str, Any] = {}
    for number, group in enumerate(optimizer["param_groups"]):
        told = {key: value for key, value in group.items() if key not in ("params", "lr")}
        found |= {f"{key} (of the optimiser's group {number})": value for key, value in told.items()}
    told = {key: value for key, value in schedule.items() if not key.startswith("_") and key != "last_epoch"}
    return found | {f"{key} (of the learning rate's schedule)": value for key, value in told.items()}


def differences(was: dict[str, Any], now: dict[str, Any]) -> list[tuple[str, Any, Any]]:
    """What two checkpoints' runs were told otherwise, (name, was, now): all settings, or the first of what they become.

    What only one of them was told, as by another version, is no difference.
    """
    settings = [state.get("run_settings", {}) for state in (was, now)]
    return _differing(*settings) or _differing(_settings(was), _settings(now))[:1]


def _differing(was: dict[str, Any], now: dict[str, Any]) -> list[tuple[str, Any, Any]]:
    return [(name, value, now[name]) for name, value in was.items() if now.get(name, value) != value]


def _settings(state: dict[str, Any]) -> dict[str, Any]:
    """What a checkpoint's method, batches, optimiser and schedule were told, not what they have come to since."""
    found = {"processes": state["processes"], "cases_per_batch": state["cases_per_batch"], **state["method_settings"]}
    if "step_settings" in state:
        return found | state["step_settings"]
    return found | step_settings(state["optimizer"], state.get("lr_scheduler", {}))


def _is_plain(value: Any) -> bool:
    """Whether a value is a number, word, switch or null, or holds such alone: what a checkpoint takes."""
    if isinstance(value, (list, tuple)):
        return all(map(_is_plain, value))
    if isinstance(value, dict):
        return all(isinstance(key, (int, str)) for key in value) and all(map(_is_plain, value.values()))
    return value is None or type(value) in (bool, int, float, str)


def _copied(value: Any) -> Any:
    """A plain value that does not change with its owner's."""
    if isinstance(value, dict):
        return {key: _copied(item) for key, item in value.items()}
    return [_copied(item) for item in value] if isinstance(value, (list, tuple)) else value


def _digest(records: Sequence[Any]) -> str:
    """SHA-256 of records, with the sizes of their files; the same wherever the folder of the data lies."""
    files = sorted({word for word in _words(list(records)) if os.path.isabs(word)})
    try:
        root = os.path.commonpath([os.path.dirname(file) for file in files]) if files else ""
    except ValueError:  # on several drives
        root = ""

    def moved(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {str(key): moved(item) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [moved(item) for item in value]
        if not isinstance(value, str) or not os.path.isabs(value):
            return value
        place = Path(os.path.relpath(value, root) if root else value).as_posix()
        return [place, os.path.getsize(value) if os.path.isfile(value) else None]

    return hashlib.sha256(json.dumps(moved(records), sort_keys=True, default=str).encode()).hexdigest()


def _words(value: Any) -> list[str]:
    """All words in records, however deep."""
    if isinstance(value, str):
        return [value]
    items = value.values() if isinstance(value, Mapping) else value if isinstance(value, (list, tuple)) else ()
    return [word for item in items for word in _words(item)]
