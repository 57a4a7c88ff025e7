"""JSON in which nothing that a person wrote gets lost."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from .faults import DataError, Fault


def read_json(path: Path, fix: str) -> Any:
    """Read a JSON file; a key that stands twice in one object is a fault, as JSON would keep the last in silence.

    Args:
        path: the file.
        fix: what to do if it cannot be read, without a full stop.

    Raises:
        DataError: the file cannot be read, is no JSON, or has keys twice.
    """
    twice: list[str] = []

    def build(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        keys = [key for key, _ in pairs]
        content = dict(pairs)
        for key in dict.fromkeys(keys):
            if keys.count(key) > 1:
                record = f" of the record with image {content['image']!r}" if "image" in content else ""
                twice.append(f"the key `{key}`{record} is given {keys.count(key)} times, of which only the last counts")
        return content

    try:
        content = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=build)
    except (OSError, ValueError, RecursionError) as error:
        raise DataError([Fault(str(path), f"cannot be read as JSON ({error})", fix)]) from None
    if twice:
        raise DataError([Fault(str(path), what, "join them, or remove all but one") for what in twice])
    return content
