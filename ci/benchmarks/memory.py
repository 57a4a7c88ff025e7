"""Peak memory of a piece of work."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Callable
from pathlib import Path

import torch


def peak_extra_memory(run: Callable[[], object], device: torch.device | None = None) -> int:
    """Bytes that a piece of work needs at its peak beyond what was there before.

    On a CPU it is the process's resident memory, whose high-water mark Linux can reset; on CUDA what PyTorch's
    allocator handed out. Run the work once before: what libraries keep from a first run does not count then.

    Args:
        run: the work.
        device: where it runs; default: the CPU.
    """
    gc.collect()
    if device is not None and device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    ctypes.CDLL("libc.so.6").malloc_trim(0)  # else freed blocks would serve again, unseen
    Path("/proc/self/clear_refs").write_text("5")
    before = _high_water_mark()
    run()
    return _high_water_mark() - before


def _high_water_mark() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("/proc/self/status has no VmHWM: peak memory can be measured on Linux only.")
