"""The training loop, with a tiny method and no data set."""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Container, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from ignite.engine import Events
from monai.engines.utils import IterationEvents
from monai.handlers import from_engine
from torch import distributed

from common.training.handlers import RunCheckpoint
from common.training.lock import LOCK_FILE
from common.training.method import LossTerm, MethodOutput, Progress
from common.training.precision import resolve_precision
from common.training.trainer import MOST_OVERFLOWS, MethodTrainer, NonFiniteLossError
from tests.tiny import TinyCases, TinyMethod, assert_same_to_the_bit, snapshot, tiny_loader, tiny_trainer

CPU = torch.device("cpu")
pytestmark = pytest.mark.usefixtures("every_precision")


class BrokenGradient(TinyMethod):
    """Every term is finite; from the given step on a gradient is not."""

    def __init__(self, from_step: int = 0) -> None:
        super().__init__()
        self.from_step = from_step

    def forward(self, batch: dict[str, Any], progress: Progress) -> MethodOutput:
        output = super().forward(batch, progress)
        if progress.iteration >= self.from_step:
            # the square root of 0 is finite, its slope is not
            output.terms["root"] = LossTerm((output.prediction * 0.0).abs().sum().sqrt(), 1.0)
        return output


def test_events_fire_in_order() -> None:
    trainer = tiny_trainer(max_epochs=1, epoch_length=1)
    order = [
        Events.STARTED,
        Events.EPOCH_STARTED,
        Events.ITERATION_STARTED,
        IterationEvents.FORWARD_COMPLETED,
        IterationEvents.LOSS_COMPLETED,
        IterationEvents.BACKWARD_COMPLETED,
        IterationEvents.MODEL_COMPLETED,
        Events.ITERATION_COMPLETED,
        Events.EPOCH_COMPLETED,
        Events.COMPLETED,
    ]
    fired: list[Any] = []
    for event in order:
        trainer.add_event_handler(event, lambda _, event=event: fired.append(event))
    trainer.run()
    assert fired == order


def test_every_scalar_is_logged() -> None:
    trainer = tiny_trainer(max_epochs=1)
    trainer.run()
    output = trainer.state.output[0]
    scalars = output["scalars"]
    assert set(scalars) == {
        "loss/fit",
        "loss/size",
        "loss/total",
        "weight/fit",
        "weight/size",
        "monitor/mean",
        "learning_rate",
    }
    assert (scalars["weight/fit"], scalars["weight/size"]) == (1.0, 0.5)
    assert scalars["loss/total"] == pytest.approx(scalars["loss/fit"] + 0.5 * scalars["loss/size"])
    assert output["loss"] == scalars["loss/total"] == from_engine(["loss"], first=True)(trainer.state.output)
    assert output["pred"].shape == (2, 2, 8, 8) and not output["pred"].requires_grad


def test_the_method_is_told_where_training_stands() -> None:
    method = TinyMethod()
    tiny_trainer(method).run()
    assert method.seen == [Progress(iteration, 6) for iteration in range(6)]
    assert method.steps == 6


def test_training_lowers_the_loss() -> None:
    losses: list[float] = []
    trainer = tiny_trainer(max_epochs=8)
    trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda engine: losses.append(engine.state.output[0]["loss"]))
    trainer.run()
    assert sum(losses[-3:]) < 0.5 * sum(losses[:3])


def test_same_seed_same_weights_to_the_bit() -> None:
    results: list[dict[str, torch.Tensor]] = []
    for seed in (0, 0, 1):
        trainer = tiny_trainer(seed=seed)
        torch.rand(seed + len(results))  # what happened before must not matter
        trainer.run()
        results.append(snapshot(trainer.method))
    assert_same_to_the_bit(results[0], results[1])
    assert not torch.equal(results[0]["network.layers.0.weight"], results[2]["network.layers.0.weight"])


def test_each_epoch_starts_the_loader_anew() -> None:
    """Otherwise an epoch shorter than the loader would depend on the epochs before it, and resuming would not match."""
    loader = tiny_loader()
    trainer = tiny_trainer(loader=loader, max_epochs=3, epoch_length=1)
    seen: list[list[int]] = []
    trainer.add_event_handler(
        Events.ITERATION_COMPLETED, lambda engine: seen.append(engine.state.batch["index"].tolist())
    )
    trainer.run()
    expected = []
    for epoch in (1, 2, 3):
        loader.batch_sampler.set_epoch(epoch)
        expected.append([index for index, _ in next(iter(loader.batch_sampler))])
    assert seen == expected


