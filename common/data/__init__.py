"""Data sets: the data contract with its checks, the phantom, simulated label defects, converters."""

from __future__ import annotations

from .contract import DataError, LazyData, SegmentationData, open_data
from .inputs import images_to_segment
from .phantom import make_phantom

__all__ = ["DataError", "LazyData", "SegmentationData", "images_to_segment", "make_phantom", "open_data"]
