"""The settings of this bundle: names, types, ranges, meanings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from common.errors import Fault
from common.settings import COMMON, VOLUMES, CheckedSettings, Setting, SettingsTable
from common.settings.table import DECAY, RIGHT_ANGLES, batch_not_empty, lone_voxel


def _batches_can_be_normalised(values: Mapping[str, Any]) -> Iterator[Fault]:
    streams = ("labelled_per_batch", "unlabelled_per_batch")
    faults = [*lone_voxel(values, *streams)]
    if values.get("multicure") and sum(values.get(name, 0) for name in streams) == 1:
        what = "a batch is a single image, and the MultiCURE module's attention is normalised over images"
        faults = [Fault(", ".join(streams), what, "give 2 images or more, or multicure false")]
    elif not faults and "ema_decay" in values:
        faults += lone_voxel(values, "unlabelled_per_batch")  # which mean_teacher.yaml's teacher sees alone
    yield from faults


METHOD = (
    DECAY,
    *RIGHT_ANGLES,
    Setting("labelled_per_batch", "whole number", "images with a label in a batch", least=0),
    Setting("unlabelled_per_batch", "whole number", "images without a label in a batch", least=0),
    Setting("base_filters", "whole number", "channels at full resolution", least=1),
    Setting("dropout", "number", "probability to drop a feature", least=0, below=1),
    Setting("multicure", "switch", "the module of Sec. 2.1"),
    Setting("threshold", "number", "confidence below which a voxel is uncertain", least=0, most=1),
    Setting("output", "word", "which network answers", choices=("both", "predictive", "auxiliary")),
    Setting("unlabelled", "number", "lambda_u, weight of the losses on unlabelled images", least=0),
    Setting("ramp_length", "number", "share of the training over which lambda_u rises; 0: constant", least=0, most=1),
    Setting("regularisation", "number", "lambda_reg, weight of the XOR regularisation", least=0),
    Setting("regularise", "word", "networks that learn from that", choices=("auxiliary", "both")),
    Setting("contrastive", "number", "lambda_c at the end of the training", least=0),
    Setting("schedule", "word", "of lambda_c; decay: as printed", choices=("rise", "decay")),
    Setting("separation", "number", "weight of the prototypes' separation", least=0),
    Setting("temperature", "number", "tau of Eq. 5", above=0),
    Setting("printed_denominator", "switch", "Eq. 5 as printed"),
    Setting("max_voxels", "whole number", "uncertain voxels drawn for Eq. 5, at most", least=1),
    Setting("mutual", "switch", "the predictive network learns from the auxiliary one too"),
)
MEAN_TEACHER = (
    Setting("consistency", "number", "weight of the consistency loss, of mean_teacher.yaml", least=0),
    Setting("ema_decay", "number", "of the teacher's moving average, of mean_teacher.yaml", least=0, below=1),
    Setting(
        "input_noise",
        "number",
        "standard deviation on the teacher's input, of mean_teacher.yaml",
        "of the normalised image",
        least=0,
    ),
)
SETTINGS = SettingsTable(
    COMMON,
    VOLUMES,
    METHOD,
    MEAN_TEACHER,
    checks=(batch_not_empty("labelled_per_batch", "unlabelled_per_batch"), _batches_can_be_normalised),
)


def check() -> CheckedSettings:
    """Check all settings of the config that is being run, see :class:`~common.settings.CheckedSettings`."""
    return CheckedSettings(SETTINGS)
