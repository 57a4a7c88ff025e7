"""In the place of pydicom-seg, which wants pydicom 2: imported by MONAI Label, used for DICOM SEG alone."""

from __future__ import annotations
