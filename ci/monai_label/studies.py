"""A folder of studies as several annotators leave it: trusted labels, doubtful ones, strokes, raters, and no label."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from common.data import make_phantom
from common.data.contract.records import SCRIBBLE_UNLABELLED

#: kind of phantom to what its cases are called here, and how many there are
CASES = {"noisy": ("doubtful", 6), "scribbles": ("drawn", 3), "raters": ("rated", 3), "unlabelled": ("bare", 7)}
BARE_FROM = 4  # cases of the phantom `unlabelled` that have a label come first


def make_studies(folder: Path, shape: tuple[int, int, int] = (32, 32, 16), seed: int = 0) -> dict[str, dict[str, str]]:
    """Make the folder.

    Args:
        folder: to make.
        shape: of the images, in voxels.
        seed: of the phantom.

    Returns:
        labels by study: tag to path, as the server will find them in ``labels/<tag>``.
    """
    studies: dict[str, dict[str, str]] = {}
    for number, (kind, (name, count)) in enumerate(CASES.items()):
        cases = {"training": count, "validation": 0, "test": 0}
        source = make_phantom(folder / ".phantom" / kind, kind, seed + number, cases, shape)
        content = json.loads((source / "dataset.json").read_text())
        records = content["training"][BARE_FROM if kind == "unlabelled" else 0 :]
        classes = len(content["labels"])
        for place, record in enumerate(records):
            study = f"{name}_{place}"
            folder.mkdir(exist_ok=True)
            shutil.copyfile(source / record["image"], folder / f"{study}.nii.gz")
            studies[study] = {}
            for tag, path in _labels(source, record):
                target = folder / "labels" / tag / f"{study}.nii.gz"
                target.parent.mkdir(parents=True, exist_ok=True)
                if tag == "strokes":
                    draw(path, target, classes)
                else:
                    shutil.copyfile(path, target)
                studies[study][tag] = str(target)
    shutil.rmtree(folder / ".phantom")
    return studies


def _labels(source: Path, record: Mapping[str, Any]) -> Iterator[tuple[str, Path]]:
    """Tag and file of each label of a record."""
    if "label" in record:
        yield "original" if record.get("label_quality") == "noisy" else "final", source / record["label"]
    if "scribble" in record:
        yield "strokes", source / record["scribble"]
    for number, path in enumerate(record.get("labels", ())):
        yield f"rater_{number}", source / path


def draw(scribble: Path, target: Path, classes: int) -> None:
    """A scribble as an annotation tool would save it: 0 where nothing is drawn, ``classes`` for the background."""
    image: Any = nib.load(scribble)
    values = np.asarray(image.dataobj)
    drawn = np.where(values == 0, classes, np.where(values == SCRIBBLE_UNLABELLED, 0, values)).astype(np.uint8)
    nib.save(nib.Nifti1Image(drawn, image.affine), target)
