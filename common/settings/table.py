"""The settings that all bundles share, and a bundle's table of them and its own."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import Fault
from .lists import ListSetting
from .setting import Setting

Check = Callable[[Mapping[str, Any]], Iterable[Fault]]

#: of bundles whose learning rate falls in steps
DECAY = Setting("decay_interval", "number", "share of the training to a tenfold lower learning rate", above=0)
#: of bundles whose patches are turned and flipped by chance
RIGHT_ANGLES = (
    Setting("flip_prob", "number", "probability of a flip along each of the first two axes", least=0, most=1),
    Setting("rotate90_prob", "number", "probability of turns by 90 degrees", least=0, most=1),
)
COMMON = (
    Setting("bundle_root", "path", "folder of the bundle"),
    Setting("ckpt_dir", "path", "folder of the weights"),
    Setting("output_dir", "path", "folder of logs and results"),
    Setting("dataset_dir", "path", "folder of the data set, or images to segment; null: a phantom", optional=True),
    Setting("datalist", "path", "JSON of the data set, in dataset_dir, or list of images to segment", optional=True),
    Setting("num_classes", "whole number", "classes, background included", least=2),
    Setting("in_channels", "whole number", "channels of the images", least=1),
    Setting("num_workers", "whole number", "processes that load data; 0: none beside the training", least=0),
    Setting("cache_rate", "number", "share of the images kept in memory", least=0, most=1),
    Setting("learning_rate", "number", "of the optimiser, at the start", above=0),
    Setting("weight_decay", "number", "of the optimiser", least=0),
    Setting("max_epochs", "whole number", "epochs of the training", least=1),
    Setting("epoch_length", "whole number", "iterations of an epoch", least=1),
    Setting("val_interval", "whole number", "epochs from one validation to the next", least=1),
    Setting("precision", "word", "number type of convolutions", choices=("auto", "float32", "bfloat16", "float16")),
    Setting("max_gradient_norm", "number", "to which gradients are clipped; null: never", above=0, optional=True),
    Setting("max_skipped_steps", "whole number", "steps with a non-finite loss to leave out", least=0),
    Setting("seed", "whole number", "of all that is random", least=0),
    Setting("resume", "switch", "continue the run in ckpt_dir"),
    Setting("device", "device", "where to compute"),
    Setting("section", "word", "section of the data set", choices=("training", "validation", "test")),
    ListSetting(
        "weights", "path", "trained weights; of a list the mean of the networks answers", shortest=1, single=True
    ),
    Setting("largest_component", "switch", "keep of each structure its largest connected component alone"),
    ListSetting("structures", "word", "names of the classes from 1 on, for files; null: class 1, ...", optional=True),
    Setting("preview", "switch", "write a picture of each case"),
    Setting("dicom_seg", "switch", "write a DICOM SEG object beside what was segmented in a DICOM series"),
    Setting("calibration", "switch", "temper probabilities, where calibration.json lies beside the weights"),
    Setting("results_dir", "path", "folder of an evaluation's results"),
)

SMALLEST = 16  # side of a patch: a V-Net halves its input four times
VOLUMES = (
    ListSetting(
        "mirror_axes", "whole number", "axes along which answers to mirror images are averaged", least=0, most=2
    ),
    Setting("spacing", "number", "to which images are resampled", unit="mm", above=0, items=3),
    Setting(
        "patch_size",
        "whole number",
        "of training and windows",
        unit="voxels",
        above=0,
        multiple_of=SMALLEST,
        items=3,
    ),
    Setting("overlap", "number", "of windows along each axis", least=0, below=1, items=3, single=True),
)

MIRRORED_SLICES = ListSetting(
    "mirror_axes", "whole number", "of slices, along which answers to mirror images are averaged", least=0, most=1
)

AUDIT = (
    Setting("quality", "word", "labels to audit", choices=("noisy", "clean", "all")),
    Setting("confidence", "number", "least probability that overrules a label", least=0, most=1),
    Setting("shown", "whole number", "cases on the page of the audit", least=1),
)


class SettingsTable:
    """All settings of a bundle.

    Args:
        settings: groups of them; a later one replaces an earlier one of its name.
        checks: of several settings together; each takes the values that there are and yields faults.
    """

    def __init__(self, *settings: Sequence[Setting], checks: Sequence[Check] = ()) -> None:
        self.settings = {setting.name: setting for group in settings for setting in group}
        self.checks = (_names_fit_classes, _highdicom_is_there, _results_lie_alone, *checks)

    def __contains__(self, name: object) -> bool:
        return name in self.settings

    def __getitem__(self, name: str) -> Setting:
        return self.settings[name]

    def __iter__(self) -> Iterator[Setting]:
        return iter(self.settings.values())

    def markdown(self) -> str:
        """The table for people, in Markdown."""
        rows = ["| setting | type | range | unit | meaning |", "|---|---|---|---|---|"]
        for setting in self:
            cells = (f"`{setting.name}`", setting.type, setting.range, setting.unit, setting.meaning)
            rows.append("| " + " | ".join(cells) + " |")
        return "\n".join(rows) + "\n"


def _names_fit_classes(values: Mapping[str, Any]) -> Iterator[Fault]:
    names, classes = values.get("structures"), values.get("num_classes")
    if names is not None and classes is not None and len(names) != classes - 1:
        what = f"has {len(names)} items, and num_classes is {classes}, background included"
        yield Fault("structures", what, f"give {classes - 1} names, or null")


def _highdicom_is_there(values: Mapping[str, Any]) -> Iterator[Fault]:
    if values.get("dicom_seg") and importlib.util.find_spec("highdicom") is None:
        yield Fault("dicom_seg", "is true, and the package highdicom is not installed", "pip install highdicom")


def _results_lie_alone(values: Mapping[str, Any]) -> Iterator[Fault]:
    """An evaluation moves the whole folder of earlier results to ``previous``, and all that lies in it."""
    if "results_dir" not in values:
        return
    results = Path(values["results_dir"]).resolve()
    inside = []
    for name in ("output_dir", "ckpt_dir", "dataset_dir", "weights"):
        given = values.get(name)
        places = given if isinstance(given, list) else [] if given is None else [given]
        if any(Path(place).resolve().is_relative_to(results) for place in places):
            inside.append(name)
    if inside:
        what = f"is {values['results_dir']}, which holds {', '.join(inside)}: the next evaluation would move it away"
        yield Fault("results_dir", what, "give a folder for results alone, such as one in output_dir, or leave it out")


def batch_not_empty(first: str, second: str) -> Check:
    """A check that a batch of two streams holds a case of either."""

    def check(values: Mapping[str, Any]) -> Iterator[Fault]:
        if values.get(first) == 0 and values.get(second) == 0:
            yield Fault(
                f"{first}, {second}", "both are 0, so that a batch is empty", "give at least one of them above 0"
            )

    return check


def lone_voxel(values: Mapping[str, Any], *streams: str) -> Iterator[Fault]:
    """A fault where a V-Net would see a single patch and halve it to one voxel: batch normalisation takes two values.

    Args:
        values: of the settings.
        streams: settings that say how many images of a batch it sees at once.
    """
    if not {"patch_size", *streams} <= values.keys() or max(values["patch_size"]) > SMALLEST:
        return
    if sum(values[name] for name in streams) == 1:
        what = f"a single patch of {SMALLEST} voxels a side becomes one voxel, which batch normalisation cannot take"
        yield Fault(f"patch_size, {', '.join(streams)}", what, f"give 2 images or more, or one side above {SMALLEST}")
