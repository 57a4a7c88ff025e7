"""Settings: what there is, what each may be, and the check of all of them before anything is touched."""

from __future__ import annotations

from .check import CheckedSettings, SettingsError
from .lists import ListSetting
from .setting import Setting, switch
from .table import AUDIT, COMMON, MIRRORED_SLICES, VOLUMES, SettingsTable

__all__ = [
    "AUDIT",
    "COMMON",
    "MIRRORED_SLICES",
    "VOLUMES",
    "CheckedSettings",
    "ListSetting",
    "Setting",
    "SettingsError",
    "SettingsTable",
    "switch",
]
