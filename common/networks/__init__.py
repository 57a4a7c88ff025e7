"""Networks that at least two bundles use."""

from __future__ import annotations

from .vnet import VNet

__all__ = ["VNet"]
