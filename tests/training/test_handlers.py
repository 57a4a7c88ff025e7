"""Checkpoints of a training, on the tiny trainer."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from ignite.engine import Engine, Events
from torch.optim.lr_scheduler import CosineAnnealingWarmRestarts, OneCycleLR, StepLR

from common import errors
from common.training import handlers, history
from common.training.handlers import RunCheckpoint
from common.training.history import TrainingHistory
from common.training.lock import LOCK_FILE, FolderInUseError, FolderLock
from tests.tiny import TinyCases, TinyMethod, assert_same_to_the_bit, snapshot, tiny_loader, tiny_trainer
from tests.training.whole_run import Run

pytestmark = pytest.mark.usefixtures("every_precision")


def test_a_run_leaves_its_weights(tmp_path: Path) -> None:
    run = Run(tmp_path).go()
    assert {path.name for path in tmp_path.iterdir()} == {"model.pt", "model_final.pt", "last.ckpt", "history.csv"}
    assert_same_to_the_bit(run.load("model_final.pt"), snapshot(run.method.network))
    last = run.load("last.ckpt")
    assert (last["epoch"], last["iteration"]) == (4, 12)
    assert_same_to_the_bit(last["method"], snapshot(run.method))


def test_model_is_the_best_epochs(tmp_path: Path) -> None:
    values = iter([0.1, 0.7, 0.3, 0.5])
    run = Run(tmp_path, value=lambda: next(values))
    weights: list[dict[str, torch.Tensor]] = []
    run.trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda _: weights.append(snapshot(run.method.network)))
    run.go()
    assert_same_to_the_bit(run.load("model.pt"), weights[1])
    last = run.load("last.ckpt")
    assert (last["best_metric"], last["best_metric_epoch"]) == (0.7, 2)


def test_validation_now_and_then(tmp_path: Path) -> None:
    """An epoch without validation is never taken for the best."""
    values = iter([0.2, 0.1])
    run = Run(tmp_path, value=lambda: next(values), every=2)
    weights: list[dict[str, torch.Tensor]] = []
    run.trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda _: weights.append(snapshot(run.method.network)))
    run.go()
    assert_same_to_the_bit(run.load("model.pt"), weights[1])
    validated = [(row["epoch"], row["value"]) for row in run.history() if row["name"] == "validation/score"]
    assert validated == [("2", "0.2"), ("4", "0.1")]


def test_a_run_without_validation_does_not_pass_off_an_earlier_model(tmp_path: Path) -> None:
    Run(tmp_path).go()
    run = Run(tmp_path, weights=1, every=100).go()
    assert_same_to_the_bit(run.load("model.pt"), snapshot(run.method.network))


@pytest.mark.parametrize("iteration", [4, 8, 9, 12])
def test_resumed_is_the_same_as_uninterrupted(iteration: int, tmp_path: Path) -> None:
    """Iterations 4 and 12 begin and end an epoch; 8 and 9 are within one."""
    whole = Run(tmp_path / "whole").go()
    Run(tmp_path / "broken").fail_at(iteration)
    resumed = Run(tmp_path / "broken", resume=True, weights=1)
    assert resumed.trainer.state.epoch == (iteration - 1) // 3
    resumed.go()
    assert_same_to_the_bit(snapshot(resumed.method), snapshot(whole.method))
    expected, state = whole.load("last.ckpt"), resumed.load("last.ckpt")
    torch.testing.assert_close(state.pop("optimizer"), expected.pop("optimizer"), rtol=0, atol=0)
    assert_same_to_the_bit(state.pop("method"), expected.pop("method"))
    assert state == expected
    assert_same_to_the_bit(resumed.load("model.pt"), whole.load("model.pt"))
    assert (tmp_path / "broken/history.csv").read_bytes() == (tmp_path / "whole/history.csv").read_bytes()


#: what these show of themselves, or of the optimiser's momentum, changes as they run
CHANGING = {
    "warm restarts": lambda optimizer: CosineAnnealingWarmRestarts(optimizer, 5),
    "one cycle": lambda optimizer: OneCycleLR(optimizer, 0.2, total_steps=13),
}


@pytest.mark.parametrize("name", CHANGING)
def test_a_schedule_that_changes_its_settings_is_resumed(name: str, tmp_path: Path) -> None:
    whole = Run(tmp_path / "whole", schedule=CHANGING[name]).go()
    Run(tmp_path / "broken", schedule=CHANGING[name]).fail_at(8)
    Run(tmp_path / "broken", resume=True, weights=1, schedule=CHANGING[name]).fail_at(11)
    resumed = Run(tmp_path / "broken", resume=True, weights=1, schedule=CHANGING[name]).go()
    assert_same_to_the_bit(snapshot(resumed.method), snapshot(whole.method))
    expected, state = whole.load("last.ckpt"), resumed.load("last.ckpt")
    assert state["lr_scheduler"] == expected["lr_scheduler"] and state["step_settings"] == expected["step_settings"]
    assert (tmp_path / "broken/history.csv").read_bytes() == (tmp_path / "whole/history.csv").read_bytes()


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        (lambda optimizer: CosineAnnealingWarmRestarts(optimizer, 6), "has T_0 .* 5, the config 6"),
        (lambda optimizer: CosineAnnealingWarmRestarts(optimizer, 5, T_mult=2), "has T_mult .* 1, the config 2"),
    ],
)
def test_another_schedule_of_that_kind_is_refused(schedule: Any, message: str, tmp_path: Path) -> None:
    Run(tmp_path, schedule=CHANGING["warm restarts"]).go()
    with pytest.raises(ValueError, match=message + ".*settings that the run began with"):
        Run(tmp_path, resume=True, schedule=schedule)


def test_a_checkpoint_without_the_settings_of_its_steps_is_compared_by_its_state(tmp_path: Path) -> None:
    """Those of earlier versions."""
    run = Run(tmp_path).go()
    state = run.load("last.ckpt")
    del state["step_settings"]
    torch.save(state, tmp_path / "last.ckpt")
    assert Run(tmp_path, resume=True).trainer.state.epoch == 4
    with pytest.raises(ValueError, match="has gamma .* 0.5, the config 0.1"):
        Run(tmp_path, resume=True, schedule=lambda optimizer: StepLR(optimizer, 5, 0.1))


def test_the_skips_of_a_run_are_counted_across_resuming(tmp_path: Path) -> None:
    run = Run(tmp_path, max_epochs=1)
    run.trainer.skipped_steps = 2
    run.go()
    assert Run(tmp_path, resume=True, max_epochs=1).trainer.skipped_steps == 2


@pytest.mark.parametrize("changed", [{"max_epochs": 5}, {"epoch_length": 2}, {"seed": 7}])
def test_resuming_another_schedule_is_refused(changed: dict[str, int], tmp_path: Path) -> None:
    Run(tmp_path).go()
    name, value = next(iter(changed.items()))
    with pytest.raises(ValueError, match=rf"has {name} \d+, the config {value}.*--{name} \d+, or start a new run"):
        Run(tmp_path, resume=True, **changed)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda run: run.trainer.optimizer.param_groups[0].update(initial_lr=3.0), "initial_lr .* 3.0"),
        (lambda run: run.trainer.optimizer.param_groups[0].update(weight_decay=0.5), "weight_decay .* 0.5"),
        (lambda run: setattr(run.scheduler, "step_size", 4), "has step_size .* 5, the config 4"),
        (lambda run: setattr(run.method, "alpha", 4.0), "has alpha 3.0, the config 4.0"),
        (lambda run: setattr(run.trainer.data_loader.batch_sampler, "sizes", [9, 9]), "has cases_per_batch"),
    ],
)
def test_resuming_with_other_settings_is_refused(change: Any, message: str, tmp_path: Path) -> None:
    """The checkpoint's state would silently overrule them."""
    Run(tmp_path).go()
    run = Run(tmp_path)  # looked at, not run
    change(run)
    with pytest.raises(ValueError, match=message + ".*settings that the run began with"):
        RunCheckpoint(tmp_path, tmp_path, run.method.network, run.validator, run.scheduler, True).attach(run.trainer)


