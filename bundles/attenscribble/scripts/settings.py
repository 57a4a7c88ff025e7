"""The settings of this bundle: names, types, ranges, meanings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from common.errors import Fault
from common.settings import COMMON, MIRRORED_SLICES, CheckedSettings, Setting, SettingsTable


def _attention_for_its_loss(values: Mapping[str, Any]) -> Iterator[Fault]:
    if values.get("attentive_weight", 0.0) > 0.0 and values.get("attention_level", 0) is None:
        what = "is null, and the attentive loss needs the attention's similarities"
        yield Fault("attention_level", what, "give 0 to 4, or attentive_weight 0")


SLICES = (
    MIRRORED_SLICES,
    Setting("slice_axis", "whole number", "axis of the files' arrays across which slices lie", least=0, most=2),
    # a U-Net halves its input four times
    Setting("slice_size", "whole number", "to which slices are resized", "pixels", least=16, items=2),
    Setting("supervision", "word", "label: the dense labels, for the upper bound", choices=("scribble", "label")),
    Setting("batch_size", "whole number", "slices in a batch", least=1),
    Setting("flip_prob", "number", "probability of a flip along each axis", least=0, most=1),
    Setting("rotate90_prob", "number", "probability of turns by 90 degrees", least=0, most=1),
    Setting("rotate_prob", "number", "probability of a rotation by up to 20 degrees", least=0, most=1),
)
METHOD = (
    Setting("dropout", "number", "of the encoder's levels", least=0, below=1, items=5, single=True),
    Setting(
        "attention_level",
        "whole number",
        "encoder level before the attention; null: none",
        least=0,
        most=4,
        optional=True,
    ),
    Setting("heads", "whole number", "attention heads", least=1),
    Setting("layers", "whole number", "attention layers", least=1),
    Setting("scaled_similarity", "switch", "similarities are divided by the root of the channels, as printed"),
    Setting("crf_weight", "number", "weight of the CRF loss, see crf_mask", least=0),
    Setting("attentive_weight", "number", "weight of the attentive similarity loss", least=0),
    Setting("dice_weight", "number", "weight of the Dice loss, for dense labels", least=0),
    Setting("entropy_weight", "number", "weight of the entropy", least=0),
    Setting("mumford_shah_weight", "number", "weight of the Mumford-Shah loss", least=0),
    Setting("radius", "whole number", "of both losses' windows", "pixels", least=1),
    Setting("sigma_position", "number", "of the CRF's kernel, and of the attentive loss's in cells", "pixels", above=0),
    Setting("sigma_intensity", "number", "of the CRF's kernel", "of images in [0, 1]", above=0),
    Setting("crf_mask", "word", "pixels that the CRF loss takes", choices=("unlabelled", "image")),
    Setting("mask_neighbours", "switch", "the mask holds for a pixel's neighbours too"),
)
SETTINGS = SettingsTable(COMMON, SLICES, METHOD, checks=(_attention_for_its_loss,))


def check() -> CheckedSettings:
    """Check all settings of the config that is being run, see :class:`~common.settings.CheckedSettings`."""
    return CheckedSettings(SETTINGS)
