"""Transforms that MONAI lacks."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping
from typing import Any

import torch
from monai.config import KeysCollection
from monai.data import MetaTensor, NibabelWriter
from monai.transforms import MapTransform, SaveImaged, Spacingd, Transform

from ...files import atomic_path
from ...ops.likeliest import likeliest
from ..contract.records import is_kind
from .temperature import Weights, read_temperatures, temper


class MarkCleanLabeld(Transform):
    """Add ``clean``: True where the record's label is to be trusted (``label_quality`` is absent or "clean")."""

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Add the mark."""
        return {**data, "clean": torch.tensor(is_kind(dict(data), "clean"))}  # type: ignore[arg-type]


class MarkLabelledd(Transform):
    """Add ``labelled``: True where the record has a label; where it has none, background takes the label's place."""

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Add the mark and, where it is missing, the label."""
        labelled = is_kind(dict(data), "label")  # type: ignore[arg-type]
        d = {**data, "labelled": torch.tensor(labelled)}
        if not labelled:
            d["label"] = torch.zeros_like(data["image"][:1])
        return d


class Resampled(Spacingd):
    """MONAI's Spacingd that survives other items beside the image.

    In MONAI 1.6.0 and 1.6.1 Spacingd calls ``update`` on every item whose name begins with that of a key and an
    underscore; annotation servers pass ``image_path``, a string, and a record may hold any number or list. What has no
    ``update`` is kept out of its sight.
    """

    def __call__(self, data: Mapping[Hashable, Any], lazy: bool | None = None) -> dict[Hashable, Any]:
        """Resample what MONAI's Spacingd would."""
        hidden = {key: value for key, value in data.items() if key not in self.keys and not hasattr(value, "update")}
        seen = {key: value for key, value in data.items() if key not in hidden}
        return super().__call__(seen, lazy) | hidden


class SegmentationAndUncertaintyd(MapTransform):
    """Turn class probabilities into a segmentation and an uncertainty map.

    For each key: the probabilities (C, H, W[, D]) move to ``probabilities``, their argmax (1, H, W[, D]) takes their
    place, and ``uncertainty`` (1, H, W[, D]) is the entropy divided by log C: 0 for certain, 1 for no idea. Where a
    calibration lies beside the weights, ``probabilities`` and ``uncertainty`` are tempered, see
    :func:`~common.data.loading.temperature.temper`, and the network's own are ``uncalibrated``; the argmax is the same.

    Args:
        keys: of the probabilities.
        weights: the network's file of weights; None: nothing is tempered, nor is the mean of several networks.
    """

    def __init__(self, keys: KeysCollection = "pred", weights: Weights | None = None) -> None:
        super().__init__(keys)
        self.temperatures = None if weights is None else read_temperatures(weights)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Turn the probabilities of each key."""
        d = dict(data)
        for key in self.key_iterator(d):
            probabilities = d[key]
            d[key] = likeliest(probabilities, 0, keepdim=True).to(torch.uint8)
            if self.temperatures is not None:
                d["uncalibrated"] = probabilities
                probabilities = temper(probabilities, self.temperatures.applied)
            entropy = torch.special.entr(probabilities).sum(0, keepdim=True)
            d["probabilities"] = probabilities
            d["uncertainty"] = (entropy / math.log(len(probabilities))).clamp(0.0, 1.0)
        return d


class _AtomicNiftiWriter(NibabelWriter):
    """MONAI's NIfTI writer whose files are there complete or not at all, and keep an image's axes of one voxel."""

    data_obj: Any

    def set_data_array(self, data_array: Any, *args: Any, **kwargs: Any) -> None:
        super().set_data_array(data_array, *args, **{**kwargs, "squeeze_end_dims": False})
        if self.data_obj.shape[-1] == 1:  # one channel is no axis
            self.data_obj = self.data_obj[..., 0]

    def write(self, filename: Any, verbose: bool = False, **kwargs: Any) -> None:
        with atomic_path(filename) as temporary:
            super().write(temporary, verbose=verbose, **kwargs)


class SaveNiftid(SaveImaged):
    """Save an image as ``output_dir/<case>/<case>_<postfix>.nii.gz`` in the space that its affine tells.

    Args:
        keys: items to save.
        output_dir: folder to write to.
        postfix: what the file shows.
        dtype: number type in the file.
        allow_missing_keys: whether an item may be absent.
        like: item whose file gives the case its name; default: each one's own.
    """

    def __init__(
        self,
        keys: KeysCollection,
        output_dir: str,
        postfix: str,
        dtype: str = "float32",
        allow_missing_keys: bool = False,
        like: str | None = None,
    ) -> None:
        self.like = like
        super().__init__(
            keys,
            allow_missing_keys=allow_missing_keys,
            output_dir=output_dir,
            output_postfix=postfix,
            output_dtype=dtype,
            resample=False,
            writer=_AtomicNiftiWriter,
            print_log=False,
        )

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Write the files; the data stay as they are."""
        if self.like is None:
            return super().__call__(data)
        name = data[self.like].meta["filename_or_obj"]
        renamed = {
            key: MetaTensor(data[key], meta={**data[key].meta, "filename_or_obj": name})
            for key in self.key_iterator(data)
        }
        super().__call__(renamed)
        return dict(data)
