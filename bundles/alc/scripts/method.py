"""Adaptive Label Correction: one training step, in the order of Algorithm 1 of arXiv 2503.12218."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from common.ops.likeliest import likeliest
from common.settings import switch
from common.training.losses import mean_segmentation_loss
from common.training.method import LossTerm, Method, MethodOutput, Progress
from common.training.schedules import gaussian_ramp_up
from common.training.teacher import Teacher

from .losses import consistency_loss, mean_probability, refine_labels, sample_uncertainty, select_most_certain


class AdaptiveLabelCorrection(Method):
    """Mean Teacher that corrects noisy labels and learns from the images it is sure of.

    Source: Qian et al., "Adaptive Label Correction for Robust Medical Image Segmentation with Noisy Labels", Eqs. 1-11.

    Args:
        network: the student; it ships.
        passes: m, perturbed teacher passes a step (Eq. 3); selection takes at least 2.
        selected_fraction: k as a share of the noisy images in the batch, in [0, 1]; a half image counts as one.
        alpha: weight of the loss on refined labels.
        beta: weight of the loss on noisy labels.
        consistency: weight of the consistency loss (1 in Eq. 11).
        ramp_scale: largest value of lambda(t); 0 leaves only the clean loss.
        ramp_length: share of the training over which lambda(t) rises, in (0, 1]; constant afterwards.
        ema_decay: decay of the teacher's moving average, in [0, 1).
        input_noise: standard deviation of the noise on the teacher's input, in units of the normalised image.
        refine: weigh the passes as in Eq. 6; otherwise one pass gives the pseudo-label.

    Raises:
        ValueError: when an argument is outside its range.
    """

    def __init__(
        self,
        network: nn.Module,
        passes: int = 4,
        selected_fraction: float = 0.5,
        alpha: float = 3.0,
        beta: float = 2.0,
        consistency: float = 1.0,
        ramp_scale: float = 1.0,
        ramp_length: float = 1.0,
        ema_decay: float = 0.99,
        input_noise: float = 0.1,
        refine: bool = True,
    ) -> None:
        super().__init__(network)
        if passes < 1:
            raise ValueError(f"passes must be at least 1, got {passes}.")
        if not 0.0 <= selected_fraction <= 1.0:
            raise ValueError(f"selected_fraction must be in [0, 1], got {selected_fraction}.")
        if passes == 1 and 0.0 < selected_fraction < 1.0 and alpha + beta > 0.0:
            raise ValueError(
                "passes is 1, and of a single pass nothing tells which images it is sure of. Give passes 2 or more, or "
                "selected_fraction 0 or 1."
            )
        if not 0.0 < ramp_length <= 1.0:
            raise ValueError(f"ramp_length must be in (0, 1], got {ramp_length}.")
        self.teacher = Teacher(network, ema_decay, input_noise)
        self.passes = passes
        self.selected_fraction = selected_fraction
        self.alpha = alpha
        self.beta = beta
        self.consistency = consistency
        self.ramp_scale = ramp_scale
        self.ramp_length = ramp_length
        self.refine = switch(refine, "refine")

    def forward(self, batch: dict[str, Any], progress: Progress) -> MethodOutput:
        """Loss terms of a batch.

        Args:
            batch: ``image`` (B, channels, *S), ``label`` (B, 1, *S) class numbers, ``clean`` (B,) bool.
            progress: where the training stands.

        Returns:
            terms ``clean`` (Eq. 1), ``refined`` (Eq. 8), ``noisy`` (Eq. 9) and ``consistency`` (Eq. 10).
        """
        image, label, clean = batch["image"], batch["label"], batch["clean"]
        logits = self.network(image)
        terms = {"clean": LossTerm(mean_segmentation_loss(logits, label, clean), 1.0)}  # Eq. 1
        monitors: dict[str, torch.Tensor] = {}
        weight = self.ramp_scale * gaussian_ramp_up(progress.fraction / self.ramp_length)
        if weight > 0.0:
            noisy = ~clean
            noisy_terms, monitors = self._learn_from_noisy(image[noisy], logits[noisy], label[noisy])
            weights = {"refined": self.alpha, "noisy": self.beta, "consistency": self.consistency}
            terms |= {name: LossTerm(value, weight * weights[name]) for name, value in noisy_terms.items()}  # Eq. 11
        return MethodOutput(terms=terms, prediction=logits, monitors=monitors)

    def _learn_from_noisy(
        self, image: torch.Tensor, logits: torch.Tensor, label: torch.Tensor
    ) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        """Lines 7 to 18 of Algorithm 1 for the images with noisy labels; (B, ...) each, B may be 0."""
        if len(image) == 0:
            nothing = logits.sum() * 0.0
            return {"refined": nothing, "noisy": nothing, "consistency": nothing}, {}
        passes = self.teacher.passes(image, self.passes)  # Eq. 3
        refined = refine_labels(passes) if self.refine else likeliest(passes[0], 1, keepdim=True)  # Eqs. 4-6
        uncertainty = sample_uncertainty(passes)  # Eq. 7
        selected = select_most_certain(uncertainty, int(self.selected_fraction * len(image) + 0.5))
        terms = {
            "refined": mean_segmentation_loss(logits, refined, selected),  # Eq. 8
            "noisy": mean_segmentation_loss(logits, label, ~selected),  # Eq. 9
            "consistency": consistency_loss(mean_probability(passes), logits.float().softmax(1)),  # Eq. 10
        }
        return terms, {"uncertainty": uncertainty.mean(), "changed_voxels": (refined != label).float().mean()}

    def after_step(self) -> None:
        """Moving average of the student's weights and batch-normalisation statistics."""
        self.teacher.update_parameters(self.network)
