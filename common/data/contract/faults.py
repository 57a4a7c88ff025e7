"""What is wrong with a data set, in words that say what to do."""

from __future__ import annotations

from ...errors import Fault, FaultsError

__all__ = ["DataError", "Fault"]


class DataError(FaultsError):
    """All faults of a data set at once, each with its fix."""
