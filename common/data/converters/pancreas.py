"""NIH Pancreas-CT (TCIA): 80 abdominal CT scans as DICOM, or converted to NIfTI, and labels as NIfTI.

The orientation of the labels is a known trap: published conversions of this data set differ in whether they trust the
labels' own headers. So there are two ways to read a label, and ``label_axes`` picks one:

- ``header``: the label's affine is right. With its axes turned to the image's, the label must lie where the image lies,
  to half a voxel; otherwise it is refused.
- ``array``: the label's header is not used. Its array indices are taken as (DICOM column, DICOM row, slice from feet to
  head), that is, its axes run to left, posterior and superior. Conversions that ignore the header do the same in other
  words: they swap the in-plane axes to match row-first pixel arrays, or flip the second axis to match NIfTI images
  whose second axis runs to anterior.

``auto``, the default, takes ``header`` when the label lies where the image lies, else ``array``; the log says how many
labels were read in which way. Either way the shapes must agree, and most of the labelled voxels must be soft tissue.
That last check finds labels in air, fat or bone; it cannot find every wrong flip, so look at some cases.
"""

from __future__ import annotations

import logging
import re
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel import orientations

from ..contract.output import fault
from ..contract.walk import paths_below
from ..loading.dicom import read_dicom_series
from .base import (
    NIFTI_ENDINGS,
    Case,
    Source,
    Volume,
    add_once,
    binary_mask,
    converter,
    crop,
    held_out_names,
    source_folder,
)

logger = logging.getLogger(__name__)

LABEL_AXES = ("auto", "header", "array")
SOFT_TISSUE = (-150, 300)  # HU; the pancreas with some fat between its lobules, vessels and a stent's surroundings
SOFT_TISSUE_SHARE = 0.8
# scans of one patient, as the collection's page says
SAME_PATIENT = {"0025": "0002", "0070": "0002"}


@converter("pancreas", "NIH Pancreas-CT, DICOM or NIfTI images")
def convert_pancreas(
    source: Path,
    labels: str | None = None,
    margin: int | None = None,
    test_list: str | None = None,
    label_axes: str = "auto",
) -> Source:
    """Convert ``PANCREAS_0001/**/*.dcm`` or NIfTI images and ``label0001.nii.gz``; intensities stay in HU.

    Args:
        source: folder with a folder of DICOM files or one NIfTI file for each case, at any depth; names end in the
            case's four digits.
        labels: folder of the labels, at any depth; None looks below ``source``.
        margin: cut each case to the pancreas' bounding box grown by so many voxels (the literature takes about 25);
            None keeps whole volumes.
        test_list: text file with the names of the test cases (``PANCREAS_0001``), one per line.
        label_axes: how labels lie on images: as the ``header`` says, by the ``array`` alone, or ``auto``, whichever
            fits the image.

    Returns:
        name, labels and cases.

    Raises:
        DataError: when files are missing, unreadable or do not fit each other.
    """
    if label_axes not in LABEL_AXES:
        raise fault("--label_axes", f"{label_axes!r} is unknown", f"give one of {', '.join(LABEL_AXES)}")
    images = _find_images(source)
    masks = _find_labels(source if labels is None else source_folder(labels))
    lacking = sorted(set(images) - set(masks))
    if not images or lacking:
        what = f"no label for case {', '.join(lacking)}" if images else "holds no PANCREAS_0001 folders or NIfTI images"
        raise fault(source, what, "give the images' folder, and that of label0001.nii.gz by --labels")
    tests = held_out_names(test_list, [f"PANCREAS_{number}" for number in images])
    structures = {"0": "background", "1": "pancreas"}
    return Source("NIH Pancreas-CT", structures, _read_cases(images, masks, tests, margin, label_axes))


def _read_cases(
    images: dict[str, Path], masks: dict[str, Path], tests: set[str], margin: int | None, label_axes: str
) -> Iterator[Case]:
    ways: Counter[str] = Counter()
    for number, path in images.items():
        image, affine = read_dicom_series(path) if path.is_dir() else _read_nifti(path)
        label, way = read_label(masks[number], image, affine, label_axes)
        ways[way] += 1
        image, label, affine = crop(image, label, affine, margin)
        name, group = f"PANCREAS_{number}", f"PANCREAS_{SAME_PATIENT.get(number, number)}"
        section = "test" if name in tests else "training"
        yield Case(name, Volume(image, affine), Volume(label, affine), section=section, group=group)
    logger.info("labels read by %s", ", ".join(f"{way}: {count}" for way, count in ways.items()))


