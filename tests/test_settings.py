"""Settings from the command line, and the last words of a program that fails."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from common.settings import switch


@pytest.mark.parametrize(("given", "meant"), [(True, True), ("true", True), ("False", False), ("false", False)])
def test_words_for_yes_and_no(given: bool | str, meant: bool) -> None:
    assert switch(given, "refine") is meant


@pytest.mark.parametrize("given", ["no", "", 1, None])
def test_other_words_are_refused(given: Any) -> None:
    with pytest.raises(ValueError, match="refine must be true or false, got"):
        switch(given, "refine")


def test_the_cause_is_told_last() -> None:
    program = """
from common.errors import tell_the_cause_last
tell_the_cause_last()
try:
    raise ValueError("what the user can mend")
except ValueError as error:
    raise RuntimeError("Failed to evaluate") from error
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "The cause: ValueError: what the user can mend"
