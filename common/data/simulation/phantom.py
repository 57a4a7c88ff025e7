"""A small built-in data set: seeded, made in seconds, NIfTI on disk, with every label defect of the collection."""

from __future__ import annotations

import json
import math
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import nibabel as nib
import numpy as np
from scipy import ndimage

from ..contract.faults import DataError, Fault
from ..contract.records import SCRIBBLE_UNLABELLED
from .noise import apply_noise, sample_noise, settle_noise
from .phantom_labels import apply_scribble, sample_scribble
from .raters import (
    STYLES,
    ambiguity,
    apply_raters,
    sample_border,
    sample_boundary,
    sample_raters,
    true_probability,
)

VERSION = 5
KINDS = ("dense", "noisy", "unlabelled", "scribbles", "raters", "boundary")
LABELS = {"0": "background", "1": "body", "2": "lobe", "3": "cap"}
SPACING = (1.0, 1.0, 1.5)  # mm
RATERS = (3, 5)  # smallest and largest number a case
FAINT = 3  # the structure that raters may leave out

_CASES = {"training": 20, "validation": 4, "test": 4}
# of borders in voxels; average share of the faint structures left out, and of structures added
_RATER_SETTINGS: dict[str, Any] = {"shift": 2.5, "missed": 0.4, "added": 0.1}
_BOUNDARY_SHIFT = 6.0  # voxels, largest shift of a border in the kind boundary
_BLUR = 2.5  # voxels, where a border is most ambiguous
_FULLY_LABELLED = 4  # training cases with a trusted label in the kinds noisy, unlabelled and raters
_BACKGROUND = 0.25
_INTENSITIES = {1: 0.62, 2: 0.43, 3: 1.00}  # before bias field and noise; look-alikes share them
_BIAS = 0.10  # largest relative change by the bias field
_RICIAN_SIGMA = 0.05
_LOOK_ALIKES = (2, 4)  # smallest and largest number a case
# least and greatest radii of cap, lobe and body, as shares of the image's half length
_RADII = (
    ((0.22, 0.22, 0.22), (0.24, 0.30, 0.28), (0.26, 0.32, 0.32)),
    ((0.28, 0.28, 0.28), (0.30, 0.38, 0.36), (0.34, 0.40, 0.42)),
)
_SCALE = 1000.0  # images are stored as int16, as scanners do


def make_phantom(
    directory: str | os.PathLike[str],
    kind: str = "noisy",
    seed: int = 0,
    cases: Mapping[str, int] | None = None,
    shape: tuple[int, int, int] = (48, 48, 32),
    noise_radius: tuple[float, float] = (1.0, 2.0),
) -> Path:
    """Write a phantom data set: images, labels and ``dataset.json`` with relative paths.

    A case holds three touching structures of random pose, size and shape, a bias field, Rician noise and
    look-alikes: isolated blobs as bright as a structure that carry no label, so that intensity alone does not
    segment it. The images depend on ``seed`` alone, not on ``kind``: results of different kinds compare. Those of
    ``raters`` alone differ: parts of their borders are blurred, and the cap is fainter from case to case.

    ========== =============================================================================================
    dense      every training case has its true label
    noisy      4 clean training labels; the others dilated or eroded (``label_quality: noisy``, ``reference``)
    unlabelled 4 labelled training cases, the others without any label
    scribbles  every training case has scribbles only
    raters     4 training cases with the masks of 3 to 5 raters of 5, the others without any label
    boundary   every training label has borders shifted in and out by a smooth random field of up to 6 voxels, more
               in some parts than in others (``label_quality: noisy``, ``reference``)
    ========== =============================================================================================

    Validation and test always have true labels; for ``raters`` the masks of all 5 raters, too, and ``probability``: how
    likely a rater is to mark a voxel as each structure.

    Args:
        directory: folder to make. One that holds a phantom is left alone if it is the same and replaced if it is not.
        kind: one of ``dense``, ``noisy``, ``unlabelled``, ``scribbles``, ``raters``, ``boundary``.
        seed: seed of everything random.
        cases: number of cases by section; default 20 ``training``, 4 ``validation``, 4 ``test``.
        shape: voxels; the anatomy fills the same share of any shape.
        noise_radius: smallest and largest dilation or erosion of noisy labels, in voxels.

    Returns:
        the folder.

    Raises:
        DataError: unknown kind, or the folder holds something that is no phantom.
    """
    target = Path(directory)
    if kind not in KINDS:
        raise DataError([Fault("phantom", f"unknown kind {kind!r}", f"use one of {', '.join(KINDS)}")])
    counts = {**_CASES, **(cases or {})}
    recipe = {
        "version": VERSION,
        "kind": kind,
        "seed": seed,
        "cases": counts,
        "shape": list(shape),
        "noise_radius": list(noise_radius),
    }
    if _present_recipe(target) == recipe:
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    working = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        working.chmod(0o755)
        _write_dataset(working, recipe)
        _put_in_place(working, target, recipe)
    finally:
        shutil.rmtree(working, ignore_errors=True)
    return target


