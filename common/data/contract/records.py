"""Reading the JSON of a data set: labels, sections and records, with every fault of form."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .faults import Fault
from .spelling import config_sign, nearest

SECTIONS = ("training", "validation", "test")
QUALITIES = ("clean", "noisy")
SCRIBBLE_UNLABELLED = 255  # in scribble files, unless a data set says otherwise
#: keys that hold a path or a list of paths, and which of both they may hold
PATH_KEYS = {
    **{"image": (str, list), "label": (str,), "labels": (list,), "scribble": (str,)},
    **{"reference": (str,), "probability": (str,)},
}
KNOWN_KEYS = {*PATH_KEYS, "label_quality", "group", "patient", "fold", "empty"}
#: keys of the JSON itself that are read
TOP_KEYS = {*SECTIONS, "name", "labels", "channel_names", "modality", "scribble_unlabelled_value"}
#: what other formats call the sections
OTHER_SECTIONS = {"train": "training", "val": "validation", "valid": "validation", "testing": "test"}


@dataclass(frozen=True)
class Kind:
    """One kind of training record.

    Attributes:
        words: what such a record has or lacks, for messages.
        fix: how to come by some.
        fits: tells whether a record is of this kind.
    """

    words: str
    fix: str
    fits: Callable[[dict[str, Any]], bool]


def _has_label(record: dict[str, Any], *qualities: str) -> bool:
    return "label" in record and record.get("label_quality", "clean") in qualities


#: the kinds of a record; one may be of several, such as a clean label and a scribble
KINDS = {
    "label": Kind("with a `label`", "", lambda record: _has_label(record, *QUALITIES)),
    "clean": Kind(
        "with a clean `label` (label_quality: clean, the default)", "", lambda record: _has_label(record, "clean")
    ),
    "noisy": Kind(
        "with `label_quality: noisy`",
        'mark records whose label is doubtful with "label_quality": "noisy", or simulate noise with '
        "`python -m common.data corrupt`",
        lambda record: _has_label(record, "noisy"),
    ),
    "unlabelled": Kind(
        "without `label`, `labels` and `scribble`",
        "list images without a label in `training`",
        lambda record: not {"label", "labels", "scribble"} & record.keys(),
    ),
    "raters": Kind("with `labels` (the masks of several raters)", "", lambda record: "labels" in record),
    "scribble": Kind("with a `scribble`", "", lambda record: "scribble" in record),
    "reference": Kind("with a `reference` (the truth behind a simulated defect)", "", lambda r: "reference" in r),
}


def is_kind(record: dict[str, Any], kind: str) -> bool:
    """Whether a record is of a kind.

    Args:
        record: a record of the data contract; a label of which nothing is said is clean.
        kind: one of :data:`KINDS`.

    Raises:
        ValueError: another kind.

    Example:
        >>> is_kind({"image": "a.nii.gz", "label": "b.nii.gz"}, "clean"), is_kind({"image": "a.nii.gz"}, "clean")
        (True, False)
    """
    if kind not in KINDS:
        raise ValueError(f"no kind of record is called {kind!r}: use one of {', '.join(KINDS)}.")
    return KINDS[kind].fits(record)


def normalise_labels(labels: Any, where: str, faults: list[Fault]) -> dict[int, str]:
    """Bring the label names to one form.

    Args:
        labels: mapping of value to name (decathlon), of name to value (nnU-Net), or a list of names.
        where: name of the JSON, for messages.
        faults: faults are appended here.

    Returns:
        name of each label value; empty if there is a fault.
    """
    example = '"labels": {"0": "background", "1": "atrium"}'
    if not isinstance(labels, dict | list) or not labels:
        what = "`labels` is missing" if labels is None else f"`labels` is {labels!r}, which names no structure"
        faults.append(Fault(where, what, f"write {example}"))
        return {}
    if isinstance(labels, list):
        pairs = list(enumerate(labels))
    elif all(isinstance(value, int) and not isinstance(value, bool) for value in labels.values()):
        pairs = [(value, name) for name, value in labels.items()]
    elif any(isinstance(value, list) for value in labels.values()):
        what = "`labels` gives lists of values (regions of nnU-Net), which are not supported"
        faults.append(Fault(where, what, f"give each structure one value: {example}"))
        return {}
    else:
        try:
            pairs = [(int(value), name) for value, name in labels.items()]
        except ValueError:
            what = f"`labels` has keys that are no whole numbers: {', '.join(map(repr, labels))}"
            faults.append(Fault(where, what, f"write {example}"))
            return {}
    values = sorted(value for value, _ in pairs)
    if values != list(range(len(values))):
        what = f"label values are {values}, they must count 0, 1, 2, ... without gap or repetition (0: background)"
        faults.append(Fault(where, what, "renumber the values in the JSON and in the label files"))
        return {}
    if wrong := [name for _, name in pairs if not isinstance(name, str) or not name.strip()]:
        faults.append(Fault(where, f"`labels` has {wrong[0]!r} where a name is expected", f"write {example}"))
        return {}
    names = [name for _, name in pairs]
    if signed := _config_signs({"labels": names}, where):
        faults += signed
        return {}
    if twice := sorted({name for name in names if names.count(name) > 1}):
        faults.append(Fault(where, f"`labels` names {', '.join(twice)} more than once", "give each value its own name"))
        return {}
    if "ignore" in names:
        what = "`labels` holds nnU-Net's `ignore`, which would become a structure of its own"
        fix = "remove it, and give files with ignored voxels as `scribble`; `python -m common.data convert nnunet` does"
        faults.append(Fault(where, what, fix))
        return {}
    return dict(sorted(pairs))


def normalise_names(content: dict[str, Any], default: str, where: str, faults: list[Fault]) -> tuple[str, list[str]]:
    """Read the name of the data set and those of its channels.

    Args:
        content: the JSON.
        default: name of a data set that gives none.
        where: name of the JSON, for messages.
        faults: faults are appended here.

    Returns:
        the name in one line, and one name a channel; none if the JSON does not declare channels.
    """
    key = "channel_names" if "channel_names" in content else "modality"
    listed = content.get(key) or []
    channels = list(listed.values()) if isinstance(listed, dict) else [listed] if isinstance(listed, str) else listed
    if not isinstance(channels, list) or not all(isinstance(name, str) and name.strip() for name in channels):
        what = f"`{key}` is {listed!r} where the names of the image's channels are expected"
        faults.append(Fault(where, what, f'write "{key}": {{"0": "T1", "1": "T2"}}'))
        channels = []
    name = content.get("name", default)
    if not isinstance(name, str | int):
        faults.append(Fault(where, f"`name` is {name!r} where a name is expected", 'write "name": "my data"'))
        name = default
    faults += _config_signs({"name": [str(content.get("name", ""))], key: channels}, where)
    return " ".join(str(name).split()), channels


def _config_signs(names: dict[str, list[str]], where: str) -> list[Fault]:
    return [
        Fault(where, f"`{key}` holds {name!r}: a config would take what begins with {sign} for code", "rename it")
        for key, found in names.items()
        for name in found
        if (sign := config_sign(name))
    ]


def _check_top_keys(content: dict[str, Any], faults: list[Fault], notes: list[str]) -> None:
    """A fault for keys that are probably misspelt, a note for lists of records that nothing reads."""
    for key, value in content.items():
        if key in TOP_KEYS:
            continue
        meant = OTHER_SECTIONS.get(key.lower()) or nearest(key, TOP_KEYS)
        if meant is not None:
            fix = f"write `{meant}`, or give it a name that is less like it"
            faults.append(Fault(key, f"is no key of the data contract, but like `{meant}`", fix))
        elif isinstance(value, list) and any(isinstance(item, dict) and "image" in item for item in value):
            notes.append(
                f"`{key}` is no section of the data contract ({', '.join(SECTIONS)}): its records are not used"
            )


def parse_sections(
    content: dict[str, Any], root: Path, faults: list[Fault], notes: list[str]
) -> dict[str, list[dict[str, Any]]]:
    """Read the records of all sections.

    Args:
        content: the JSON.
        root: folder that relative paths start from.
        faults: faults are appended here.
        notes: what is worth knowing is appended here.

    Returns:
        records by section: absolute path strings, ``group`` and ``label_quality`` filled in.
    """
    _check_top_keys(content, faults, notes)
    sections: dict[str, list[dict[str, Any]]] = {}
    unknown: dict[str, int] = {}
    for section in SECTIONS:
        if section not in content:
            continue
        sections[section] = []
        listed = content[section]
        if not isinstance(listed, list):
            what = f"is a {type(listed).__name__} where a list of records is expected"
            faults.append(Fault(section, what, f'write "{section}": [{{"image": ...}}, ...]'))
            continue
        if not listed:
            faults.append(Fault(section, "the section is empty", "add records or remove the section"))
        for index, raw in enumerate(listed):
            record = _parse_record(raw, f"{section}[{index}]", root, faults)
            if record is not None:
                sections[section].append(record)
                for key in sorted(set(record) - KNOWN_KEYS):
                    meant = key if key in TOP_KEYS else nearest(key, KNOWN_KEYS)
                    if meant is None:
                        unknown[key] = unknown.get(key, 0) + 1
                    else:
                        faults.append(_misplaced(key, meant, f"{section}[{index}]/{key}"))
    if not any(section in content for section in SECTIONS):
        what = "has no section of records"
        faults.append(Fault("dataset", what, f"add one of {', '.join(SECTIONS)}: a list of records"))
    for key, count in sorted(unknown.items()):
        notes.append(f"records have a key `{key}` that the data contract does not know ({count} records): it is kept")
    return sections


def _misplaced(key: str, meant: str, where: str) -> Fault:
    if key == meant:
        return Fault(where, "is a key of the whole data set, not of a record", "write it beside `labels`, once")
    fix = f"write `{meant}`, or give it a name that is less like it"
    return Fault(where, f"is no key of a record, but like `{meant}`", fix)


def _parse_record(raw: Any, where: str, root: Path, faults: list[Fault]) -> dict[str, Any] | None:
    """One record with absolute paths; None if it cannot be used at all."""
    if not isinstance(raw, dict):
        what = f"is {raw!r} where a record is expected"
        faults.append(Fault(where, what, 'write {"image": "images/a.nii.gz", "label": "labels/a.nii.gz"}'))
        return None
    if "image" not in raw:
        faults.append(Fault(where, "has no `image`", "give the path of the image, or remove the record"))
        return None
    record = dict(raw)
    for key in PATH_KEYS:
        if key in record and not _resolve(record, key, where, root, faults):
            if key == "image":
                return None
            del record[key]
    if "label" in record:
        quality = record.setdefault("label_quality", "clean")
        if quality not in QUALITIES:
            faults.append(Fault(f"{where}/label_quality", f"is {quality!r}", f"use one of {', '.join(QUALITIES)}"))
            record["label_quality"] = "clean"
    elif "label_quality" in record:
        what = "is given, but the record has no `label`"
        faults.append(Fault(f"{where}/label_quality", what, "add the label or remove label_quality"))
    if not isinstance(record.get("empty", False), bool):
        faults.append(Fault(f"{where}/empty", f"is {record['empty']!r}", "write true or false, without quotes"))
    _check_repeated_files(record, where, faults)
    _fill_group(record, where, faults)
    return record


def _check_repeated_files(record: dict[str, Any], where: str, faults: list[Fault]) -> None:
    """One file that is image and label at once, two channels, or the masks of two raters."""
    paths = {key: [record[key]] if isinstance(record[key], str) else record[key] for key in PATH_KEYS if key in record}
    for key, listed in paths.items():
        if twice := sorted({path for path in listed if listed.count(path) > 1}):
            what = f"names {Path(twice[0]).name} {listed.count(twice[0])} times"
            faults.append(Fault(f"{where}/{key}", what, "give each channel or rater a file of its own"))
        if key != "image" and (both := sorted(set(listed) & set(paths["image"]))):
            what = f"names {Path(both[0]).name}, which is the image"
            faults.append(Fault(f"{where}/{key}", what, "give the path of its mask"))


def _resolve(record: dict[str, Any], key: str, where: str, root: Path, faults: list[Fault]) -> bool:
    """Make the paths of one key absolute; False (and a fault) if they are of the wrong type."""
    paths = listed_paths(record[key], key, f"{where}/{key}", faults)
    if paths:
        absolute = [str(root / path) for path in paths]
        record[key] = absolute if isinstance(record[key], list) else absolute[0]
    return bool(paths)


def listed_paths(value: Any, key: str, where: str, faults: list[Fault]) -> list[str]:
    """The path or paths of one key of a record; none (and a fault) if they are of the wrong type."""
    paths = value if isinstance(value, list) else [value]
    if isinstance(value, PATH_KEYS[key]) and paths and all(isinstance(path, str) and path for path in paths):
        return paths
    kinds = " or ".join("a path" if kind is str else "a list of paths" for kind in PATH_KEYS[key])
    faults.append(Fault(where, f"is {value!r} where {kinds} is expected", f"write {kinds}"))
    return []


def _fill_group(record: dict[str, Any], where: str, faults: list[Fault]) -> None:
    """``group`` from ``group``, ``patient`` or the image path, as a string."""
    image = record["image"]
    group = record.get("group", record.get("patient", image[0] if isinstance(image, list) else image))
    if not isinstance(group, str | int) or isinstance(group, bool):
        what = f"is {group!r} where a name or a number is expected"
        faults.append(Fault(f"{where}/group", what, "give the patient's or subject's name"))
    record["group"] = str(group)
