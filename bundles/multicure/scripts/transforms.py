"""What inference does with the disagreement of the two networks."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

from monai.transforms import Transform


class SplitDisagreementd(Transform):
    """Move the last channel of ``pred`` to ``disagreement`` where there is one beyond the classes.

    Args:
        num_classes: background included.
    """

    def __init__(self, num_classes: int) -> None:
        self.num_classes = num_classes

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Split ``pred``."""
        d = dict(data)
        if len(d["pred"]) > self.num_classes:
            d["pred"], d["disagreement"] = d["pred"][: self.num_classes], d["pred"][self.num_classes :]
        return d
