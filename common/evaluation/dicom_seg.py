"""Segmentations of DICOM series as DICOM SEG objects, which viewers and archives lay over the series."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ignite.engine import Engine, Events

from ..data.contract.faults import DataError, Fault
from ..data.contract.names import case_name, structure_names
from ..data.loading.dicom import require_pydicom, source_files
from ..errors import ExpectedError
from ..files import atomic_path

_SERIES_NUMBER = 1000  # beyond those that scanners give


def require_highdicom() -> Any:
    """The package highdicom, which nothing but DICOM SEG needs.

    Raises:
        ExpectedError: when it is not installed.
    """
    try:
        import highdicom
    except ImportError:
        what = "dicom_seg: the package highdicom is not installed"
        raise ExpectedError(f"{what}. Fix: pip install highdicom, or give dicom_seg false.") from None
    logging.getLogger("highdicom").setLevel(logging.WARNING)  # it tells of every attribute that it copies
    return highdicom


def segmentation_object(
    prediction: np.ndarray, files: Sequence[Path], labels: Mapping[int, str], algorithm: str, version: str
) -> Any:
    """A DICOM SEG object: one binary segment a structure, on the slices of its series.

    Args:
        prediction: class numbers (columns, rows, slices).
        files: of the series, in the order of the slices.
        labels: names of the structures by class number; they are the segments' labels, coded in a scheme of our own.
        algorithm: what segmented.
        version: of that.

    Returns:
        a ``highdicom.seg.Segmentation``; patient, study and frame of reference are the series'.

    Raises:
        ExpectedError: when highdicom is not installed.
        ValueError: when there are not as many files as slices.
    """
    highdicom, pydicom = require_highdicom(), require_pydicom()
    if len(files) != prediction.shape[2]:
        raise ValueError(f"{len(files)} DICOM files for {prediction.shape[2]} slices.")
    codes = pydicom.sr.codedict.codes
    made_by = highdicom.AlgorithmIdentificationSequence(
        name=algorithm, version=version, family=codes.cid7162.ArtificialIntelligence
    )
    ordered = sorted(labels)
    segments = [
        highdicom.seg.SegmentDescription(
            segment_number=number,
            segment_label=labels[value][:64],  # as long as a label may be
            segmented_property_category=codes.SCT.AnatomicalStructure,
            segmented_property_type=highdicom.sr.CodedConcept(f"class-{value}", "99SEGMENTS", labels[value][:64]),
            algorithm_type=highdicom.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
            algorithm_identification=made_by,
        )
        for number, value in enumerate(ordered, start=1)
    ]
    masks = np.stack([prediction == value for value in ordered], axis=-1)  # (columns, rows, slices, segments)
    return highdicom.seg.Segmentation(
        source_images=[pydicom.dcmread(path) for path in files],
        pixel_array=masks.transpose(2, 1, 0, 3).astype(np.uint8),
        segmentation_type=highdicom.seg.SegmentationTypeValues.BINARY,
        segment_descriptions=segments,
        series_instance_uid=highdicom.UID(),
        series_number=_SERIES_NUMBER,
        sop_instance_uid=highdicom.UID(),
        instance_number=1,
        manufacturer="imperfect-labels",
        manufacturer_model_name=algorithm[:64],
        software_versions=version,
        device_serial_number="none",
        series_description="Segmentation, for research only",
        omit_empty_frames=bool(masks.any()),  # an object without frames is none
    )


class DicomSegmentations:
    """Write ``<case>/<case>_seg.dcm`` of each case of an evaluator, see :func:`segmentation_object`.

    Args:
        output_dir: folder to write to.
        bundle_root: folder of the bundle, whose metadata name what segmented.
        structures: names of the structures, see :func:`~common.data.contract.names.structure_names`.

    Raises:
        ExpectedError: when highdicom is not installed.
    """

    def __init__(
        self,
        output_dir: str | os.PathLike[str],
        bundle_root: str | os.PathLike[str],
        structures: Mapping[int, str] | Sequence[str] | None = None,
    ) -> None:
        require_highdicom()
        self.folder = Path(output_dir)
        self.structures = structures
        metadata = json.loads((Path(bundle_root) / "configs" / "metadata.json").read_text())
        self.algorithm, self.version = str(metadata["name"]), str(metadata["version"])

    def attach(self, engine: Engine) -> None:
        """Attach to an evaluator."""
        engine.add_event_handler(Events.STARTED, self._started)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._case)

    def _started(self, engine: Engine) -> None:
        """Refuse images that are of no series before the first is segmented."""
        images = [record["image"] for record in engine.data_loader.dataset.data]
        others = [image for image in images if isinstance(image, list) or not source_files(Path(image))]
        if others:
            what = "is of no DICOM series, which a DICOM SEG object needs"
            fix = "give the folder of the series as dataset_dir, or dicom_seg false"
            raise DataError([Fault(str(image), what, fix) for image in others])

    def _case(self, engine: Engine) -> None:
        for output in engine.state.output:
            image = str(output["pred"].meta["filename_or_obj"])
            labels = structure_names(self.structures, len(output["probabilities"]))
            prediction = output["pred"][0].cpu().numpy()
            made = segmentation_object(prediction, source_files(Path(image)), labels, self.algorithm, self.version)
            name = case_name(image)
            with atomic_path(self.folder / name / f"{name}_seg.dcm") as temporary:
                made.save_as(temporary)
