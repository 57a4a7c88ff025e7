"""MultiCURE: one training step of Karimijafarbigloo et al., MIDL 2024; and of Mean Teacher, a baseline."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional

from common.ops.likeliest import likeliest
from common.settings import switch
from common.training.losses import mean_segmentation_loss
from common.training.method import LossTerm, Method, MethodOutput, Progress
from common.training.schedules import gaussian_ramp_up
from common.training.teacher import Teacher

from .losses import (
    contrastive_loss,
    contrastive_weight,
    prototypes,
    pseudo_label_loss,
    sample_voxels,
    separation_loss,
    xor_regularisation,
)
from .network import Branches, DeepFeatures, MultiCURENet, mean_log_probability

SCHEDULES = ("rise", "decay")
REGULARISED = ("auxiliary", "both")


class MultiCURE(Method):
    """Two networks on few labels: one gives pseudo-labels, the other learns from them and contrasts its features.

    Source: Karimijafarbigloo et al., "Reducing Uncertainty in 3D Medical Image Segmentation under Limited Annotations
    through Contrastive Learning", MIDL 2024, Eqs. 1-5.

    The rows of Table 3: ``contrastive=0`` leaves out the deep contrastive learning, ``multicure=False`` of the network
    its module. ``unlabelled=0, contrastive=0`` is supervised learning of both networks. ``mutual=True, contrastive=0,
    regularisation=0`` on a network without the module is cross pseudo supervision (Chen et al., CVPR 2021), in which a
    ``threshold`` of 0 lets every voxel count.

    The paper gives each network an SGD of its own. With equal settings, and as no step of one optimiser comes between
    the other's gradients, one SGD over ``method.parameters()`` (both networks and the projection of the features) does
    the same; only a gradient norm to clip to would see both at once.

    Args:
        network: it ships; its ``threshold`` tells confident from uncertain voxels here too.
        unlabelled: lambda_u, weight of the losses on unlabelled images (Eq. 3).
        ramp_length: share of the training over which lambda_u rises to that (Laine and Aila, ICLR 2017), in [0, 1]; 0:
            constant, as in the paper.
        regularisation: lambda_reg, weight of the XOR regularisation among them (Eq. 2).
        regularise: which network that teaches: ``auxiliary``, the predictive one's side is a pseudo-label, or ``both``,
            by which alone the predictive network learns from unlabelled images. The paper does not say.
        contrastive: lambda_c at the end of the training (Eq. 3); 0: no contrastive learning.
        schedule: rise or decay, of lambda_c, see :func:`~.losses.contrastive_weight`.
        separation: weight of the prototypes' separation beside Eq. 5.
        temperature: tau (Eq. 5), above 0.
        printed_denominator: Eq. 5 as printed, see :func:`~.losses.contrastive_loss`.
        max_voxels: uncertain voxels to draw for Eq. 5, at most.
        feature_channels: length of a voxel's feature vector.
        mutual: the predictive network learns from the auxiliary one's pseudo-labels too.

    Raises:
        ValueError: when an argument is outside its range.
    """

    network: MultiCURENet

    def __init__(
        self,
        network: MultiCURENet,
        unlabelled: float = 1.0,
        ramp_length: float = 0.0,
        regularisation: float = 1.0,
        contrastive: float = 0.1,
        schedule: str = "rise",
        separation: float = 1.0,
        temperature: float = 0.1,
        printed_denominator: bool = False,
        max_voxels: int = 4096,
        feature_channels: int = 16,
        mutual: bool = False,
        regularise: str = "auxiliary",
    ) -> None:
        super().__init__(network)
        if regularise not in REGULARISED:
            raise ValueError(f"regularise must be one of {', '.join(REGULARISED)}, got {regularise!r}.")
        if schedule not in SCHEDULES:
            raise ValueError(f"schedule must be one of {', '.join(SCHEDULES)}, got {schedule!r}.")
        if not 0.0 <= ramp_length <= 1.0:
            raise ValueError(f"ramp_length must be in [0, 1], got {ramp_length}.")
        if temperature <= 0.0:
            raise ValueError(f"temperature must be above 0, got {temperature}.")
        for name, value in {"max_voxels": max_voxels, "feature_channels": feature_channels}.items():
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}.")
        weights = {"unlabelled": unlabelled, "regularisation": regularisation, "contrastive": contrastive}
        for name, weight in {**weights, "separation": separation}.items():
            if weight < 0.0:
                raise ValueError(f"{name} is a weight, at least 0, got {weight}.")
        self.unlabelled = unlabelled
        self.ramp_length = ramp_length
        self.regularisation = regularisation
        self.contrastive = contrastive
        self.schedule = schedule
        self.separation = separation
        self.temperature = temperature
        self.printed_denominator = switch(printed_denominator, "printed_denominator")
        self.max_voxels = max_voxels
        self.mutual = switch(mutual, "mutual")
        self.regularise = regularise
        if contrastive > 0.0:  # else its weights would wait in vain for a gradient
            widths = tuple(network.base_filters * 2**level for level in range(3))
            self.deep_features = DeepFeatures(network.spatial_dims, widths, feature_channels)

    def forward(self, batch: dict[str, Any], progress: Progress) -> MethodOutput:
        """Loss terms of a batch.

        Args:
            batch: ``image`` (B, channels, *S), ``label`` (B, 1, *S) class numbers, anything where there is no label,
                ``labelled`` (B,) bool.
            progress: where the training stands.

        Returns:
            terms ``predictive`` and ``auxiliary`` (Eq. 1), ``pseudo_label``, ``pseudo_label_mutual`` and
            ``regularisation`` (Eq. 2), ``contrastive`` (Eq. 5) and ``separation``.
        """
        label, labelled = batch["label"], batch["labelled"]
        outputs = self.network.branches(batch["image"])
        # segmentation_loss halves the sum of Eq. 1
        terms = {
            "predictive": LossTerm(mean_segmentation_loss(outputs.predictive, label, labelled), 2.0),
            "auxiliary": LossTerm(mean_segmentation_loss(outputs.auxiliary, label, labelled), 2.0),
        }
        if self.unlabelled > 0.0:
            weight = self.unlabelled
            if self.ramp_length > 0.0:
                weight *= gaussian_ramp_up(progress.fraction / self.ramp_length)
            terms |= self._learn_from_pseudo_labels(outputs.predictive[~labelled], outputs.auxiliary[~labelled], weight)
        if self.contrastive > 0.0:
            weight = contrastive_weight(progress.fraction, self.contrastive, self.schedule == "rise")
            contrast, separation = self._contrast(outputs, ~labelled)
            terms["contrastive"] = LossTerm(contrast, weight)
            terms["separation"] = LossTerm(separation, weight * self.separation)
        return MethodOutput(
            terms=terms,
            prediction=mean_log_probability(outputs.predictive.detach(), outputs.auxiliary.detach()),
            monitors=self._monitors(outputs),
        )

    def _learn_from_pseudo_labels(
        self, predictive: torch.Tensor, auxiliary: torch.Tensor, weight: float
    ) -> dict[str, LossTerm]:
        """Eq. 2 for the logits (B, C, *S) of unlabelled images, B may be 0; ``weight`` is lambda_u."""
        pseudo_label, confident = self._confident(predictive)
        terms = {"pseudo_label": LossTerm(pseudo_label_loss(auxiliary, pseudo_label, confident), weight)}
        if self.mutual:
            terms["pseudo_label_mutual"] = LossTerm(pseudo_label_loss(predictive, *self._confident(auxiliary)), weight)
        if self.regularisation > 0.0:
            # by default the predictive network's side is a pseudo-label: the weaker network could pull the other down
            certain = predictive if self.regularise == "both" else predictive.detach()
            distance = xor_regularisation(certain.float().softmax(1), auxiliary.float().softmax(1), confident)
            terms["regularisation"] = LossTerm(distance, weight * self.regularisation)
        return terms

    def _contrast(self, outputs: Branches, unlabelled: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Eqs. 4 and 5 and the prototypes' separation.

        Every image's confident voxels make the prototypes; the uncertain voxels are those of unlabelled images. The
        predictive network says which they are and of what class; the features are the auxiliary one's, so this teaches
        the auxiliary network alone.
        """
        features = self.deep_features(outputs.features).flatten(2)
        probability, predicted = outputs.predictive.detach().float().softmax(1).flatten(2).max(1, keepdim=True)
        classes, threshold = outputs.predictive.shape[1], self.network.threshold
        centres, present = prototypes(features, predicted, probability > threshold, classes)  # Eq. 4
        places = sample_voxels((probability < threshold) & unlabelled.reshape(-1, 1, 1), self.max_voxels)
        image, voxel = places // features.shape[2], places % features.shape[2]
        contrast = contrastive_loss(
            features[image, :, voxel],
            predicted.flatten()[places],
            centres,
            present,
            self.temperature,
            self.printed_denominator,
        )
        return contrast, separation_loss(centres, present)

    def _confident(self, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Pseudo-label and whether it is confident, (B, 1, *S) both; no gradient."""
        probability, pseudo_label = logits.detach().float().softmax(1).max(1, keepdim=True)
        return pseudo_label, probability > self.network.threshold

    def _monitors(self, outputs: Branches) -> dict[str, torch.Tensor]:
        """Shares of all voxels: where the predictive network is not confident, where the two networks differ."""
        predicted, confident = self._confident(outputs.predictive)
        differ = predicted != likeliest(outputs.auxiliary, 1, keepdim=True)
        return {"uncertain": 1.0 - confident.float().mean(), "disagreement": differ.float().mean()}


class MeanTeacher(Method):
    """Baseline: one network, its labels and consistency with the moving average of itself.

    Source: Tarvainen and Valpola, Mean teachers are better role models, NeurIPS 2017.

    Args:
        network: the student; it ships.
        consistency: weight of the consistency at the end of its ramp-up (Laine and Aila, ICLR 2017), at least 0.
        ema_decay: decay of the teacher's moving average, in [0, 1).
        input_noise: standard deviation of the noise on the teacher's input, in units of the normalised image.

    Raises:
        ValueError: when an argument is outside its range.
    """

    def __init__(
        self, network: nn.Module, consistency: float = 1.0, ema_decay: float = 0.99, input_noise: float = 0.1
    ) -> None:
        super().__init__(network)
        if consistency < 0.0:
            raise ValueError(f"consistency is a weight, at least 0, got {consistency}.")
        self.consistency = consistency
        self.teacher = Teacher(network, ema_decay, input_noise)

    def forward(self, batch: dict[str, Any], progress: Progress) -> MethodOutput:
        """Loss terms of a batch.

        Args:
            batch: as of :class:`MultiCURE`.
            progress: where the training stands.

        Returns:
            terms ``supervised`` (Eq. 1 for one network) and ``consistency``, the mean squared difference of the two
            probabilities on unlabelled images, 0 without any.
        """
        image, labelled = batch["image"], batch["labelled"]
        logits = self.network(image)
        student = logits[~labelled].float().softmax(1)
        distance = student.sum() * 0.0
        if len(student) > 0:
            distance = functional.mse_loss(student, self.teacher.passes(image[~labelled])[0])
        weight = self.consistency * gaussian_ramp_up(progress.fraction)
        terms = {
            "supervised": LossTerm(mean_segmentation_loss(logits, batch["label"], labelled), 2.0),
            "consistency": LossTerm(distance, weight),
        }
        return MethodOutput(terms=terms, prediction=logits)

    def after_step(self) -> None:
        """Moving average of the student."""
        self.teacher.update_parameters(self.network)
