"""Sliding windows and slices that average probabilities, as the literature does, and not logits.

The mean of logits is a geometric mean of the windows' probabilities: one window that is sure outvotes several that are
not, and the result is surer than they are together.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from monai.inferers import SliceInferer, SlidingWindowInferer

Network = Callable[..., torch.Tensor]


def window_probabilities(logits: torch.Tensor, num_classes: int | None = None) -> torch.Tensor:
    """softmax(logits) of one batch of windows, in float32.

    Args:
        logits: (B, C, ...); channels beyond the classes are maps of their own and stay as they are.
        num_classes: background included; None: all channels.

    Returns:
        (B, C, ...), sum 1 over the classes.

    Example:
        >>> window_probabilities(torch.tensor([[0.0, 0.0, 7.0]]), num_classes=2).tolist()
        [[0.5, 0.5, 7.0]]
    """
    classes = logits[:, :num_classes].float().softmax(1)
    return classes if num_classes is None else torch.cat([classes, logits[:, num_classes:].float()], dim=1)


class ProbabilityWindowInferer(SlidingWindowInferer):
    """MONAI's SlidingWindowInferer with the softmax inside each window: it returns probabilities.

    Args:
        roi_size: window, voxels along each axis.
        sw_batch_size: windows a batch.
        overlap: share by which windows overlap, of all axes or of each.
        mode: ``constant``, the plain mean, or ``gaussian``, weights that fall towards a window's border.
        num_classes: see :func:`window_probabilities`.
        options: others of SlidingWindowInferer.
    """

    def __init__(
        self,
        roi_size: Sequence[int],
        sw_batch_size: int = 1,
        overlap: Sequence[float] | float = 0.25,
        mode: str = "constant",
        num_classes: int | None = None,
        **options: Any,
    ) -> None:
        super().__init__(roi_size, sw_batch_size, overlap, mode, **options)
        self.num_classes = num_classes

    def __call__(self, inputs: torch.Tensor, network: Network, *args: Any, **kwargs: Any) -> Any:
        """Probabilities (B, C, ...) of ``inputs`` (B, channels, ...): the mean over the windows that cover a voxel."""
        return super().__call__(inputs, _softened(self, network), *args, **kwargs)


class ProbabilitySliceInferer(SliceInferer):
    """MONAI's SliceInferer, a 2D network on the slices of a volume, that returns probabilities.

    Args:
        roi_size: window of a slice, pixels along each axis.
        spatial_dim: axis across which the slices lie, 0 to 2.
        sw_batch_size: windows a batch.
        overlap: share by which a slice's windows overlap.
        num_classes: see :func:`window_probabilities`.
        options: others of SliceInferer.
    """

    def __init__(
        self,
        roi_size: Sequence[int],
        spatial_dim: int = 0,
        sw_batch_size: int = 1,
        overlap: Sequence[float] | float = 0.25,
        num_classes: int | None = None,
        **options: Any,
    ) -> None:
        super().__init__(spatial_dim, roi_size, sw_batch_size, overlap, **options)
        self.num_classes = num_classes

    def __call__(self, inputs: torch.Tensor, network: Network, *args: Any, **kwargs: Any) -> Any:
        """Probabilities (B, C, H, W, D) of a volume (B, channels, H, W, D), slice by slice."""
        return super().__call__(inputs, _softened(self, network), *args, **kwargs)


def _softened(inferer: ProbabilityWindowInferer | ProbabilitySliceInferer, network: Network) -> Network:
    def probabilities(window: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        return window_probabilities(network(window, *args, **kwargs), inferer.num_classes)

    return probabilities