def test_a_complete_training_says_so(caplog: pytest.LogCaptureFixture) -> None:
    method = TinyMethod()
    trainer = tiny_trainer(method)
    trainer.state.epoch = 2
    with caplog.at_level(logging.INFO):
        trainer.logger.propagate = True
        trainer.run()
    assert method.steps == 0
    assert "already complete: 2 of 2 epochs" in caplog.text


# what is not finite


def test_nan_loss_names_term_and_cases_and_leaves_the_checkpoint(tmp_path: Path) -> None:
    cases = TinyCases()
    method = TinyMethod()
    checkpoint = RunCheckpoint(tmp_path / "models", tmp_path / "eval", method.network)
    trainer = tiny_trainer(method, tiny_loader(cases), max_epochs=3, train_handlers=[checkpoint])
    saved: dict[str, bytes] = {}

    def poison(_: Any) -> None:
        cases.poisoned = (4,)
        written = [path for path in (tmp_path / "models").iterdir() if path.name != LOCK_FILE]
        saved.update({path.name: path.read_bytes() for path in written})

    trainer.add_event_handler(Events.EPOCH_COMPLETED(once=1), poison)
    with pytest.raises(NonFiniteLossError, match="The last checkpoint is untouched") as caught:
        trainer.run()
    message = str(caught.value)
    assert "loss term fit = nan, size = nan is not finite" in message
    assert "case_4.nii.gz" in message and message.count(".nii.gz") == 2, "the batch has two cases"
    assert f"Iteration {trainer.state.iteration}:" in message
    assert saved.keys() == {"model.pt", "last.ckpt"}
    assert {path.name: path.read_bytes() for path in (tmp_path / "models").iterdir()} == saved


def test_only_the_bad_term_is_named() -> None:
    class Broken(TinyMethod):
        def forward(self, batch: dict[str, Any], progress: Progress) -> MethodOutput:
            output = super().forward(batch, progress)
            output.terms["size"] = LossTerm(output.terms["size"].value / 0.0, 0.5)
            return output

    with pytest.raises(NonFiniteLossError, match=r"Iteration 1: loss term size = inf is not finite"):
        tiny_trainer(Broken()).run()


def test_cases_without_names_do_not_hide_the_fault() -> None:
    batches = [{"image": torch.full((2, 1, 8, 8), torch.nan), "target": torch.zeros(2, 1, 8, 8)}]
    with pytest.raises(NonFiniteLossError, match="names unknown"):
        tiny_trainer(loader=batches).run()


def test_skipped_steps_restore_everything(caplog: pytest.LogCaptureFixture) -> None:
    method = TinyMethod()
    before = snapshot(method)
    trainer = tiny_trainer(method, tiny_loader(TinyCases(range(6))), max_epochs=1, max_skipped_steps=3)
    trainer.logger.propagate = True
    trainer.run()
    assert_same_to_the_bit(snapshot(method), before)  # weights and running statistics of batch normalisation
    assert (trainer.skipped_steps, method.steps) == (3, 0)
    assert "Step left out (3 of 3 allowed)" in caplog.text


def test_one_bad_batch_does_not_spoil_the_rest() -> None:
    method = TinyMethod()
    trainer = tiny_trainer(method, tiny_loader(TinyCases((2,))), max_epochs=1, max_skipped_steps=1)
    trainer.run()
    assert (trainer.skipped_steps, method.steps) == (1, 2)
    assert all(value.isfinite().all() for value in snapshot(method).values())


def test_more_bad_steps_than_allowed_stop_the_training() -> None:
    trainer = tiny_trainer(loader=tiny_loader(TinyCases(range(6))), max_skipped_steps=2)
    with pytest.raises(NonFiniteLossError, match="Iteration 3"):
        trainer.run()


def test_non_finite_gradient_is_refused() -> None:
    method = BrokenGradient(from_step=1)
    trainer = tiny_trainer(method, max_epochs=1)
    after_first: dict[str, torch.Tensor] = {}
    trainer.add_event_handler(Events.ITERATION_COMPLETED(once=1), lambda _: after_first.update(snapshot(method)))
    with pytest.raises(NonFiniteLossError, match=r"Iteration 2: the gradient's norm is nan; cases .*case_\d"):
        trainer.run()
    weights = snapshot(method)
    assert all(torch.equal(weights[name], after_first[name]) for name, _ in method.named_parameters())
    assert method.steps == 1