def test_a_methods_weights_in_a_dict_are_compared(tmp_path: Path) -> None:
    run = Run(tmp_path)
    for weight, resume in ((1.0, False), (1.0, True), (2.0, True)):
        run = Run(tmp_path)  # looked at, not run
        vars(run.method)["weights"] = {"fit": weight, "terms": [1, None]}
        checkpoint = RunCheckpoint(tmp_path, tmp_path, run.method.network, run.validator, run.scheduler, resume)
        if weight == 2.0:
            with pytest.raises(ValueError, match=r"has weights {'fit': 1.0, .*}, the config {'fit': 2.0, .*}, which"):
                checkpoint.attach(run.trainer)
            return
        run.trainer.remove_event_handler(run.checkpoint._epoch, Events.EPOCH_COMPLETED)
        checkpoint.attach(run.trainer)
        run.go()


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., None]:
    """Tell the settings of the run that comes next, as the check of a config does."""
    monkeypatch.setattr(errors, "_RUN", dict(errors._RUN))
    began = {"patch_size": [32, 32], "dropout": 0.1, "max_gradient_norm": None, "spacing": [1.0, 1.0], "num_workers": 0}
    return lambda **settings: errors.remember_run(str(tmp_path), {**began, "output_dir": "a", **settings})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"patch_size": [32, 16]}, r"has patch_size \[32, 32\], the config \[32, 16\], which would"),
        ({"max_gradient_norm": 0.1}, "has max_gradient_norm None, the config 0.1, which"),
        (
            {"dropout": 0.5, "spacing": [2.0, 1.0]},
            r"dropout 0.1, the config 0.5; spacing .*the config \[2.0, 1.0\]",
        ),
    ],
)
def test_settings_that_no_part_of_the_run_shows_are_compared(
    settings: dict[str, Any], message: str, told: Callable[..., None], tmp_path: Path
) -> None:
    told()
    Run(tmp_path).go()
    told(**settings)
    with pytest.raises(ValueError, match=message + ".*Fix: give the settings that the run began with"):
        Run(tmp_path, resume=True)


