"""The handlers of a training together: what one leaves is there when the next looks."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch
from ignite.engine import Events
from monai.engines import SupervisedEvaluator

from common.training.handlers import TrainingRun
from tests.tiny import TinyMethod, snapshot, tiny_trainer
from tests.training.whole_run import Score


@pytest.mark.parametrize("interval", [1, 2])
def test_one_entry_does_all(tmp_path: Path, interval: int) -> None:
    torch.manual_seed(0)
    method = TinyMethod()
    image = torch.zeros(1, 1, 8, 8)
    values = iter([0.5, 0.7, 0.6, 0.4])
    validator = SupervisedEvaluator(
        device=torch.device("cpu"),
        val_data_loader=[{"image": image, "label": image}],
        network=method.network,
        key_val_metric={"score": Score(lambda: next(values))},
        decollate=False,
    )
    trainer = tiny_trainer(method, lr=0.1, max_epochs=4)
    scheduler = torch.optim.lr_scheduler.StepLR(trainer.optimizer, 3, 0.5)
    run = TrainingRun(tmp_path / "models", tmp_path / "eval", method.network, scheduler, validator, interval)
    run.attach(trainer)
    weights: list[dict[str, torch.Tensor]] = []
    run_epochs = trainer.state.max_epochs
    trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda _: weights.append(snapshot(method.network)))
    trainer.run()

    with (tmp_path / "eval" / "history.csv").open() as file:
        rows = list(csv.DictReader(file))
    scores = {int(row["epoch"]): float(row["value"]) for row in rows if row["name"] == "validation/score"}
    assert list(scores) == list(range(interval, run_epochs + 1, interval)), "an epoch's metrics came too late"
    rates = [float(row["value"]) for row in rows if row["name"] == "learning_rate"]
    expected = [0.1] * 3 + [0.05] * 3 + [0.025] * 3 + [0.0125] * 3
    assert rates == pytest.approx(expected), "the rate falls by the iteration"
    best = max(scores, key=lambda epoch: scores[epoch])
    shipped = torch.load(tmp_path / "models" / "model.pt", weights_only=True)
    assert all(torch.equal(shipped[name], value) for name, value in weights[best - 1].items())
    last = torch.load(tmp_path / "models" / "last.ckpt", weights_only=True)
    assert (last["epoch"], last["best_metric"]) == (4, max(scores.values()))
    assert last["lr_scheduler"] == scheduler.state_dict(), "saved before the rate's last step"
