"""The last words of a program that fails."""

from __future__ import annotations

import sys
import traceback
from types import TracebackType


def tell_the_cause_last() -> None:
    """Let an error that ends the program be followed by the one that caused it, which says what to do.

    MONAI's config parser wraps what goes wrong in errors of its own, and those come last on the screen.
    """
    if sys.excepthook is sys.__excepthook__:
        sys.excepthook = _show


def _show(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    sys.__excepthook__(kind, error, trace)
    cause = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    if cause is not error:
        print("\nThe cause: " + "".join(traceback.format_exception_only(cause)).strip(), file=sys.stderr)
