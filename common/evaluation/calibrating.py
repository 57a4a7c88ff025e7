"""Fitting the temperature of a trained network's probabilities, on the validation cases.

The voxels are those over which calibration is measured, foreground in the reference or in the prediction: background
far from any structure outnumbers them a hundred to one, is right at whatever temperature, and would choose it alone.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.data import DataLoader, Dataset
from monai.engines import SupervisedEvaluator
from monai.transforms import Compose

from ..data.loading.temperature import LEAST_PROBABILITY, Temperatures, Weights
from ..data.loading.transforms import SaveNiftid
from ..errors import ExpectedError
from ..files import CALIBRATION_FILE, file_digest
from ..ops.likeliest import likeliest
from .calibration import foreground_voxels
from .ensemble import Ensemble
from .evaluators import CaseEvaluator

HOTTEST = 20.0  # temperatures lie between this and its reciprocal
LEAST_VOXELS = 100  # of a class; one predicted in fewer takes the temperature of all
MOST_VOXELS = 2**17  # of a case that are kept


def likelihoods(logarithms: torch.Tensor, labels: torch.Tensor, temperature: torch.Tensor) -> torch.Tensor:
    """Negative log-likelihood of each voxel's label under p^(1/T), renormalised.

    Args:
        logarithms: (N, C) of probabilities.
        labels: (N,), class numbers.
        temperature: a number, or (N, 1).

    Returns:
        (N,), in nats.
    """
    scaled = logarithms / temperature
    return scaled.logsumexp(1) - scaled.gather(1, labels[:, None])[:, 0]


def fit_temperature(logarithms: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor) -> float:
    """The temperature of the least mean negative log-likelihood, by L-BFGS in float64.

    As a function of 1/T the likelihood is convex, so there is one such temperature. Where every voxel is right there
    is none, as colder is always better; the result lies in [1/20, 20].

    Args:
        logarithms: (N, C) of probabilities.
        labels: (N,), class numbers.
        weights: (N,), how many voxels each stands for.

    Example:
        >>> half = torch.tensor([[0.9, 0.1], [0.9, 0.1]]).log()
        >>> fit_temperature(half, torch.tensor([0, 0]), torch.tensor([3.0, 0.0])) < 0.1
        True
        >>> round(fit_temperature(half, torch.tensor([0, 1]), torch.tensor([3.0, 1.0])), 3)  # 0.9 becomes 0.75
        2.0
    """
    logarithms, shares = logarithms.double(), (weights / weights.sum()).double()
    place = torch.zeros((), dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS(
        [place], max_iter=200, tolerance_grad=1e-10, tolerance_change=1e-14, line_search_fn="strong_wolfe"
    )

    def temperature() -> torch.Tensor:
        return (math.log(HOTTEST) * place.tanh()).exp()

    def closure() -> torch.Tensor:
        optimiser.zero_grad()
        loss = shares @ likelihoods(logarithms, labels, temperature())
        loss.backward()
        return loss

    optimiser.step(closure)
    return float(temperature().detach())


class Calibrator:
    """Fits the temperature of one file of weights, and writes it beside them, as ``calibration.json``.

    The network answers as in an evaluation: averaged over windows, in the space of the labels. Cases with very many
    voxels give a random sample of 131,072 that stands for all of its own.

    Args:
        evaluator: of the same network; nothing of what it would write is written.
        data: records of the validation cases.
        weights: the network's file of weights.
        per_class: fit one temperature for each structure too. Voxels that are predicted to be background keep the
            temperature of all: of them only those are seen whose reference is a structure, all of them wrong.

    Raises:
        ExpectedError: for the weights of an ensemble, or mirrored answers.
    """

    def __init__(
        self,
        evaluator: CaseEvaluator,
        data: Sequence[Mapping[str, Any]],
        weights: Weights,
        per_class: bool = False,
    ) -> None:
        files = [weights] if isinstance(weights, (str, os.PathLike)) else list(weights)
        if len(files) != 1:
            raise ExpectedError(
                f"weights: a temperature is of one network, and these are {len(files)}. Fix: give calibrating one file."
            )
        if isinstance(evaluator.network, Ensemble):
            raise ExpectedError(
                "mirror_axes: a temperature is of single answers, and the mean of mirrored ones is less sure. "
                "Fix: leave mirror_axes out when calibrating."
            )
        self.evaluator, self.data, self.weights, self.per_class = evaluator, list(data), Path(files[0]), per_class
        self._random = np.random.default_rng(0)

    def run(self) -> Temperatures:
        """Fit, write and tell.

        Raises:
            ValueError: when no case has a voxel of foreground, labelled or predicted.
        """
        logarithms, labels, counts = self._voxels()
        single = fit_temperature(logarithms, labels, counts)
        temperatures = torch.full((logarithms.shape[1],), single, dtype=torch.float64)
        predicted = likeliest(logarithms, 1)
        for number in range(1, len(temperatures)) if self.per_class else ():
            own = predicted == number
            if own.sum() >= LEAST_VOXELS:
                temperatures[number] = fit_temperature(logarithms[own], labels[own], counts[own])
        shares = (counts / counts.sum()).double()
        before, after = (
            float(shares @ likelihoods(logarithms.double(), labels, each))
            for each in (torch.ones(()), temperatures[predicted, None])
        )
        found = Temperatures(
            temperature=single,
            per_class=tuple(temperatures.tolist()) if self.per_class else None,
            nll_before=before,
            nll_after=after,
            cases=len(self.data),
            voxels=int(counts.sum()),
            weights=file_digest(self.weights),
        )
        path = self.weights.parent / CALIBRATION_FILE
        found.write(path)
        shown = ", ".join(f"{value:.3f}" for value in found.applied)
        print(
            f"Temperature {shown}: NLL {before:.4f} -> {after:.4f} nats over {found.voxels} foreground voxels of "
            f"{found.cases} validation cases. Written to {path}"
        )
        return found

    def _voxels(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Logarithms (N, C), labels (N,) and how many voxels each stands for (N,)."""
        found: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []
        given, evaluator = self.evaluator.data_loader.dataset, self.evaluator
        steps = [step for step in evaluator.postprocessing.transforms if not isinstance(step, SaveNiftid)]

        def keep(engine: Engine) -> None:
            for batch, output in zip(engine.state.batch, engine.state.output, strict=True):
                label = output["label"] if "label" in output else batch["label"]
                own = output.get("uncalibrated", output["probabilities"])
                found.append(self._sampled(own.cpu().numpy(), output["pred"][0].cpu().numpy(), label[0].cpu().numpy()))

        engine = SupervisedEvaluator(
            device=evaluator.state.device,
            val_data_loader=DataLoader(Dataset(self.data, given.transform), batch_size=1),
            network=evaluator.network,
            inferer=evaluator.inferer,
            postprocessing=Compose(steps),
            amp=evaluator.amp,
            amp_kwargs=evaluator.amp_kwargs,
        )
        engine.add_event_handler(Events.ITERATION_COMPLETED, keep)
        engine.run()
        logarithms, labels, counts = (torch.cat(parts) for parts in zip(*found, strict=True))
        if not len(labels):
            raise ValueError("No case has a voxel of foreground, labelled or predicted. Fix: give labelled cases.")
        return logarithms, labels, counts

    def _sampled(
        self, probabilities: np.ndarray, prediction: np.ndarray, reference: np.ndarray
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        values, labels = foreground_voxels(probabilities, prediction, reference)
        number = len(labels)
        if number > MOST_VOXELS:
            kept = self._random.choice(number, MOST_VOXELS, replace=False)
            values, labels = values[:, kept], labels[kept]
        logarithms = torch.from_numpy(values.T.copy()).clamp_min(LEAST_PROBABILITY).log()
        each = torch.full((len(labels),), number / max(1, len(labels)))
        return logarithms, torch.from_numpy(labels.astype(np.int64)), each
