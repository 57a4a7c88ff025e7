"""Data sets: the data contract with its checks, the phantom, simulated label defects, converters."""

from __future__ import annotations

from .contract.dataset import SegmentationData
from .contract.faults import DataError
from .contract.inputs import images_to_segment
from .contract.open import LazyData, open_data
from .simulation.phantom import make_phantom

__all__ = ["DataError", "LazyData", "SegmentationData", "images_to_segment", "make_phantom", "open_data"]
