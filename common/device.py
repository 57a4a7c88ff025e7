"""The machine that a run computes on, in words."""

from __future__ import annotations

import platform
from pathlib import Path

import torch


def device_name() -> str:
    """Name of the GPU that is used when there is one, else of the processor."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else processor_name()


def processor_name() -> str:
    """Model of the processor, as Linux tells it, else as Python does."""
    return _cpuinfo("model name") or platform.processor() or platform.machine()


def processor_flags() -> list[str]:
    """Instructions of the processor; empty where the system does not tell."""
    return _cpuinfo("flags", "Features").split()


def _cpuinfo(*keys: str) -> str:
    """What Linux says of the first core under one of the keys; empty where it says nothing."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(keys)), "")
