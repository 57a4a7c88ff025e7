"""Writes a copy of a data set whose training labels are corrupted on purpose, with the recipe in its JSON.

The command line is ``python -m common.data corrupt DIR --kind noise --fraction 0.9 --radius 3 15 --output DIR2``.
"""

from __future__ import annotations

import json
import math
import os
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from tqdm import tqdm

from .faults import DataError, Fault
from .output import fault, new_folder, place, write_json
from .records import PATH_KEYS, SECTIONS, normalise_labels
from .simulators import apply_noise, sample_noise, settle_noise

# images are linked, as they are large and nobody edits them; labels are copied, as people do edit those
LINKED_KEYS = ("image",)
PAIR_OPTIONS = ("--radius",)
NOISY_FOLDER = "noisy"
WORKERS = min(4, os.cpu_count() or 1)


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
    fraction: float = 0.9,
    radius: Sequence[float] | float = (3, 15),
    seed: int = 0,
    datalist: str = "dataset.json",
) -> Path:
    """Write a copy of a data set in which a share of the clean training labels is dilated or eroded.

    Training records with a label that is not called noisy already take part; which of them become noisy is drawn from
    the seed. A noisy record gets ``label`` (the changed file), ``label_quality: noisy`` and ``reference`` (a copy of
    the true label, to measure with). Everything else is kept. The JSON gets ``corruption``: kind, seed, fraction,
    radius and ``cases``, which maps the image of each noisy case to its parameters; ``replay`` remakes the set from it.

    Args:
        dataset_dir: folder of the data set.
        output: folder to write; nothing there is overwritten.
        kind: ``noise`` (see ``simulators``) is the only one.
        fraction: share of noisy cases, above 0 and below 1, rounded to whole cases; one case at the least is noisy and
            one is clean.
        radius: least and greatest radius of the ball in voxels; one number means exactly that radius.
        seed: source of chance.
        datalist: name of the JSON in ``dataset_dir``; the one written is always ``dataset.json``.

    Returns:
        the folder written.

    Raises:
        DataError: when an argument is out of range, the data list cannot be read or corrupted, a file that it names is
            missing or unreadable, or the output is there already.
    """
    if kind != "noise":
        raise fault("--kind", f"{kind!r} is unknown", "give --kind noise")
    if not isinstance(fraction, int | float) or not 0 < fraction < 1:
        raise fault("--fraction", f"{fraction!r} is not a share", "give a number above 0 and below 1")
    low, high = _pair(radius)
    root = Path(str(dataset_dir))
    listing = _read_list(root / datalist)
    structures = _structures(listing, root / datalist)
    candidates = [record for record in listing["training"] if _is_clean(record)]
    if len(candidates) < 2:
        what = f"{len(candidates)} records with a clean label, 2 are needed: one to corrupt and one to keep"
        raise fault(f"{root / datalist}/training", what, "add labelled records")
    rng = np.random.default_rng(seed)
    count = min(max(round(fraction * len(candidates)), 1), len(candidates) - 1)
    chosen = sorted(rng.permutation(len(candidates))[:count].tolist())
    cases = {_case_key(candidates[index]): sample_noise(rng, (low, high), structures) for index in chosen}
    recipe = {"kind": kind, "seed": int(seed), "fraction": float(fraction), "radius": [low, high], "cases": cases}
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
    if not isinstance(corruption, dict) or corruption.get("kind") != "noise" or "cases" not in corruption:
        raise fault(str(recipe), "holds no corruption of kind noise", "give the JSON that corrupt wrote")
    listing = _read_list(root / datalist)
    return _write(root, listing, corruption, Path(str(output)))


