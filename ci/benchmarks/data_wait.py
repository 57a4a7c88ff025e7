"""Measure which share of its time a training waits for data.

``python -m ci.benchmarks.data_wait`` trains a bundle for some steps and prints how long fetching batches took.
"""

from __future__ import annotations

import sys
import tempfile
import time

import fire
from ignite.engine import Events
from monai.bundle import ConfigParser


def main(
    config: str = "bundles/alc/configs/train.yaml",
    overlay: str | None = None,
    dataset_dir: str | None = None,
    steps: int = 20,
) -> None:
    """Print the share.

    Args:
        config: training config of a bundle.
        overlay: config that goes on top.
        dataset_dir: data set; None: the phantom.
        steps: steps to train; the first is not counted.
    """
    parser = ConfigParser()
    parser.read_config([config] if overlay is None else [config, overlay])
    sys.path.insert(0, parser["bundle_root"])  # as `python -m monai.bundle run` does
    with tempfile.TemporaryDirectory() as folder:
        values = {"dataset_dir": dataset_dir, "max_epochs": 1, "epoch_length": steps, "val_interval": 2}
        for key, value in {**values, "ckpt_dir": folder, "output_dir": folder}.items():
            parser[key] = value
        trainer = parser.get_parsed_content("train#trainer")
        marks: list[tuple[str, float]] = []
        for event in (Events.GET_BATCH_STARTED, Events.GET_BATCH_COMPLETED, Events.ITERATION_COMPLETED):
            trainer.add_event_handler(event, lambda _, event=event: marks.append((event.name, time.perf_counter())))
        trainer.run()
    waiting, total = _waiting(marks)
    print(f"{steps - 1} steps: {total:.2f} s, of which waiting for data {waiting:.2f} s: {100 * waiting / total:.1f}%")


def _waiting(marks: list[tuple[str, float]]) -> tuple[float, float]:
    """Seconds waited and seconds in all, from the end of the first iteration on."""
    ends = [moment for name, moment in marks if name == "ITERATION_COMPLETED"]
    begun = [moment for name, moment in marks if name == "GET_BATCH_STARTED" and ends[0] <= moment <= ends[-1]]
    got = [moment for name, moment in marks if name == "GET_BATCH_COMPLETED" and moment > ends[0]]
    return sum(g - b for b, g in zip(begun, got, strict=False)), ends[-1] - ends[0]


if __name__ == "__main__":
    fire.Fire(main)
