"""Writes a copy of a data set whose training labels are corrupted on purpose, with the recipe in its JSON.

The command line is ``python -m common.data corrupt DIR --kind noise --fraction 0.9 --radius 3 15 --output DIR2``, or
``... corrupt DIR --kind scribble --slice_axis 2 --output DIR2`` to put scribbles in the place of dense labels, or
``... corrupt DIR --kind unlabelled --fraction 0.75 --output DIR2`` to take labels away, or
``... corrupt DIR --kind raters --raters 4 --output DIR2`` to put the masks of several raters in a label's place.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from tqdm import tqdm

from ...ops.threads import usable_cores
from ..contract.faults import DataError, Fault
from ..contract.output import check_seed, fault, new_folder, place, write_json
from ..contract.records import PATH_KEYS, SCRIBBLE_UNLABELLED, SECTIONS, is_kind, listed_paths, normalise_labels
from .defects import KINDS, Boundary, Defect, Noise, Parameters, Raters, Scribbles, Unlabelled

# images are linked, as they are large and nobody edits them; labels are copied, as people do edit those
LINKED_KEYS = ("image",)
PAIR_OPTIONS = ("--radius",)
COMMON_KEYS = ("kind", "seed", "fraction", "cases")  # of a recipe; the others are the kind's settings
UNLABELLED = "scribble_unlabelled_value"
WORKERS = min(4, usable_cores())


def join_pairs(argv: Sequence[str]) -> list[str]:
    """Join ``--radius 3 15`` to ``--radius=3,15``, which fire reads as the pair (3, 15).

    Left alone, fire takes the 3 for the radius and the 15 for a positional argument. ``common.data.__main__`` passes
    its arguments through this function: ``fire.Fire(commands, command=join_pairs(sys.argv[1:]))``.

    Args:
        argv: command line without the program's name.

    Returns:
        the command line in which each option of ``PAIR_OPTIONS`` followed by two numbers is one argument.

    Example::

        >>> join_pairs(["corrupt", "DIR", "--radius", "3", "15", "--seed", "1"])
        ['corrupt', 'DIR', '--radius=3,15', '--seed', '1']
    """
    joined: list[str] = []
    position = 0
    while position < len(argv):
        following = argv[position + 1 : position + 3]
        if argv[position] in PAIR_OPTIONS and len(following) == 2 and all(map(_is_number, following)):
            joined.append(f"{argv[position]}={','.join(following)}")
            position += 3
        else:
            joined.append(argv[position])
            position += 1
    return joined


def corrupt(
    dataset_dir: str,
    output: str,
    kind: str = "noise",
    fraction: float | None = None,
    seed: int = 0,
    datalist: str = "dataset.json",
    **settings: Any,
) -> Path:
    """Write a copy of a data set in which a share of the clean training labels is noisy, scribbles or not there.

    Training records with a label that is not called noisy already take part (of kind ``unlabelled`` those with several
    raters, too); which of them are changed is drawn from
    the seed. Each gets ``reference``, a copy of the true label, to measure with. Of kind ``noise`` it also gets
    ``label`` (the changed file) and ``label_quality: noisy``; of kind ``scribble`` it gets ``scribble`` and has no
    ``label`` any more, and the JSON gets ``scribble_unlabelled_value`` (255, unless the data set has one); of kind
    ``unlabelled`` it has no ``label`` any more. Everything else is kept. The JSON also gets ``corruption``: kind, seed,
    fraction, settings and ``cases``, which maps the image of each changed case to its parameters; ``replay`` remakes
    the set from it.

    Args:
        dataset_dir: folder of the data set.
        output: folder to write; nothing there is overwritten.
        kind: ``noise``, ``scribble``, ``unlabelled``, ``raters`` or ``boundary``, see ``defects``.
        fraction: share of changed cases, above 0, rounded to whole cases, one at the least. For scribbles it is at most
            1, the default. Otherwise it lies below 1 and one case keeps its label at the least; default 0.9 for noise,
            0.8 for unlabelled.
        seed: source of chance.
        datalist: name of the JSON in ``dataset_dir``; the one written is always ``dataset.json``.
        settings: of the kind, see ``defects``; unlabelled has none.

    Returns:
        the folder written.

    Raises:
        DataError: when an argument is out of range, the data list cannot be read or corrupted, a file that it names is
            missing or unreadable, or the output is there already.
    """
    defect = _defect(kind, settings)
    share = defect.fraction if fraction is None else fraction
    below = "below" if defect.spared else "at most"
    if not isinstance(share, int | float) or not 0 < share <= 1 or (defect.spared and share == 1):
        raise fault("--fraction", f"{share!r} is not a share", f"give a number above 0 and {below} 1")
    root = Path(str(dataset_dir))
    listing = _read_list(root / datalist)
    structures = _structures(listing, root / datalist)
    candidates = [record for record in listing["training"] if _takes_part(record, kind)]
    if len(candidates) < 1 + defect.spared:
        needed = "2 are needed: one to corrupt and one to keep" if defect.spared else "1 is needed"
        what = f"{len(candidates)} records with a clean label, {needed}"
        raise fault(f"{root / datalist}/training", what, "add labelled records")
    check_seed(seed)
    rng = np.random.default_rng(seed)
    count = min(max(round(share * len(candidates)), 1), len(candidates) - defect.spared)
    chosen = sorted(rng.permutation(len(candidates))[:count].tolist())
    cases = {_case_key(candidates[index]): defect.sample(rng, structures) for index in chosen}
    if isinstance(defect, Raters):
        held_out = [record for section in SECTIONS[1:] for record in listing.get(section) or [] if _is_clean(record)]
        cases |= {_case_key(record): defect.sample(rng, structures) for record in held_out}
    recipe = {"kind": kind, "seed": int(seed), "fraction": float(share), **asdict(defect), "cases": cases}
    return _write(root, listing, recipe, Path(str(output)))


def replay(dataset_dir: str, recipe: str, output: str, datalist: str = "dataset.json") -> Path:
    """Remake a corrupted data set from the original and the JSON of the corrupted one, to the voxel and without chance.

    Args:
        dataset_dir: folder of the original data set.
        recipe: JSON that ``corrupt`` wrote (of the same or another machine); only its ``corruption`` is read.
        output: folder to write; nothing there is overwritten.
        datalist: name of the JSON in ``dataset_dir``.

    Returns:
        the folder written.

    Raises:
        DataError: as ``corrupt``; also when the recipe holds no corruption, or names cases that the data set does not
            have.
    """
    root = Path(str(dataset_dir))
    corruption = _load_json(Path(str(recipe))).get("corruption")
    if not isinstance(corruption, dict) or corruption.get("kind") not in KINDS or "cases" not in corruption:
        raise fault(str(recipe), "holds no corruption of a known kind", "give the JSON that corrupt wrote")
    listing = _read_list(root / datalist)
    return _write(root, listing, corruption, Path(str(output)))


def _write(root: Path, listing: dict[str, Any], recipe: dict[str, Any], output: Path) -> Path:
    """Write the corrupted copy: files first, then the JSON; the folder appears when all is done."""
    training = {_case_key(record): record for record in listing["training"] if _takes_part(record, recipe["kind"])}
    by_case = dict(training)
    if recipe["kind"] == "raters":
        held_out = [record for section in SECTIONS[1:] for record in listing.get(section) or [] if _is_clean(record)]
        by_case |= {_case_key(record): record for record in held_out}
    unknown = sorted(set(recipe["cases"]) - set(by_case))
    if unknown:
        what = f"has no clean training record with image {', '.join(unknown)}, which the recipe names"
        raise fault(root, what, "give the data set that the recipe was made for")
    changed = {case: by_case[case] for case in recipe["cases"]}
    labels = [record["label"] for record in changed.values() if "label" in record]
    if len(set(labels)) != len(labels):
        raise fault(root, "several records share one label file", "give each record its own label file")
    defect = _defect(recipe["kind"], {key: value for key, value in recipe.items() if key not in COMMON_KEYS})
    unlabelled = listing.get(UNLABELLED, SCRIBBLE_UNLABELLED)
    if isinstance(defect, Scribbles):
        listing[UNLABELLED] = unlabelled
        for record in changed.values():
            record.pop("scribble", None)  # of another rater; the simulated one takes its place
    with new_folder(output) as folder:
        _place_files(root, listing, folder)

        for record in listing["training"]:
            if _is_clean(record):
                record["label_quality"] = "clean"
        if isinstance(defect, Unlabelled):
            for record in changed.values():
                defect.note(record)
        else:
            applied, written = _corrupt_files(root, folder, changed, recipe["cases"], defect, unlabelled)
            recipe = {**recipe, "cases": applied}
            for case, record in changed.items():
                if isinstance(defect, Raters):
                    enter = defect.note if case in training else defect.note_held_out
                    enter(record, written[case])
                else:
                    defect.note(record, written[case][0])
        if isinstance(defect, Raters) and defect.others == "unlabelled":
            for case, record in training.items():
                if case not in changed:
                    Unlabelled().note(record)
        write_json({**listing, "corruption": recipe}, folder / "dataset.json")
    return output


def _corrupt_files(
    root: Path,
    folder: Path,
    changed: dict[str, dict[str, Any]],
    cases: dict[str, Parameters],
    defect: Noise | Scribbles | Raters | Boundary,
    unlabelled: int,
) -> tuple[dict[str, Parameters], dict[str, list[str]]]:
    """Write the corrupted labels; returns what was really applied to each case, and the files written for it."""

    def work(case: str) -> tuple[str, Parameters, list[str]]:
        source = changed[case]["label"]
        count = defect.raters if isinstance(defect, Raters) else 1
        places = [f"{defect.folder}/{number}/{source}" for number in range(count)] if count > 1 else None
        names = places or [f"{defect.folder}/{source}"]
        targets = [folder / name for name in names]
        return case, _corrupt_file(root / source, targets, cases[case], defect, unlabelled), names

    with ThreadPoolExecutor(WORKERS) as pool:
        done = list(tqdm(pool.map(work, changed), total=len(changed), desc="corrupting labels", leave=False))
    return {case: applied for case, applied, _ in done}, {case: names for case, _, names in done}


def _place_files(root: Path, listing: dict[str, Any], folder: Path) -> None:
    for section in SECTIONS:
        for record in listing.get(section) or []:
            for key in PATH_KEYS:
                value = record.get(key)
                for name in [] if value is None else [value] if isinstance(value, str) else value:
                    if not (root / name).is_file():
                        what = f"is missing; section {section} names it as {key}"
                        raise fault(root / name, what, "correct the path, or drop the record")
                    if not (folder / name).exists():
                        place(root / name, folder / name, link=key in LINKED_KEYS)


def _corrupt_file(
    source: Path,
    targets: Sequence[Path],
    parameters: Parameters,
    defect: Noise | Scribbles | Raters | Boundary,
    unlabelled: int,
) -> Parameters:
    """Write the corrupted label file, or one a rater; returns the parameters with what was really applied."""
    try:
        file = nib.load(source)
        values = np.asanyarray(file.dataobj)  # type: ignore[attr-defined]
    except (nib.filebasedimages.ImageFileError, OSError, EOFError, ValueError, zlib.error) as error:
        raise fault(source, f"cannot be read as an image ({error})", "replace the file") from error
    with np.errstate(invalid="ignore"):
        label = values.astype(np.int32)
    if not np.array_equal(label, values):
        raise fault(source, "holds values that are not whole numbers", "give a label map")
    try:
        made, settled = defect.apply(label, parameters, unlabelled)
    except ValueError as error:
        raise fault(source, str(error), "correct the file, or take the record out of `training`") from error
    for target, voxels in zip(targets, made if isinstance(made, list) else [made], strict=True):
        both = (label.min(), label.max(), voxels.min(), voxels.max())
        kind = np.uint8 if min(both) >= 0 and max(both) <= 255 else np.int32
        changed = nib.Nifti1Image(voxels.astype(kind), file.affine, file.header)  # type: ignore[attr-defined]
        changed.header.set_data_dtype(kind)
        changed.header.set_slope_inter(1, 0)
        target.parent.mkdir(parents=True, exist_ok=True)
        nib.save(changed, target)
    return settled


def _read_list(path: Path) -> dict[str, Any]:
    """Read the data list and bring its paths to one form, relative to the data set's folder."""
    listing = _load_json(path)
    if "corruption" in listing:
        raise fault(path, "these labels are corrupted already", "start from the original data set")
    if not isinstance(listing.get("training"), list):
        raise fault(path, "has no list `training`", "add the records of the cases to train on")
    for section in SECTIONS:
        for index, record in enumerate(listing.get(section) or []):
            if not isinstance(record, dict) or "image" not in record:
                raise fault(f"{path}/{section}", f"the record {record!r} has no image", "add the image's path")
            for key in PATH_KEYS:
                if key in record:
                    record[key] = _plain_paths(record[key], key, f"{section}[{index}]/{key}", path)
    return listing


