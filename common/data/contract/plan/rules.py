"""The rules of a plan: from what was measured to a value and its reason."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .choice import Choice
from .guide import Guide
from .traits import Traits

ANISOTROPIC = 3.0  # ratio of the largest to the smallest spacing from which an axis counts as anisotropic
THICK = 1.5  # the same ratio from which slices lie across the axis of the largest spacing
LOW_PERCENTILE = 10  # of the spacings along an anisotropic axis
COVERAGE = 0.4  # least share of the median image in a patch: at 112 x 112 x 80 voxels the left atrium's have as much
SQUARE = 1.25  # ratio of a slice's sides below which it is made square
LEAST_VOXELS = 8.0  # of the smallest structure where images are made coarser than they are
EPOCHS = 20  # about; each ends in a checkpoint
HOUNSFIELD = -500.0  # lowest intensity below which images must be in Hounsfield units


def native_spacing(traits: Traits) -> Choice:
    """The spacing, in mm, of the images as they are: the median, along a much coarser axis a low percentile of it.

    A few cases with thin slices are then not thrown away (Isensee et al., 2021).
    """
    median = np.median(traits.spacings, axis=0)
    reason = f"the median of {len(traits.spacings)} images"
    worst = int(np.argmax(median))
    if median[worst] >= ANISOTROPIC * median.min():
        low = float(np.percentile(traits.spacings[:, worst], LOW_PERCENTILE))
        others = np.delete(median, worst).max()
        median[worst] = max(low, others)
        reason += f"; the {LOW_PERCENTILE}th percentile along axis {worst}, whose slices are thick"
    return Choice([round(float(size), 4) for size in median], reason)


def coarsened(native: Sequence[float], least: float) -> list[float]:
    """A spacing of at least ``least`` mm along each axis: the finest axes are given up first."""
    return [round(max(float(size), least), 4) for size in native]


def coarsest(traits: Traits, native: Sequence[float]) -> float:
    """The largest ``least`` of :func:`coarsened` that leaves the smallest structure some voxels, in mm."""
    if not traits.smallest:
        return max(native)  # of scribbles nobody knows the structures' sizes
    largest = min(traits.smallest.values()) / LEAST_VOXELS  # mm3 of a voxel
    least = min(native)
    while math.prod(coarsened(native, least * 1.05)) <= largest:
        least *= 1.05
    return least


def resampled_size(traits: Traits, spacing: Sequence[float]) -> list[int]:
    """Voxels along each axis of the median image after resampling."""
    return [max(1, round(size)) for size in np.median(traits.extents / np.array(spacing), axis=0).tolist()]


def grow_patch(size: Sequence[int], voxels: float, multiple: int) -> list[int]:
    """The patch of at most so many voxels in the proportions of an image.

    The axis of which the patch shows least grows first, in steps of the multiple, to the end of the image.

    Args:
        size: voxels of the image along each axis.
        voxels: of the patch, at most, if that leaves the multiple along each axis.
        multiple: each side is a multiple of it.

    Returns:
        voxels along each axis.

    Example:
        >>> grow_patch([48, 36, 22], 20_000, 16)
        [32, 32, 16]
    """
    patch = [multiple] * len(size)
    full = [max(multiple, math.ceil(side / multiple) * multiple) for side in size]
    while True:
        for axis in sorted(range(len(size)), key=lambda axis: patch[axis] / size[axis]):
            grown = [side + multiple * (number == axis) for number, side in enumerate(patch)]
            if grown[axis] <= full[axis] and math.prod(grown) <= voxels:
                patch = grown
                break
        else:
            return patch


def coverage(patch: Sequence[int], size: Sequence[int]) -> float:
    """Share of the image that a patch shows."""
    return math.prod(min(1.0, side / whole) for side, whole in zip(patch, size, strict=True))


def slice_axis(traits: Traits, default: int) -> Choice:
    """The files' axis across which slices lie: that of the thickest slices, else of the fewest."""
    spacing, shape = np.median(traits.spacings, axis=0), np.median(traits.shapes, axis=0)
    thick, few = int(np.argmax(spacing)), int(np.argmin(shape))
    others = np.delete(spacing, thick).max()
    if spacing[thick] >= THICK * others:
        return Choice(thick, f"voxels are {spacing[thick]:.3g} mm long along it, and at most {others:.3g} mm elsewhere")
    if shape[few] * 2 <= np.delete(shape, few).min():
        return Choice(few, f"images have {shape[few]:g} voxels along it, and at least twice as many elsewhere")
    return Choice(default, "as in train.yaml: neither spacings nor shapes tell slices from other planes")


