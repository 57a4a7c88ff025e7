"""How often 95% intervals of a mean hold the true mean: those of the reports against plain bootstrap percentiles.

``python -m ci.benchmarks.intervals`` prints a table over numbers of cases, for values as skewed as Dice, distances, and
Dice where some structures are missed.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import fire
import numpy as np
from numpy.typing import NDArray

from common.evaluation.metrics import bootstrap_interval

Draw = Callable[[np.random.Generator, int], NDArray[np.float64]]
#: what is drawn, and its true mean
KINDS: dict[str, tuple[Draw, float]] = {
    "Dice: Beta(18, 2)": (lambda rng, n: rng.beta(18, 2, n), 0.9),
    "95HD: lognormal(1.5, 0.8)": (lambda rng, n: rng.lognormal(1.5, 0.8, n), float(np.exp(1.5 + 0.8**2 / 2))),
    "Dice, 5% missed": (lambda rng, n: rng.beta(18, 2, n) * (rng.random(n) > 0.05), 0.9 * 0.95),
}


def percentile_interval(values: NDArray[np.float64], resamples: int = 2000) -> tuple[float, float]:
    """The plain percentiles of resampled means."""
    draws = np.random.default_rng(0).integers(0, len(values), (resamples, len(values)))
    low, high = np.quantile(values[draws].mean(axis=1), (0.025, 0.975))
    return float(low), float(high)


def main(repeats: int = 400, cases: tuple[int, ...] = (5, 10, 20, 40)) -> None:
    """Print the table.

    Args:
        repeats: data sets drawn of each kind and size.
        cases: numbers of cases in a data set.
    """
    ways: dict[str, Callable[..., tuple[float, float]]] = {"BCa": bootstrap_interval, "percentile": percentile_interval}
    print(f"{'values':<28}{'cases':>6}" + "".join(f"{f'{way}: held':>18}{'width':>9}{'ms':>7}" for way in ways))
    rng = np.random.default_rng(0)
    for kind, (draw, mean) in KINDS.items():
        for count in cases:
            sets = [draw(rng, count) for _ in range(repeats)]
            line = f"{kind:<28}{count:>6}"
            for interval in ways.values():
                start = time.process_time()
                ends = np.array([interval(values) for values in sets])
                spent = (time.process_time() - start) / repeats * 1000
                held = ((ends[:, 0] <= mean) & (mean <= ends[:, 1])).mean()
                line += f"{held:>18.3f}{(ends[:, 1] - ends[:, 0]).mean():>9.4f}{spent:>7.1f}"
            print(line, flush=True)


if __name__ == "__main__":
    fire.Fire(main)
