"""What a person is handed of a segmented case, beside the maps."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from ignite.engine import Engine

from .preview import CasePreview
from .volumes import CaseVolumes


class CaseFiles:
    """Write ``volumes.csv``, and where asked a picture of each case, of the cases of an evaluator.

    Args:
        output_dir: folder to write to.
        structures: names of the structures, see :func:`~common.data.contract.names.structure_names`.
        preview: write ``<case>/<case>_preview.png``.
        dicom_seg: write ``<case>/<case>_seg.dcm``.
    """

    def __init__(
        self,
        output_dir: str | os.PathLike[str],
        structures: Mapping[int, str] | Sequence[str] | None = None,
        preview: bool = True,
        dicom_seg: bool = False,
    ) -> None:
        self.handlers: list[Any] = [CaseVolumes(output_dir, structures)]
        if preview:
            self.handlers.append(CasePreview(output_dir, structures))

    def attach(self, engine: Engine) -> None:
        """Attach to an evaluator."""
        for handler in self.handlers:
            handler.attach(engine)
