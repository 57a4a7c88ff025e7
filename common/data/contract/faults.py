"""What is wrong with a data set, in words that say what to do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong.

    Args:
        where: the file, or the section, record and key of the JSON.
        what: what is wrong, without a full stop.
        fix: what to do about it, without a full stop.
    """

    where: str
    what: str
    fix: str

    def __str__(self) -> str:
        return f"{self.where}: {self.what}. Fix: {self.fix}."


class DataError(ValueError):
    """All faults of a data set at once, each with its fix.

    Args:
        faults: the faults, in the order in which they are printed.
        source: the file or folder that they belong to.
    """

    def __init__(self, faults: Sequence[Fault], source: str = "") -> None:
        self.faults = list(faults)
        self.source = source
        super().__init__(self._text())

    def _text(self) -> str:
        if len(self.faults) == 1:
            return str(self.faults[0])
        head = f"{len(self.faults)} faults" + (f" in {self.source}" if self.source else "") + ":"
        return "\n".join([head, *(f"  {number}. {fault}" for number, fault in enumerate(self.faults, 1))])

    def __reduce__(self) -> tuple[type[DataError], tuple[list[Fault], str]]:
        # the default would pickle the message in place of the faults (worker processes send errors so)
        return DataError, (self.faults, self.source)
