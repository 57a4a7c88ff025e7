"""The settings of this bundle: names, types, ranges, meanings."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from common.errors import Fault
from common.settings import AUDIT, COMMON, VOLUMES, CheckedSettings, Setting, SettingsTable
from common.settings.setting import BadValueError
from common.settings.table import RIGHT_ANGLES

from .audit import SUSPICIONS
from .losses import AFFINITY_CENTRES, SURER_CNN


@dataclass(frozen=True)
class StagesSetting(Setting):
    """Whole numbers for the stages of a network, from full resolution down.

    Args:
        per_axis: in the place of a number three may stand, one for each axis.
    """

    per_axis: bool = False

    @property
    def type(self) -> str:
        """The type, in words."""
        return "list of whole numbers" + (" or of 3 each" if self.per_axis else "")

    def _typed(self, value: Any) -> Any:
        """The value as lists of whole numbers."""
        if not isinstance(value, (list, tuple)) or not value:
            what = f"is {value!r}, which is no list of whole numbers"
            raise BadValueError(Fault(self.name, what, "give one for each stage, as in [1, 2, 2]"))
        return [self._stage(stage) for stage in value]

    def _stage(self, stage: Any) -> Any:
        if not self.per_axis or not isinstance(stage, (list, tuple)):
            return self._item(stage, "holds")
        if len(stage) != 3:
            raise BadValueError(Fault(self.name, f"holds {list(stage)}", "give a number, or 3, one for each axis"))
        return [self._item(item, "holds") for item in stage]


def _stages_match(values: Mapping[str, Any]) -> Iterator[Fault]:
    for name in ("strides", "kernels"):
        if {"filters", name} <= values.keys() and len(values[name]) != len(values["filters"]):
            what = f"has {len(values[name])} items, and filters has {len(values['filters'])}"
            yield Fault(name, what, "give one for each stage")


def _stages_can_be_built(values: Mapping[str, Any]) -> Iterator[Fault]:
    strides, kernels = values.get("strides", [1]), values.get("kernels", [])
    if max(_axes(strides[0])) > 1:
        yield Fault("strides", f"begins with {strides[0]}, and the first stage is at full resolution", "begin with 1")
    if even := [kernel for kernel in kernels if any(side % 2 == 0 for side in _axes(kernel))]:
        yield Fault("kernels", f"holds {even[0]}, and an even side has no middle", "give odd numbers")
    if "filters" not in values:
        return
    levels = len(values["filters"]) - 1
    if levels < 1:
        yield Fault("filters", "has 1 item, and a decoder needs 2 stages", "give 2 or more")
    elif beyond := [level for level in values.get("mamba_levels", []) if level >= levels]:
        what = f"holds {beyond[0]}, and a decoder of {levels + 1} stages has the levels 0 to {levels - 1}"
        yield Fault("mamba_levels", what, "give some of these")


def _axes(size: Any) -> list[int]:
    return [size] if isinstance(size, int) else size


def _patch_fits_strides(values: Mapping[str, Any]) -> Iterator[Fault]:
    if not {"patch_size", "strides"} <= values.keys():
        return
    for axis, size in enumerate(values["patch_size"]):
        step = math.prod(stride if isinstance(stride, int) else stride[axis] for stride in values["strides"])
        if size % step:
            what = f"holds {size} along axis {axis}, no multiple of {step}, the product of the strides along it"
            yield Fault("patch_size", what, f"give multiples of {step} there, or other strides")


PATCHES = (
    Setting("patch_size", "whole number", "of training and windows", unit="voxels", above=0, items=3),
    Setting("batch_size", "whole number", "patches in a batch", least=1),
    Setting("foreground", "number", "share of the patches around a labelled voxel", least=0, most=1),
    *RIGHT_ANGLES,
    Setting("momentum", "number", "of the optimiser", least=0, below=1),
)
NETWORK = (
    StagesSetting("filters", "whole number", "channels of the stages, from full resolution down", least=1),
    StagesSetting("strides", "whole number", "to each stage from the one before", least=1, per_axis=True),
    StagesSetting("kernels", "whole number", "sides of the convolutions of each stage, odd", least=1, per_axis=True),
    Setting("iae", "switch", "implicit affinity enhancement (Eq. 1)"),
    Setting("iae_normalise", "switch", "divide its sum by the number of neighbours; false: as printed"),
    Setting("iae_average", "switch", "halve its result; false: as printed"),
    Setting("pne", "switch", "pixel neighbourhood enhancement (Eq. 2)"),
    Setting("pne_sigma", "number", "of Eq. 2, in squared units; null: local variance", above=0, optional=True),
    Setting("pne_average", "switch", "halve its result; false: as printed"),
    StagesSetting("mamba_levels", "whole number", "decoder levels with Mamba, 0 is full resolution", least=0),
    Setting("mamba_residual", "switch", "Mamba adds to the feature; false: it replaces it, as in U-Mamba"),
    Setting("dropout", "number", "probability to drop a channel of the bottleneck", least=0, below=1),
)
METHOD = (
    Setting("lalr", "switch", "refine labels (Eqs. 3-6)"),
    Setting("warm_up", "number", "share of the training before labels are refined", least=0, most=1),
    Setting("affinity_centre", "word", "whose class a voxel's neighbours are held against", choices=AFFINITY_CENTRES),
    Setting("noise_rule", "word", "decoders that must find a label noisy", choices=("union", "both")),
    Setting("require_support", "switch", "suspect only voxels that have a neighbour of their class"),
    Setting("surer_cnn", "word", "what a noisy voxel becomes where the CNN is surer", choices=SURER_CNN),
    Setting("refined", "number", "weight of the supervision by refined labels", least=0),
    Setting("margin", "number", "weight of the margin-based smoothing loss", least=0),
    Setting("printed_margin", "switch", "its margin as printed: wide at borders"),
    Setting("affinity", "number", "weight of the local affinity loss", least=0),
)
SUSPICION = (Setting("suspicion", "word", "what the audit suspects labels by", choices=SUSPICIONS),)
SETTINGS = SettingsTable(
    COMMON,
    VOLUMES,
    PATCHES,
    NETWORK,
    METHOD,
    AUDIT,
    SUSPICION,
    checks=(_stages_match, _stages_can_be_built, _patch_fits_strides),
)


def check() -> CheckedSettings:
    """Check all settings of the config that is being run, see :class:`~common.settings.CheckedSettings`."""
    return CheckedSettings(SETTINGS)
