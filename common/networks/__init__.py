"""Networks that at least two bundles use."""

from __future__ import annotations

from .build import build_network
from .vnet import VNet

__all__ = ["VNet", "build_network"]
