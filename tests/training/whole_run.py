"""A whole run on the tiny trainer: validator, scheduler, history, checkpoint."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from ignite.engine import Engine, Events
from ignite.metrics import Metric
from monai.engines import SupervisedEvaluator
from monai.handlers import LrScheduleHandler, ValidationHandler
from torch.optim.lr_scheduler import StepLR

from common.training.handlers import RunCheckpoint
from common.training.history import TrainingHistory
from common.training.trainer import MethodTrainer
from tests.tiny import TinyMethod, tiny_trainer


class Score(Metric):
    """A metric that is what the function says."""

    def __init__(self, value: Callable[[], float]) -> None:
        self.value = value
        super().__init__(output_transform=lambda output: None)

    def reset(self) -> None:
        pass

    def update(self, output: Any) -> None:
        pass

    def compute(self) -> float:
        return self.value()


def tiny_validator(network: torch.nn.Module, value: Callable[[], float]) -> SupervisedEvaluator:
    image = torch.zeros(1, 1, 8, 8)
    return SupervisedEvaluator(
        device=torch.device("cpu"),
        val_data_loader=[{"image": image, "label": image}],
        network=network,
        key_val_metric={"score": Score(value)},
        decollate=False,
    )


class Run:
    """A whole run, as a config puts it together: validator, scheduler, history, checkpoint."""

    def __init__(
        self,
        folder: Path,
        resume: bool = False,
        weights: int = 0,
        value: Any = None,
        every: int = 1,
        schedule: Any = None,
        **arguments: Any,
    ) -> None:
        torch.manual_seed(weights)
        self.folder = folder
        self.method = TinyMethod()
        network = self.method.network
        self.validator = tiny_validator(network, value or (lambda: next(network.parameters()).sum().item()))
        self.trainer: MethodTrainer = tiny_trainer(self.method, **({"max_epochs": 4} | arguments))
        build = schedule or (lambda optimizer: StepLR(optimizer, 5, 0.5))
        self.scheduler = scheduler = build(self.trainer.optimizer)
        self.checkpoint = RunCheckpoint(folder, folder, network, self.validator, scheduler, resume)
        self.added: list[Any] = [
            LrScheduleHandler(scheduler, print_lr=False, epoch_level=False),
            ValidationHandler(every, self.validator),
            TrainingHistory(folder / "history.csv", self.validator, tensorboard=False),
            self.checkpoint,
        ]
        for handler in self.added:
            handler.attach(self.trainer)

    def go(self) -> Run:
        self.trainer.run()
        return self

    def fail_at(self, iteration: int) -> None:
        def fail(engine: Engine) -> None:
            raise InterruptedError(f"iteration {iteration}")

        self.trainer.add_event_handler(Events.ITERATION_STARTED(once=iteration), fail)
        with pytest.raises(InterruptedError):
            self.trainer.run()

    def load(self, name: str) -> Any:
        return torch.load(self.folder / name, weights_only=True)

    def history(self) -> list[dict[str, str]]:
        with (self.folder / "history.csv").open() as file:
            return list(csv.DictReader(file))
