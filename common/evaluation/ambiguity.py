"""Does a set of answers know where raters disagree? Entropy of the answers against the raters, one row a case."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import spearmanr

from .metrics.cases import write_rows

AMBIGUITY_FILE = "ambiguity.csv"
AMBIGUITY_COLUMNS = (
    *("case", "samples", "raters", "entropy", "rater_disagreement"),
    *("rater_correlation", "ambiguity_correlation"),
)
_DIGITS = 2  # of probabilities that are ranked: what is below is certain, and its order is chance


def entropy(probabilities: ArrayLike) -> NDArray[np.float64]:
    """Entropy divided by log C: (*S) in [0, 1] from probabilities (C, *S)."""
    values = np.asarray(probabilities, dtype=np.float64)
    terms = values * np.log(values, out=np.zeros_like(values), where=values > 0)
    return np.abs(terms.sum(axis=0)) / np.log(len(values))


def shares(classes: ArrayLike, num_classes: int) -> NDArray[np.float64]:
    """Share of the raters who chose each class: (C, *S) from class numbers (R, *S)."""
    raters = np.asarray(classes)
    return np.stack([(raters == number).mean(axis=0) for number in range(num_classes)])


def pairs_that_differ(classes: ArrayLike, num_classes: int) -> NDArray[np.float64]:
    """Share of pairs of different masks with different classes, (*S) in [0, 1] from class numbers (n, *S).

    It is 0 for a single mask.
    """
    masks = np.asarray(classes)
    number = len(masks)
    if number == 1:
        return np.zeros(masks.shape[1:])
    same = sum(np.square((masks == value).sum(axis=0, dtype=np.float64)) for value in range(num_classes)) - number
    return np.asarray(1.0 - same / (number * (number - 1)))


def entropy_correlation(probabilities: ArrayLike, truth: ArrayLike) -> float:
    """Spearman correlation over all voxels of the entropies of two sets of probabilities.

    Both are rounded to hundredths first, so that voxels that are as good as certain are ties and not ranked by chance.

    Args:
        probabilities: (C, *S), the answers' mean.
        truth: (C, *S), such as the shares of raters.

    Returns:
        in [-1, 1]; NaN where one of the entropies is the same everywhere.
    """
    first, second = (entropy(np.asarray(each).round(_DIGITS)).ravel() for each in (probabilities, truth))
    if np.ptp(first) == 0.0 or np.ptp(second) == 0.0:
        return float("nan")
    return float(spearmanr(first, second).statistic)


def ambiguity_row(case: str, samples: ArrayLike, raters: ArrayLike, probability: ArrayLike | None) -> dict[str, Any]:
    """One case's row, with the columns ``AMBIGUITY_COLUMNS``.

    ``entropy`` of the mean answer and ``rater_disagreement``, the share of pairs of raters that differ, are means over
    the voxels that a rater or an answer marks, both in [0, 1]. ``rater_correlation`` is
    :func:`entropy_correlation` of answers and raters, ``ambiguity_correlation`` that of answers and true probabilities.

    Args:
        case: its name.
        samples: (n, C, *S), probabilities, background first.
        raters: (R, *S), class numbers.
        probability: (C - 1, *S), how likely a rater is to mark each structure; None: nobody knows.
    """
    answers, drawn = np.asarray(samples), np.asarray(raters)
    mean, votes = answers.mean(axis=0), shares(drawn, answers.shape[1])
    marked = (answers.argmax(axis=1) > 0).any(axis=0) | (drawn > 0).any(axis=0)
    parts = (entropy(mean), pairs_that_differ(drawn, answers.shape[1]))
    known = None if probability is None else np.asarray(probability, dtype=np.float64)
    truth = None if known is None else np.concatenate((np.clip(1.0 - known.sum(axis=0, keepdims=True), 0, 1), known))
    return {
        **{"case": case, "samples": len(answers), "raters": len(drawn)},
        **dict(
            zip(AMBIGUITY_COLUMNS[3:5], (float(p[marked].mean()) if marked.any() else 0.0 for p in parts), strict=True)
        ),
        "rater_correlation": entropy_correlation(mean, votes) if len(drawn) > 1 else float("nan"),
        "ambiguity_correlation": float("nan") if truth is None else entropy_correlation(mean, truth),
    }


def write_ambiguity(path: str | os.PathLike[str], rows: Iterable[Mapping[str, Any]]) -> None:
    """Write rows of :func:`ambiguity_row` as CSV, a cell that is not a number empty; complete or not at all."""
    numbers = [{name: None if value != value else value for name, value in row.items()} for row in rows]
    write_rows(numbers, path, AMBIGUITY_COLUMNS)


def rank_correlation(rows: Iterable[Mapping[str, Any]]) -> float:
    """Spearman correlation over the cases of the answers' entropy and the raters' disagreement; NaN below 3 cases."""
    pairs = np.array([[float(row["entropy"]), float(row["rater_disagreement"])] for row in rows]).reshape(-1, 2)
    if len(pairs) < 3 or (np.ptp(pairs, axis=0) == 0.0).any():
        return float("nan")
    return float(spearmanr(*pairs.T).statistic)


def ambiguity_summary(rows: Iterable[Mapping[str, Any]]) -> str:
    """Lines for people: means over the cases of what is known."""
    table = list(rows)
    lines = [f"{'entropy, over cases':<24}{rank_correlation(table):.4f}  Spearman with the raters' disagreement"]
    for name, other in (
        ("rater_correlation", "the raters' votes"),
        ("ambiguity_correlation", "the true probabilities"),
    ):
        known = [row[name] for row in table if row[name] == row[name]]
        if known:
            lines.append(f"{'entropy, over voxels':<24}{sum(known) / len(known):.4f}  Spearman with that of {other}")
    return "\n".join(line for line in lines if "nan" not in line)
