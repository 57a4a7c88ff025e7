"""The losses of Kumari and Singh, AmbiSSL, CVPR 2025, as pure functions; the divergences are in ``latents.py``."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from monai.losses import DiceLoss
from torch.nn import functional

from common.ops.autocast import no_autocast
from common.ops.likeliest import likeliest

_DICE = DiceLoss(batch=True)


def dice_loss(probabilities: torch.Tensor, target: torch.Tensor, counted: torch.Tensor | None = None) -> torch.Tensor:
    """L_DSC: soft Dice loss summed over batch and pixels, mean over the classes, background included.

    Code of the paper's source [27] weights each class by 1 / volume^2 within the class's own ratio, where the weight
    cancels; what stays is this.

    Args:
        probabilities: (B, C, *S).
        target: (B, C, *S), one-hot or probabilities.
        counted: (B, 1, *S) bool, the pixels that count; default: all.

    Returns:
        scalar in [0, 1], float32.
    """
    with no_autocast(probabilities):
        prediction, target = probabilities.float(), target.float()
        if counted is not None:
            prediction, target = prediction * counted, target * counted
        value: torch.Tensor = _DICE(prediction, target)
        return value


def one_hot(classes: torch.Tensor, num_classes: int) -> torch.Tensor:
    """(B, R, *S) class numbers to (B, R, C, *S), float32."""
    return torch.stack([classes == number for number in range(num_classes)], dim=2).float()


def bounds(masks: torch.Tensor, valid: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """Intersection and union of a set of masks, class by class: smallest and largest value at each pixel.

    Args:
        masks: (B, n, C, *S), one-hot or probabilities, background first.
        valid: (B, n) bool, which members there are; default: all.

    Returns:
        intersection and union of the foreground classes, (B, C - 1, *S) each.
    """
    foreground = masks[:, :, 1:]
    if valid is None:
        return foreground.amin(1), foreground.amax(1)
    there = valid.reshape(*valid.shape, *[1] * (masks.ndim - 2))
    return foreground.where(there, 1.0).amin(1), foreground.where(there, 0.0).amax(1)


def bound_loss(samples: torch.Tensor, raters: torch.Tensor, valid: torch.Tensor | None = None) -> torch.Tensor:
    """L_bound (Sec. 3.3): Dice of the intersections plus Dice of the unions of samples and raters.

    Each foreground class against its complement is a Dice of two classes; the mean over the foreground classes counts.
    Largest and smallest probability are those before or after softmax alike when there are two classes.

    Args:
        samples: probabilities (B, n, C, *S).
        raters: one-hot masks (B, R, C, *S).
        valid: (B, R) bool, which raters there are; default: all.

    Returns:
        scalar in [0, 2], float32.
    """
    total = torch.zeros((), device=samples.device)
    for predicted, annotated in zip(bounds(samples.float()), bounds(raters.float(), valid), strict=True):
        total = total + dice_loss(_with_complement(predicted), _with_complement(annotated))
    return total


def _with_complement(masks: torch.Tensor) -> torch.Tensor:
    return torch.cat((masks, 1.0 - masks), 1)


def posterior_channels(masks: torch.Tensor, count: torch.Tensor, form: str, slots: int, order: str) -> torch.Tensor:
    """A set of masks as the posterior encoder's channels, minus 0.5, the background left out (Eq. 1).

    ``stacked`` is the paper's: one channel a rater and class. n masks fill ``slots`` places: place i holds mask
    round(i (n - 1) / (slots - 1)), so places mean "small ... large" whatever n when sorted by area. ``set`` takes any
    number in any order: mean, smallest and largest value over the raters.

    Args:
        masks: (B, R, C, *S), one-hot or probabilities, background first.
        count: (B,), how many of the R masks there are; the first ones, at least 1.
        form: stacked or set.
        slots: places of ``stacked``.
        order: of ``stacked``: area, by the foreground's volume, or given.

    Returns:
        (B, slots * (C - 1), *S) or (B, 3 * (C - 1), *S), in [-0.5, 0.5].
    """
    numbers = torch.arange(masks.shape[1], device=masks.device)
    valid = numbers < count[:, None]
    if form == "set":
        smallest, largest = bounds(masks, valid)
        there = valid.reshape(*valid.shape, *[1] * (masks.ndim - 2))
        mean = (masks[:, :, 1:] * there).sum(1) / count.reshape(-1, *[1] * (masks.ndim - 2))
        return torch.cat((smallest, mean, largest), 1) - 0.5
    places = torch.arange(slots, device=masks.device) / max(slots - 1, 1)
    places = (places * (count[:, None] - 1)).round().long()
    if order == "area":
        area = masks[:, :, 1:].float().flatten(2).sum(2)
        ranking = area.masked_fill(~valid, float("inf")).argsort(dim=1, stable=True)
        places = ranking.gather(1, places)
    images = torch.arange(len(masks), device=masks.device)[:, None]
    return masks[images, places][:, :, 1:].flatten(1, 2) - 0.5


def pick(masks: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
    """One mask of each image: (B, R, ...) and (B,) to (B, ...)."""
    return masks[torch.arange(len(masks), device=masks.device), chosen]


def harden(probabilities: torch.Tensor) -> torch.Tensor:
    """Probabilities (B, n, C, *S) to one-hot pseudo-labels of the likeliest class."""
    classes = likeliest(probabilities, 2)
    return functional.one_hot(classes, probabilities.shape[2]).movedim(-1, 2).to(probabilities.dtype)


def norm_sum(parameters: Iterable[torch.Tensor]) -> torch.Tensor:
    """The L2 term (Sec. 4.2): sum of the Euclidean norms, not squared, of weight tensors, float32."""
    return torch.stack([torch.linalg.vector_norm(each.float()) for each in parameters]).sum()
