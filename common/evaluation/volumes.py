"""Volumes of the structures of each case, with the interval that the uncertainty gives.

Voxels err together: a network that draws a border too far out does so all around. Summing each voxel's variance as if
voxels were independent gives an interval of a few voxels, far too narrow. So the opposite is assumed, that a single
level decides for all voxels: with U uniform in (0, 1), the structure is where p > U. Then

- each voxel is in the structure with its probability p, as the network says;
- the expected volume is the sum of p (the integral over U of the number of voxels with p > U);
- the volume falls as U rises, so its quantiles are counts at a threshold: the 90% interval reaches from the voxels
  with p > 0.95 to those with p > 0.05.

Of all ways in which voxels can depend on each other this gives the volume the largest variance (comonotonic risks,
Dhaene et al., Insurance: Mathematics and Economics 31, 2002). It holds as far as the probabilities are calibrated.

Where a network answers with several samples, each is one coherent answer and nothing needs to be assumed: expected
volume and interval are the mean and the 5% and 95% quantiles of the samples' volumes.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events
from scipy.ndimage import distance_transform_edt

from ..data.contract.names import case_name, structure_names, voxel_ml, voxel_size
from .metrics.cases import write_rows

LEVELS = (0.05, 0.95)  # quantiles of the interval
_AMOUNTS = ("predicted", "expected", "lower", "upper", "reference")
COLUMNS = ("case", "label", "structure", *(f"{name}_voxels" for name in _AMOUNTS), *(f"{name}_ml" for name in _AMOUNTS))


def volume_interval(probability: torch.Tensor, mask: torch.Tensor) -> tuple[float, float, float]:
    """Expected number of voxels of a structure, and the bounds of its 90% interval, see above.

    Args:
        probability: (*S), of the structure in [0, 1].
        mask: (*S) bool, where the segmentation has it: at least these voxels count for the upper bound.

    Returns:
        expected, lower and upper number of voxels.

    Example:
        >>> p = torch.tensor([0.99, 0.9, 0.5, 0.1, 0.01])
        >>> expected, lower, upper = volume_interval(p, p > 0.5)
        >>> round(expected, 2), lower, upper
        (2.5, 1.0, 4.0)
    """
    low, high = LEVELS
    certain, possible = probability > high, (probability > low) | mask
    return float(probability.sum(dtype=torch.float64)), float(certain.sum()), float(possible.sum())


def sampled_interval(masks: torch.Tensor) -> tuple[float, float, float]:
    """Mean number of voxels of several answers (n, *S), and the bounds of its 90% interval."""
    sizes = masks.flatten(1).sum(1).double()
    lower, upper = torch.quantile(sizes, sizes.new_tensor(LEVELS)).tolist()
    return float(sizes.mean()), lower, upper


def structure_volumes(
    prediction: torch.Tensor,
    probabilities: torch.Tensor,
    labels: Mapping[int, str],
    samples: torch.Tensor | None = None,
    left_out: torch.Tensor | None = None,
    reference: torch.Tensor | None = None,
    voxel_ml: float | None = None,
) -> list[dict[str, Any]]:
    """Volumes of each structure of a case.

    Args:
        prediction: class numbers (*S).
        probabilities: (C, *S), background included, sum 1 over the classes.
        labels: names of the structures by class number.
        samples: class numbers (n, *S) of several answers; None: the interval is that of the probabilities.
        left_out: class numbers (*S) that were taken out of the segmentation, such as all but the largest components: a
            structure's probability counts as 0 there, and around, where these voxels are nearer than those that stay.
        reference: class numbers (*S) of the true label.
        voxel_ml: volume of a voxel in ml; None where its size is not known.

    Returns:
        one row a structure, with the columns ``COLUMNS`` but for ``case``; None where something is not known.
    """
    rows = []
    for value, name in sorted(labels.items()):
        mask = prediction == value
        taken = torch.zeros_like(mask) if left_out is None else _nearer(left_out == value, mask)
        if samples is None:
            found = volume_interval(probabilities[value].float().masked_fill(taken, 0.0), mask)
        else:
            found = sampled_interval((samples == value) & ~taken)
        amounts: dict[str, float | None] = dict(zip(_AMOUNTS[1:4], found, strict=True))
        amounts["predicted"] = int(mask.sum())
        amounts["reference"] = None if reference is None else int((reference == value).sum())
        row: dict[str, Any] = {"label": value, "structure": name}
        for amount, voxels in amounts.items():
            ml = None if voxels is None or voxel_ml is None else round(voxels * voxel_ml, 6)
            row |= {f"{amount}_voxels": None if voxels is None else round(voxels, 3), f"{amount}_ml": ml}
        rows.append(row)
    return rows


def _nearer(taken: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
    """Where voxels ``taken`` are nearer than those ``kept``, in voxels: the rim of what was taken goes with it."""
    if not taken.any():
        return taken
    nearest = distance_transform_edt(~(taken | kept).cpu().numpy(), return_distances=False, return_indices=True)
    return taken[tuple(torch.from_numpy(nearest).long().to(taken.device))]


class CaseVolumes:
    """Write ``volumes.csv`` of the cases of an evaluator, a row a case and structure, columns ``COLUMNS``.

    Rows of other cases that are there from an earlier run stay, as do their folders. The evaluator's postprocessing
    gives ``pred`` (1, *S), ``probabilities`` (C, *S) and, of networks that draw them, ``samples`` (n, *S), all in the
    image's own space.

    Args:
        output_dir: folder to write to.
        structures: names of the structures, see :func:`~common.data.contract.names.structure_names`.
    """

    def __init__(
        self, output_dir: str | os.PathLike[str], structures: Mapping[int, str] | Sequence[str] | None = None
    ) -> None:
        self.path = Path(output_dir) / "volumes.csv"
        self.structures = structures
        self.rows: list[dict[str, Any]] = []

    def attach(self, engine: Engine) -> None:
        """Attach to an evaluator."""
        engine.add_event_handler(Events.STARTED, self.rows.clear)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._case)
        engine.add_event_handler(Events.COMPLETED, self._completed)

    def _case(self, engine: Engine) -> None:
        for batch, output in zip(engine.state.batch, engine.state.output, strict=True):
            prediction, probabilities = output["pred"], output["probabilities"]
            reference = output.get("label", batch.get("label"))
            case = case_name(prediction.meta["filename_or_obj"])
            known = voxel_size(prediction) is not None
            rows = structure_volumes(
                torch.as_tensor(prediction)[0],
                torch.as_tensor(probabilities),
                structure_names(self.structures, len(probabilities)),
                torch.as_tensor(output["samples"]) if "samples" in output else None,
                torch.as_tensor(output["left_out"])[0] if "left_out" in output else None,
                None if reference is None else torch.as_tensor(reference)[0].to(prediction.device),
                voxel_ml(prediction.affine.cpu().numpy()) if known else None,
            )
            self.rows += [{"case": case, **row} for row in rows]
        # after each case, so that those that are done are there when a run is stopped
        write_rows([*self._earlier(), *self.rows], self.path, COLUMNS)

    def _earlier(self) -> list[dict[str, Any]]:
        """Rows of cases of earlier runs whose segmentations are still there."""
        if not self.path.is_file():
            return []
        with self.path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            rows = [dict(row) for row in reader if (self.path.parent / row["case"]).is_dir()]
            same = tuple(reader.fieldnames or ()) == COLUMNS
        done = {row["case"] for row in self.rows}
        return [row for row in rows if row["case"] not in done] if same else []

    def _completed(self) -> None:
        print(f"Volumes are in {self.path}")
        known = [row for row in self.rows if row["reference_voxels"] is not None]
        inside = sum(row["lower_voxels"] <= row["reference_voxels"] <= row["upper_voxels"] for row in known)
        if known:
            print(f"{inside} of {len(known)} references have a volume inside the 90% interval")
