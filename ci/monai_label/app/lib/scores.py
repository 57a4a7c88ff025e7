"""How unsure a network is of an image, as one number in [0, 1]; torch alone. Letters: C classes, S spatial sizes."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import nn


def let_drop(network: nn.Module) -> bool:
    """Put a network in inference with its dropout at work.

    Returns:
        whether it has any that drops.
    """
    network.eval()
    layers = [module for module in network.modules() if isinstance(module, nn.modules.dropout._DropoutNd)]
    for layer in layers:
        layer.train()
    return any(layer.p > 0 for layer in layers)


@torch.no_grad()
def epistemic_entropy(answer: Callable[[], torch.Tensor], classes: int, passes: int, seed: int) -> float:
    """Mean over an image of the mutual information of a voxel's class and the dropout's mask, divided by log C.

    That is the entropy of the mean over the passes less the mean of the passes' entropies (Gal et al., ICML 2017):
    what more training could settle, without the noise of the image that none can.

    Args:
        answer: gives probabilities (n * C, *S), of n samples, with dropout masks drawn anew.
        classes: C, background included.
        passes: how often to ask; at least 2.
        seed: of the masks.

    Returns:
        in [0, 1].

    Raises:
        ValueError: when it is asked once, or an answer is not finite.

    Example:
        >>> answers = iter(torch.tensor([[[1.0], [0.0]], [[0.0], [1.0]]]))
        >>> round(epistemic_entropy(lambda: next(answers), classes=2, passes=2, seed=0), 3)
        1.0
    """
    if passes < 2:
        raise ValueError(f"passes must be at least 2, got {passes}.")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        drawn = [torch.as_tensor(answer()).float().unflatten(0, (-1, classes)).mean(0) for _ in range(passes)]
    within = sum(torch.special.entr(one).sum(0) for one in drawn) / passes
    between = torch.special.entr(sum(drawn) / passes).sum(0) - within
    return mean_of(between.clamp_min(0.0) / math.log(classes))


def mean_of(values: torch.Tensor) -> float:
    """Mean of a map over the whole image.

    Raises:
        ValueError: when the map is empty or not finite.
    """
    mean = float(torch.as_tensor(values).double().mean()) if values.numel() else math.nan
    if not math.isfinite(mean):
        raise ValueError("the map of the uncertainty is empty or not finite.")
    return mean
