"""Images to segment, from whatever the user has: a file, a folder, a list, or nothing."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from ...errors import short_last_words
from .checks import check_records
from .dataset import SegmentationData
from .faults import DataError, Fault
from .names import shared_names
from .open import open_data

NIFTI = (".nii", ".nii.gz")


def images_to_segment(
    dataset_dir: str | os.PathLike[str] | None = None,
    datalist: str | os.PathLike[str] | None = None,
    phantom: str = "noisy",
    phantom_dir: str | os.PathLike[str] = "data/phantom",
    in_channels: int | None = None,
    spatial_dims: int | None = None,
    output_dir: str | os.PathLike[str] | None = None,
) -> list[dict[str, Any]]:
    """List the images to segment, all of them opened and checked.

    Args:
        dataset_dir: a NIfTI file, or a folder whose NIfTI files are all taken.
        datalist: a NIfTI file, or a JSON: a list of paths or records, or a data set, of which ``test`` is taken; looked
            for in ``dataset_dir`` first. Paths are relative to ``dataset_dir`` if that is given, else to the JSON.
        phantom: kind of phantom whose ``test`` section is taken when nothing else is given.
        phantom_dir: where the phantom is.
        in_channels: image channels of the network; None takes any number.
        spatial_dims: axes that images must have; None takes any number.
        output_dir: where results go; of a folder of images, what is in there is left out.

    Returns:
        records with ``image``: an absolute path, or a list of them for several channels.

    Raises:
        DataError: when a file is missing or faulty, no image is found, or two images share a name: results are named
            by it.
    """
    short_last_words()
    records = _list(dataset_dir, datalist, phantom, phantom_dir, output_dir)
    shared = shared_names(record["image"] for record in records)
    if shared:
        what = "several images have this name, and the result of one would overwrite that of another"
        fix = "rename them, or segment their folders one at a time"
        raise DataError([Fault(name, f"{what}: {', '.join(images[:3])}", fix) for name, images in shared.items()])
    images = [{"image": record["image"], "group": str(record["image"])} for record in records]
    data = SegmentationData(Path.cwd(), "images", {}, test=images)
    if faults := check_records(data, in_channels, spatial_dims):
        raise DataError(faults)
    return records


def _list(
    dataset_dir: str | os.PathLike[str] | None,
    datalist: str | os.PathLike[str] | None,
    phantom: str,
    phantom_dir: str | os.PathLike[str],
    output_dir: str | os.PathLike[str] | None,
) -> list[dict[str, Any]]:
    if datalist is not None and not str(datalist).endswith(NIFTI):
        listed = None if dataset_dir is None else Path(dataset_dir) / datalist  # as training names its JSON
        return _from_json(listed if listed is not None and listed.is_file() else Path(datalist), dataset_dir)
    source = datalist if datalist is not None else dataset_dir
    if source is None:
        return open_data(None, phantom=phantom, phantom_dir=phantom_dir).section("test")
    path = Path(source).absolute()
    if not path.exists():
        raise DataError(
            [Fault(str(source), "there is no such file or folder", "give a NIfTI file or a folder of them")]
        )
    # names that begin with a dot are no images: macOS leaves such beside every file, and so does an unfinished output
    inside = sorted(p for p in path.rglob("*") if p.name.endswith(NIFTI) and not p.name.startswith("."))
    results = None if output_dir is None else Path(output_dir).absolute()
    found = [path] if path.is_file() else [p for p in inside if results is None or not p.is_relative_to(results)]
    if not found or not found[0].name.endswith(NIFTI):
        raise DataError([Fault(str(source), "no NIfTI image here", "give a file that ends in .nii or .nii.gz")])
    return [{"image": str(image)} for image in found]


def _from_json(path: Path, dataset_dir: str | os.PathLike[str] | None) -> list[dict[str, Any]]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(
            [Fault(str(path), f"cannot be read as JSON ({error})", "give a list of image paths")]
        ) from error
    items = content.get("test", []) if isinstance(content, dict) else content
    if not isinstance(items, list):
        raise DataError([Fault(str(path), "holds no list of images", "give a list of paths, or a section `test`")])
    root = Path(dataset_dir) if dataset_dir is not None else path.parent
    records, faults = [], []
    for number, item in enumerate(items):
        image = item.get("image") if isinstance(item, dict) else item
        names: list[Any] = image if isinstance(image, list) else [image]
        if not names or not all(isinstance(name, str) and name for name in names):
            faults.append(Fault(f"{path}, item {number}", "names no image", "give a path, or a record with `image`"))
            continue
        images = [str((root / name).absolute()) for name in names]
        faults += [Fault(i, "there is no such file", f"correct it in {path}") for i in images if not Path(i).is_file()]
        records.append({"image": images[0] if len(images) == 1 else images})
    if not items:
        faults.append(Fault(str(path), "it lists no image", "give a list of paths, or a section `test`"))
    if faults:
        raise DataError(faults)
    return records
