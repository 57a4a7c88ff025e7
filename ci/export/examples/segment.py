"""Segment a NIfTI image with models/model.onnx: onnxruntime, nibabel and numpy alone, no PyTorch and no MONAI.

    python examples/segment.py image.nii.gz segmentation.nii.gz

The same steps as ``inferring``: what comes before the network and after it is read from configs/inference.json. Volumes
are segmented in windows whose probabilities are averaged; networks of two dimensions see slice by slice. Several images
are channels of one. A network that answers with samples gives its mean answer here.
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import onnxruntime

HERE = Path(__file__).resolve().parents[1]
BATCH = 4  # windows or slices at a time
ALL = (slice(None),)  # channels


def interpolate(volume: np.ndarray, axis: int, places: np.ndarray) -> np.ndarray:
    """Linear interpolation along one axis; places are in voxels, and beyond the border its value goes on."""
    last = volume.shape[axis] - 1
    clipped = np.clip(places, 0.0, last)
    low = np.minimum(np.floor(clipped).astype(int), max(last - 1, 0))
    high = np.minimum(low + 1, last)
    share = (clipped - low).reshape([-1 if i == axis else 1 for i in range(volume.ndim)])
    return volume.take(low, axis) * (1.0 - share) + volume.take(high, axis) * share


def resample(volume: np.ndarray, factors: Sequence[float] | np.ndarray, size: Sequence[int]) -> np.ndarray:
    """(C, *S) to (C, *size): a voxel step of the result is a factor of voxel steps of the volume, from the first on."""
    for axis, (factor, count) in enumerate(zip(factors, size, strict=True)):
        if factor != 1.0 or count != volume.shape[axis + 1]:
            volume = interpolate(volume, axis + 1, np.arange(count) * factor)
    return volume


def resize(volume: np.ndarray, size: Sequence[int]) -> np.ndarray:
    """(C, *S) to (C, *size): voxels as areas that together cover the same field."""
    for axis, count in enumerate(size, 1):
        scale = volume.shape[axis] / count
        if scale != 1.0:
            volume = interpolate(volume, axis, (np.arange(count) + 0.5) * scale - 0.5)
    return volume


def scale_intensity(volume: np.ndarray, settings: dict[str, Any]) -> np.ndarray:
    """The transform of intensities that the config names."""
    kind = settings["_target_"].rpartition(".")[2]
    axes = tuple(range(1, volume.ndim))
    if kind == "NormalizeIntensityd" and not settings.get("nonzero"):
        return (volume - volume.mean(axes, keepdims=True)) / np.maximum(volume.std(axes, keepdims=True), 1e-8)
    if kind == "ScaleIntensityd":
        low, high = volume.min(axes, keepdims=True), volume.max(axes, keepdims=True)
        return (volume - low) / np.maximum(high - low, 1e-8)
    if kind == "ScaleIntensityRanged":
        share = (volume - settings["a_min"]) / (settings["a_max"] - settings["a_min"])
        scaled = share * (settings["b_max"] - settings["b_min"]) + settings["b_min"]
        return np.clip(scaled, settings["b_min"], settings["b_max"]) if settings.get("clip") else scaled
    raise SystemExit(f"intensity: {kind} is unknown to this example. Fix: write it here, beside the others.")


def probabilities(session: onnxruntime.InferenceSession, batch: np.ndarray) -> np.ndarray:
    """Softmax of the logits, (B, classes, *S)."""
    (logits,) = session.run(["pred"], {"image": batch.astype(np.float32)})
    powers = np.exp(logits - logits.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


def starts(size: int, window: int, overlap: float) -> list[int]:
    """Where the windows along an axis begin; the last ends with the axis."""
    step = window if window == size else max(int(window * (1.0 - overlap)), 1)
    return [min(start, size - window) for start in range(0, max(size - window, 0) + step, step)]


def importance(window: Sequence[int], mode: str) -> np.ndarray:
    """Weights of a window's voxels: all equal, or a Gaussian whose standard deviation is an eighth of each side."""
    if mode == "constant":
        return np.ones(window, np.float32)
    weights = np.ones((), np.float32)
    for side in window:
        places = np.arange(side) - (side - 1) / 2
        weights = np.multiply.outer(weights, np.exp(-(places**2) / (2 * (0.125 * side) ** 2)))
    return np.maximum(weights, 1e-3).astype(np.float32)