def _present_recipe(target: Path) -> dict[str, Any] | None:
    """Recipe of the phantom in ``target``, None if there is nothing; refuses folders that are no phantom."""
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return None
    try:
        recipe = json.loads((target / "dataset.json").read_text())["phantom"]
    except (OSError, ValueError, KeyError, TypeError):
        what = "is there already and holds no phantom, so it is left alone"
        raise DataError([Fault(str(target), what, "choose another folder")]) from None
    return dict(recipe)


def _put_in_place(working: Path, target: Path, recipe: dict[str, Any]) -> None:
    """Move the finished folder to its name; another process may have been faster with the same phantom."""
    old = Path(tempfile.mkdtemp(prefix=f".{target.name}-old-", dir=target.parent))
    try:
        if target.exists():
            os.replace(target, old)
        os.replace(working, target)
    except OSError:
        if _present_recipe(target) != recipe:
            raise
    finally:
        shutil.rmtree(old, ignore_errors=True)


def _write_dataset(directory: Path, recipe: dict[str, Any]) -> None:
    kind, seed, shape = recipe["kind"], recipe["seed"], tuple(recipe["shape"])
    content: dict[str, Any] = {"name": f"phantom ({kind})", "labels": LABELS}
    if kind == "scribbles":
        content["scribble_unlabelled_value"] = SCRIBBLE_UNLABELLED
    content["phantom"] = recipe
    corruption: dict[str, Any] = {}
    number = 0
    for section, count in recipe["cases"].items():
        if count:
            content[section] = []
        for place in range(count):
            case = f"case_{number:03d}"
            unsure = _sample_ambiguity(np.random.default_rng([seed, number, 2])) if kind == "raters" else None
            image, label = make_case(np.random.default_rng([seed, number]), shape, unsure)
            record: dict[str, Any] = {"image": f"images/{case}.nii.gz", "group": case}
            _write_volume(directory / record["image"], image)
            writer = _LabelWriter(directory, case, label, np.random.default_rng([seed, number, 1]), recipe, unsure)
            record.update(writer.training(place) if section == "training" else writer.held_out())
            content[section].append(record)
            if writer.parameters:
                corruption[case] = writer.parameters
            number += 1
    if corruption:
        content["corruption"] = {"kind": kind, "seed": seed, "parameters": corruption}
    (directory / "dataset.json").write_text(json.dumps(content, indent=1))


