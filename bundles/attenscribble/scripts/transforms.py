"""Scribbles as the method sees them.

In a batch a scribble is a map of codes: 0 outside the image (what a rotation or padding brings in), 1 unlabelled,
2 + class labelled. So every transform's padding with zeros says the truth.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.transforms import LoadImage, Resize, Transform
from torch.nn import functional

from common.data.contract.records import SCRIBBLE_UNLABELLED
from common.ops.likeliest import likeliest

OUTSIDE, UNLABELLED, FIRST_CLASS = 0, 1, 2


class LoadScribbled(Transform):
    """Load a record's supervision as a map of codes, uint8, (1, H, W, D).

    A ``scribble`` file holds class numbers and the record's ``scribble_unlabelled_value``, 255 without one. A ``label``
    file is either a drawing, as an annotation tool saves it (0 where nothing is drawn, structures by their numbers, and
    ``num_classes`` for what was drawn as background), or dense, which it is taken for when nothing in it is drawn as
    background.

    Args:
        num_classes: background included.
        source: ``scribble``, and ``label`` of a record without; or ``label``, the dense one, and ``reference`` of a
            record without.
        name: item to add.

    Raises:
        ValueError: when a file holds other values.
    """

    def __init__(self, num_classes: int, source: str = "scribble", name: str = "scribble") -> None:
        if source not in ("scribble", "label"):
            raise ValueError(f"source must be scribble or label, got {source!r}.")
        self.num_classes, self.source, self.name = num_classes, source, name
        self.load = LoadImage(image_only=True, ensure_channel_first=True, dtype=np.int16)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Add the map of codes of the record's file."""
        keys = ("scribble", "label") if self.source == "scribble" else ("label", "reference")
        key = keys[0] if keys[0] in data else keys[1]
        path, sparse = data[key], key == "scribble"
        values = self.load(path)
        background, unlabelled = 0, data.get("scribble_unlabelled_value", SCRIBBLE_UNLABELLED)
        if not sparse:
            drawn = bool((values == self.num_classes).any())
            background, unlabelled = (self.num_classes, 0) if drawn else (0, -1)
        codes = torch.full_like(values, OUTSIDE)
        codes[values == unlabelled] = UNLABELLED
        codes[values == background] = FIRST_CLASS
        for structure in range(1, self.num_classes):
            codes[values == structure] = FIRST_CLASS + structure
        if (codes == OUTSIDE).any():
            strange = sorted(set(values[codes == OUTSIDE].unique().tolist()))
            raise ValueError(
                f"{path}: holds the values {strange}, which are no class of {self.num_classes} and not "
                f"{unlabelled} for unlabelled. Correct the file, num_classes or scribble_unlabelled_value."
            )
        return {**data, self.name: codes.to(torch.uint8)}


class ResizeScribbled(Transform):
    """Resize a map of codes (1, H, W, D); a stroke thinner than the new pixels stays.

    The code of a new pixel is that at its centre or, where nothing is drawn there, what is drawn most in the pixel.

    Args:
        spatial_size: of the result; -1: as it is.
        name: of the item.
    """

    def __init__(self, spatial_size: Sequence[int], name: str = "scribble") -> None:
        self.size, self.name = list(spatial_size), name

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Resize the map."""
        codes = data[self.name]
        size = [old if new == -1 else new for old, new in zip(codes.shape[1:], self.size, strict=True)]
        resized = Resize(size, mode="nearest-exact")(codes).to(codes.dtype)
        if any(new < old for old, new in zip(codes.shape[1:], size, strict=True)):
            undrawn, most = resized == UNLABELLED, torch.zeros(resized.shape)
            values = torch.as_tensor(codes)
            for code in (int(code) for code in values.unique() if code >= FIRST_CLASS):
                share = functional.interpolate((values == code)[None].float(), size, mode="area")[0]
                resized[undrawn & (share > most)] = code
                most = torch.maximum(most, share)
        return {**data, self.name: resized}


class LabelledOnlyd(Transform):
    """Prepare prediction and codes for a metric: where nothing is labelled both count as background.

    ``pred``, logits (C, ...), becomes class numbers (1, ...); ``label``, codes (1, ...), becomes class numbers.
    """

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Set both to background where nothing is labelled."""
        d = dict(data)
        labelled = d["label"] >= FIRST_CLASS
        d["pred"] = likeliest(d["pred"], 0, keepdim=True) * labelled
        d["label"] = (d["label"].long() - FIRST_CLASS) * labelled
        return d
