"""Settings as they come from the command line."""

from __future__ import annotations


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
