"""Settings that are lists of any length."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import yaml

from .setting import Setting


@dataclass(frozen=True)
class ListSetting(Setting):
    """A list of values of one type; ``single``: one value alone may be given too.

    A command line gives words and paths in brackets as one text, ``"[a.pt, b.pt]"``, which is read as a list.

    Args:
        shortest: fewest items of the list.
    """

    shortest: int = 0

    @property
    def type(self) -> str:
        """The type, in words: "path, or list of paths"."""
        words = f"{self.kind}, or list of {self.kind}s" if self.single else f"list of {self.kind}s"
        return f"{words} or null" if self.optional else words

    def _typed(self, value: Any) -> Any:
        """The value as a list of items in their type, or as one item where that was given."""
        if isinstance(value, str) and value.startswith("[") and value.endswith("]"):
            try:
                value = yaml.safe_load(value)
            except yaml.YAMLError:
                raise self._fault(f"is {value!r}, which is no list") from None
        if self.single and not isinstance(value, (list, tuple)):
            return super()._typed(value)
        if not isinstance(value, (list, tuple)):
            raise self._fault(f"is {value!r}, which is no list")
        items = [self._item(item, "holds") for item in value]
        if len(items) < self.shortest:
            raise self._fault(f"has {len(items)} items")
        if twice := [item for place, item in enumerate(items) if item in items[:place]]:
            raise self._fault(f"holds {twice[0]!r} twice")
        return items

    def _wanted(self) -> str:
        item = "a path" if self.kind == "path" else f"a {self.kind}"
        each = f", each {self.range}" if self.range else ""
        return f"{item}, or a list of {self.kind}s" if self.single else f"a list of {self.kind}s{each}, none twice"
