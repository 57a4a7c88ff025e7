"""What a person is handed of a segmented case, beside the maps."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from ignite.engine import Engine

from .dicom_seg import DicomSegmentations
from .preview import CasePreview
from .volumes import CaseVolumes


class CaseFiles:
    """Write ``volumes.csv`` of an evaluator's cases, and where asked a picture and a DICOM SEG object of each.

    Args:
        output_dir: folder to write to.
        bundle_root: folder of the bundle.
        structures: names of the structures, see :func:`~common.data.contract.names.structure_names`.
        preview: write ``<case>/<case>_preview.png``.
        dicom_seg: write ``<case>/<case>_seg.dcm``.

    Raises:
        ExpectedError: when DICOM SEG objects are asked for, and highdicom is not installed.
    """

    def __init__(
        self,
        output_dir: str | os.PathLike[str],
        bundle_root: str | os.PathLike[str],
        structures: Mapping[int, str] | Sequence[str] | None = None,
        preview: bool = True,
        dicom_seg: bool = False,
    ) -> None:
        self.handlers: list[Any] = [CaseVolumes(output_dir, structures)]
        if preview:
            self.handlers.append(CasePreview(output_dir, structures))
        if dicom_seg:
            self.handlers.append(DicomSegmentations(output_dir, bundle_root, structures))

    def attach(self, engine: Engine) -> None:
        """Attach to an evaluator."""
        for handler in self.handlers:
            handler.attach(engine)
