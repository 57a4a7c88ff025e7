"""In the place of torchvision: MONAI Label imports two functions of ``torchvision.utils``, for pictures in its logs."""

from __future__ import annotations

__version__ = "0"
