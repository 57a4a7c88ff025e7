"""Time and memory of a bundle's training, measured: a few of its steps, a validation and its files, in a process.

``python -m common.data.contract.plan.probe SPECIFICATION`` is that process. It runs the bundle's own train.yaml, with a
few records in the place of all, as ``monai.bundle run`` does, and so with all that takes time and memory there.
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

UNTIMED_STEPS = 2  # the first tries precisions, fills caches and starts workers; the second still finds them cold


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
            RuntimeError: the training failed otherwise; the message has the end of its log.
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
            command = [sys.executable, "-m", __name__, str(specification)]
            with log.open("w") as file:
                status = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT, check=False).returncode
            text = log.read_text(errors="replace")
            if result.is_file():
                return Measurement(**json.loads(result.read_text(encoding="utf-8")))
        if status == -9 or any(word in text for word in ("out of memory", "not enough memory", "MemoryError")):
            raise NoRoomError
        raise RuntimeError(f"a training step with {dict(settings)} failed:\n{text[-2000:]}")


def _measure(root: str, overrides: dict[str, Any], began: float) -> Measurement:
    sys.path.insert(0, root)  # its package `scripts`
    import torch
    import torch.utils.tensorboard  # noqa: F401  # a run's log needs it, and memory for it
    from ignite.engine import Events
    from monai.bundle import ConfigParser

    parser = ConfigParser(ConfigParser.load_config_files([str(Path(root) / "configs" / "train.yaml")]))
    parser.update(overrides)
    parser.parse()
    for part in ("initialize", "settings"):
        parser.get_parsed_content(part)
    loading = time.perf_counter()
    datasets = [parser.get_parsed_content(f"{part}#dataset") for part in ("train", "validate")]
    loading = time.perf_counter() - loading
    cases = sum(len(dataset) for dataset in datasets)
    trainer = parser.get_parsed_content("train#trainer")
    validator = parser.get_parsed_content("validate#evaluator")
    moments: dict[str, list[float]] = {"step": [], "validate": [], "end": []}
    device = torch.device(trainer.state.device)

    def note(engine: Any, name: str) -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        moments[name].append(time.perf_counter())

    trainer.add_event_handler(Events.STARTED, note, "step")
    trainer.add_event_handler(Events.ITERATION_COMPLETED, note, "step")
    validator.add_event_handler(Events.STARTED, note, "validate")
    validator.add_event_handler(Events.COMPLETED, note, "validate")
    trainer.add_event_handler(Events.COMPLETED, note, "end")
    building = time.time() - began
    base = torch.cuda.memory_reserved(device) if device.type == "cuda" else own_peak()
    trainer.run()
    steps = [after - before for before, after in zip(moments["step"], moments["step"][1:], strict=False)]
    validation = moments["validate"][-1] - moments["validate"][0]
    return Measurement(
        start=building - loading + sum(steps[:UNTIMED_STEPS]),
        load=loading / cases,
        step=statistics.median(steps[UNTIMED_STEPS:]),
        validate=validation / len(datasets[1]),
        save=max(0.0, moments["end"][-1] - moments["step"][-1] - validation),
        base=base,
        memory=torch.cuda.max_memory_reserved(device) if device.type == "cuda" else own_peak(),
        cached=sum(_bytes(item) for dataset in datasets for item in dataset._cache) // cases,
        cuda=device.type == "cuda",
    )


def _bytes(item: Any) -> int:
    values = item.values() if isinstance(item, Mapping) else item if isinstance(item, (list, tuple)) else ()
    return int(getattr(item, "nbytes", 0)) + sum(_bytes(value) for value in values)


def own_peak() -> int:
    """Resident bytes of this process at its peak so far; Linux counts in kilobytes, macOS in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def main() -> None:
    """Measure what the specification says, and write the result."""
    content = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    os.environ.setdefault("TQDM_DISABLE", "1")
    measured = _measure(content["root"], content["overrides"], content["began"])
    Path(content["result"]).write_text(json.dumps(asdict(measured)), encoding="utf-8")


if __name__ == "__main__":
    main()
