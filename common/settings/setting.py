"""One setting: its type, its range, and what is wrong with a value."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from ..errors import Fault

Kind = Literal["whole number", "number", "switch", "word", "path", "device"]
NULL = ("null", "none")  # words for it, in any case


def switch(value: bool | str, name: str) -> bool:
    """A yes or no. ``--refine false`` comes as the word "false", which Python takes for true.

    Args:
        value: a bool, or "true" or "false" in any case.
        name: of the setting, for the message.

    Raises:
        ValueError: for anything else.

    Example:
        >>> switch("false", "refine"), switch(True, "refine")
        (False, True)
    """
    words = {"true": True, "false": False}
    if isinstance(value, bool):
        return value
    if not isinstance(value, str) or value.lower() not in words:
        raise ValueError(f"{name} must be true or false, got {value!r}.")
    return words[value.lower()]


@dataclass(frozen=True)
class Setting:
    """One top-level key of a bundle's configs.

    Args:
        name: the key.
        kind: type of the value, or of a list's items.
        meaning: one line, without a full stop.
        unit: of a number.
        least: smallest value.
        above: the value is larger than this.
        most: largest value.
        below: the value is smaller than this.
        multiple_of: the value is a multiple of this whole number.
        choices: words that may be given.
        items: length of a list; None: a single value.
        single: with ``items``: one value for all items may be given too.
        optional: null may be given.
    """

    name: str
    kind: Kind
    meaning: str
    unit: str = ""
    least: float | None = None
    above: float | None = None
    most: float | None = None
    below: float | None = None
    multiple_of: int = 1
    choices: tuple[str, ...] = ()
    items: int | None = None
    single: bool = False
    optional: bool = False

    @property
    def range(self) -> str:
        """What values there may be, in words: "at least 1", "in [0, 1)", "true or false"."""
        if self.choices:
            return _listed(self.choices)
        if self.kind == "switch":
            return "true or false"
        low = self.least if self.least is not None else self.above
        high = self.most if self.most is not None else self.below
        if low is not None and high is not None:
            words = (
                f"in {'[' if self.least is not None else '('}{low:g}, {high:g}{']' if self.most is not None else ')'}"
            )
        elif low is not None:
            words = f"{'at least' if self.least is not None else 'above'} {low:g}"
        else:
            words = ""
        multiple = f"a multiple of {self.multiple_of}" if self.multiple_of > 1 else ""
        return ", ".join(filter(None, [words, multiple]))

    @property
    def type(self) -> str:
        """The type, in words: "3 whole numbers", "number or null"."""
        words: str = self.kind
        if self.items is not None:
            words = f"{self.items} {self.kind}s" + (f", or one {self.kind}" if self.single else "")
        return f"{words} or null" if self.optional else words

    def check(self, value: Any) -> Any:
        """The value in the type that it is meant to have: a path of digits is text, the word "false" is no.

        A command line gives null as the word, which would be taken for a path.

        Raises:
            BadValueError: when the value is none that the setting may have.
        """
        if value is None or (isinstance(value, str) and value.lower() in NULL):
            if self.optional:
                return None
            raise self._fault("is null")
        return self._typed(value)

    def _typed(self, value: Any) -> Any:
        """The value, which is not null, in its type."""
        if self.items is None or (self.single and not _is_list(value)):
            return self._item(value, "is")
        if not _is_list(value):
            raise self._fault(f"is {_shown(value)}, which is no list")
        if len(value) != self.items:
            raise self._fault(f"has {len(value)} items, in {list(value)}")
        return [self._item(item, "holds") for item in value]

    def _item(self, value: Any, verb: str) -> Any:
        if self.kind in ("number", "whole number"):
            return self._number(value, verb)
        if self.kind == "switch":
            try:
                return switch(value, self.name)
            except ValueError:
                raise self._fault(f"{verb} {_shown(value)}") from None
        if self.kind == "device":
            return self._device(value)
        if self.kind == "path":
            if isinstance(value, bool) or not isinstance(value, (str, int, float, os.PathLike)) or value == "":
                raise self._fault(f"{verb} {_shown(value)}, which is no path")
            return os.fspath(value) if isinstance(value, os.PathLike) else str(value)
        if not isinstance(value, str) or (self.choices and value not in self.choices):
            raise self._fault(f"{verb} {_shown(value)}")
        return value

    def _number(self, value: Any, verb: str) -> int | float:
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            hint = ", which is text here: write it with a point, as in 1.0e-3" if _looks_like_number(value) else ""
            raise self._fault(f"{verb} {_shown(value)}{hint or ', which is no number'}")
        if not math.isfinite(value):
            raise self._fault(f"{verb} {value}, which is no finite number")
        if self.kind == "whole number" and value != int(value):
            raise self._fault(f"{verb} {value}, which is no whole number")
        outside = (
            (self.least is not None and value < self.least)
            or (self.above is not None and value <= self.above)
            or (self.most is not None and value > self.most)
            or (self.below is not None and value >= self.below)
            or (self.multiple_of > 1 and value % self.multiple_of != 0)
        )
        if outside:
            raise self._fault(f"{verb} {value}, which is not {self.range}")
        return int(value) if self.kind == "whole number" else value

    def _device(self, value: Any) -> Any:
        try:
            device = torch.device(value)
        except (RuntimeError, TypeError) as error:
            raise self._fault(f"is {_shown(value)}, which is no device") from error
        if device.type == "cuda" and (device.index or 0) >= (count := torch.cuda.device_count()):
            what = f"is {str(device)!r}, and CUDA devices that torch finds here: {count}"
            raise BadValueError(Fault(self.name, what, "give " + " or ".join(["cpu", *_cuda_devices(count)])))
        return value

    def _fault(self, what: str) -> BadValueError:
        return BadValueError(Fault(self.name, what, f"give {self._wanted()}" + (", or null" if self.optional else "")))

    def _wanted(self) -> str:
        wanted = {
            "path": "a path",
            "device": "cpu, cuda or cuda:0",
            "switch": "true or false",
            "word": _listed(self.choices) or "a word",
        }.get(self.kind, "")
        if not wanted:
            amount = f"{self.items}" if self.items is not None else "a"
            plural = "s" if self.items is not None else ""
            alone = f", or one {self.kind}" if self.single else ""
            each = ", each" if self.items is not None and self.range else ""
            wanted = f"{amount} {self.kind}{plural}{alone}{each}" + (f" {self.range}" if self.range else "")
            wanted += f" ({self.unit})" if self.unit else ""
        return wanted


class BadValueError(Exception):
    """A value that a setting may not have.

    Args:
        fault: what is wrong, and what to do.
    """

    def __init__(self, fault: Fault) -> None:
        super().__init__(str(fault))
        self.fault = fault


def _is_list(value: Any) -> bool:
    return isinstance(value, (list, tuple))


def _listed(choices: Sequence[str]) -> str:
    return ", ".join(choices[:-1]) + " or " + choices[-1] if len(choices) > 1 else "".join(choices)


def _cuda_devices(count: int) -> list[str]:
    """The first and the last."""
    return [f"cuda:{index}" for index in sorted({0, count - 1}) if count > 0]


def _looks_like_number(value: Any) -> bool:
    try:
        return isinstance(value, str) and math.isfinite(float(value))
    except ValueError:
        return False


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
