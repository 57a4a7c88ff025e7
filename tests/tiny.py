"""The smallest method, data and trainer that show what the training loop does; no file, no MONAI network."""

from __future__ import annotations

from collections.abc import Sequence
from contextvars import ContextVar
from typing import Any

import torch
from monai.data import DataLoader, MetaTensor
from torch import nn
from torch.utils.data import Dataset

from common.data.loading.samplers import StreamBatchSampler
from common.training.method import LossTerm, Method, MethodOutput, Progress
from common.training.precision import cpu_has_bfloat16
from common.training.trainer import MethodTrainer

#: what every training and evaluation has to go through on this machine
PRECISIONS = ["float32", *(["bfloat16"] if cpu_has_bfloat16() else [])]


class TinyNetwork(nn.Module):
    """Convolution, batch normalisation, dropout: (B, 1, 8, 8) -> (B, 2, 8, 8)."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.BatchNorm2d(2), nn.Dropout(0.2))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.layers(image)


class TinyMethod(Method):
    """Two terms, ``fit`` and ``size`` with weight 0.5, and a monitor; remembers how far it was told to be."""

    def __init__(self) -> None:
        super().__init__(TinyNetwork())
        self.seen: list[Progress] = []
        self.steps = 0
        self.alpha = 3.0  # a setting

    def forward(self, batch: dict[str, Any], progress: Progress) -> MethodOutput:
        self.seen.append(progress)
        logits = self.network(batch["image"])
        terms = {
            "fit": LossTerm((logits - batch["target"]).square().mean(), 1.0),
            "size": LossTerm(logits.abs().mean(), 0.5),
        }
        return MethodOutput(terms=terms, prediction=logits, monitors={"mean": logits.detach().mean()})

    def after_step(self) -> None:
        self.steps += 1


class TinyCases(Dataset[dict[str, Any]]):
    """Named random images; those in ``poisoned`` hold a NaN."""

    def __init__(self, poisoned: Sequence[int] = (), count: int = 6) -> None:
        self.poisoned = poisoned
        self.data = [{"image": f"case_{number}.nii.gz"} for number in range(count)]

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, item: tuple[int, int]) -> dict[str, Any]:
        index, seed = item
        image = torch.rand((1, 8, 8), generator=torch.Generator().manual_seed(seed))
        if index in self.poisoned:
            image[0, 0, 0] = torch.nan
        return {
            "image": MetaTensor(image, meta={"filename_or_obj": self.data[index]["image"]}),
            "target": image.nan_to_num(),
            "index": index,
        }


def tiny_loader(cases: TinyCases | None = None, batches: int = 3) -> DataLoader:
    """Batches of two cases; an epoch of three sees each of the six cases once."""
    cases = cases or TinyCases()
    return DataLoader(cases, batch_sampler=StreamBatchSampler(cases.data, {"clean": 2}, batches=batches))


#: of the trainers that a test makes; the fixture ``every_precision`` sets it
tiny_precision: ContextVar[str] = ContextVar("tiny_precision", default="float32")


def tiny_trainer(method: Method | None = None, loader: Any = None, lr: float = 0.1, **arguments: Any) -> MethodTrainer:
    """Two epochs of three steps on the CPU, in the test's precision or float32, unless the arguments say otherwise."""
    if method is None:
        torch.manual_seed(0)
        method = TinyMethod()
    defaults: dict[str, Any] = {"device": "cpu", "max_epochs": 2, "precision": tiny_precision.get()}
    return MethodTrainer(
        train_data_loader=loader if loader is not None else tiny_loader(),
        method=method,
        optimizer=torch.optim.SGD(method.parameters(), lr=lr, momentum=0.9),
        **(defaults | arguments),
    )


def snapshot(module: nn.Module) -> dict[str, torch.Tensor]:
    """A copy of all parameters and buffers."""
    return {name: value.clone() for name, value in module.state_dict().items()}


def assert_same_to_the_bit(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
    assert first.keys() == second.keys()
    assert [name for name in first if not torch.equal(first[name], second[name])] == []