def _plain_paths(value: Any, key: str, where: str, datalist: Path) -> str | list[str]:
    """The path or paths of one key in plain form; what `check` refuses is refused in its words."""
    faults: list[Fault] = []
    paths = listed_paths(value, key, where, faults)
    if faults:
        raise DataError(faults)
    plain = [_inside(path, datalist) for path in paths]
    return plain if isinstance(value, list) else plain[0]


def _defect(kind: str, settings: dict[str, Any]) -> Defect:
    """The kind's class with its settings, all of them checked."""
    if kind not in KINDS:
        raise fault("--kind", f"{kind!r} is unknown", f"give {' or '.join(f'--kind {name}' for name in KINDS)}")
    known = [field.name for field in fields(KINDS[kind])]
    for name in settings:
        if name not in known:
            fix = f"leave it out; it has {', '.join(f'--{name}' for name in known) or 'none'}"
            raise fault(f"--{name}", f"is no setting of --kind {kind}", fix)
    return KINDS[kind](**settings)


def _structures(listing: dict[str, Any], path: Path) -> list[int]:
    """Values of the structures that the data list names, background left out."""
    faults: list[Fault] = []
    labels = normalise_labels(listing.get("labels"), str(path), faults)
    if faults:
        raise DataError(faults)
    return [value for value in labels if value > 0]


def _load_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise fault(path, "there is no such data list", "give the folder that holds it, or its name by --datalist")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise fault(path, f"is not JSON ({error})", "correct or replace it") from error
    if not isinstance(content, dict):
        raise fault(path, f"holds a {type(content).__name__}", "give a JSON whose top level is a mapping")
    return content


def _inside(name: str, datalist: Path) -> str:
    """The path in plain form; one that leaves the folder is refused."""
    plain = Path(os.path.normpath(name))
    if plain.is_absolute() or ".." in plain.parts:
        raise fault(datalist, f"{name} lies outside the folder", "move the file into it, as the copy must stand alone")
    return plain.as_posix()


def _takes_part(record: dict[str, Any], kind: str) -> bool:
    return _is_clean(record) or (kind == "unlabelled" and is_kind(record, "raters"))


def _is_clean(record: dict[str, Any]) -> bool:
    return isinstance(record.get("label"), str) and is_kind(record, "clean")


def _case_key(record: dict[str, Any]) -> str:
    image = record["image"]
    return image if isinstance(image, str) else str(image[0])


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
