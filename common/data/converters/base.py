"""What a converter is: a function that finds the cases of a download. All that is alike stands here.

A converter is one file in this folder::

    @converter("decathlon", "a task of the Medical Segmentation Decathlon")
    def convert_decathlon(source: Path, unlabelled: bool = False) -> Source:
        ...
        return Source("my data", {"0": "background", "1": "spleen"}, cases)

The command line, its help and :data:`CONVERTERS` know it from then on; what it returns is written here.
"""

from __future__ import annotations

import functools
import inspect
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import nibabel as nib
import numpy as np
from tqdm import tqdm

from ..contract.output import fault, new_folder, place, write_json

Key = TypeVar("Key", int, str)

NIFTI_ENDINGS = (".nii.gz", ".nii")


@dataclass(frozen=True)
class Volume:
    """Voxels that a converter has read or made, to be written as NIfTI.

    Attributes:
        voxels: (X, Y, Z).
        affine: (4, 4) voxel to mm, right-anterior-superior.
        path: file that they come from, for messages.
    """

    voxels: np.ndarray
    affine: np.ndarray
    path: Path | None = None


@dataclass(frozen=True)
class Case:
    """One case of a download, as a converter yields it.

    Attributes:
        name: by which its files are called.
        image: NIfTI file or the voxels, or one of both for each channel; files are hard-linked where possible, else
            copied.
        label: NIfTI file, which is copied, or the voxels; None for none.
        scribble: the same.
        section: ``training``, ``validation`` or ``test``.
        group: patient or subject; default: the name. Empty where it is not known: the record has none then.
        raters: masks of several raters, one each.
        empty: the label is background everywhere, and meant so.
    """

    name: str
    image: Path | Volume | Sequence[Path | Volume]
    label: Path | Volume | None = None
    scribble: Path | Volume | None = None
    section: str = "training"
    group: str | None = None
    raters: Sequence[Path | Volume] = ()
    empty: bool = False


@dataclass(frozen=True)
class Source:
    """What a converter finds.

    Attributes:
        name: of the data set.
        labels: name of each label value.
        cases: written one by one, so that a converter may yield them as it reads.
        extra: further keys of the JSON, such as ``channel_names`` or ``scribble_unlabelled_value``.
    """

    name: str
    labels: dict[str, str]
    cases: Iterable[Case]
    extra: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Converter:
    """One entry of :data:`CONVERTERS`.

    Attributes:
        words: what it converts.
        convert: called with (source, output, further options); gives the folder written.
        options: names of the further options.
    """

    words: str
    convert: Callable[..., Path]
    options: tuple[str, ...]


#: converter by the name that the command line knows it by
CONVERTERS: dict[str, Converter] = {}


def converter(
    name: str, words: str, endings: tuple[str, ...] = ()
) -> Callable[[Callable[..., Source]], Callable[..., Path]]:
    """Register a converter.

    Args:
        name: that the command line knows it by.
        words: what it converts.
        endings: of a file that it takes in the place of a folder.

    Returns:
        a decorator that makes of ``find(source, ...)`` a function ``convert(source, output, ...)``, which writes what
        is found to a new folder and returns that.
    """

    def register(find: Callable[..., Source]) -> Callable[..., Path]:
        @functools.wraps(find)
        def convert(source: str, output: str, *given: Any, **options: Any) -> Path:
            single = Path(str(source)).is_file() and str(source).endswith(endings)
            found = find(Path(str(source)) if single else source_folder(source), *given, **options)
            _write(found, Path(str(output)))
            return Path(str(output))

        CONVERTERS[name] = Converter(words, convert, tuple(inspect.signature(find).parameters)[1:])
        return convert

    return register


