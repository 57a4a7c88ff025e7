"""Label audit: which labels of a data set are suspect, where, and what they should be.

Not in the paper: it puts the model that learned from noisy labels to work on them. Letters: C classes, S spatial sizes.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt
from scipy.stats import rankdata

Volume = NDArray[np.integer]


def suspicion(probabilities: NDArray[np.floating], label: Volume) -> NDArray[np.float32]:
    """Probability, in the model's eyes, that a voxel's label is wrong: 1 - p(class of the label).

    Args:
        probabilities: (C, *S), sum 1 over C.
        label: (*S), class numbers.

    Returns:
        (*S), in [0, 1].

    Example:
        >>> suspicion(np.array([[0.9, 0.2], [0.1, 0.8]]), np.array([1, 1])).tolist()
        [0.8999999761581421, 0.19999998807907104]
    """
    given = np.take_along_axis(probabilities, label[None].astype(np.int64), axis=0)[0]
    return np.clip(1.0 - given.astype(np.float32), 0.0, 1.0)


def disagreement(probabilities: NDArray[np.floating], label: Volume, structure: int) -> float:
    """How much of a structure's label the model does not see: 1 - soft Dice.

    Args:
        probabilities: (C, *S).
        label: (*S), class numbers.
        structure: class number.

    Returns:
        in [0, 1]; 0 when the structure is neither labelled nor the likeliest class of any voxel: a softmax leaves each
        class some probability everywhere, of which the soft Dice with an empty label is 0.

    Example:
        >>> disagreement(np.array([[0.0, 1.0], [1.0, 0.0]]), np.array([1, 1]), 1)
        0.33333333333333337
    """
    seen = probabilities[structure].astype(np.float64)
    given = label == structure
    if not given.any() and not (probabilities.argmax(0) == structure).any():
        return 0.0
    return 1.0 - 2.0 * float(seen[given].sum()) / float(seen.sum() + given.sum())


def propose_label(probabilities: NDArray[np.floating], label: Volume, confidence: float) -> NDArray[np.uint8]:
    """The label as given, with the model's class where the model is sure enough of it.

    Args:
        probabilities: (C, *S).
        label: (*S), class numbers.
        confidence: least probability that overrules the given label, in [0, 1].

    Returns:
        (*S), class numbers.

    Example:
        >>> propose_label(np.array([[0.95, 0.6], [0.05, 0.4]]), np.array([1, 1]), 0.7).tolist()
        [0, 1]
    """
    sure = probabilities.max(0) >= confidence
    return np.where(sure, probabilities.argmax(0), label).astype(np.uint8)


def volumes(label: Volume, proposed: Volume, structure: int) -> tuple[int, int]:
    """Voxels that a structure's label has too many of, and lacks, beside the proposed label."""
    given, better = label == structure, proposed == structure
    return int((given & ~better).sum()), int((better & ~given).sum())


def auroc(scores: NDArray[np.floating], wrong: NDArray[np.bool_]) -> float | None:
    """Area under the receiver operating characteristic, by ranks (Mann-Whitney), ties counted half.

    Args:
        scores: any shape.
        wrong: same shape, what the scores should find.

    Returns:
        in [0, 1]; None when all or none is wrong.

    Example:
        >>> auroc(np.array([0.1, 0.4, 0.35, 0.8]), np.array([False, False, True, True]))
        0.75
    """
    positives, negatives = int(wrong.sum()), int((~wrong).sum())
    if positives == 0 or negatives == 0:
        return None
    ranks = rankdata(scores.ravel())[wrong.ravel()].sum()
    return float((ranks - positives * (positives + 1) / 2) / (positives * negatives))


def near_foreground(label: Volume, reference: Volume, distance: float = 3.0) -> NDArray[np.bool_]:
    """Voxels at most ``distance`` voxels from the foreground of either label: where labels can be wrong.

    Beyond it all is background that any model gets right, which would flatter a figure.
    """
    foreground = (label > 0) | (reference > 0)
    if not foreground.any():
        return foreground
    return np.asarray(distance_transform_edt(~foreground) <= distance)


def mean_dice(label: Volume, reference: Volume, structures: Mapping[int, str]) -> float:
    """Dice of two labels, mean over structures; 1 for a structure that neither has."""
    values = []
    for value in structures:
        given, true = label == value, reference == value
        total = int(given.sum() + true.sum())
        values.append(2.0 * int((given & true).sum()) / total if total else 1.0)
    return float(np.mean(values))
