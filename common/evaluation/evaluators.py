"""Evaluators that wire themselves: validation in training, and cases measured in the space of their labels."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from monai.engines import SupervisedEvaluator
from monai.handlers import IgniteMetricHandler, StatsHandler, from_engine
from monai.metrics import DiceMetric
from monai.transforms import AsDiscreted, Compose, Invertd

from ..data.loading.components import LargestComponentd
from ..data.loading.temperature import Weights
from ..data.loading.transforms import SaveNiftid, SegmentationAndUncertaintyd
from ..training.precision import evaluation_amp
from .handlers import CaseMetrics, CaseProgress
from .volumes import CaseVolumes


class Validator(SupervisedEvaluator):
    """Mean Dice of the structures, the key metric ``mean_dice``, while a network trains.

    A structure that is found where there is none counts as 0.

    Args:
        device: where to run.
        val_data_loader: batches of one case, with ``image`` and ``label``.
        network: the one that is trained.
        inferer: a MONAI inferer.
        num_classes: background included.
        postprocessing: from ``pred`` (C, ...) and ``label`` (1, ...) to one-hot maps; default: argmax and one-hot.
        val_handlers: handlers beside those that this class attaches.
        precision: of the network on CUDA, see :func:`~common.training.precision.evaluation_amp`.
    """

    def __init__(
        self,
        device: torch.device,
        val_data_loader: Any,
        network: torch.nn.Module,
        inferer: Any,
        num_classes: int,
        postprocessing: Any = None,
        val_handlers: Sequence[Any] = (),
        precision: str = "auto",
    ) -> None:
        if postprocessing is None:
            postprocessing = AsDiscreted(("pred", "label"), argmax=(True, False), to_onehot=num_classes)
        dice = IgniteMetricHandler(
            metric_fn=DiceMetric(include_background=False, ignore_empty=False),
            output_transform=from_engine(["pred", "label"]),
        )
        super().__init__(
            device=device,
            val_data_loader=val_data_loader,
            network=network,
            inferer=inferer,
            postprocessing=postprocessing,
            key_val_metric={"mean_dice": dice},
            val_handlers=[StatsHandler(iteration_log=False, output_transform=lambda output: None), *val_handlers],
            **evaluation_amp(precision, device),
        )


class CaseEvaluator(SupervisedEvaluator):
    """Segment cases one by one in their own space, write the maps and, where the structures are given, measure them.

    Args:
        device: where to run.
        val_data_loader: batches of one case.
        network: trained.
        inferer: gives probabilities, see :mod:`~common.evaluation.inferers`.
        output_dir: folder to write to.
        structures: names by label value; given, each case's ``label`` is compared, see
            :class:`~common.evaluation.handlers.CaseMetrics` and :class:`~common.evaluation.volumes.CaseVolumes`.
        postprocessing: from the network's answer to files; default: :func:`case_postprocessing` of the loader's own
            transforms.
        weights: the network's file of weights, whose calibration is applied by the default postprocessing; None: none.
        largest_component: let the default postprocessing keep of each structure its largest component alone.
        seed: of the bootstrap.
        val_handlers: handlers beside those that this class attaches.
        precision: of the network on CUDA, see :func:`~common.training.precision.evaluation_amp`.
    """

    def __init__(
        self,
        device: torch.device,
        val_data_loader: Any,
        network: torch.nn.Module,
        inferer: Any,
        output_dir: str | os.PathLike[str],
        structures: Mapping[int, str] | None = None,
        postprocessing: Any = None,
        weights: Weights | None = None,
        largest_component: bool = False,
        seed: int = 0,
        val_handlers: Sequence[Any] = (),
        precision: str = "auto",
    ) -> None:
        if postprocessing is None:
            transforms = val_data_loader.dataset.transform
            postprocessing = case_postprocessing(transforms, output_dir, weights, largest_component)
        self.postprocessing = postprocessing
        handlers: list[Any] = [CaseProgress(output_dir)]
        if structures is not None:
            handlers.append(CaseMetrics(output_dir, dict(structures), seed=seed))
            handlers.append(CaseVolumes(output_dir, structures))
        super().__init__(
            device=device,
            val_data_loader=val_data_loader,
            network=network.to(device),
            inferer=inferer,
            postprocessing=postprocessing,
            val_handlers=[*handlers, *val_handlers],
            **evaluation_amp(precision, device),
        )


def case_postprocessing(
    preprocessing: Compose,
    output_dir: str | os.PathLike[str],
    weights: Weights | None = None,
    largest_component: bool = False,
) -> Compose:
    """Probabilities brought to the label's space, their argmax and entropy, and files of all that a report shows.

    Args:
        preprocessing: the transforms of ``image`` to invert; it leaves ``label`` in its own space and an untouched copy
            of the image, ``shown``.
        output_dir: folder to write to.
        weights: see :class:`~common.data.loading.transforms.SegmentationAndUncertaintyd`.
        largest_component: keep of each structure its largest component alone.
    """
    folder = str(output_dir)
    return Compose(
        [
            Invertd("pred", transform=preprocessing, orig_keys="image", nearest_interp=False),
            SegmentationAndUncertaintyd("pred", weights),
            LargestComponentd("pred", largest_component),
            SaveNiftid("shown", folder, "image"),
            SaveNiftid("uncertainty", folder, "uncertainty"),
            SaveNiftid("label", folder, "label", dtype="uint8", like="shown"),
            SaveNiftid("pred", folder, "pred", dtype="uint8"),
        ]
    )
