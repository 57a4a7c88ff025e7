"""A setting that was chosen, and why; how it is written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml


@dataclass(frozen=True)
class Choice:
    """A value of a setting.

    Attributes:
        value: numbers, words, and lists or mappings of them.
        reason: one line, without a full stop.
    """

    value: Any
    reason: str


def write_overlay(head: Sequence[str], choices: Mapping[str, Choice]) -> str:
    """A config overlay in YAML: one line a setting, with its reason as a comment.

    Args:
        head: comments at its beginning, a line each, whatever breaks they hold.
        choices: by key of the config.

    Returns:
        the text.

    Example:
        >>> print(write_overlay(["A plan."], {"spacing": Choice([1.0, 1.0, 2.0], "the median")}), end="")
        # A plan.
        spacing: [1.0, 1.0, 2.0] # the median
    """
    lines = [f"# {' '.join(line.split())}" for line in head]
    for key, choice in choices.items():
        # as the only item of a list, for PyYAML ends a document that is one word with dots
        value = yaml.safe_dump([choice.value], default_flow_style=True, sort_keys=False, width=10_000).strip()[1:-1]
        lines.append(f"{key}: {value} # {' '.join(choice.reason.split())}")
    return "\n".join(lines) + "\n"
