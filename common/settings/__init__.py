"""Settings: what there is, what each may be, and the check of all of them before anything is touched."""

from __future__ import annotations

from .check import CheckedSettings, SettingsError
from .setting import Setting, switch
from .table import AUDIT, COMMON, VOLUMES, SettingsTable

__all__ = ["AUDIT", "COMMON", "VOLUMES", "CheckedSettings", "Setting", "SettingsError", "SettingsTable", "switch"]