class _LabelWriter:
    """Writes the label files of one case and returns the keys of its record."""

    def __init__(
        self,
        directory: Path,
        case: str,
        label: np.ndarray,
        rng: np.random.Generator,
        recipe: dict[str, Any],
        unsure: Ambiguity | None,
    ) -> None:
        self.directory, self.case, self.label, self.rng, self.recipe = directory, case, label, rng, recipe
        self.unsure = unsure
        self.parameters: list[dict[str, Any]] = []

    def training(self, place: int) -> dict[str, Any]:
        kind = self.recipe["kind"]
        if kind == "scribbles":
            self.parameters = [sample_scribble(self.rng)]
            scribble = apply_scribble(self.label, self.parameters[0], SCRIBBLE_UNLABELLED)
            return {"scribble": self._write("scribbles", scribble), "reference": self._write("references", self.label)}
        if kind == "dense" or (kind in ("noisy", "unlabelled") and place < _FULLY_LABELLED):
            return {"label": self._write("labels", self.label)}
        if kind == "raters" and place < _FULLY_LABELLED:
            count = int(self.rng.integers(RATERS[0], RATERS[1] + 1))
            who = sorted(self.rng.permutation(len(STYLES))[:count].tolist())
            return {"labels": self._raters(who), "reference": self._write("references", self.label)}
        if kind == "noisy":
            low, high = self.recipe["noise_radius"]
            self.parameters = settle_noise(self.label, sample_noise(self.rng, (low, high), _structures()))
            return self._unreliable(apply_noise(self.label, self.parameters))
        if kind == "boundary":
            self.parameters = [sample_boundary(self.rng, _BOUNDARY_SHIFT)]
            return self._unreliable(*apply_raters(self.label, self.parameters))
        return {}

    def _unreliable(self, label: np.ndarray) -> dict[str, Any]:
        return {
            "label": self._write("labels", label),
            "label_quality": "noisy",
            "reference": self._write("references", self.label),
        }

    def held_out(self) -> dict[str, Any]:
        record: dict[str, Any] = {"label": self._write("labels", self.label)}
        if self.recipe["kind"] == "raters":
            record["labels"] = self._raters(range(len(STYLES)))
            record["probability"] = self._probability()
        return record

    def _raters(self, who: Sequence[int]) -> list[str]:
        assert self.unsure is not None
        self.parameters = sample_raters(
            self.rng, who, _structures(), self.unsure.border, visibility=self.unsure.seen, **_RATER_SETTINGS
        )
        masks = apply_raters(self.label, self.parameters)
        return [self._write(f"raters/{rater}", mask) for rater, mask in zip(who, masks, strict=True)]

    def _probability(self) -> str:
        assert self.unsure is not None
        maps = true_probability(
            self.label, _structures(), self.unsure.border, visibility=self.unsure.seen, **_RATER_SETTINGS
        )
        name = f"probabilities/{self.case}.nii.gz"
        _write_volume(self.directory / name, np.moveaxis(maps, 0, -1))
        return name

    def _write(self, folder: str, volume: np.ndarray) -> str:
        name = f"{folder}/{self.case}.nii.gz"
        _write_volume(self.directory / name, volume.astype(np.uint8))
        return name


class Ambiguity(NamedTuple):
    """What is unsure about a case: the seed of its border's ambiguity, and how well the faint structure is seen."""

    border: int
    visibility: float

    @property
    def seen(self) -> dict[int, float]:
        """Visibility of each structure, in [0, 1]."""
        return {structure: self.visibility if structure == FAINT else 1.0 for structure in _structures()}


def _sample_ambiguity(rng: np.random.Generator) -> Ambiguity:
    return Ambiguity(sample_border(rng), round(float(rng.uniform(0.0, 1.0)), 3))


def _structures() -> Sequence[int]:
    return [int(value) for value in LABELS if value != "0"]


