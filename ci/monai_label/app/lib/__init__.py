"""The tasks and strategies of this app."""

from __future__ import annotations
