"""AffinityUMamba: the method, its losses and its network."""

from __future__ import annotations