def _write(found: Source, output: Path) -> None:
    with new_folder(output) as target:
        sections: dict[str, list[dict[str, Any]]] = {"training": [], "validation": [], "test": []}
        for case in tqdm(found.cases, desc="converting", leave=False):
            record: dict[str, Any] = {"image": _place_image(case, target)}
            group = case.name if case.group is None else case.group
            if group:
                record["group"] = group
            for key in ("label", "scribble"):
                mask: Path | Volume | None = getattr(case, key)
                if mask is not None:
                    record[key] = _place_mask(mask, f"{key}s/{case.name}", target)
            if case.raters:
                record["labels"] = [
                    _place_mask(mask, f"labels/{case.name}_rater{number}", target)
                    for number, mask in enumerate(case.raters, 1)
                ]
            if case.empty:
                record["empty"] = True
            sections[case.section].append(record)
        listed = {section: records for section, records in sections.items() if records}
        write_json({"name": found.name, "labels": found.labels, **listed, **found.extra}, target / "dataset.json")


def _place_image(case: Case, target: Path) -> str | list[str]:
    """Path or paths of the image, from the new folder."""
    channels = [case.image] if isinstance(case.image, Path | Volume) else case.image
    if len(channels) == 1:
        return _place_channel(channels[0], case.name, target)
    return [_place_channel(channel, f"{case.name}_{number:04d}", target) for number, channel in enumerate(channels)]


def _place_channel(image: Path | Volume, name: str, target: Path) -> str:
    """Files keep their names, voxels get the name given."""
    if isinstance(image, Path):
        place(image, target / "images" / image.name, link=True)
        return f"images/{image.name}"
    write_volume(target / "images" / f"{name}.nii.gz", image.voxels, image.affine, image.path)
    return f"images/{name}.nii.gz"


def _place_mask(mask: Path | Volume, name: str, target: Path) -> str:
    """Path of the mask, from the new folder; ``name`` has no ending."""
    if isinstance(mask, Volume):
        write_volume(target / f"{name}.nii.gz", mask.voxels, mask.affine, mask.path)
        return f"{name}.nii.gz"
    ending = mask.name[len(stem(mask)) :]
    place(mask, target / f"{name}{ending}")
    return f"{name}{ending}"


def source_folder(source: str) -> Path:
    """The source as a path.

    Raises:
        DataError: when it is not a folder.
    """
    folder = Path(str(source))
    if not folder.is_dir():
        raise fault(folder, "there is no such folder", "give the folder of the download")
    return folder


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON whose top level is a mapping.

    Raises:
        DataError: when it is missing or something else.
    """
    if not path.is_file():
        raise fault(path, "is missing", "give the folder that holds it")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise fault(path, f"is not JSON ({error})", "download it again") from error
    if not isinstance(content, dict):
        raise fault(path, f"holds a {type(content).__name__}", "give a JSON whose top level is a mapping")
    return content


def write_volume(path: Path, volume: np.ndarray, affine: np.ndarray, source: Path | None = None) -> None:
    """Write a NIfTI file; integers of 64 bits, which few programs read, become int32, or float32 where they are larger.

    Args:
        path: file to write; its folder is made.
        volume: (X, Y, Z).
        affine: (4, 4) voxel to mm, right-anterior-superior.
        source: file that the voxels come from, for messages.

    Raises:
        DataError: when NIfTI has no such type.
    """
    stored = _storable(volume, source or Path(path.name))
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nib.Nifti1Image(np.ascontiguousarray(stored), affine)
    image.set_qform(affine, code=1)
    image.set_sform(affine, code=1)
    image.header.set_xyzt_units("mm")
    nib.save(image, path)


def _storable(volume: np.ndarray, source: Path) -> np.ndarray:
    """The voxels in a type that NIfTI has and nibabel writes."""
    if volume.dtype.kind in "iu" and volume.dtype.itemsize == 8:
        limits = np.iinfo(np.int32)
        fits = volume.size == 0 or (volume.min() >= limits.min and volume.max() <= limits.max)
        return volume.astype(np.int32 if fits else np.float32)
    try:
        nib.Nifti1Header().set_data_dtype(volume.dtype)
    except nib.spatialimages.HeaderDataError as error:
        what = f"stores {volume.dtype}, a type that NIfTI lacks"
        raise fault(source, what, "store its voxels as int16, int32 or float32") from error
    return volume


def binary_mask(volume: np.ndarray, path: Path) -> np.ndarray:
    """A mask stored as 0 and 255, or 0 and 1, as uint8 of 0 and 1.

    Raises:
        DataError: when there are other values.
    """
    values = np.unique(volume).tolist()
    if not (set(values) <= {0, 1} or set(values) <= {0, 255}):
        raise fault(path, f"is no mask, it holds the values {values[:8]}", "give a mask of 0 and 1, or 0 and 255")
    return (volume > 0).astype(np.uint8)


def crop(
    image: np.ndarray, label: np.ndarray, affine: np.ndarray, margin: int | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Cut image and label to the label's bounding box grown by ``margin`` voxels; positions in space stay right.

    Args:
        image: (X, Y, Z).
        label: (X, Y, Z); an empty one leaves everything as it is.
        affine: (4, 4) of both.
        margin: voxels on each side, cut at the image's edge; None leaves everything as it is.

    Returns:
        image, label and affine of the part.

    Raises:
        DataError: when the margin is no whole number of 0 or more.
    """
    if margin is None:
        return image, label, affine
    grown = whole_number(margin, "--margin")
    if not label.any():
        return image, label, affine
    filled = np.argwhere(label)
    first = np.maximum(filled.min(axis=0) - grown, 0)
    last = filled.max(axis=0) + 1 + grown
    box = tuple(slice(a, b) for a, b in zip(first.tolist(), last.tolist(), strict=True))
    moved = affine.copy()
    moved[:3, 3] = (affine @ [*first, 1])[:3]
    return image[box], label[box], moved


