"""Takes a validation section out of the training section without cutting through a patient."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ..files import atomic_path
from .contract import load_json, read_data
from .faults import DataError, Fault
from .output import write_json


def split(
    dataset_dir: str,
    fraction: float = 0.2,
    seed: int = 0,
    output: str = "dataset_split.json",
    datalist: str = "dataset.json",
) -> Path:
    """Write a JSON beside ``datalist`` in which some training groups form the ``validation`` section.

    Only groups whose every record has a clean label can be drawn: validation on noisy labels would prefer the model
    that repeats the noise. Noisy, unlabelled and scribbled records stay in training.

    Args:
        dataset_dir: folder of the data set.
        fraction: share of these groups to draw, above 0 and below 1; at least one is drawn and one stays.
        seed: seed of the draw.
        output: name of the JSON to write, in the same folder as its paths are relative to it.
        datalist: name of the JSON to read.

    Returns:
        path of the JSON written.

    Raises:
        DataError: the JSON has faults or a validation section, too few groups are clean, or ``output`` exists.
    """
    root = Path(dataset_dir)
    target = root / output
    if not 0 < fraction < 1:
        raise DataError([Fault("--fraction", f"is {fraction}", "use a number above 0 and below 1, such as 0.2")])
    if target.parent != root or target.suffix != ".json":
        what = "must be the name of a JSON in the data set's folder, as paths in it are relative to that folder"
        raise DataError([Fault(f"--output {output}", what, "use a name such as dataset_split.json")])
    content = load_json(root, datalist)
    data, faults = read_data(root, datalist)
    if data.validation:
        faults.append(Fault(datalist, "has a `validation` section already", "use it as it is, nothing is to be split"))
    if target.exists():
        faults.append(Fault(str(target), "is there already", "remove it, or choose another name with --output"))
    if faults:
        raise DataError(faults, str(root / datalist))
    drawn = _draw_groups(data.training, fraction, seed)
    keep = [record["group"] not in drawn for record in data.training]
    records = content["training"]
    content["training"] = [record for record, stays in zip(records, keep, strict=True) if stays]
    content["validation"] = [record for record, stays in zip(records, keep, strict=True) if not stays]
    content["split"] = {"seed": seed, "fraction": fraction, "source": datalist}
    with atomic_path(target) as temporary:
        write_json(content, temporary)
    return target


def _draw_groups(records: list[dict[str, Any]], fraction: float, seed: int) -> set[str]:
    clean: dict[str, bool] = {}
    for record in records:
        clean[record["group"]] = clean.get(record["group"], True) and record.get("label_quality") == "clean"
    eligible = sorted(group for group, is_clean in clean.items() if is_clean)
    if len(eligible) < 2:
        what = f"{len(eligible)} group(s) have clean labels throughout, two are needed: one to draw and one to keep"
        raise DataError([Fault("training", what, "add cases with a clean label")])
    count = min(max(1, round(fraction * len(eligible))), len(eligible) - 1)
    return set(np.random.default_rng(seed).permutation(np.array(eligible, dtype=object))[:count].tolist())
