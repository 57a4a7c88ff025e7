"""Images to segment, from whatever the user has: a file, a folder, a list, or nothing."""

from __future__ import annotations

import logging
import os
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ...errors import short_last_words
from ..loading.dicom import series_as_nifti
from .checks import check_records
from .dataset import SegmentationData
from .faults import DataError, Fault
from .names import case_name, shared_names
from .open import open_data
from .strict_json import read_json
from .walk import paths_below

NIFTI = (".nii", ".nii.gz")
logger = logging.getLogger(__name__)


def images_to_segment(
    dataset_dir: str | os.PathLike[str] | None = None,
    datalist: str | os.PathLike[str] | None = None,
    phantom: str = "noisy",
    phantom_dir: str | os.PathLike[str] = "data/phantom",
    in_channels: int | None = None,
    spatial_dims: int | None = None,
    spacing: Sequence[float] | None = None,
    output_dir: str | os.PathLike[str] | None = None,
) -> list[dict[str, Any]]:
    """List the images to segment, all of them opened and checked.

    Args:
        dataset_dir: a NIfTI file, or a folder whose NIfTI files are all taken, those in linked folders too; where it
            holds none, all of its DICOM series are taken, which are written as NIfTI to ``<output_dir>/dicom``.
        datalist: a NIfTI file, or a JSON: a list of paths or records, or a data set, of which ``test`` is taken; looked
            for in ``dataset_dir`` first. Paths are relative to ``dataset_dir`` if that is given, else to the JSON.
        phantom: kind of phantom whose ``test`` section is taken when nothing else is given.
        phantom_dir: where the phantom is.
        in_channels: image channels of the network; None takes any number.
        spatial_dims: axes that images must have; None takes any number.
        spacing: voxel size in mm that images will be resampled to; None if they are not.
        output_dir: where results go; of a folder of images, what is in there is left out, and so are results of
            earlier inferences elsewhere in it.

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
    if faults := check_records(data, in_channels, spatial_dims, spacing):
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
            [
                Fault(
                    str(source), "there is no such file or folder", "give a NIfTI file, or a folder of them or of DICOM"
                )
            ]
        )
    if path.is_file():
        found = [path]
    else:
        # names that begin with a dot are no images: macOS leaves such beside every file, so does an unfinished output
        inside = [p for p in paths_below(path) if p.name.endswith(NIFTI) and not p.name.startswith(".")]
        found = _without_results(inside, path, None if output_dir is None else Path(output_dir).absolute())
        if not found and output_dir is not None:
            found = series_as_nifti(path, Path(output_dir).absolute() / "dicom")
    if not found or not found[0].name.endswith(NIFTI):
        what = "no NIfTI image and no DICOM series here"
        raise DataError([Fault(str(source), what, "give a file that ends in .nii or .nii.gz, or a series' folder")])
    return [{"image": str(image)} for image in found]


def _without_results(files: list[Path], folder: Path, output_dir: Path | None) -> list[Path]:
    """Leave out what lies in the folder of results, and elsewhere what an inference has written of one of the images.

    That is ``<case>/<case>_<what it shows>.nii.gz``, with ``<case>/<case>_pred.nii.gz`` among them and the image called
    ``<case>`` in another folder.
    """
    results_dir = None if output_dir is None else output_dir.resolve()  # to which a link may lead
    if results_dir is not None and not folder.resolve().is_relative_to(results_dir):  # else all images lie in there
        files = [path for path in files if not path.parent.resolve().is_relative_to(results_dir)]
    there = set(files)
    places: dict[str, set[Path]] = defaultdict(set)
    for path in files:
        places[case_name(str(path))].add(path.parent)
    results = {
        path
        for path in files
        if path.name.startswith(f"{path.parent.name}_")
        and path.parent / f"{path.parent.name}_pred.nii.gz" in there
        and places[path.parent.name] - {path.parent}
    }
    if results:
        shown = sorted(results)[0].relative_to(folder)
        logger.warning(f"{folder}: {len(results)} files are results of earlier inferences, such as {shown}: left out")
    return [path for path in files if path not in results]


def _from_json(path: Path, dataset_dir: str | os.PathLike[str] | None) -> list[dict[str, Any]]:
    content = read_json(path, "give a list of image paths")
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