def read_label(path: Path, image: np.ndarray, affine: np.ndarray, label_axes: str = "auto") -> tuple[np.ndarray, str]:
    """Read a label onto the grid of its image.

    Args:
        path: NIfTI file of the label.
        image: (X, Y, Z) in HU.
        affine: (4, 4) of the image.
        label_axes: ``auto``, ``header`` or ``array``; see the module.

    Returns:
        label (X, Y, Z) uint8 of 0 and 1, and the way it was read, ``header`` or ``array``.

    Raises:
        DataError: when the label does not fit the image.
    """
    stored, label_affine = _read_nifti(path)
    wanted = orientations.io_orientation(affine)
    turn = orientations.ornt_transform(orientations.io_orientation(label_affine), wanted)
    by_header = orientations.apply_orientation(stored, turn)
    turned_affine = label_affine @ orientations.inv_ornt_aff(turn, stored.shape)
    way = label_axes
    if label_axes != "array":
        agrees = by_header.shape == image.shape and _apart(turned_affine, affine, image.shape) < 0.5
        if label_axes == "header" and not agrees:
            raise fault(path, "lies elsewhere than its image by its header", "give --label_axes array, and look at it")
        way = "header" if agrees else "array"
    if way == "array":
        stored_axes = orientations.axcodes2ornt(("L", "P", "S"))
        label = orientations.apply_orientation(stored, orientations.ornt_transform(stored_axes, wanted))
    else:
        label = by_header
    if label.shape != image.shape:
        raise fault(path, f"has shape {label.shape} on the image's axes, the image {image.shape}", "check the pairing")
    mask = binary_mask(label, path)
    _check_tissue(path, image, mask, way)
    return mask, way


def _check_tissue(path: Path, image: np.ndarray, mask: np.ndarray, way: str) -> None:
    inside = image[mask > 0]
    if inside.size == 0:
        raise fault(path, "is empty", "download it again")
    share = float(np.mean((inside >= SOFT_TISSUE[0]) & (inside <= SOFT_TISSUE[1])))
    if share < SOFT_TISSUE_SHARE:
        other = "array" if way == "header" else "header"
        what = f"only {share:.0%} of its voxels are soft tissue ({SOFT_TISSUE[0]} to {SOFT_TISSUE[1]} HU)"
        raise fault(path, f"{what} with the axes read by {way}", f"try --label_axes {other}, or check the pairing")


def _apart(one: np.ndarray, other: np.ndarray, shape: tuple[int, ...]) -> float:
    """Greatest distance between the corners of two grids of one shape, in voxels of the second."""
    corners = np.array([[x, y, z, 1.0] for x in (0, shape[0]) for y in (0, shape[1]) for z in (0, shape[2])])
    distances = np.linalg.norm((corners @ (one - other).T)[:, :3], axis=1)
    return float(distances.max() / np.linalg.norm(other[:3, :3], axis=0).min())


def _number(name: str) -> str | None:
    """The four digits at the end of a name without its ending."""
    found = re.search(r"(?<!\d)(\d{4})(?:\.nii|\.nii\.gz)?$", name)
    return found.group(1) if found else None


def _find_images(folder: Path) -> dict[str, Path]:
    """Folder of DICOM files or NIfTI file of each case, by number."""
    images: dict[str, Path] = {}
    for path in paths_below(folder):
        number = _number(path.name)
        dicom = path.is_dir() and path.name.upper().startswith("PANCREAS_")
        nifti = path.name.endswith(NIFTI_ENDINGS) and not path.name.lower().startswith(("label", "."))
        if number is None or not (dicom or nifti):
            continue
        add_once(images, number, path, f"image of case {number}")
    return images


def _find_labels(folder: Path) -> dict[str, Path]:
    """Label of each case, by number."""
    labels: dict[str, Path] = {}
    for path in paths_below(folder, "label*"):
        number = _number(path.name)
        if number is not None and path.name.endswith(NIFTI_ENDINGS) and path.is_file():
            add_once(labels, number, path, f"label of case {number}")
    return labels


def _read_nifti(path: Path) -> tuple[np.ndarray, np.ndarray]:
    try:
        file = nib.load(path)
        volume = np.asanyarray(file.dataobj)  # type: ignore[attr-defined]
    except (nib.filebasedimages.ImageFileError, OSError, EOFError, ValueError, zlib.error) as error:
        raise fault(path, f"cannot be read as NIfTI ({error})", "download it again") from error
    if volume.ndim != 3:
        raise fault(path, f"has {volume.ndim} axes", "give a volume of 3 axes")
    return volume, np.asarray(file.affine, dtype=float)  # type: ignore[attr-defined]
