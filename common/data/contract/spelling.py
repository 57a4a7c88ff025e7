"""Words of a data set's JSON: misspelt keys, and names that a config would take for something else."""

from __future__ import annotations

import difflib
from collections.abc import Collection

#: what a name may not begin with: MONAI's configs evaluate `$...`, look up `@...` and read in `%...`
CONFIG_SIGNS = ("$", "@", "%")
SIMILAR = 0.8  # of difflib's ratio: `lable` and `label` come to exactly that


def nearest(word: str, known: Collection[str]) -> str | None:
    """The known word of which a word is probably a misspelling.

    A known word with two or more letters more behind it is a word of its own: ``patient_id``, ``folder``.

    Args:
        word: what was written.
        known: the words it may be.

    Returns:
        the nearest of them, None if none is near.
    """
    for near in difflib.get_close_matches(word.lower().replace("-", "_"), known, n=1, cutoff=SIMILAR):
        if not (word.startswith(near) and len(word) > len(near) + 1):
            return near
    return None


def config_sign(name: str) -> str | None:
    """The sign by which a config would take a name for code, a reference or a file; None for a plain name.

    Names of a data set get into configs and metadata of exported bundles, whose readers would run such code.
    """
    begin = name.lstrip()[:1]
    return begin if begin in CONFIG_SIGNS else None
