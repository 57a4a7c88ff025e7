"""Time and memory of a bundle's training, measured in a process of its own, see ``steps.py``."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..faults import DataError, Fault

#: the first tries precisions, fills caches and starts workers; the second still finds them cold
UNTIMED_STEPS = 2


@dataclass(frozen=True)
class Measurement:
    """What a probe measured.

    Attributes:
        start: seconds from the start of the process to the first file read.
        load: seconds to read and prepare a case.
        step: seconds of a training step, its data included; the median.
        validate: seconds to validate a case.
        save: seconds at the end of an epoch without its validation.
        base: bytes before the first step.
        memory: bytes at the peak: of the process, on CUDA of the device.
        cached: bytes that a prepared case keeps in the process's memory.
        cuda: whether it ran on CUDA.
    """

    start: float
    load: float
    step: float
    validate: float
    save: float
    base: int
    memory: int
    cached: int
    cuda: bool


class NoRoomError(Exception):
    """A probe needed more memory than there is."""


@dataclass(frozen=True)
class Probe:
    """Measures settings of a bundle on some records of a data set.

    Attributes:
        root: folder of the bundle.
        training: records to train on; some of each kind that the bundle draws.
        validation: records to validate.
        settings: overrides that hold whatever is measured, such as ``dataset_dir``.
    """

    root: Path
    training: Sequence[dict[str, Any]]
    validation: Sequence[dict[str, Any]]
    settings: Mapping[str, Any]

    def __call__(self, settings: Mapping[str, Any], steps: int) -> Measurement:
        """Train for so many timed steps with these settings, in a process of its own.

        Raises:
            NoRoomError: there was not enough memory.
            DataError: the training failed otherwise; the message has the end of its log.
        """
        with tempfile.TemporaryDirectory() as folder:
            place = Path(folder)
            overrides = {
                **self.settings,
                **settings,
                "ckpt_dir": str(place / "models"),
                "output_dir": str(place / "eval"),
                "max_epochs": 1,
                "epoch_length": UNTIMED_STEPS + steps,
                "val_interval": 1,
                "resume": False,
                "train#dataset#data": list(self.training),
                "validate#dataset#data": list(self.validation),
            }
            result, log = place / "result.json", place / "log.txt"
            specification = place / "specification.json"
            content = {"root": str(self.root), "overrides": overrides, "result": str(result), "began": time.time()}
            specification.write_text(json.dumps(content), encoding="utf-8")
            command = [sys.executable, "-m", f"{__package__}.steps", str(specification)]
            with log.open("w") as file:
                status = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT, check=False).returncode
            text = log.read_text(errors="replace")
            if result.is_file():
                return Measurement(**json.loads(result.read_text(encoding="utf-8")))
        if status == -9 or any(word in text for word in ("out of memory", "not enough memory", "MemoryError")):
            raise NoRoomError
        last = " | ".join(line.strip() for line in text.strip().splitlines()[-5:])
        what = f"a few training steps with {dict(settings)} failed: {last}"
        raise DataError([Fault(str(self.root), what, "run the bundle's training by itself to see more")])


def own_peak() -> int:
    """Resident bytes of this process at its peak so far; Linux counts in kilobytes, macOS in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
