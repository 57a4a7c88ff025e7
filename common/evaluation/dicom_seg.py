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
from ..data.contract.output import fault
from ..data.loading.dicom import read_dicom, require_pydicom, source_files
from ..errors import ExpectedError
from ..files import atomic_path

_SERIES_NUMBER = 1000  # beyond those that scanners give
# by which an object refers to its slices; nothing can stand in for them
_NEEDED = ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "FrameOfReferenceUID")
_SHARED = ("StudyInstanceUID", "FrameOfReferenceUID")
# may be empty, but must be there: anonymisation often takes them out
_MAY_BE_EMPTY = (
    "PatientID",
    "PatientName",
    "PatientBirthDate",
    "PatientSex",
    "StudyID",
    "StudyDate",
    "StudyTime",
    "AccessionNumber",
)


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


def source_headers(files: Sequence[Path]) -> list[Any]:
    """The headers of a series, such that an object can be made of them; the files stay as they are.

    Of the first, which the object copies patient and study from, attributes that are lacking and may be empty are
    empty, a thickness that is not known is the distance of the slices (of a single one 1 mm, as where it was read),
    and texts are in UTF-8, which has the letters of all names of structures.

    Args:
        files: of the series, in the order of the slices.

    Raises:
        DataError: when a file cannot be read, or lacks what nothing can stand in for.
    """
    headers = [read_dicom(path, pixels=False) for path in files]
    for path, header in zip(files, headers, strict=True):
        if lacking := [name for name in _NEEDED if not header.get(name)]:
            what = f"lacks {', '.join(lacking)}, which a DICOM SEG object needs"
            raise fault(path, what, "anonymise the series so that it keeps this, or give dicom_seg false")
        if differing := [name for name in _SHARED if header.get(name) != headers[0].get(name)]:
            what = f"has another {', '.join(differing)} than {files[0].name}"
            raise fault(path, what, "keep the slices of one scan in the folder, or give dicom_seg false")
    first = headers[0]
    for name in _MAY_BE_EMPTY:
        if name not in first:
            setattr(first, name, None)
    if not first.get("SliceThickness"):  # highdicom reads no object without
        first.SliceThickness = _slice_distance(headers)
    if not first.get("Modality"):
        first.Modality = "OT"  # other
    first.decode()  # what is not decoded is written as it was read
    first.SpecificCharacterSet = "ISO_IR 192"
    return headers


def _slice_distance(headers: Sequence[Any]) -> float:
    first, last = headers[0], headers[-1]
    normal = np.cross(*np.reshape(np.asarray(first.ImageOrientationPatient, dtype=float), (2, 3)))
    across = np.subtract(last.ImagePositionPatient, first.ImagePositionPatient) @ normal
    return round(abs(float(across)) / (len(headers) - 1), 6) if len(headers) > 1 else 1.0


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
        DataError: when the series lacks something, see :func:`source_headers`.
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
        source_images=source_headers(files),
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
        """Refuse images of which no object can be made before the first is segmented."""
        faults: list[Fault] = []
        for record in engine.data_loader.dataset.data:
            try:
                self._try(record["image"])
            except DataError as error:
                faults += error.faults
        if faults:
            raise DataError(faults)

    def _try(self, image: str | list[str]) -> None:
        """Make an object of an image's first slice, in which nothing is found."""
        files = [] if isinstance(image, list) else source_files(Path(image))
        if not files:
            what = "is of no DICOM series, which a DICOM SEG object needs"
            raise fault(str(image), what, "give the folder of the series as dataset_dir, or dicom_seg false")
        first = source_headers(files)[0]
        nothing = np.zeros((first.Columns, first.Rows, 1), np.uint8)
        try:
            self._object(nothing, files[:1], classes=2)
        # highdicom takes no values that DICOM forbids
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            what = f"no DICOM SEG object can be laid over it ({error})"
            raise fault(files[0], what, "correct this in the series, or give dicom_seg false") from error

    def _object(self, prediction: np.ndarray, files: Sequence[Path], classes: int) -> Any:
        labels = structure_names(self.structures, classes)
        return segmentation_object(prediction, files, labels, self.algorithm, self.version)

    def _case(self, engine: Engine) -> None:
        for output in engine.state.output:
            image = str(output["pred"].meta["filename_or_obj"])
            prediction = output["pred"][0].cpu().numpy()
            made = self._object(prediction, source_files(Path(image)), classes=len(output["probabilities"]))
            name = case_name(image)
            with atomic_path(self.folder / name / f"{name}_seg.dcm") as temporary:
                made.save_as(temporary)
