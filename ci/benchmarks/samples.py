"""Time the measures of sets: 16 samples and 7 raters of 256 x 256, 4 classes, against loops over pairs.

``python -m ci.benchmarks.samples`` prints a table; one thread.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import torch

from common.evaluation.samples import set_measures

CLASSES, SAMPLES, RATERS, SIZE = 4, 16, 7, 256


def _distance(first: np.ndarray, second: np.ndarray) -> float:
    union = int((first | second).sum())
    return 1.0 - int((first & second).sum()) / union if union else 0.0


def _loops(samples: np.ndarray, raters: np.ndarray) -> float:
    """Generalised energy distance alone, pair by pair."""
    masks = samples > 0.5
    cross = np.mean([_distance(a, b) for a in masks for b in raters])
    within = [np.mean([_distance(a, b) for a in group for b in group]) for group in (masks, raters)]
    return float(2 * cross - within[0] - within[1])


def _seconds(run: Callable[[], object], repeats: int) -> float:
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return min(times)


def main() -> None:
    """Print the table."""
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    samples = rng.random((CLASSES, SAMPLES, SIZE, SIZE), dtype=np.float32)
    raters = rng.random((CLASSES, RATERS, SIZE, SIZE)) > 0.5
    shipped = _seconds(lambda: [set_measures(samples[c], raters[c]) for c in range(CLASSES)], 10)
    loops = _seconds(lambda: [_loops(samples[c], raters[c]) for c in range(CLASSES)], 2)
    print(f"{SAMPLES} samples, {RATERS} raters, {SIZE} x {SIZE}, {CLASSES} classes, one thread; best of 10 and of 2")
    print(f"all measures         {1000 * shipped:8.1f} ms")
    print(f"GED alone, by loops  {1000 * loops:8.1f} ms")


if __name__ == "__main__":
    main()