def _write(root: Path, listing: dict[str, Any], recipe: dict[str, Any], output: Path) -> Path:
    """Write the corrupted copy: files first, then the JSON; the folder appears when all is done."""
    by_case = {_case_key(record): record for record in listing["training"] if _is_clean(record)}
    unknown = sorted(set(recipe["cases"]) - set(by_case))
    if unknown:
        what = f"has no clean training record with image {', '.join(unknown)}, which the recipe names"
        raise fault(root, what, "give the data set that the recipe was made for")
    noisy = {case: by_case[case] for case in recipe["cases"]}
    labels = [record["label"] for record in noisy.values()]
    if len(set(labels)) != len(labels):
        raise fault(root, "several records share one label file", "give each record its own label file")
    with new_folder(output) as folder:
        _place_files(root, listing, folder)

        def work(case: str) -> tuple[str, list[dict[str, Any]]]:
            target = folder / NOISY_FOLDER / noisy[case]["label"]
            return case, _corrupt_file(root / noisy[case]["label"], target, recipe["cases"][case])

        with ThreadPoolExecutor(WORKERS) as pool:
            applied = dict(tqdm(pool.map(work, noisy), total=len(noisy), desc="corrupting labels", leave=False))
        for record in listing["training"]:
            if _is_clean(record):
                record["label_quality"] = "clean"
        for record in noisy.values():
            record.update(label=f"{NOISY_FOLDER}/{record['label']}", label_quality="noisy", reference=record["label"])
        write_json({**listing, "corruption": {**recipe, "cases": applied}}, folder / "dataset.json")
    return output


def _place_files(root: Path, listing: dict[str, Any], folder: Path) -> None:
    for section in SECTIONS:
        for record in listing.get(section, []):
            for key in PATH_KEYS:
                value = record.get(key)
                for name in [] if value is None else [value] if isinstance(value, str) else value:
                    if not (root / name).is_file():
                        what = f"is missing; section {section} names it as {key}"
                        raise fault(root / name, what, "correct the path, or drop the record")
                    if not (folder / name).exists():
                        place(root / name, folder / name, link=key in LINKED_KEYS)


def _corrupt_file(source: Path, target: Path, parameters: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Write the corrupted label file; returns the parameters with what was really applied."""
    try:
        file = nib.load(source)
        values = np.asanyarray(file.dataobj)  # type: ignore[attr-defined]
    except (nib.filebasedimages.ImageFileError, OSError, EOFError, ValueError, zlib.error) as error:
        raise fault(source, f"cannot be read as an image ({error})", "replace the file") from error
    with np.errstate(invalid="ignore"):
        label = values.astype(np.int32)
    if not np.array_equal(label, values):
        raise fault(source, "holds values that are not whole numbers", "give a label map")
    settled = settle_noise(label, parameters)
    kind = np.uint8 if label.min() >= 0 and label.max() <= 255 else np.int32
    changed = nib.Nifti1Image(apply_noise(label, settled).astype(kind), file.affine, file.header)  # type: ignore[attr-defined]
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
        for record in listing.get(section, []):
            if not isinstance(record, dict) or "image" not in record:
                raise fault(f"{path}/{section}", f"the record {record!r} has no image", "add the image's path")
            for key in PATH_KEYS:
                if isinstance(record.get(key), str):
                    record[key] = _inside(record[key], path)
                elif key in record:
                    record[key] = [_inside(name, path) for name in record[key]]
    return listing


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


def _is_clean(record: dict[str, Any]) -> bool:
    return isinstance(record.get("label"), str) and record.get("label_quality", "clean") == "clean"


def _case_key(record: dict[str, Any]) -> str:
    image = record["image"]
    return image if isinstance(image, str) else str(image[0])


def _pair(radius: Sequence[float] | float) -> tuple[float, float]:
    values = [radius] * 2 if isinstance(radius, int | float) else list(radius)
    if len(values) != 2 or not all(isinstance(value, int | float) for value in values):
        raise fault("--radius", f"{radius!r} is not a pair of numbers", "give least and greatest, as in --radius 3 15")
    if not 0 <= values[0] <= values[1] < math.inf:
        raise fault("--radius", f"{radius!r} is no range", "give 0 <= least <= greatest, as in --radius 3 15")
    return float(values[0]), float(values[1])


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
