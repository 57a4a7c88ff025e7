"""A few steps of a bundle's training, a validation and what is written after it, timed: the process of a probe.

``python -m common.data.contract.plan.steps SPECIFICATION`` runs the bundle's own train.yaml, with a few records in the
place of all, as ``monai.bundle run`` does, and so with all that takes time and memory there.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from .probe import UNTIMED_STEPS, Measurement, own_peak


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


def main() -> None:
    """Measure what the specification says, and write the result."""
    content = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    measured = _measure(content["root"], content["overrides"], content["began"])
    Path(content["result"]).write_text(json.dumps(asdict(measured)), encoding="utf-8")


if __name__ == "__main__":
    main()