def add_once(found: dict[Key, Path], key: Key, path: Path, what: str) -> None:
    """Enter a file under its key.

    Args:
        found: files so far.
        key: of the case.
        path: the file.
        what: it is, such as "image of case 3", for messages.

    Raises:
        DataError: when there is one already.
    """
    if key in found:
        raise fault(path, f"a second {what}, beside {found[key]}", "keep one of them")
    found[key] = path


def whole_number(value: object, option: str) -> int:
    """What was given for an option, as a number.

    Args:
        value: as it was given.
        option: such as ``--margin``, for messages.

    Raises:
        DataError: when it is no whole number of 0 or more.
    """
    if not str(value).isdecimal():
        raise fault(option, f"is {value!r}", "use a whole number of 0 or more")
    return int(str(value))


def stem(path: Path) -> str:
    """File name without its NIfTI ending."""
    for ending in NIFTI_ENDINGS:
        if path.name.endswith(ending):
            return path.name[: -len(ending)]
    return path.stem


def below_test_folder(path: Path, folder: Path) -> bool:
    """Whether a path lies below a folder whose name begins with "test", itself below ``folder``."""
    return any(part.lower().startswith("test") for part in path.relative_to(folder).parts[:-1])


def held_out_names(test_list: str | None, cases: Iterable[str]) -> set[str]:
    """Names of the test cases: the lines of a text file, checked against the cases that there are.

    Raises:
        DataError: when the file is missing, is no UTF-8 text or names an unknown case.
    """
    if test_list is None:
        return set()
    path = Path(str(test_list))
    if not path.is_file():
        raise fault(path, "there is no such file", "give a text file with one case per line as --test_list")
    try:
        text = path.read_text(encoding="utf-8-sig")  # Windows' editors begin a file with a mark that nobody sees
    except UnicodeDecodeError as error:
        raise fault(path, f"is no text in UTF-8 ({error})", "save it as UTF-8") from error
    names = {line.strip() for line in text.splitlines()} - {""}
    unknown = sorted(names - set(cases))
    if unknown:
        raise fault(path, f"names cases that are not there: {', '.join(unknown[:8])}", "correct the list")
    return names
