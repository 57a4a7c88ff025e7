"""Runs the label audit over a data set and writes what it finds."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.image import imread
from monai.data import MetaTensor, decollate_batch, list_data_collate
from monai.transforms import Invertd, LoadImage
from scipy.stats import spearmanr
from tqdm import tqdm

from ...data.contract.faults import DataError, Fault
from ...data.contract.names import case_name, voxel_ml, voxel_size
from ...data.contract.records import is_kind
from ...data.loading.transforms import SaveNiftid
from ...files import atomic_path
from ...training.precision import evaluation_amp
from ...training.runs import start_results
from ..audit import auroc, disagreement, mean_dice, near_foreground, propose_label, suspicion, volumes
from ..metrics import write_rows
from .board import show_on_tensorboard
from .cases import draw_caption, draw_marks, draw_scale_bar, load_case
from .drawing import case_legend, draw_case
from .rows import fill_picture, picture_shape

COLUMNS = ("rank", "case", "score", "structure", "structure_score", "too_much", "too_little", "unit", "verdict")
MEASURED = ("case", "score", "dice_label", "dice_proposed", "auroc_image", "auroc_near")
QUALITIES = ("noisy", "clean", "all")
_ROW, _TITLE, _HEAD, _FOOT = 2.65, 0.26, 0.4, 0.42  # inches: width of a picture, heights


class LabelAudit:
    """Audit the labels of a data set with a trained network.

    Writes to ``output_dir``: ``audit.csv``, cases ranked by how suspect their labels are; for each case its image,
    label, ``<case>_suspect.nii.gz`` (probability that a voxel's label is wrong) and ``<case>_proposed.nii.gz``, all in
    the label's space; ``audit.png``, the most suspect ones. Where records carry a ``reference`` (simulated noise, say)
    it measures itself: ``audit_measured.csv`` and a printed summary.

    Args:
        network: trained.
        records: of the data set.
        quality: audit the labels said to be ``noisy``, ``clean``, or ``all``.
        preprocessing: of ``image`` and ``label``; leaves ``label`` in its own space and a copy of the image ``shown``.
        inferer: gives probabilities, see :mod:`~common.evaluation.inferers`.
        structures: names by class number.
        output_dir: folder to write to.
        device: where to run.
        confidence: least probability that overrules a label in the proposal, in [0, 1].
        shown: cases on the page.
        suspect: from the inferer's maps (K, *S), the classes' probabilities first, and the label (*S) to the suspicion
            of each voxel, in [0, 1].
        precision: of the network on CUDA, see :func:`~common.training.precision.evaluation_amp`.

    Raises:
        DataError: when no record has such a label.
    """

    def __init__(
        self,
        network: torch.nn.Module,
        records: Sequence[dict[str, Any]],
        quality: str,
        preprocessing: Any,
        inferer: Any,
        structures: Mapping[int, str],
        output_dir: str | os.PathLike[str],
        device: str | torch.device = "cpu",
        confidence: float = 0.5,
        shown: int = 6,
        suspect: Callable[[np.ndarray, np.ndarray], np.ndarray] = suspicion,
        precision: str = "auto",
    ) -> None:
        if quality not in QUALITIES:
            raise ValueError(f"quality: {quality!r} is unknown. Choose {', '.join(QUALITIES)}.")
        self.records = [record for record in records if is_kind(record, "label" if quality == "all" else quality)]
        if not self.records:
            fix = "name another section by --section, or audit all labels by --quality all"
            raise DataError([Fault("audit", f"the section has no records whose label is {quality}", fix)])
        self.network = network.to(device).eval()
        self.preprocessing, self.inferer = preprocessing, inferer
        self.postprocessing = Invertd("pred", transform=preprocessing, orig_keys="image", nearest_interp=False)
        self.structures = {int(value): name for value, name in structures.items() if int(value) != 0}
        self.classes = max(map(int, structures)) + 1
        self.folder = Path(output_dir)
        self.device = torch.device(device)
        self.amp = evaluation_amp(precision, device)
        self.confidence = confidence
        self.shown = shown
        self.suspect = suspect
        self.rows: list[dict[str, Any]] = []
        self.measured: list[dict[str, Any]] = []

    def run(self) -> None:
        """Audit every case and write the results."""
        start_results(self.folder)
        scores: dict[str, float] = {}
        for record in tqdm(self.records, desc="Auditing labels"):
            item = self.preprocessing(record)
            case = case_name(record["image"])
            scores[case] = self._audit(case, item, record.get("reference"))
        order = sorted(scores, key=lambda case: (-scores[case], case))
        for row in self.rows:
            row["rank"] = order.index(row["case"]) + 1
        write_rows(sorted(self.rows, key=lambda row: row["rank"]), self.folder / "audit.csv", COLUMNS)
        print(f"{len(order)} labels audited; the most suspect: {', '.join(order[:5])}. Results are in {self.folder}")
        if self.measured:
            write_rows(self.measured, self.folder / "audit_measured.csv", MEASURED)
            print(self.summary())
        self._draw_page(order[: self.shown], scores)

    def summary(self) -> str:
        """What was measured against the references, in words."""
        rows = self.measured
        correlation = spearmanr([r["score"] for r in rows], [1 - r["dice_label"] for r in rows]).statistic
        means = {name: _mean([r[name] for r in rows]) for name in MEASURED[2:]}
        return (
            f"measured on {len(rows)} labels with a known reference:\n"
            f"  AUROC of suspect voxels, mean over cases: whole image {means['auroc_image']:.4f}, "
            f"within 3 voxels of the foreground {means['auroc_near']:.4f}\n"
            f"  Spearman correlation of case score and 1 - Dice of the label: {correlation:.3f}\n"
            f"  Dice against the reference: label {means['dice_label']:.4f}, proposed {means['dice_proposed']:.4f}"
        )

    @torch.no_grad()
    def _maps(self, item: dict[str, Any]) -> np.ndarray:
        """(K, *S) in the label's space, K at least the classes."""
        image = item["image"][None].to(self.device)
        with torch.autocast(self.device.type, enabled=self.amp["amp"], **self.amp["amp_kwargs"]):
            maps = self.inferer(image, self.network).float().cpu()
        batch = decollate_batch(list_data_collate([{"image": item["image"]}]))[0]
        return self.postprocessing({**batch, "pred": maps[0]})["pred"].cpu().numpy()

    def _audit(self, case: str, item: dict[str, Any], reference: str | None) -> float:
        maps = self._maps(item)
        label, probabilities = item["label"][0].cpu().numpy().astype(np.uint8), maps[: self.classes]
        suspect = self.suspect(maps, label)
        proposed = propose_label(probabilities, label, self.confidence)
        self._save(item, suspect, proposed)
        parts = {value: disagreement(probabilities, label, value) for value in self.structures}
        score = float(np.mean(list(parts.values())))
        in_mm = voxel_size(item["label"]) is not None
        unit, volume = ("ml", voxel_ml(item["label"].affine.cpu().numpy())) if in_mm else ("voxel", 1.0)
        for value, name in self.structures.items():
            much, little = volumes(label, proposed, value)
            verdict = "too large" if much > 2 * little else "too small" if little > 2 * much else "misplaced"
            self.rows.append(
                {
                    "case": case,
                    "score": score,
                    "structure": name,
                    "structure_score": parts[value],
                    "too_much": much * volume,
                    "too_little": little * volume,
                    "unit": unit,
                    "verdict": verdict if much + little else "as the model sees it",
                }
            )
        if reference is not None:
            true = LoadImage(image_only=True, ensure_channel_first=True)(reference)[0].numpy().astype(np.uint8)
            self.measured.append({"case": case, "score": score, **self._measure(suspect, label, proposed, true)})
        return score

    def _measure(
        self, suspect: np.ndarray, label: np.ndarray, proposed: np.ndarray, true: np.ndarray
    ) -> dict[str, float | None]:
        wrong, near = label != true, near_foreground(label, true)
        return {
            "dice_label": mean_dice(label, true, self.structures),
            "dice_proposed": mean_dice(proposed, true, self.structures),
            "auroc_image": auroc(suspect, wrong),
            "auroc_near": auroc(suspect[near], wrong[near]),
        }

    def _save(self, item: dict[str, Any], suspect: np.ndarray, proposed: np.ndarray) -> None:
        def like_label(values: np.ndarray) -> Any:
            meta = {**item["label"].meta, "filename_or_obj": item["image"].meta["filename_or_obj"]}
            return MetaTensor(torch.as_tensor(values)[None], meta=meta)

        label = item["label"].cpu().numpy()[0]
        arrays = {"label": label, "proposed": proposed, "suspect": suspect}
        maps = {name: like_label(values) for name, values in arrays.items()} | {"image": item["shown"]}
        for name, value in maps.items():
            dtype = "uint8" if name in ("label", "proposed") else "float32"
            SaveNiftid(name, str(self.folder), name, dtype)({name: value})

    def _draw_page(self, cases: Sequence[str], scores: Mapping[str, float]) -> None:
        """A row a case: label in its image, proposed label beside it, suspicion."""
        in_mm = {row["case"]: row["unit"] == "ml" for row in self.rows}
        names = {"prediction": "proposed", "uncertainty": "suspect"}
        pictures = [load_case(self.folder, case, **names, in_mm=in_mm[case]) for case in cases]
        rows = [_ROW * picture_shape(picture) + _TITLE for picture in pictures]
        width, height = 3 * _ROW + 0.3, _HEAD + sum(rows) + _FOOT
        figure = Figure(figsize=(width, height), dpi=150)
        figure.text(0.15 / width, 1 - 0.2 / height, "Most suspect labels", fontsize=13, fontweight="bold", va="center")
        ends = {"left": 0.15 / width, "right": 1 - 0.15 / width, "top": 1 - _HEAD / height, "bottom": _FOOT / height}
        grid = figure.add_gridspec(len(cases), 1, height_ratios=rows, hspace=0, **ends)
        colours = None
        for number, (case, picture) in enumerate(zip(cases, pictures, strict=True)):
            assert picture is not None and picture.label is not None and picture.prediction is not None
            cell = grid[number].subgridspec(2, 3, height_ratios=(_TITLE, rows[number] - _TITLE), hspace=0, wspace=0.02)
            row = [figure.add_subplot(cell[1, column]) for column in range(3)]
            aspect = picture.spacing[0] / picture.spacing[1]
            common: dict[str, Any] = {"aspect": aspect, "labels": self.structures, "window": picture.window}
            draw_case(row[0], picture.image, {"label": picture.label}, filled=("label",), **common)
            draw_caption(row[0], "label as given")
            draw_marks(row[0], picture)
            draw_scale_bar(row[0], picture)
            masks = {"proposed": picture.prediction, "label": picture.label}
            white: dict[str, Any] = {"outlines": {"label": "white"}, "line_width": 0.8}
            draw_case(row[1], picture.image, masks, filled=("proposed",), **white, **common)
            draw_caption(row[1], "proposed, label as given in white")
            overlay: dict[str, Any] = {"overlay": picture.uncertainty, "overlay_range": (0.0, 1.0)}
            colours = draw_case(row[2], picture.image, {"label": picture.label}, **overlay, **white, **common)
            draw_caption(row[2], "suspicion")
            for ax in row:
                fill_picture(ax, picture, picture_shape(picture))
            row[0].set_title(f"{case}, score {scores[case]:.3f}, {picture.where}", loc="left", fontsize=8)
        legend = case_legend(self.structures)
        corner = (0.1 / width, 0.0)
        figure.legend(
            handles=legend, ncols=len(legend), frameon=False, fontsize=8, loc="lower left", bbox_to_anchor=corner
        )
        if colours is not None:
            ax = figure.add_axes((1 - 1.65 / width, 0.16 / height, 1.2 / width, 0.09 / height))
            figure.colorbar(colours, cax=ax, orientation="horizontal").set_ticks([])
            ax.text(-0.03, 0.5, "probability that the label is wrong  0", ha="right", va="center", size=7)
            ax.text(1.03, 0.5, "1", ha="left", va="center", size=7)
        page = self.folder / "audit.png"
        with atomic_path(page) as temporary:
            figure.savefig(temporary)
        show_on_tensorboard(self.folder, {"audit/page": np.asarray(imread(page)[..., :3] * 255, dtype=np.uint8)})


def _mean(values: Sequence[float | None]) -> float:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else float("nan")