def test_what_precedes_a_step_holds_when_it_is_left_out() -> None:
    """Weights that were pruned with a mask would stay so without one."""

    class Drawing(TinyMethod):
        drawn: torch.Tensor

        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("drawn", torch.full((), -1))

        def before_step(self, progress: Progress) -> None:
            self.drawn.fill_(progress.iteration)

        def forward(self, batch: dict[str, Any], progress: Progress) -> MethodOutput:
            assert int(self.drawn) == progress.iteration
            return super().forward(batch, progress)

    method = Drawing()
    trainer = tiny_trainer(method, tiny_loader(TinyCases(range(6))), max_epochs=1, max_skipped_steps=3)
    trainer.run()
    assert (trainer.skipped_steps, int(method.drawn)) == (3, 2)


def test_non_finite_gradient_can_be_skipped() -> None:
    method = BrokenGradient()
    before = snapshot(method)
    trainer = tiny_trainer(method, max_epochs=1, max_skipped_steps=3)
    trainer.run()
    assert_same_to_the_bit(snapshot(method), before)
    assert (trainer.skipped_steps, method.steps) == (3, 0)


# the step


@pytest.mark.parametrize(("bound", "clipped"), [(1e-3, True), (1e6, False), (None, False)])
def test_clipping_bounds_the_gradient(bound: float | None, clipped: bool) -> None:
    """The first step of SGD with learning rate 1 is the gradient itself."""
    method = TinyMethod()
    before = snapshot(method)
    tiny_trainer(method, lr=1.0, max_epochs=1, epoch_length=1, max_gradient_norm=bound).run()
    after = snapshot(method)
    names = [name for name, _ in method.named_parameters()]
    step = math.sqrt(sum(float((after[name] - before[name]).square().sum()) for name in names))
    assert step == pytest.approx(1e-3, rel=1e-2) if clipped else step > 1e-2


@pytest.mark.parametrize("bound", [0.0, -1.0, math.nan])
def test_a_bound_that_is_none_is_refused(bound: float) -> None:
    with pytest.raises(ValueError, match="max_gradient_norm must be positive"):
        tiny_trainer(max_gradient_norm=bound)


# precision


@pytest.mark.parametrize(("word", "dtype"), [("float32", torch.float32), ("bfloat16", torch.bfloat16)])
def test_precision_words(word: str, dtype: torch.dtype) -> None:
    assert resolve_precision(word, CPU) is dtype


@pytest.mark.parametrize(("fast", "dtype"), [(False, torch.float32), (True, torch.bfloat16)])
def test_auto_is_bfloat16_only_where_it_is_fast(
    fast: bool, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: fast)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    assert resolve_precision("auto", CPU) is dtype


@pytest.mark.parametrize(("native", "dtype"), [(False, torch.float16), (True, torch.bfloat16)])
def test_auto_on_cuda(native: bool, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: native)
    assert resolve_precision("auto", torch.device("cuda")) is dtype


def test_float16_is_refused_on_a_cpu() -> None:
    with pytest.raises(ValueError, match="float16 needs CUDA. Fix: give auto, bfloat16 or float32"):
        tiny_trainer(precision="float16")


def test_unknown_precision_is_refused() -> None:
    with pytest.raises(ValueError, match=r"'half' is unknown. Fix: give auto, float32, bfloat16, float16"):
        tiny_trainer(precision="half")


def test_bfloat16_on_a_cpu_stays_finite() -> None:
    trainer = tiny_trainer(precision="bfloat16")
    trainer.run()
    assert trainer.state.output[0]["pred"].dtype is torch.bfloat16
    assert all(math.isfinite(value) for value in trainer.state.output[0]["scalars"].values())
    assert all(parameter.dtype is torch.float32 for parameter in trainer.method.parameters())
    assert all(value.isfinite().all() for value in snapshot(trainer.method).values())


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["float16", "bfloat16", "float32"])
def test_precisions_on_a_gpu(precision: str, tmp_path: Path) -> None:
    method = TinyMethod()
    before = snapshot(method)
    checkpoint = RunCheckpoint(tmp_path, tmp_path, method.network)
    trainer = tiny_trainer(method, device="cuda", precision=precision, train_handlers=[checkpoint])
    assert trainer.scaler.is_enabled() is (precision == "float16")
    trainer.run()
    assert all(math.isfinite(value) for value in trainer.state.output[0]["scalars"].values())
    after = {name: value.cpu() for name, value in snapshot(method).items()}
    assert not torch.equal(before["network.layers.0.weight"], after["network.layers.0.weight"])
    state = torch.load(tmp_path / "last.ckpt", weights_only=True)["scaler"]
    assert state == trainer.scaler.state_dict() and bool(state) is (precision == "float16")


