"""AffinityUMamba: one training step of Zhang et al., MICCAI 2025."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from common.ops.affinity import local_affinity_loss
from common.settings import switch
from common.training.losses import segmentation_loss
from common.training.method import LossTerm, Method, MethodOutput, Progress

from .losses import AFFINITY_CENTRES, SURER_CNN, margin_loss, refine_labels, suspicious_voxels


class AffinityUMamba(Method):
    """Two decoders that find unreliable labels together and learn from the refined ones beside the given ones.

    Source: Zhang et al., "AffinityUMamba: Uncertainty-Aware Medical Image Segmentation via Probabilistic Weak
    Supervision Beyond Gold-Standard Annotations", MICCAI 2025, Eqs. 3-9.

    A network with a single output is trained with the same losses on it; ``margin=0, affinity=0, lalr=False`` is then
    plain Dice and cross entropy. A term of weight 0 is not computed.

    Args:
        network: what ships; ``network.branches(image)`` gives the logits of the CNN and of the Affinity-Mamba decoder,
            the latter is ``network(image)``. A network without that method has a single output.
        refined: weight of the supervision by refined labels (Eq. 9).
        margin: weight of the margin-based smoothing loss (Eq. 9).
        affinity: weight of the local affinity loss (Eq. 9).
        lalr: refine labels; otherwise there is no supervision by refined ones and the affinity loss takes the labels.
        warm_up: share of the training before labels are refined, in [0, 1]: an untrained network that finds background
            everywhere would take the structures out of the labels.
        affinity_centre: ``label`` or ``prediction``, see :func:`~.losses.affinity_of`.
        noise_rule: ``union`` or ``both`` of the decoders find a label noisy, see :func:`~.losses.suspicious_voxels`.
        require_support: see :func:`~.losses.suspicious_voxels`.
        surer_cnn: ``prediction``, ``label`` or ``background``, see :func:`~.losses.refine_labels`.
        printed_margin: Eq. 8 as printed, see :func:`~.losses.margin_loss`.

    Raises:
        ValueError: when an argument is outside its range, or ``lalr`` is asked of a network with a single output.
    """

    def __init__(
        self,
        network: nn.Module,
        refined: float = 0.1,
        margin: float = 0.1,
        affinity: float = 0.01,
        lalr: bool = True,
        warm_up: float = 0.1,
        affinity_centre: str = "label",
        noise_rule: str = "both",
        require_support: bool = True,
        surer_cnn: str = "prediction",
        printed_margin: bool = False,
    ) -> None:
        super().__init__(network)
        for name, weight in {"refined": refined, "margin": margin, "affinity": affinity}.items():
            if weight < 0.0:
                raise ValueError(f"{name} is a weight, at least 0, got {weight}.")
        if not 0.0 <= warm_up <= 1.0:
            raise ValueError(f"warm_up must be in [0, 1], got {warm_up}.")
        if affinity_centre not in AFFINITY_CENTRES:
            raise ValueError(f"affinity_centre must be one of {', '.join(AFFINITY_CENTRES)}, got {affinity_centre!r}.")
        if noise_rule not in ("union", "both"):
            raise ValueError(f"noise_rule must be union or both, got {noise_rule!r}.")
        if surer_cnn not in SURER_CNN:
            raise ValueError(f"surer_cnn must be one of {', '.join(SURER_CNN)}, got {surer_cnn!r}.")
        self.refined, self.margin, self.affinity = refined, margin, affinity
        self.lalr, self.warm_up = switch(lalr, "lalr"), warm_up
        self.affinity_centre = affinity_centre
        self.noise_rule, self.require_support = noise_rule, switch(require_support, "require_support")
        self.surer_cnn, self.printed_margin = surer_cnn, switch(printed_margin, "printed_margin")
        if self.lalr and not hasattr(network, "branches"):
            raise ValueError(
                f"lalr takes a network with two decoders, {type(network).__name__} has one: set it to false."
            )

    def forward(self, batch: dict[str, Any], progress: Progress) -> MethodOutput:
        """Loss terms of a batch.

        Args:
            batch: ``image`` (B, channels, *S), ``label`` (B, 1, *S) class numbers.
            progress: where the training stands.

        Returns:
            terms ``supervision_cnn`` and ``supervision_am``, of a single output ``supervision``; after the warm-up
            ``refined_cnn`` and ``refined_am``; ``margin`` (Eq. 8) and ``affinity`` (Eq. 7) of the Affinity-Mamba
            decoder. Monitor ``changed_voxels``, the share whose label was refined, and ``noisy_voxels``.
        """
        image, label = batch["image"], batch["label"]
        branches = getattr(self.network, "branches", None)
        outputs = {"": self.network(image)} if branches is None else branches(image)._asdict()
        am = list(outputs.values())[-1]
        terms = _supervision("supervision", outputs, label, 1.0)
        monitors: dict[str, torch.Tensor] = {}
        target = label
        if self.lalr and progress.fraction >= self.warm_up:
            target, monitors = self.refine(outputs["cnn"], am, label)
            if self.refined > 0.0:
                terms |= _supervision("refined", outputs, target, self.refined)
        if self.margin > 0.0:
            terms["margin"] = LossTerm(margin_loss(am, printed=self.printed_margin), self.margin)  # Eq. 8
        if self.affinity > 0.0:
            terms["affinity"] = LossTerm(
                local_affinity_loss(am.float().softmax(1), target.long()), self.affinity
            )  # Eq. 7
        return MethodOutput(terms=terms, prediction=am, monitors=monitors)

    @torch.no_grad()
    def refine(
        self, cnn: torch.Tensor, am: torch.Tensor, label: torch.Tensor
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Local affinity-guided label refinement (Eqs. 3-6) by logits (B, C, *S): refined (B, 1, *S), and monitors."""
        cnn, am = (logits.float().softmax(1) for logits in (cnn, am))
        rules = (self.noise_rule, self.require_support, self.affinity_centre)
        noisy = suspicious_voxels((cnn, am), label, *rules)  # Eqs. 3-5
        refined = refine_labels(label, noisy, cnn, am, self.surer_cnn)  # Eq. 6
        changed = (refined != label).float().mean()
        return refined, {"changed_voxels": changed, "noisy_voxels": noisy.float().mean()}


def _supervision(
    name: str, outputs: dict[str, torch.Tensor], target: torch.Tensor, weight: float
) -> dict[str, LossTerm]:
    """Dice and cross entropy of each decoder (Eq. 9); segmentation_loss is half of their sum."""
    return {
        f"{name}_{decoder}".strip("_"): LossTerm(segmentation_loss(logits, target).mean(), 2.0 * weight)
        for decoder, logits in outputs.items()
    }
