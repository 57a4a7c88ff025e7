"""DICOM series for tests, written slice by slice from a volume and its affine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

# columns run to the left, rows to the back and down, slices to the head and sheared, as of a tilted gantry
SLANTED = np.array([[-0.8, 0.0, 0.0, 40.0], [0.0, -0.7, 0.42, 30.0], [0.0, -0.2, 2.4, -100.0], [0.0, 0.0, 0.0, 1.0]])


def write_series(
    folder: Path,
    volume: np.ndarray,
    affine: np.ndarray = SLANTED,
    uid: str = "1.2.3",
    ending: str = ".dcm",
    **tags: Any,
) -> None:
    """Write a volume (columns, rows, slices) of whole numbers, the files named against the slices' order.

    Args:
        folder: to write to.
        volume: from -1024 on.
        affine: (4, 4) voxel to mm, right-anterior-superior.
        uid: of the series.
        ending: of the files' names.
        tags: further attributes; None leaves one out.
    """
    folder.mkdir(parents=True, exist_ok=True)
    in_lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine
    sizes = np.linalg.norm(in_lps[:3, :2], axis=0)
    for number in range(volume.shape[2]):
        meta = FileMetaDataset()
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        meta.MediaStorageSOPClassUID = CTImageStorage
        meta.MediaStorageSOPInstanceUID = pydicom.uid.UID(f"{uid}.{number + 1}")
        path = folder / f"IM{volume.shape[2] - number:03d}{ending}"
        item = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
        item.SOPClassUID, item.SOPInstanceUID = CTImageStorage, meta.MediaStorageSOPInstanceUID
        item.StudyInstanceUID, item.SeriesInstanceUID, item.FrameOfReferenceUID = "1.2", uid, "1.5"
        item.PatientID, item.PatientName, item.PatientBirthDate, item.PatientSex = "P1", "A^B", "", ""
        item.StudyID, item.StudyDate, item.StudyTime, item.AccessionNumber = "1", "20200101", "120000", ""
        item.ReferringPhysicianName, item.PositionReferenceIndicator = "", ""
        item.Modality, item.SeriesNumber, item.InstanceNumber = "CT", 4, number + 1
        item.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
        item.Rows, item.Columns = volume.shape[1], volume.shape[0]
        item.PixelSpacing = [float(sizes[1]), float(sizes[0])]  # between rows, between columns
        item.SliceThickness = 2.0
        directions = in_lps[:3, :2] / sizes
        item.ImageOrientationPatient = [float(each) for each in directions.T.ravel()]
        item.ImagePositionPatient = [float(each) for each in (in_lps @ [0, 0, number, 1])[:3]]
        item.SamplesPerPixel, item.PhotometricInterpretation = 1, "MONOCHROME2"
        item.BitsAllocated, item.BitsStored, item.HighBit, item.PixelRepresentation = 16, 16, 15, 0
        item.RescaleSlope, item.RescaleIntercept = 1, -1024
        item.PixelData = (volume[:, :, number].T + 1024).astype("<u2").tobytes()
        for name, value in tags.items():
            delattr(item, name) if value is None else setattr(item, name, value)
        item.save_as(path, enforce_file_format=True)
