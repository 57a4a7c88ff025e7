"""The settings of this bundle: names, types, ranges, meanings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from common.errors import Fault
from common.settings import AUDIT, COMMON, VOLUMES, CheckedSettings, Setting, SettingsTable
from common.settings.table import DECAY, RIGHT_ANGLES, batch_not_empty, lone_voxel


def _one_pass_selects_nothing(values: Mapping[str, Any]) -> Iterator[Fault]:
    needed = ("passes", "selected_fraction", "alpha", "beta", "ramp_scale")
    if not values.keys() >= set(needed):
        return
    passes, fraction, alpha, beta, ramp_scale = (values[name] for name in needed)
    if passes == 1 and 0.0 < fraction < 1.0 and alpha + beta > 0.0 and ramp_scale > 0.0:
        what = "is 1, and of a single pass nothing tells which images it is sure of"
        yield Fault("passes", what, "give passes 2 or more, or selected_fraction 0 or 1")


def _batches_can_be_normalised(values: Mapping[str, Any]) -> Iterator[Fault]:
    faults = [*lone_voxel(values, "clean_per_batch", "noisy_per_batch")]
    if not faults and values.get("ramp_scale", 0.0) > 0.0:
        faults += lone_voxel(values, "noisy_per_batch")  # which the teacher sees alone
    yield from faults


METHOD = (
    DECAY,
    *RIGHT_ANGLES,
    Setting("clean_per_batch", "whole number", "images with a clean label in a batch", least=0),
    Setting("noisy_per_batch", "whole number", "images with a noisy label in a batch", least=0),
    Setting("dropout", "number", "probability to drop a feature", least=0, below=1),
    Setting("passes", "whole number", "m, perturbed passes of the teacher a step", least=1),
    Setting("selected_fraction", "number", "k, as a share of the noisy images in a batch", least=0, most=1),
    Setting("alpha", "number", "weight of the loss on refined labels", least=0),
    Setting("beta", "number", "weight of the loss on noisy labels", least=0),
    Setting("consistency", "number", "weight of the consistency loss", least=0),
    Setting("ramp_scale", "number", "largest weight of the noisy images' losses", least=0),
    Setting("ramp_length", "number", "share of the training over which it rises", above=0, most=1),
    Setting("ema_decay", "number", "of the teacher's moving average", least=0, below=1),
    Setting("input_noise", "number", "standard deviation on the teacher's input", "of the normalised image", least=0),
    Setting("refine", "switch", "weigh the passes as in Eq. 6; else one pass gives the pseudo-label"),
    Setting("quality_interval", "whole number", "from one measurement of pseudo-labels to the next", "epochs", least=1),
    Setting("quality_cases", "whole number", "whose pseudo-labels are measured, at the most", least=1),
)
SETTINGS = SettingsTable(
    COMMON,
    VOLUMES,
    METHOD,
    AUDIT,
    checks=(
        batch_not_empty("clean_per_batch", "noisy_per_batch"),
        _batches_can_be_normalised,
        _one_pass_selects_nothing,
    ),
)


def check() -> CheckedSettings:
    """Check all settings of the config that is being run, see :class:`~common.settings.CheckedSettings`."""
    return CheckedSettings(SETTINGS)