def grow_slice(traits: Traits, axis: int, pixels: float, multiple: int) -> list[int]:
    """Size of slices, in pixels, of at most so many, in the proportions of the median slice; square if nearly so.

    Square slices can be turned by right angles in training.
    """
    plane = np.delete(np.median(traits.extents, axis=0), axis)  # mm: pixels need not be square
    finest = np.delete(np.median(traits.spacings, axis=0), axis).min()
    size = [max(1, round(side / finest)) for side in plane.tolist()]
    if max(size) < SQUARE * min(size):
        side = min(math.ceil(max(size) / multiple) * multiple, int(math.sqrt(pixels)) // multiple * multiple)
        return [max(multiple, side)] * 2
    return grow_patch(size, pixels, multiple)


def is_ct(traits: Traits) -> str:
    """Why all channels of the images are taken for CT; empty if they are not."""
    if traits.modalities and all(map(_names_ct, traits.modalities)):
        return "the data set declares CT"
    if not traits.modalities and traits.channels == 1 and traits.lowest <= HOUNSFIELD:
        return f"the lowest intensities are about {traits.lowest:.0f}, as of Hounsfield units"
    return ""


def _beside_ct(traits: Traits) -> str:
    """Why some channels are CT, or may be, and others not; empty if there is no sign of it."""
    if is_ct(traits):
        return ""
    if any(map(_names_ct, traits.modalities)):
        return f"CT beside other channels ({', '.join(traits.modalities)})"
    if not traits.modalities and traits.lowest <= HOUNSFIELD:
        return f"channels that nothing names, the lowest intensities about {traits.lowest:.0f}"
    return ""


def _names_ct(name: str) -> bool:
    return name.strip().lower().split()[0] == "ct"


def intensity(traits: Traits, current: Mapping[str, Any]) -> Choice:
    """How intensities are normalised, in the range that the bundle's own transform gives.

    CT is cut to the foreground's percentiles, and scaled to [0, 1] where the bundle does so, else to the foreground's
    mean 0 and variance 1. Other images keep the bundle's transform; z-scores leave out a background of zeros. Images of
    CT and something else, such as PET, keep it as it is: one window would destroy the other, and zero is water in CT.

    Args:
        traits: of the data set.
        current: the ``intensity`` of the bundle's train.yaml.
    """
    unit = str(current["_target_"]).startswith("ScaleIntensity")
    found, why = traits.foreground, is_ct(traits)
    if why and found is not None:
        low, high = round(found.low), round(found.high)
        ends = (0.0, 1.0) if unit else ((low - found.mean) / found.deviation, (high - found.mean) / found.deviation)
        window = {"_target_": "ScaleIntensityRanged", "keys": current["keys"], "a_min": low, "a_max": high}
        window |= {"b_min": round(ends[0], 3), "b_max": round(ends[1], 3), "clip": True}
        scale = "[0, 1], which the losses need" if unit else "mean 0 and variance 1 of the structures"
        return Choice(window, f"CT ({why}): 0.5th to 99.5th percentile of structures, to {scale}")
    if beside := _beside_ct(traits):
        scale = "each channel to [0, 1], which the losses need" if unit else "z-score of each channel of each image"
        return Choice(dict(current), f"{beside}: {scale}, as no window is right for all")
    if unit:
        return Choice(dict(current), "no CT: each image to [0, 1], which the losses need")
    if traits.blanked:
        return Choice(
            {**current, "nonzero": True}, "no CT: z-score of the body; the background is blanked out with zeros"
        )
    return Choice(dict(current), "no CT: z-score of each image")


def streams(traits: Traits, guide: Guide, times: int, short: bool = False) -> dict[str, Choice]:
    """Cases a batch of each kind of record: a multiple of the bundle's usual batch, at most the paper's.

    Args:
        traits: of the data set.
        guide: of the bundle.
        times: the multiple.
        short: whether the training is a short one, of patches smaller than the paper's.
    """
    found = {}
    for kind, key in guide.streams.items():
        usual = guide.batch(short)[kind]
        count = min(usual * times, max(usual, guide.paper_batch.get(kind, usual)))
        there = f"{traits.kinds.get(kind, 0)} training cases are of this kind"
        source = "the bundle's short trainings" if short and kind in guide.short_batch else "train.yaml"
        grown = f"; {count // usual} times that of {source}, as memory and time allow" if count > usual else ""
        found[key] = Choice(count, there + (grown or f"; as in {source}"))
    return found


def most_times(guide: Guide, short: bool = False) -> int:
    """How often the usual batch goes into the paper's, along the stream that has most room."""
    batch = guide.batch(short)
    return max([1, *(guide.paper_batch.get(kind, count) // max(count, 1) for kind, count in batch.items())])


def windows(guide: Guide, slice_size: Sequence[int]) -> dict[str, Choice]:
    """Settings in pixels, in proportion to the slices, see :class:`~.guide.Guide`."""
    scale = min(1.0, max(slice_size) / guide.window_slice)
    found = {}
    for key, (paper, least) in guide.windows.items():
        value = max(least, paper * scale)
        reason = f"pixels: {paper:g} on the paper's slices of {guide.window_slice}, at least {least:g}"
        found[key] = Choice(round(value) if isinstance(paper, int) else round(value, 2), reason)
    return found


def schedule(guide: Guide, iterations: int, validations: int) -> dict[str, Choice]:
    """Epochs, their length, validations and the learning rate of so many iterations."""
    epochs = min(EPOCHS, iterations)
    epochs = max(validations, epochs // validations * validations)
    length = max(1, round(iterations / epochs))
    rate = min(guide.most_learning_rate, guide.learning_rate * guide.iterations / (epochs * length))
    rate = max(rate, guide.learning_rate)
    most = guide.most_learning_rate
    why = f"the paper's {guide.learning_rate:g} for {guide.iterations} steps; more for fewer, at most {most:g}"
    return {
        "max_epochs": Choice(epochs, "each ends with a checkpoint to resume from"),
        "epoch_length": Choice(length, f"{epochs * length} steps in all; the paper trains {guide.iterations}"),
        "val_interval": Choice(epochs // validations, f"{validations} validations, at most a fifth of the time"),
        "learning_rate": Choice(float(f"{rate:.3g}"), why),
    }


def doubts(traits: Traits, guide: Guide, choices: Mapping[str, Choice]) -> list[str]:
    """What the plan would not do, in words."""
    found = []
    slices = float(np.median(traits.shapes[:, choices["slice_axis"].value])) if guide.sliced else 1.0
    for kind, key in guide.streams.items():
        count, wanted = traits.kinds.get(kind, 0), choices[key].value
        if 0 < count * slices < wanted:
            what = f"{count} training cases of the kind `{kind}` are fewer than {key} {wanted}"
            found.append(f"{what}: a batch draws some of them more than once. Label more, or give --{key} {count}")
    if "patch_size" in choices:
        found += _of_patches(traits, choices["spacing"].value, choices["patch_size"].value)
    else:
        found += _of_slices(traits, choices["slice_axis"].value, choices["slice_size"].value)
    return found


def _of_patches(traits: Traits, spacing: Sequence[float], patch: Sequence[int]) -> list[str]:
    voxel = math.prod(spacing)
    found = [
        f"structure {name!r} is as small as {volume:.3g} mm3, less than a voxel of {voxel:.3g} mm3 at this spacing: "
        "resampling can lose it. Give more --minutes or --memory for a finer spacing, or leave it out"
        for name, volume in traits.smallest.items()
        if volume < voxel
    ]
    sizes = np.rint(traits.extents / np.array(spacing))
    if smaller := int(np.any(sizes < np.array(patch), axis=1).sum()):
        what = f"{smaller} of {len(sizes)} images are smaller than the patch along some axis after resampling"
        found.append(f"{what}: they are padded with zeros. Crop the others to the structures' surroundings if few are")
    return found


def _of_slices(traits: Traits, axis: int, size: Sequence[int]) -> list[str]:
    planes = np.delete(traits.shapes, axis, axis=1)
    found = []
    if smaller := int(np.any(planes < np.array(size), axis=1).sum()):
        found.append(
            f"{smaller} of {len(planes)} images have slices smaller than {size[0]} x {size[1]} pixels along some axis: "
            "they are enlarged. Give a smaller --slice_size if most are"
        )
    area = float(np.median(np.delete(traits.extents, axis, axis=1).prod(axis=1)) / math.prod(size))  # mm2 of a pixel
    depth = float(np.median(traits.spacings[:, axis]))
    found += [
        f"structure {name!r} is as small as {volume:.3g} mm3, less than a pixel of {area * depth:.3g} mm3 "
        "at this size: resizing can lose it. Give more --minutes or --memory for larger slices, or leave it out"
        for name, volume in traits.smallest.items()
        if volume < area * depth
    ]
    return found