def test_settings_that_change_nothing_may_differ(told: Callable[..., None], tmp_path: Path) -> None:
    told(device=torch.device("cpu"), resume=False)
    Run(tmp_path).go()
    told(num_workers=4, output_dir="b", device=torch.device("cuda"), resume=True, max_skipped_steps=3, newer=1)
    assert Run(tmp_path, resume=True).trainer.state.epoch == 4


def test_a_checkpoint_without_the_settings_of_its_run_is_resumed(told: Callable[..., None], tmp_path: Path) -> None:
    """Those of earlier versions, or of another folder's run."""
    told()
    Run(tmp_path).go()
    changed(run_settings=None)(tmp_path / "last.ckpt")
    told(dropout=0.5)
    assert Run(tmp_path, resume=True).trainer.state.epoch == 4
    assert Run(tmp_path / "other").go().load("last.ckpt")["run_settings"].keys() == {"training data"}


def test_data_may_move_but_not_change(tmp_path: Path) -> None:
    cases, runs = TinyCases(), tmp_path / "run"

    def run(folder: str, resume: bool = True) -> Run:
        cases.data = [{"image": str(tmp_path / folder / f"{number}.nii"), "group": "a"} for number in range(6)]
        return Run(runs, resume=resume, loader=tiny_loader(cases))

    (tmp_path / "here").mkdir()
    for number in range(6):
        (tmp_path / f"here/{number}.nii").write_bytes(b"voxels")
    run("here", resume=False).go()
    (tmp_path / "here").rename(tmp_path / "there")
    assert run("there").trainer.state.epoch == 4
    (tmp_path / "there/2.nii").write_bytes(b"other voxels")
    with pytest.raises(ValueError, match="has training data of 6 records, digest .*, the config of 6 records, digest"):
        run("there")


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-200])


