"""How the numbers of a study came about: commit, versions, device, cores and the command."""

from __future__ import annotations

import platform
import shlex
import subprocess
import sys

import monai
import torch

from ...device import device_name
from ...ops.threads import usable_cores


def made_by() -> str:
    """What a run of now is made by: commit of the working folder, versions, device, cores."""
    try:
        asked = ["git", "describe", "--always", "--dirty"]
        commit = subprocess.run(asked, capture_output=True, text=True).stdout.strip() or "unknown"
    except OSError:
        commit = "unknown"
    versions = f"Python {platform.python_version()}, torch {torch.__version__}, MONAI {monai.__version__}"
    return f"commit {commit}; {versions}; {device_name()}, {usable_cores()} cores"


def command() -> str:
    """The command line, to be typed again."""
    return shlex.join(["python", "-m", "common.evaluation.study", *sys.argv[1:]])