def in_windows(
    session: onnxruntime.InferenceSession,
    volume: np.ndarray,
    window: Sequence[int],
    overlap: Sequence[float],
    mode: str = "constant",
) -> np.ndarray:
    """Mean probability (classes, *S) over the windows of a volume (C, *S), which is padded to one where smaller."""
    missing = [max(side - size, 0) for side, size in zip(window, volume.shape[1:], strict=True)]
    before = [count // 2 for count in missing]
    volume = np.pad(volume, [(0, 0), *((b, m - b) for b, m in zip(before, missing, strict=True))])
    axes = [starts(size, side, share) for size, side, share in zip(volume.shape[1:], window, overlap, strict=True)]
    places = [
        tuple(slice(start, start + side) for start, side in zip(place, window, strict=True))
        for place in itertools.product(*axes)
    ]
    weights = importance(window, mode)
    total, count = np.zeros(0, np.float32), np.zeros(volume.shape[1:], np.float32)
    for begin in range(0, len(places), BATCH):
        batch = places[begin : begin + BATCH]
        found = probabilities(session, np.stack([volume[ALL + place] for place in batch]))
        if begin == 0:
            total = np.zeros((found.shape[1], *volume.shape[1:]), np.float32)
        for place, part in zip(batch, found, strict=True):
            total[ALL + place] += weights * part
            count[place] += weights
    inner = tuple(slice(b, size - (m - b)) for b, m, size in zip(before, missing, volume.shape[1:], strict=True))
    return (total / count)[ALL + inner]


def in_slices(session: onnxruntime.InferenceSession, volume: np.ndarray, axis: int) -> np.ndarray:
    """Probabilities (classes, *S) of a volume (C, *S), slice by slice across one axis."""
    slices = np.moveaxis(volume, axis + 1, 0)
    found = [probabilities(session, slices[start : start + BATCH]) for start in range(0, len(slices), BATCH)]
    return np.moveaxis(np.concatenate(found), 0, axis + 1)


def segment(paths: Sequence[Path], config: dict[str, Any], session: onnxruntime.InferenceSession) -> nib.Nifti1Image:
    """Class numbers in the space of the image."""
    images: list[Any] = [nib.load(path) for path in paths]
    if len(images) != config["in_channels"] or len({image.shape for image in images}) > 1:
        raise SystemExit(f"{len(images)} images. Fix: give {config['in_channels']}, all of one shape.")
    if "slice_axis" in config:
        volume = scale_intensity(np.stack([image.get_fdata(dtype=np.float32) for image in images]), config["intensity"])
        size: Sequence[int] = volume.shape[1:]
        seen = list(config["slice_size"])
        seen.insert(config["slice_axis"], size[config["slice_axis"]])
        answer = resize(in_slices(session, resize(volume, seen), config["slice_axis"]), size)
    else:
        canonical: list[Any] = [
            nib.as_closest_canonical(image) for image in images
        ]  # axes to right, anterior, superior
        volume = np.stack([image.get_fdata(dtype=np.float32) for image in canonical])
        zooms, size = np.asarray(canonical[0].header.get_zooms()[:3], float), volume.shape[1:]
        factors = np.asarray(config["spacing"], float) / zooms
        factors = np.where(np.isclose(factors, 1.0, atol=1e-4), 1.0, factors)
        seen = [round((count - 1) / factor) + 1 for count, factor in zip(size, factors, strict=True)]
        volume = scale_intensity(resample(volume, factors, seen), config["intensity"])
        overlap = config["overlap"]
        shares = overlap if isinstance(overlap, list) else [overlap] * 3
        answer = resample(
            in_windows(session, volume, config["patch_size"], shares, config["inferer"]["mode"]), 1.0 / factors, size
        )
    classes = answer.argmax(0).astype(np.uint8)
    if "slice_axis" not in config:
        there = nib.io_orientation(canonical[0].affine)
        back = nib.orientations.ornt_transform(there, nib.io_orientation(images[0].affine))
        classes = nib.orientations.apply_orientation(classes, back).astype(np.uint8)
    return nib.Nifti1Image(classes, images[0].affine)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", nargs="+", type=Path, metavar="IMAGE", help="NIfTI, one a channel")
    parser.add_argument("output", type=Path, help="NIfTI to write")
    parser.add_argument("--model", type=Path, default=HERE / "models" / "model.onnx", help="default: %(default)s")
    parser.add_argument("--config", type=Path, default=HERE / "configs" / "inference.json", help="default: %(default)s")
    arguments = parser.parse_args()
    for path in [arguments.model, arguments.config, *arguments.images]:
        if not path.is_file():
            raise SystemExit(
                f"{path}: there is no such file. Fix: export the bundle with --onnx, or give another path."
            )
    config = json.loads(arguments.config.read_text())
    session = onnxruntime.InferenceSession(str(arguments.model), providers=onnxruntime.get_available_providers())
    nib.save(segment(arguments.images, config, session), arguments.output)


if __name__ == "__main__":
    main()
