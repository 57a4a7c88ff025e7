"""Equations 3 to 6 and 8 of Zhang et al., AffinityUMamba, MICCAI 2025, as pure functions.

The sums over windows of Eqs. 3 to 5, 7 and 8 stand in ``common.ops``. Letters: B images, C classes, S spatial sizes
(two or three of them). All is computed in float32.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from common.ops.affinity import LocalAffinity, local_affinity, noisy_labels
from common.ops.likeliest import likeliest
from common.ops.spread import local_spread

#: labels of noisy voxels where the CNN is the surer decoder
SURER_CNN = ("prediction", "label", "background")
#: whose class a voxel's neighbours are held against in Eq. 4
AFFINITY_CENTRES = ("label", "prediction")


def entropy(probabilities: torch.Tensor) -> torch.Tensor:
    """Entropy E of each voxel's prediction (Eq. 6).

    Args:
        probabilities: (B, C, *S).

    Returns:
        (B, 1, *S), in nats, in [0, log C].

    Example:
        >>> entropy(torch.tensor([0.5, 0.5]).reshape(1, 2, 1, 1)).round(decimals=4).item()
        0.6930999755859375
    """
    return torch.special.entr(probabilities.float()).sum(1, keepdim=True)


def affinity_of(probabilities: torch.Tensor, label: torch.Tensor, centre: str) -> LocalAffinity:
    """Local affinity of one decoder's predictions with a label (Eqs. 3-5).

    The text of Eq. 4 and its indices do not agree on which of the two classes is the voxel's and which its
    neighbours'. With the voxel's ``label`` and the neighbours' predictions, a_pos is low where a voxel is unlike those
    that the decoder gives the class of its label: the label is wrong. With the voxel's ``prediction`` and the
    neighbours' labels, as the indices have it, a_pos is low where the prediction is the odd one.

    Args:
        probabilities: (B, C, *S).
        label: (B, 1, *S), class numbers.
        centre: ``label`` or ``prediction``.

    Raises:
        ValueError: for another centre.
    """
    if centre not in AFFINITY_CENTRES:
        raise ValueError(f"affinity_centre must be one of {', '.join(AFFINITY_CENTRES)}, got {centre!r}.")
    predicted = likeliest(probabilities, 1, keepdim=True)
    classes = (label.long(), predicted) if centre == "label" else (predicted, label.long())
    return local_affinity(probabilities.float(), *classes)


@torch.no_grad()
def suspicious_voxels(
    decoders: Sequence[torch.Tensor],
    label: torch.Tensor,
    rule: str,
    require_support: bool,
    centre: str,
) -> torch.Tensor:
    """y_noise: voxels that are unlike neighbours of their class and like the others (Eqs. 3-5).

    Cosines are of probabilities: they lie in [0, 1], of which 1/2 is the middle, and do not change when a constant is
    added to the logits.

    Args:
        decoders: probabilities of each decoder, (B, C, *S).
        label: (B, 1, *S), class numbers.
        rule: ``union``, as printed: one decoder suffices; ``both``, as the text says.
        require_support: a decoder suspects only voxels that have a neighbour of their class.
        centre: whose class that is, see :func:`affinity_of`.

    Returns:
        (B, 1, *S), bool, without gradient.

    Raises:
        ValueError: for another rule or centre, or shapes that differ.
    """
    return noisy_labels([affinity_of(maps, label, centre) for maps in decoders], rule, require_support)


@torch.no_grad()
def local_suspicion(decoders: Sequence[torch.Tensor], label: torch.Tensor, centre: str) -> torch.Tensor:
    """How much local affinity speaks against a label: Eq. 5 without its thresholds.

    The larger over the decoders of min(1 - a_pos, a_neg): above 1/2 exactly where :func:`suspicious_voxels` finds the
    union of noisy labels.

    Args:
        decoders: probabilities of each decoder, (B, C, *S).
        label: (B, 1, *S), class numbers.
        centre: see :func:`affinity_of`.

    Returns:
        (B, 1, *S), in [0, 1], without gradient.
    """
    found = [affinity_of(maps, label, centre) for maps in decoders]
    return torch.stack([torch.minimum(1.0 - a.positive, a.negative) for a in found]).amax(0).clamp(0.0, 1.0)


@torch.no_grad()
def refine_labels(
    label: torch.Tensor, noisy: torch.Tensor, cnn: torch.Tensor, am: torch.Tensor, surer_cnn: str = "prediction"
) -> torch.Tensor:
    """Refined labels: noisy voxels take the class of the decoder with the lower entropy (Eq. 6).

    As printed, a noisy voxel of which the CNN is the surer becomes 0, background.

    Args:
        label: (B, 1, *S), class numbers.
        noisy: (B, 1, *S), bool, see :func:`suspicious_voxels`.
        cnn: probabilities of the CNN decoder, (B, C, *S).
        am: probabilities of the Affinity-Mamba decoder, (B, C, *S).
        surer_cnn: what a noisy voxel becomes where the CNN is not the less sure one: its ``prediction``, the ``label``
            as it was, or ``background``, the printed form.

    Returns:
        (B, 1, *S), class numbers, int64, without gradient.

    Raises:
        ValueError: for another ``surer_cnn``.

    Example:
        >>> cnn = torch.tensor([[0.4, 0.1], [0.6, 0.9]]).reshape(1, 2, 1, 2)
        >>> am = torch.tensor([[0.9, 0.4], [0.1, 0.6]]).reshape(1, 2, 1, 2)
        >>> label = torch.tensor([[[[1, 0]]]])
        >>> refine_labels(label, torch.ones_like(label, dtype=torch.bool), cnn, am).tolist()
        [[[[0, 1]]]]
    """
    label = label.long()
    others = {
        "prediction": lambda: likeliest(cnn, 1, keepdim=True),
        "label": lambda: label,
        "background": lambda: torch.zeros_like(label),
    }
    if surer_cnn not in others:
        raise ValueError(f"surer_cnn must be one of {', '.join(SURER_CNN)}, got {surer_cnn!r}.")
    corrected = torch.where(entropy(cnn) > entropy(am), likeliest(am, 1, keepdim=True), others[surer_cnn]())
    return torch.where(noisy, corrected, label)


def margin_loss(logits: torch.Tensor, margin: float = 8.0, printed: bool = False) -> torch.Tensor:
    """Mean over voxels and classes of by how much a logit lies further below the largest than is allowed (Eq. 8).

    Allowed is ``margin`` (1 - v) with v the local spread of the logits, scaled to [0, 1] in each image: as plain margin
    smoothing (Murugesan et al., Medical Image Analysis 2023) inside of regions, nothing where the prediction varies
    most, which lowers the confidence at borders. Printed is ``margin`` v, which allows the most there. No gradient
    flows through v: raising the spread would lower the loss.

    Args:
        logits: (B, C, *S).
        margin: difference of logits that is allowed at most, 8 in the paper.
        printed: the margin as printed.

    Returns:
        scalar, at least 0, in float32.

    Example:
        >>> margin_loss(torch.tensor([0.0, 10.0]).reshape(1, 2, 1, 1)).item()  # one of two logits is 2 too low
        1.0
    """
    logits = logits.float()
    spread = local_spread(logits.detach()).flatten(2)
    spread = spread - spread.amin(2, keepdim=True)
    scaled = spread / spread.amax(2, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
    allowed = margin * (scaled if printed else 1.0 - scaled)
    below = logits.amax(1, keepdim=True) - logits
    return (below - allowed.reshape(len(logits), 1, *logits.shape[2:])).relu().mean()
