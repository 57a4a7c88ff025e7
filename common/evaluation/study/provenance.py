"""How the numbers of a study came about: commit, versions, device, cores and the command."""

from __future__ import annotations

import platform
import shlex
import subprocess
import sys
from pathlib import Path

import monai
import torch

from ...ops.threads import usable_cores


def made_by() -> str:
    """What a run of now is made by: commit of the working folder, versions, device, cores."""
    try:
        asked = ["git", "describe", "--always", "--dirty"]
        commit = subprocess.run(asked, capture_output=True, text=True).stdout.strip() or "unknown"
    except OSError:
        commit = "unknown"
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else _processor()
    versions = f"Python {platform.python_version()}, torch {torch.__version__}, MONAI {monai.__version__}"
    return f"commit {commit}; {versions}; {device}, {usable_cores()} cores"


def command() -> str:
    """The command line, to be typed again."""
    return shlex.join(["python", "-m", "common.evaluation.study", *sys.argv[1:]])


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