def flip_a_byte(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    place = raw.find(torch.load(path, weights_only=True)["method"]["network.layers.0.weight"].numpy().tobytes())
    assert place > 0
    raw[place + 3] ^= 1
    path.write_bytes(raw)


def hostile(path: Path) -> None:
    class Command:
        def __reduce__(self) -> tuple[Any, tuple[str]]:
            return os.mkdir, (str(path.parent / "was run"),)

    torch.save({"method": Command()}, path)


def changed(**values: Any) -> Callable[[Path], None]:
    """Replace entries of a checkpoint; None removes them."""

    def change(path: Path) -> None:
        state = torch.load(path, weights_only=True) | values
        torch.save({key: value for key, value in state.items() if value is not None}, path)

    return change


def not_finite(path: Path) -> None:
    state = torch.load(path, weights_only=True)
    state["method"]["network.layers.0.bias"][0] = torch.nan
    torch.save(state, path)


START_ANEW = "Fix: start a new run without --resume, or put back a last.ckpt that is whole."
BROKEN = {
    "cut": (cut, "last.ckpt: this is no checkpoint of a run. " + START_ANEW),
    "empty": (lambda path: path.write_bytes(b""), "last.ckpt: this is no checkpoint of a run. " + START_ANEW),
    "text": (lambda path: path.write_text("epoch 3"), "last.ckpt: this is no checkpoint of a run. " + START_ANEW),
    "hostile": (hostile, "last.ckpt: this is no checkpoint of a run. " + START_ANEW),
    "a flipped byte": (flip_a_byte, r"last.ckpt: is damaged: the checksum of \S+ is wrong. " + START_ANEW),
    "a list": (lambda path: torch.save([1], path), "last.ckpt: holds a list. " + START_ANEW),
    "weights": (
        lambda path: torch.save({"weight": torch.zeros(2)}, path),
        "is no whole checkpoint: it lacks method, optimizer, scaler, epoch, .*" + START_ANEW,
    ),
    "keys gone": (changed(scaler=None, lr_scheduler=None), "it lacks scaler, lr_scheduler. " + START_ANEW),
    "wrong type": (
        changed(epoch="two", optimizer={}, step_settings=[]),
        "it lacks epoch, step_settings, optimizer. " + START_ANEW,
    ),
    "NaN": (not_finite, r"network.layers.0.bias has 1 of 2 values that are NaN or infinite. " + START_ANEW),
    "other method": (
        changed(method={"encoder.weight": torch.zeros(2)}),
        "its method is not the config's: .*encoder.weight.* Fix: give the config and settings that the run began with",
    ),
    "other network": (
        changed(method=TinyMethod().state_dict() | {"network.layers.0.bias": torch.zeros(5)}),
        r"its method is not the config's: size mismatch for network.layers.0.bias.*torch.Size\(\[5\]\)",
    ),
    "other optimiser": (
        changed(optimizer={"param_groups": [], "state": {}}),
        "its optimizer is not the config's: .* Fix: give the config and settings that the run began with",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_checkpoint_is_told(name: str, tmp_path: Path) -> None:
    Run(tmp_path).go()
    spoil, message = BROKEN[name]
    spoil(tmp_path / "last.ckpt")
    with pytest.raises(ValueError, match=message) as caught:
        Run(tmp_path, resume=True)
    assert caught.value.__cause__ is None, "the last word is the fix"
    assert not (tmp_path / "was run").exists()


@pytest.mark.parametrize("every", [1, 100])
def test_a_run_killed_before_its_final_weights_writes_them_when_resumed(every: int, tmp_path: Path) -> None:
    """With a best epoch before the last, and (every = 100) without any validation."""
    values = {name: iter([0.1, 0.7, 0.3, 0.5]) for name in ("whole", "broken")}
    Run(tmp_path / "earlier", weights=1, every=100).go()
    folders = {name: tmp_path / name for name in values}
    for name, folder in folders.items():
        folder.mkdir()
        for weights in ("model.pt", "model_final.pt"):  # an earlier run's, which must not pass for this one's
            (folder / weights).write_bytes((tmp_path / "earlier" / weights).read_bytes())
        run = Run(folder, value=lambda name=name: next(values[name]), every=every)
        if name == "broken":
            run.trainer.remove_event_handler(run.checkpoint._completed, Events.COMPLETED)
        run.go()
    final = [folders[name] / "model_final.pt" for name in ("broken", "whole")]
    assert final[0].read_bytes() != final[1].read_bytes()
    steps = Run(folders["broken"], resume=True, weights=2, every=every).go().method.steps
    assert steps == 0, "nothing is left to train"
    for weights in ("model.pt", "model_final.pt"):
        found, expected = (torch.load(folders[name] / weights, weights_only=True) for name in ("broken", "whole"))
        assert_same_to_the_bit(found, expected)


def test_a_best_model_that_is_gone_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    values = iter([0.1, 0.7, 0.3, 0.5])
    Run(tmp_path, value=lambda: next(values)).go()
    (tmp_path / "model.pt").unlink()
    run = Run(tmp_path, resume=True)
    run.trainer.logger.propagate = True
    run.go()
    assert "model.pt: the best epoch's weights are gone; model_final.pt has the last epoch's" in caplog.text


@pytest.mark.parametrize("resume", [False, True])
def test_a_second_training_in_a_folder_is_refused(resume: bool, tmp_path: Path) -> None:
    Run(tmp_path).go()
    other = subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE)
    try:
        lock = FolderLock(tmp_path)
        lock.owner = dataclasses.replace(lock.owner, process=other.pid, birth=0)
        lock.acquire()
        before = {path: path.read_bytes() for path in tmp_path.iterdir()}
        with pytest.raises(FolderInUseError, match=f"another training writes to this folder .process {other.pid} on"):
            Run(tmp_path, resume=resume).go()
        assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
    finally:
        other.communicate()
    Run(tmp_path, resume=resume).go()  # its lock is stale now
    assert not (tmp_path / LOCK_FILE).exists()


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_the_folder_is_free_however_a_run_ends(error: type[BaseException], tmp_path: Path) -> None:
    run = Run(tmp_path)
    held: list[bool] = []

    def fail(engine: Engine) -> None:
        held.append((tmp_path / LOCK_FILE).exists())
        raise error

    run.trainer.add_event_handler(Events.ITERATION_STARTED(once=4), fail)
    with pytest.raises(error):
        run.trainer.run()
    assert held == [True] and not (tmp_path / LOCK_FILE).exists()


def test_resuming_with_other_processes_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Run(tmp_path).go()
    monkeypatch.setattr(handlers.idist, "get_world_size", lambda: 2)
    with pytest.raises(ValueError, match="has processes 1, the config 2"):
        Run(tmp_path, resume=True)


def test_a_trainer_that_does_not_run_leaves_an_earlier_run_alone(tmp_path: Path) -> None:
    """MONAI's ConfigWorkflow and MONAI Label build trainers to look at them."""
    Run(tmp_path).go()
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    Run(tmp_path)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_new_run_with_tensorboard_sets_the_earlier_one_aside(tmp_path: Path) -> None:
    for _ in range(2):
        method = TinyMethod()
        added = [TrainingHistory(tmp_path / "history.csv"), RunCheckpoint(tmp_path, tmp_path, method.network)]
        tiny_trainer(method, max_epochs=1, train_handlers=added).run()
    assert len(list(tmp_path.glob("events.out.tfevents.*"))) == 1, "the new run's"
    assert len(list((tmp_path / "previous").rglob("events.out.tfevents.*"))) == 1, "the earlier run's"


def test_checkpoints_now_and_then_and_at_the_end(tmp_path: Path) -> None:
    method = TinyMethod()
    checkpoint = RunCheckpoint(tmp_path, tmp_path, method.network, save_interval=2)
    trainer = tiny_trainer(method, max_epochs=3, train_handlers=[checkpoint])
    epochs: list[int] = []
    trainer.add_event_handler(
        Events.EPOCH_COMPLETED,
        lambda _: epochs.append(
            torch.load(tmp_path / "last.ckpt")["epoch"] if (tmp_path / "last.ckpt").exists() else 0
        ),
    )
    trainer.run()
    assert epochs == [0, 2, 3]


def test_other_processes_write_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (handlers, history):
        monkeypatch.setattr(module, "is_first_rank", lambda: False)
    Run(tmp_path / "run").go()
    assert not (tmp_path / "run").exists()
