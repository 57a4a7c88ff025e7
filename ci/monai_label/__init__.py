"""The bundles in a real MONAI Label server: its app, its environment, and what is asked of it over HTTP."""

from __future__ import annotations

from .app_folder import make_app

__all__ = ["make_app"]
