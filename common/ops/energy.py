"""Pairwise energy of a probability map over local windows: the relaxed conditional random field as a loss."""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd.function import once_differentiable

from .autocast import no_autocast
from .threads import image_parts, map_blocks, one_thread
from .windows import Index, window_pairs


@one_thread()
def pairwise_window_energy(
    probabilities: torch.Tensor,
    image: torch.Tensor,
    radius: int = 5,
    sigma_position: float = 6.0,
    sigma_intensity: float = 0.1,
    mask: torch.Tensor | None = None,
    neighbour_mask: torch.Tensor | None = None,
    plain: bool = False,
) -> torch.Tensor:
    """Mean over voxels p of the sum over neighbours q of s(p, q) (1 - P_p . P_q).

    Source: Eqs. 3 to 5 of Tian et al., AttenScribble, arXiv 2312.06614, with one kernel; Obukhov et al., Gated CRF
    Loss, arXiv 1906.04651. s(p, q) = exp(-|x_p - x_q|^2 / 2 sigma_position^2 - |I_p - I_q|^2 / 2 sigma_intensity^2)
    over the q != p at most ``radius`` away along every axis. A pair needs two voxels: places outside the image count
    nothing.

    It streams over the offsets of half a window. As the energy is quadratic in P, the filtered map that its value needs
    is also its gradient: value and gradient come from one pass and no tensor of window size times image is ever held.

    Args:
        probabilities: (B, C, H, W[, D]), in [0, 1], summing to 1 over C.
        image: (B, channels, H, W[, D]); no gradient flows to it.
        radius: of the window, in voxels.
        sigma_position: in voxels.
        sigma_intensity: in units of the image.
        mask: (B, 1, H, W[, D]), the voxels p to sum over, weights in [0, 1] or bool; None: all.
        neighbour_mask: the same for the neighbours q.
        plain: by ordinary operations that autograd records, for double-checking and for what cannot trace a custom
            function; needs memory in proportion to the window.

    Returns:
        scalar, at least 0, in float32 (float64 for float64 input); 0, with a gradient path, when there is nothing to
        sum.

    Raises:
        ValueError: when shapes differ, radius is below 1, or a sigma is not positive.

    Example:
        >>> unsure = torch.full((1, 2, 1, 2), 0.5)
        >>> round(pairwise_window_energy(unsure, torch.zeros(1, 1, 1, 2), radius=1, sigma_position=1.0).item(), 4)
        0.3033
    """
    _check(probabilities, image, mask, neighbour_mask)
    if sigma_position <= 0 or sigma_intensity <= 0:
        raise ValueError(f"sigmas must be positive, got {sigma_position} and {sigma_intensity}.")
    dtype = torch.float64 if probabilities.dtype is torch.float64 else torch.float32
    with no_autocast(probabilities):
        probabilities = probabilities.to(dtype)
        features = image.detach().to(dtype) / sigma_intensity
        masks = [None if m is None else m.detach().to(dtype) for m in (mask, neighbour_mask)]
        count = probabilities[:, :1].numel() if masks[0] is None else masks[0].sum().clamp_min(1.0)
        if plain:
            total = _plain_energy(probabilities, features, masks, radius, sigma_position)
        else:
            total = _Energy.apply(probabilities, features, masks, radius, sigma_position)
        return total / count


class _Energy(torch.autograd.Function):
    """Sum of the energy; keeps its gradient, which has the size of the probabilities, for the backward pass."""

    @staticmethod
    def forward(
        ctx: Any,
        probabilities: torch.Tensor,
        features: torch.Tensor,
        masks: list[torch.Tensor | None],
        radius: int,
        sigma_position: float,
    ) -> torch.Tensor:
        gradient = torch.empty_like(probabilities)

        def energy(part: slice) -> torch.Tensor:
            own = [None if m is None else m[part] for m in masks]
            return _filter(probabilities[part], features[part], own, radius, sigma_position, gradient[part])

        total = probabilities.new_zeros((), dtype=torch.float64)
        for value in map_blocks(energy, image_parts(probabilities), probabilities.device):
            total += value
        ctx.save_for_backward(gradient)
        return total.to(probabilities.dtype)

    @staticmethod
    @once_differentiable
    @one_thread()
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return grad * gradient, None, None, None, None


def _filter(
    probabilities: torch.Tensor,
    features: torch.Tensor,
    masks: list[torch.Tensor | None],
    radius: int,
    sigma_position: float,
    gradient: torch.Tensor,
) -> torch.Tensor:
    """Energy of some images; writes its gradient.

    Filtering 1 - P rather than P keeps the energy exact near 0: it is a sum of what is positive, not a difference of
    two large sums. The channel of ones that is filtered along gives each voxel's sum of kernel values.
    """
    others = torch.cat([1 - probabilities, torch.ones_like(probabilities[:, :1])], dim=1)
    filtered = torch.zeros_like(others)
    for offset, first, second in window_pairs(probabilities.shape[2:], radius):
        kernel = _kernel(features, masks, offset, first, second, sigma_position)
        filtered[first].addcmul_(kernel, others[second])
        filtered[second].addcmul_(kernel, others[first])
    unlike, kernels = filtered[:, :-1], filtered[:, -1:]
    torch.sub(unlike, kernels, out=gradient)
    # P_p . (1 - P_q) is 1 - P_p . P_q only as far as P_p sums to 1: the second term is the rest
    rest = (1 - probabilities.sum(1, keepdim=True, dtype=torch.float64)) * kernels
    return 0.5 * ((probabilities * unlike).sum(dtype=torch.float64) + rest.sum())


def _plain_energy(
    probabilities: torch.Tensor,
    features: torch.Tensor,
    masks: list[torch.Tensor | None],
    radius: int,
    sigma_position: float,
) -> torch.Tensor:
    total = probabilities.sum() * 0.0
    for offset, first, second in window_pairs(probabilities.shape[2:], radius):
        kernel = _kernel(features, masks, offset, first, second, sigma_position)
        alike = (probabilities[first] * probabilities[second]).sum(1, keepdim=True)
        total = total + (kernel * (1 - alike)).sum()
    return total


def _kernel(
    features: torch.Tensor,
    masks: list[torch.Tensor | None],
    offset: tuple[int, ...],
    first: Index,
    second: Index,
    sigma_position: float,
) -> torch.Tensor:
    """s(p, q) of the pairs at one offset, times how often the masks count the pair (0 to 2): (B, 1, *S)."""
    distance = (features[first] - features[second]).square_().sum(1, keepdim=True)
    position = sum(step * step for step in offset) / sigma_position**2
    kernel = distance.add_(position).mul_(-0.5).exp_()
    mask, neighbour_mask = masks
    if mask is None and neighbour_mask is None:
        return kernel.mul_(2.0)
    if mask is None or neighbour_mask is None:
        only = mask if mask is not None else neighbour_mask
        assert only is not None
        return kernel.mul_(only[first] + only[second])
    return kernel.mul_(mask[first] * neighbour_mask[second] + mask[second] * neighbour_mask[first])


def _check(probabilities: torch.Tensor, image: torch.Tensor, *masks: torch.Tensor | None) -> None:
    expected = (len(probabilities), *probabilities.shape[2:])
    if (len(image), *image.shape[2:]) != expected:
        raise ValueError(f"image {tuple(image.shape)} does not match probabilities {tuple(probabilities.shape)}.")
    for mask in masks:
        if mask is not None and tuple(mask.shape) != (expected[0], 1, *expected[1:]):
            raise ValueError(f"a mask must have shape {(expected[0], 1, *expected[1:])}, got {tuple(mask.shape)}.")
