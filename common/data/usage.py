"""The help of ``python -m common.data``: what Fire makes of the docstrings, and the options that depend on the kind."""

from __future__ import annotations

import inspect
import re
import shlex
import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fire import docstrings
from fire.helptext import HelpText
from fire.trace import FireTrace

PROGRAM = "python -m common.data"
_ASKED = ("-h", "--help", "--")
_WIDTH = 110


def help_asked(given: Sequence[str], commands: Mapping[str, Callable[..., Any]]) -> str | None:
    """The help that a command line asks for, or None where it asks for none.

    Args:
        given: command line without the program's name.
        commands: by name.
    """
    if not set(_ASKED[:2]) & set(given):
        return None
    words = [word for word in given if word not in _ASKED]
    if not words or words[0] not in commands:
        return _fire_help(commands, PROGRAM)
    details = {"corrupt": _defects, "convert": _converters}.get(words[0], lambda words: "")(words[1:])
    command = commands[words[0]]
    found = docstrings.parse(inspect.getdoc(command) or "")
    text = _fire_help(command, f"{PROGRAM} {words[0]}")
    if details:  # Fire repeats the summary where there is no description
        description = f"DESCRIPTION\n    {found.description or found.summary}\n"
        text = text.replace(description, f"{description}\n{textwrap.indent(details, ' ' * 4)}\n", 1)
        text = re.sub(r"(?:Additional f|F)lags are accepted\.", "and the options named above", text)
    return text


def _fire_help(component: Any, name: str) -> str:
    """Fire's page with a command that can be copied (Fire quotes its words as if they were one) and readable types."""
    text = HelpText(component, FireTrace(component, name)).replace(shlex.quote(name), name)
    text = re.sub(r"Type: Optional\['(.+?) \| None'\]", r"Type: \1", text)
    return re.sub(r"Type: '(.+?)'", r"Type: \1", text)


def _plain(text: str | None) -> str:
    return " ".join((text or "").replace("``", "").split())


def _option_lines(about: Callable[..., Any], skip: Sequence[str] = ()) -> list[str]:
    """A line an option: its name, its default where it has one, and its meaning from the docstring."""
    documented = docstrings.parse(inspect.getdoc(about) or "").args or []
    meanings = {argument.name: _plain(argument.description) for argument in documented}
    lines = []
    for name, parameter in inspect.signature(about).parameters.items():
        if name in skip:
            continue
        lines += _entry(f"--{name}{_default(parameter.default)}", meanings.get(name, ""))
    return lines


def _default(value: Any) -> str:
    """A default as it is typed; none for what is off or empty."""
    if value in (None, False, inspect.Parameter.empty):
        return ""
    return " " + (" ".join(map(str, value)) if isinstance(value, tuple) else str(value))


def _entry(head: str, text: str) -> list[str]:
    """A name and its meaning beside it, broken where the line is full."""
    lines = textwrap.wrap(text, _WIDTH - 24) or [""]
    head = f"  {head:<18}  "
    first = [f"{head}{lines[0]}".rstrip()] if len(head) <= 22 else [head.rstrip(), f"{'':22}{lines[0]}".rstrip()]
    return first + [f"{'':22}{line}" for line in lines[1:]]


def _defects(words: Sequence[str]) -> str:
    """The kinds of ``corrupt`` with their options."""
    from .simulation.defects import KINDS

    lines = ["The options of each kind, with their defaults:"]
    for name, defect in KINDS.items():
        summary = _plain(docstrings.parse(inspect.getdoc(defect) or "").summary)
        lines += ["", f"--kind {name}: {summary.rstrip('.')}"]
        lines += _entry(f"--fraction {defect.fraction:g}", "share of the training cases with a clean label.")
        lines += _option_lines(defect)
    return "\n".join(lines)


def _converters(words: Sequence[str]) -> str:
    """The converters; of the one that is named, its options."""
    from .converters import CONVERTERS  # the readers of other formats are optional for everything else

    named = next((word for word in words if word in CONVERTERS), None)
    if named is not None:
        entry = CONVERTERS[named]
        lines = _option_lines(entry.convert, skip=("source",)) or ["  none"]
        return "\n".join([f"{named}: {entry.words}. Its options:", *lines])
    lines = [f"KIND is one of these; `{PROGRAM} convert KIND --help` tells what its options mean:", ""]
    for name, entry in CONVERTERS.items():
        lines += _entry(name, "; ".join([entry.words, *(f"--{option}" for option in entry.options)]))
    return "\n".join(lines)
