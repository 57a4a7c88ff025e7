"""A picture of each segmented case: two slices with the outlines of the structures, turned for radiologists."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from ignite.engine import Engine, Events
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from ..data.contract.names import case_name, structure_names, voxel_ml, voxel_size
from ..files import atomic_path
from .report.cases import (
    MARKS,
    VIEWS,
    CasePicture,
    draw_caption,
    draw_marks,
    draw_scale_bar,
    grey_window,
    slice_axis,
)
from .report.drawing import case_legend, draw_case

_PER_ROW = 3  # structures in a row of the legend


def chosen_slices(prediction: NDArray[Any], spacing: Sequence[float]) -> tuple[int, int, int]:
    """The axis to cut across, the middle slice, and the slice in which the largest structure is largest.

    Args:
        prediction: class numbers (X, Y, Z), axes in RAS.
        spacing: voxel size along each axis.

    Returns:
        the axis, see :func:`~.report.cases.slice_axis`; two indices along it, the same where nothing was found.
    """
    axis = slice_axis(prediction.shape, spacing)
    middle = prediction.shape[axis] // 2
    sizes = np.bincount(prediction.ravel().astype(np.int64))[1:]
    if not sizes.any():
        return axis, middle, middle
    areas = (prediction == int(sizes.argmax()) + 1).sum(axis=tuple(other for other in range(3) if other != axis))
    return axis, middle, int(areas.argmax())


def draw_preview(
    image: NDArray[Any],
    prediction: NDArray[Any],
    affine: NDArray[Any],
    labels: Mapping[int, str],
    title: str = "",
    in_mm: bool = True,
) -> Figure:
    """Draw the middle slice and the slice of the largest structure, with outlines, volumes and orientation marks.

    The patient's right is on the left, front or head on top, as the affine says.

    Args:
        image: intensities (X, Y, Z).
        prediction: class numbers of the same shape.
        affine: (4, 4), voxel to mm, right-anterior-superior.
        labels: names of the structures by class number.
        title: text above the pictures.
        in_mm: the affine is known; else there are no marks, and sizes are in voxels.
    """
    turned = [nib.as_closest_canonical(nib.Nifti1Image(volume, affine)) for volume in (image, prediction)]
    seen, mask = (np.asarray(volume.dataobj) for volume in turned)
    spacing = tuple(float(size) for size in turned[0].header.get_zooms()[:3])
    axis, middle, largest = chosen_slices(mask, spacing)
    across, down = (other for other in range(3) if other != axis)
    window = grey_window(seen, [mask])
    figure = Figure(figsize=(8.0, 4.6))
    for ax, index, what in zip(figure.subplots(1, 2), (middle, largest), ("middle", "largest structure"), strict=True):
        plane, outlines = (np.take(volume, index, axis=axis).T[::-1, ::-1] for volume in (seen, mask))
        pixel, marks = (spacing[down], spacing[across]), MARKS[axis] if in_mm else ""
        picture = CasePicture(plane, None, outlines, None, pixel, window, "", marks=marks, in_mm=in_mm)
        draw_case(
            ax,
            plane,
            {"prediction": outlines},
            labels=labels,
            aspect=spacing[down] / spacing[across],
            window=window,
            filled=("prediction",),
        )
        shown = what if mask.any() else "nothing was segmented"
        draw_caption(ax, f"{VIEWS[axis]} slice {index + 1} of {mask.shape[axis]}, {shown}")
        draw_scale_bar(ax, picture)
        draw_marks(ax, picture)
    counts = {value: int((mask == value).sum()) for value in labels}
    ml = voxel_ml(affine)
    sizes = {value: f"{count * ml:.4g} ml" if in_mm else f"{count} voxels" for value, count in counts.items()}
    named = {value: f"{name}, {sizes[value]}" for value, name in labels.items()}
    rows = -(-len(named) // _PER_ROW)
    # names and sizes below the pictures, however many there are
    figure.set_figheight(4.2 + 0.18 * rows)
    figure.subplots_adjust(
        left=0.01, right=0.99, top=0.93, bottom=(0.1 + 0.18 * rows) / (4.2 + 0.18 * rows), wspace=0.02
    )
    figure.suptitle(title, fontsize=9)
    figure.legend(handles=case_legend(named), loc="lower center", ncols=_PER_ROW, fontsize=7, frameon=False)
    return figure


class CasePreview:
    """Write ``<case>/<case>_preview.png`` of each case of an evaluator, see :func:`draw_preview`.

    The evaluator's postprocessing gives ``pred`` (1, *S) in the space of the image, whose file it names.

    Args:
        output_dir: folder to write to.
        structures: names of the structures, see :func:`~common.data.contract.names.structure_names`.
    """

    def __init__(
        self, output_dir: str | os.PathLike[str], structures: Mapping[int, str] | Sequence[str] | None = None
    ) -> None:
        self.folder = Path(output_dir)
        self.structures = structures

    def attach(self, engine: Engine) -> None:
        """Attach to an evaluator."""
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._case)

    def _case(self, engine: Engine) -> None:
        for output in engine.state.output:
            prediction = output["pred"]
            file = str(prediction.meta["filename_or_obj"])
            name = case_name(file)
            stored: Any = nib.load(file)  # NIfTI-1 or NIfTI-2
            image = np.asarray(stored.dataobj, dtype=np.float32)
            figure = draw_preview(
                image.reshape(*image.shape[:3], -1)[..., 0],  # the first channel
                prediction[0].cpu().numpy(),
                prediction.affine.double().cpu().numpy(),
                structure_names(self.structures, len(output["probabilities"])),
                title=name,
                in_mm=voxel_size(prediction) is not None,
            )
            with atomic_path(self.folder / name / f"{name}_preview.png") as temporary:
                FigureCanvasAgg(figure).print_figure(temporary, dpi=110, format="png")