def _write_volume(path: Path, volume: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nib.Nifti1Image(volume, np.diag([*SPACING, 1.0]))
    image.header.set_xyzt_units("mm")
    nib.save(image, path)


def make_case(
    rng: np.random.Generator, shape: tuple[int, ...], unsure: Ambiguity | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Make one case.

    Args:
        rng: source of everything random.
        shape: (H, W, D) voxels.
        unsure: what raters may see differently; None: everything is clear.

    Returns:
        image (H, W, D) int16, about 0 to 1500, and label (H, W, D) uint8 with values 0 to 3.
    """
    # coordinates in [-1, 1] along each axis, shape (3, H, W, D)
    grid = np.stack(np.meshgrid(*(np.linspace(-1, 1, size) for size in shape), indexing="ij"))
    label = _anatomy(rng, grid)
    ideal = np.full(shape, _BACKGROUND)
    ideal += 0.05 * _smooth_noise(rng, shape, smoothness=0.08)  # tissue that is not flat
    for structure, intensity in _INTENSITIES.items():
        ideal[label == structure] = intensity * rng.uniform(0.95, 1.05)
    if unsure is not None:
        faint = label == FAINT
        ideal[faint] = _BACKGROUND + (0.2 + 0.8 * unsure.visibility) * (ideal[faint] - _BACKGROUND)
    _add_look_alikes(rng, grid, label, ideal)
    if unsure is not None:
        share = ambiguity(shape, unsure.border)
        ideal = (1.0 - share) * ideal + share * ndimage.gaussian_filter(ideal, _BLUR)
    ideal = ndimage.gaussian_filter(ideal, 0.6)  # partial volume
    ideal *= np.exp(_BIAS * _smooth_noise(rng, shape, smoothness=0.35))
    noise = rng.normal(scale=_RICIAN_SIGMA, size=(2, *shape))
    image = np.hypot(ideal + noise[0], noise[1])
    return np.round(image * _SCALE).astype(np.int16), label


def _anatomy(rng: np.random.Generator, grid: np.ndarray) -> np.ndarray:
    """A body, a lobe that leans on its side and a cap on its top, in random pose, bent and of random size."""
    shape = grid.shape[1:]
    bend = np.stack([0.09 * _smooth_noise(rng, shape, smoothness=0.2) for _ in range(3)])
    centre = rng.uniform(-0.22, 0.22, size=3)
    rotation = _rotation(rng, largest_angle=math.radians(35))
    points = np.einsum("ij,jhwd->ihwd", rotation, grid + bend - centre[:, None, None, None])
    size = rng.uniform(0.98, 1.22)

    def ellipsoid(middle: Sequence[float], radii: np.ndarray) -> np.ndarray:
        scaled = [(points[axis] - size * middle[axis]) / (size * radii[axis]) for axis in range(3)]
        return np.asarray(sum(term**2 for term in scaled) <= 1.0)

    label = np.zeros(shape, dtype=np.uint8)
    # where structures overlap the body wins, then the lobe
    low, high = (np.array(radii) for radii in _RADII)
    cap, lobe, body = rng.uniform(low, high)
    label[ellipsoid((0.0, 0.46, rng.uniform(-0.08, 0.08)), cap)] = 3
    label[ellipsoid((0.40, 0.0, rng.uniform(-0.10, 0.10)), lobe)] = 2
    label[ellipsoid((0.0, 0.0, 0.0), body)] = 1
    return label


def _add_look_alikes(rng: np.random.Generator, grid: np.ndarray, label: np.ndarray, ideal: np.ndarray) -> None:
    """Add blobs as bright as a structure, clear of the structures and of each other (changes ``ideal``)."""
    half = np.array(label.shape) / 2
    taken = label > 0
    for _ in range(int(rng.integers(_LOOK_ALIKES[0], _LOOK_ALIKES[1] + 1))):
        radii = rng.uniform(0.12, 0.24, size=3)
        intensity = float(rng.choice(list(_INTENSITIES.values()))) * rng.uniform(0.95, 1.05)
        gap = ndimage.distance_transform_edt(~taken, sampling=1 / half)
        free = np.argwhere(gap > radii.max() + 0.10)
        if len(free) == 0:
            continue
        row, column, plane = free[rng.integers(len(free))]
        centre = grid[:, row, column, plane]
        scaled = (grid - centre[:, None, None, None]) / radii[:, None, None, None]
        blob = (scaled**2).sum(axis=0) <= 1.0
        ideal[blob] = intensity
        taken |= blob


def _rotation(rng: np.random.Generator, largest_angle: float) -> np.ndarray:
    """Rotation matrix (3, 3) about a random axis (Rodrigues' formula)."""
    axis = rng.normal(size=3)
    axis /= np.linalg.norm(axis)
    angle = rng.uniform(-largest_angle, largest_angle)
    cross = np.array([[0, -axis[2], axis[1]], [axis[2], 0, -axis[0]], [-axis[1], axis[0], 0]])
    return np.asarray(np.eye(3) + math.sin(angle) * cross + (1 - math.cos(angle)) * cross @ cross)


def _smooth_noise(rng: np.random.Generator, shape: Sequence[int], smoothness: float) -> np.ndarray:
    """Random field of ``shape`` in [-1, 1]; ``smoothness`` is the Gaussian's sigma as a share of each axis."""
    field = ndimage.gaussian_filter(rng.normal(size=shape), [smoothness * size for size in shape], mode="reflect")
    field -= field.mean()
    return np.asarray(field / np.abs(field).max())
