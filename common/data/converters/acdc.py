"""ACDC (cine-MRI of the heart, MICCAI 2017), as downloaded, with the published scribbles of Valvano et al.

Scribbles were drawn on the arrays, so a scribble's own position in space is not used: it takes its image's. That the
axes fit is seen from the labels: scribbled voxels carry the label's value in all but a few places.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from ..contract.output import fault
from ..contract.volumes import read_volume
from ..contract.walk import paths_below
from .base import Case, Source, Volume, add_once, below_test_folder, converter, held_out_names, source_folder, stem

LABELS = {"0": "background", "1": "right ventricle", "2": "myocardium", "3": "left ventricle"}
UNLABELLED = 4  # of the published scribbles
# share of scribbled structure voxels that must carry the label's value; the published ones reach 0.99, and a flip
# leaves less than half of them right on average
AGREEMENT = 0.95
_FRAME = re.compile(r"(patient\d+)_frame\d+\.nii(?:\.gz)?")


@converter("acdc", "ACDC, cine-MRI of the heart, with or without the published scribbles")
def convert_acdc(source: Path, scribbles: str | None = None, test_list: str | None = None) -> Source:
    """Convert ``patientXXX/patientXXX_frameYY.nii.gz`` and ``..._gt.nii.gz``; images are hard-linked where possible.

    The frames at end-diastole and end-systole become records with the patient as group; the 4D files are not read.
    Patients below a folder whose name begins with "test" become ``test``, unless a test list is given. Records with
    scribbles keep ``label``: `split` makes a validation section from it, and scribble methods do not read it.

    Args:
        source: folder of the download, or its ``training`` folder.
        scribbles: folder with ``patientXXX_frameYY_scribble.nii.gz`` at any depth, one for each training frame.
        test_list: text file with the names of the test patients, one per line.

    Returns:
        name, labels and cases.

    Raises:
        DataError: when files are missing, unreadable or do not fit each other.
    """
    frames = _find_frames(source)
    patients = {name: name.split("_")[0] for name in frames}
    tests = held_out_names(test_list, patients.values())
    if test_list is None:
        tests = {patients[name] for name, path in frames.items() if below_test_folder(path, source)}
    labels = {name: path.with_name(path.name.replace(name, f"{name}_gt")) for name, path in frames.items()}
    lacking = [name for name, path in labels.items() if patients[name] not in tests and not path.is_file()]
    if lacking:
        raise fault(source, f"no label (..._gt.nii.gz) for {', '.join(lacking[:8])}", "download the patients again")
    strokes = {} if scribbles is None else _find_scribbles(source_folder(scribbles))
    unmarked = [name for name in frames if patients[name] not in tests and name not in strokes]
    if scribbles is not None and unmarked:
        what = f"no scribble (..._scribble.nii.gz) for {', '.join(unmarked[:8])}"
        raise fault(scribbles, what, "give the folder of all scribbles, or name these patients in --test_list")
    cases = (
        Case(
            name,
            path,
            label=labels[name] if labels[name].is_file() else None,
            scribble=_scribble(strokes[name], path, labels[name]) if name in strokes and trained else None,
            section="training" if trained else "test",
            group=patients[name],
        )
        for name, path in frames.items()
        for trained in [patients[name] not in tests]
    )
    extra = {"scribble_unlabelled_value": UNLABELLED} if strokes else {}
    return Source("ACDC (cine-MRI, end-diastole and end-systole)", LABELS, cases, extra)


def _find_frames(folder: Path) -> dict[str, Path]:
    """Image of each frame by its name, ``patientXXX_frameYY``."""
    frames: dict[str, Path] = {}
    for path in paths_below(folder, "patient*_frame*.nii*"):
        if not path.is_file() or not _FRAME.fullmatch(path.name):
            continue
        add_once(frames, stem(path), path, f"image of {stem(path)}")
    if not frames:
        raise fault(folder, "holds no patientXXX/patientXXX_frameYY.nii.gz", "give the folder above the patients")
    return frames


def _find_scribbles(folder: Path) -> dict[str, Path]:
    """Scribble of each frame by the frame's name."""
    strokes: dict[str, Path] = {}
    for path in paths_below(folder, "*_scribble.nii*"):
        if path.is_file():
            name = stem(path).removesuffix("_scribble")
            add_once(strokes, name, path, f"scribble of {name}")
    return strokes


def _scribble(source: Path, image: Path, label: Path) -> Volume:
    """A scribble on its image's grid, after a look at its values and whether they agree with the label."""
    drawn, _ = read_volume(source)
    true, _ = read_volume(label)
    _, geometry = read_volume(image)
    if not drawn.shape == true.shape == geometry.shape:
        what = f"has shape {drawn.shape}, the label {true.shape} and the image {geometry.shape}"
        raise fault(source, what, "check the pairing")
    values = np.unique(drawn).tolist()
    if not set(values) <= {*map(int, LABELS), UNLABELLED}:
        raise fault(source, f"holds the values {values[:8]}", f"give scribbles of 0 to 3, and {UNLABELLED} elsewhere")
    marked = (drawn > 0) & (drawn != UNLABELLED)
    agreement = float(np.mean(drawn[marked] == true[marked])) if marked.any() else 1.0
    if agreement < AGREEMENT:
        what = f"only {agreement:.0%} of its structure voxels carry the value of {label.name}"
        raise fault(source, what, "check the pairing, and that its axes are those of the image")
    return Volume(drawn.astype(np.uint8), geometry.affine)
