"""Temperature scaling of the probabilities that are given out, and the file that keeps it beside the weights.

Guo et al., On Calibration of Modern Neural Networks, ICML 2017, divide a network's logits by a temperature. Here the
*final* probabilities are tempered, after windows, slices or answers were averaged and brought to the image's space:
p^(1/T), renormalised, which is the same for a single softmax. Tempered inside the windows instead, the average could
have another largest class; so a segmentation never changes.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from ...files import CALIBRATION_FILE, atomic_path, file_digest
from ...ops.likeliest import likeliest

LEAST_PROBABILITY = 2.0**-23  # float32 cannot tell 1 less this from 1; of logarithms
logger = logging.getLogger(__name__)


def temper(probabilities: torch.Tensor, temperatures: Sequence[float]) -> torch.Tensor:
    """p^(1/T), renormalised; T is that of a voxel's predicted class, so that the order of its classes stays.

    Args:
        probabilities: (C, *S), sum 1 over C.
        temperatures: one a class, or a single one for all; above 1 makes less sure.

    Returns:
        (C, *S), in the dtype of the probabilities. A class that was behind another does not overtake it; float32 may
        round a narrow lead to a tie, so take the argmax before.

    Raises:
        ValueError: when there is neither one temperature nor one for each class, or one is not above 0.

    Example:
        >>> temper(torch.tensor([[0.2, 0.8], [0.8, 0.2]]), [0.5, 1.0])
        tensor([[0.2000, 0.9412],
                [0.8000, 0.0588]])
    """
    classes = len(probabilities)
    if len(temperatures) not in (1, classes) or not all(value > 0 for value in temperatures):
        raise ValueError(f"give a temperature above 0, or {classes}, one for each class, got {list(temperatures)}.")
    inverse = 1.0 / torch.tensor(temperatures, dtype=torch.float64)
    logarithms = probabilities.float().clamp_min(LEAST_PROBABILITY).log()
    chosen = inverse.to(logarithms)[likeliest(probabilities, 0) if len(temperatures) > 1 else 0]
    return (logarithms * chosen).softmax(0).to(probabilities.dtype)


@dataclass(frozen=True)
class Temperatures:
    """What :class:`~common.evaluation.calibrating.Calibrator` found for one file of weights.

    Attributes:
        temperature: of all classes together.
        per_class: one for each class, background's being ``temperature``; None: the single one is used for all.
        nll_before: mean negative log-likelihood of the voxels that it was fitted to, in nats.
        nll_after: the same of the tempered probabilities.
        cases: number of cases.
        voxels: number of their voxels.
        weights: SHA-256 of the file of weights.
        section: of the data set.
    """

    temperature: float
    per_class: tuple[float, ...] | None
    nll_before: float
    nll_after: float
    cases: int
    voxels: int
    weights: str
    section: str = "validation"

    @property
    def applied(self) -> tuple[float, ...]:
        """What :func:`temper` is given."""
        return (self.temperature,) if self.per_class is None else self.per_class

    def write(self, path: Path) -> None:
        """Write the JSON file, atomically."""
        with atomic_path(path) as temporary:
            temporary.write_text(json.dumps(vars(self), indent=1) + "\n")


Weights = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]


def read_temperatures(weights: Weights) -> Temperatures | None:
    """Read what lies beside a file of weights.

    Args:
        weights: the file of weights, of which there need not be one, or several files of an ensemble.

    Returns:
        None where there is no such file, for an ensemble, whose mean is less sure than each network that was fitted,
        and, with a warning, where it was fitted to other weights.

    Raises:
        ValueError: when the file is damaged or holds something else.
    """
    if not isinstance(weights, (str, os.PathLike)):
        if len(weights) > 1:
            return None
        weights = weights[0]
    path = Path(weights).parent / CALIBRATION_FILE
    if not path.is_file() or not Path(weights).is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        per_class = content.pop("per_class")
        found = Temperatures(per_class=None if per_class is None else tuple(map(float, per_class)), **content)
        if not all(float(value) > 0 for value in (found.temperature, *found.applied)):
            raise ValueError
    except (ValueError, TypeError, KeyError, AttributeError):
        raise ValueError(f"{path}: is no file that calibrating wrote. Fix: remove it, or run calibrating.") from None
    if found.weights != file_digest(weights):
        logger.warning(f"{path} is ignored: it was fitted to other weights than {weights}. Fix: run calibrating.")
        return None
    shown = ", ".join(f"{value:.3f}" for value in found.applied)
    logger.info(f"Probabilities are tempered by {shown}, see {path}; --calibration false leaves them as they are.")
    return found
