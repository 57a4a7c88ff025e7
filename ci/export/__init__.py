"""The parts of ``ci/export_bundle.py``: a stand-alone copy of a bundle."""

from __future__ import annotations

from .command import export_bundle, main
from .package import ROOT, ExportError

__all__ = ["ROOT", "ExportError", "export_bundle", "main"]