@pytest.mark.gpu
def test_an_overflow_in_float16_lowers_the_scale_and_keeps_the_weights() -> None:
    method = BrokenGradient()
    trainer = tiny_trainer(method, device="cuda", precision="float16", max_epochs=1, epoch_length=1)
    before, scale = snapshot(method), trainer.scaler.get_scale()
    trainer.run()
    assert trainer.scaler.get_scale() < scale and trainer.skipped_steps == 0
    assert all(torch.equal(parameter, before[name]) for name, parameter in method.named_parameters())


class StandInScaler:
    """As a GradScaler behaves in float16, whose gradients overflow at these steps, the first of which is 0."""

    def __init__(self, overflowing: Container[int]) -> None:
        self.overflowing, self.step_number, self.value = overflowing, 0, 65536.0

    def is_enabled(self) -> bool:
        return True

    def scale(self, loss: torch.Tensor) -> torch.Tensor:
        return loss

    def unscale_(self, optimizer: torch.optim.Optimizer) -> None:
        pass

    def get_scale(self) -> float:
        return self.value

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        if self.step_number not in self.overflowing:
            optimizer.step()

    def update(self) -> None:
        self.value *= 0.5 if self.step_number in self.overflowing else 1.0
        self.step_number += 1


def overflowing_trainer(steps: Container[int], method: TinyMethod, **arguments: Any) -> MethodTrainer:
    trainer: MethodTrainer = tiny_trainer(method, **arguments)
    trainer.scaler = StandInScaler(steps)  # type: ignore[assignment]
    trainer.logger.propagate = True
    return trainer


def test_what_follows_a_step_does_not_follow_one_that_the_scaler_left_out(caplog: pytest.LogCaptureFixture) -> None:
    """A teacher would count an update, and average weights that did not change."""
    method = TinyMethod()
    trainer = overflowing_trainer({0, 1, 2, 4}, method)
    with caplog.at_level(logging.INFO):
        trainer.run()
    assert (method.steps, trainer.skipped_steps, trainer.overflows) == (2, 0, 0)
    told = [record.getMessage() for record in caplog.records if "overflowed" in record.getMessage()]
    for line, (iteration, scale, row) in zip(told, ((1, 65536, 1), (2, 32768, 2), (5, 8192, 1)), strict=True):
        expected = f"the gradient overflowed in float16 at a scale of {scale}, {row} in a row; step left out."
        assert line == f"Iteration {iteration}: {expected}", "the third in a row is not told"


def test_overflowing_at_whatever_scale_ends_the_training() -> None:
    method = TinyMethod()
    trainer = overflowing_trainer(range(1, 10**6), method, max_epochs=100)
    message = rf"Iteration {MOST_OVERFLOWS + 1}: .* {MOST_OVERFLOWS} in a row; cases .*case_\d.*The last checkpoint"
    with pytest.raises(NonFiniteLossError, match=message):
        trainer.run()
    assert method.steps == 1


# one of several processes


@pytest.fixture
def process_group(tmp_path: Path) -> Iterator[None]:
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/meeting", rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


def test_a_process_of_one_trains_as_without(process_group: None) -> None:
    trainer = tiny_trainer()
    assert isinstance(trainer.parallel, torch.nn.parallel.DistributedDataParallel)
    trainer.run()
    with_group = snapshot(trainer.method)
    alone = tiny_trainer()
    alone.parallel = alone.method
    alone.run()
    assert_same_to_the_bit(with_group, snapshot(alone.method))


def test_skipping_works_in_parallel(process_group: None) -> None:
    """A forward pass without a backward pass must not confuse DistributedDataParallel."""
    method = TinyMethod()
    trainer = tiny_trainer(method, tiny_loader(TinyCases((2,))), max_skipped_steps=2)
    trainer.run()
    assert (trainer.skipped_steps, method.steps) == (2, 4)


def test_the_loop_does_not_copy_the_method() -> None:
    """What the method holds, such as its network, is what is trained and saved."""
    method = TinyMethod()
    original = copy.deepcopy(method)
    trainer: MethodTrainer = tiny_trainer(method)
    trainer.run()
    assert trainer.method is method
    assert not torch.equal(next(method.network.parameters()), next(original.network.parameters()))
