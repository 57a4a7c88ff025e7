"""Quality of the teacher's pseudo-labels while it trains (Fig. 3 of Qian et al., "Adaptive Label Correction")."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from monai.transforms import Compose, RandCropByPosNegLabeld

from common.evaluation.metrics import Row, write_rows
from common.files import atomic_path
from common.ops.likeliest import likeliest
from common.training.runs import is_first_rank

from .losses import refine_labels
from .method import AdaptiveLabelCorrection

COLUMNS = ("iteration", "given", "plain", "refined")
_COLOURS = {"given": "0.5", "plain": "#D55E00", "refined": "#0072B2"}


class PseudoLabelQuality:
    """Dice of the given noisy labels, of plain and of refined pseudo-labels with the truth behind simulated noise.

    A plain pseudo-label is the likeliest class of one pass of the teacher, a refined one that of Eqs. 4-6. Patches are
    drawn once, half of them around the structures; Dice is over the voxels of all patches together, the mean over
    structures. It measures only: nothing is learnt from ``reference``, and the training's chance is left as it was.

    Writes ``pseudo_labels.csv``, columns :data:`COLUMNS`, after each measurement, and ``pseudo_labels.png`` at the end.

    Args:
        method: the one that trains.
        records: of ``training``; those with a ``reference`` and a noisy label are measured.
        preprocessing: from a record to ``image``, ``label`` and ``reference``, (1, *S) each.
        patch_size: voxels along each axis.
        output_dir: folder to write to.
        interval: epochs between measurements.
        cases: at the most; one patch of each.
        seed: of the patches and of the teacher's passes.

    Raises:
        ValueError: if no record has both.
    """

    def __init__(
        self,
        method: AdaptiveLabelCorrection,
        records: Sequence[Mapping[str, Any]],
        preprocessing: Any,
        patch_size: Sequence[int],
        output_dir: str | os.PathLike[str],
        interval: int = 1,
        cases: int = 24,
        seed: int = 0,
    ) -> None:
        self.method = method
        measurable = [record for record in records if record.get("label_quality") == "noisy" and "reference" in record]
        if not measurable:
            raise ValueError(
                "No training record has a noisy label and a `reference`, the truth to measure pseudo-labels with. Fix: "
                "simulate noise with `python -m common.data corrupt`, or leave out the overlay pseudo_labels.yaml."
            )
        self.records = measurable[:cases]
        crop = RandCropByPosNegLabeld(["image", "label", "reference"], "reference", patch_size, num_samples=1)
        self.transform = Compose([preprocessing, crop]).set_random_state(seed)
        self.folder, self.interval, self.seed = Path(output_dir), interval, seed
        self.patches: dict[str, torch.Tensor] = {}
        self.rows: list[Row] = []

    def attach(self, engine: Engine) -> None:
        """Attach to a :class:`~common.training.trainer.MethodTrainer`."""
        engine.add_event_handler(Events.EPOCH_COMPLETED(every=self.interval), self._measure)
        engine.add_event_handler(Events.COMPLETED, self._draw)

    def _measure(self, engine: Engine) -> None:
        if not is_first_rank():
            return
        if not self.patches:
            cropped = [self.transform(record)[0] for record in self.records]
            self.patches = {key: torch.stack([torch.as_tensor(one[key]) for one in cropped]) for key in cropped[0]}
        device = next(self.method.parameters()).device
        plain, refined = [], []
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(self.seed)
            for image in self.patches["image"].split(4):
                passes = self.method.teacher.passes(image.to(device), max(self.method.passes, 2))
                plain.append(likeliest(passes[0], 1, keepdim=True).cpu())
                refined.append(refine_labels(passes).cpu())
        truth, classes = self.patches["reference"], passes.shape[2]
        measured = {"given": self.patches["label"], "plain": torch.cat(plain), "refined": torch.cat(refined)}
        dice = {name: mean_dice(labels, truth, classes) for name, labels in measured.items()}
        self.rows.append({"iteration": engine.state.iteration, **dice})
        write_rows(self.rows, self.folder / "pseudo_labels.csv", COLUMNS)

    def _draw(self, engine: Engine) -> None:
        if not self.rows:
            return
        figure = Figure(figsize=(5.0, 3.2), layout="constrained")
        ax = figure.subplots()
        for name, colour in _COLOURS.items():
            ax.plot([row["iteration"] for row in self.rows], [row[name] for row in self.rows], color=colour, label=name)
        ax.set_xlabel("iteration")
        ax.set_ylabel("Dice with the reference")
        ax.spines[["top", "right"]].set_visible(False)
        ax.legend(title="labels", frameon=False)
        with atomic_path(self.folder / "pseudo_labels.png") as temporary:
            FigureCanvasAgg(figure).print_figure(temporary, dpi=150, format="png")


def mean_dice(labels: torch.Tensor, truth: torch.Tensor, classes: int) -> float:
    """Mean over the structures of the Dice of all voxels together.

    Args:
        labels: class numbers.
        truth: class numbers, of the same shape.
        classes: background included.

    Example:
        >>> mean_dice(torch.tensor([0, 1, 1, 2]), torch.tensor([0, 1, 2, 2]), 3)
        0.6666666865348816
    """
    values = []
    for structure in range(1, classes):
        found, there = labels == structure, truth == structure
        values.append(2 * (found & there).sum() / (found.sum() + there.sum()).clamp(min=1))
    return float(torch.stack(values).mean())
