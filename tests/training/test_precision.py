"""What keeps half precision right: the guard of convolutions, the trial of the first batch, the probe."""

from __future__ import annotations

import copy
import random
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from monai.inferers import SimpleInferer
from monai.networks.nets import UNet
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from common.evaluation.evaluators import Validator
from common.training import precision, probe, trainer
from common.training.method import Progress
from common.training.precision import (
    FILLS,
    ConvolutionGuard,
    UnsafeLayerError,
    cosines,
    cpu_has_bfloat16,
    disagreeing,
    evaluation_amp,
    gradients_over,
    short_axis,
    suspect_gradients,
)
from tests.tiny import TinyMethod, assert_same_to_the_bit, snapshot, tiny_trainer

ROOT = Path(__file__).resolve().parents[2]
CPU = torch.device("cpu")
needs_bfloat16 = pytest.mark.skipif(not cpu_has_bfloat16(), reason="this CPU has no bfloat16 instructions")
#: bundles, and patches that leave 2 and 1 voxels at the bottleneck; None: the configured one
PATCHES = {
    "alc": (None, (32, 32, 16), (16, 16, 16)),
    "multicure": (None, (32, 32, 16), (16, 16, 16)),
    "attenscribble": (None, (32, 32), (16, 16)),
}
BATCHES = [(name, patch) for name, patches in PATCHES.items() for patch in patches]


class Convolutions(TorchDispatchMode):
    """Notes each convolution that really runs: sizes, kernel, stride, dilation, whether transposed, number type."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[tuple[int, ...], tuple[int, ...], Any, Any, bool, torch.dtype]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func is torch.ops.aten.convolution.default:
            image, weight, stride, dilation, transposed = args[0], args[1], args[3], args[5], args[6]
            size = out.shape[2:] if transposed else image.shape[2:]
            self.seen.append((tuple(size), tuple(weight.shape[2:]), stride, dilation, transposed, image.dtype))
        return out


@contextmanager
def configured(name: str) -> Iterator[ConfigParser]:
    """The parser of a bundle's train.yaml, its ``scripts`` importable."""
    sys.path.insert(0, str(ROOT / "bundles" / name))
    forget = [module for module in sys.modules if module.split(".")[0] == "scripts"]
    for module in forget:
        del sys.modules[module]
    try:
        parser = ConfigParser(ConfigParser.load_config_files([ROOT / "bundles" / name / "configs" / "train.yaml"]))
        parser["device"] = "cpu"
        yield parser
    finally:
        sys.path.pop(0)
        for module in [module for module in sys.modules if module.split(".")[0] == "scripts"]:
            del sys.modules[module]


def method_and_batch(name: str, patch: tuple[int, ...] | None) -> tuple[Any, dict[str, torch.Tensor]]:
    """A bundle's method as configured, and two images of each stream with labels for whoever reads them."""
    with configured(name) as parser:
        torch.manual_seed(0)
        method = parser.get_parsed_content("method").train()
        size = patch or tuple(parser.get("patch_size") or parser.get("slice_size"))
    coarse = torch.rand(4, 1, *(max(1, n // 8) for n in size))
    label = (nn.functional.interpolate(coarse, size) * 3.99).long()
    first = torch.tensor([True, True, False, False])
    batch = {"image": torch.rand(4, 1, *size), "label": label, "scribble": label + 1}
    return method, {**batch, "clean": first, "labelled": first}


def loss_of(batch: dict[str, torch.Tensor]) -> Callable[[nn.Module], torch.Tensor]:
    """The loss in bfloat16 in the middle of a training."""

    def loss(method: nn.Module) -> torch.Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return torch.as_tensor(method(batch, Progress(50, 100)).total)

    return loss


def guarded(loss: Callable[[nn.Module], torch.Tensor], guard: Any) -> Callable[[nn.Module], torch.Tensor]:
    def within(method: nn.Module) -> torch.Tensor:
        with guard:
            return loss(method)

    return within


@pytest.mark.parametrize(
    ("size", "kernel", "stride", "dilation", "axis"),
    [
        *((((2, 8, 8), (3, 3, 3), (1, 1, 1), (1, 1, 1), 0), ((8, 2, 8), (3, 3, 3), (1, 1, 1), (1, 1, 1), 1))),
        *((((3, 3), (3, 3), (1, 1), (1, 1), None), ((4, 3), (3, 3), (1, 2), (1, 1), 1))),
        *((((4, 8, 8), (3, 3, 3), (1, 1, 1), (2, 2, 2), 0), ((1, 1, 1), (1, 1, 1), (1, 1, 1), (1, 1, 1), None))),
        *((((7,), (7,), (1,), (1,), None), ((6,), (7,), (1,), (1,), 0))),
    ],
)
def test_which_axis_is_short(size: Any, kernel: Any, stride: Any, dilation: Any, axis: int | None) -> None:
    assert short_axis(size, kernel, stride, dilation) == axis


def assert_short_ones_are_float32(network: nn.Module, image: torch.Tensor) -> int:
    """How many convolutions were short; all of them, and no other, ran in float32."""
    with Convolutions() as noted, ConvolutionGuard() as guard, torch.autocast("cpu", dtype=torch.bfloat16):
        network(image)
    wide = 0
    for size, kernel, stride, dilation, _, dtype in noted.seen:
        short = short_axis(size, kernel, stride, dilation) is not None
        assert short == (dtype is torch.float32) or "deformable" in str(type(network)), (size, kernel, stride, dtype)
        wide += short
    assert guard.widened == wide
    return wide


@pytest.mark.parametrize("name", ["alc", "attenscribble"])
def test_the_networks_of_bundles_as_configured(name: str) -> None:
    method, batch = method_and_batch(name, None)
    wide = assert_short_ones_are_float32(method.network, batch["image"])
    assert wide > 0 or name == "attenscribble"


def test_multicure_as_configured() -> None:
    """Its offsets are float32 by themselves, so other layers than the short ones are."""
    method, batch = method_and_batch("multicure", None)
    with Convolutions() as noted, ConvolutionGuard(), torch.autocast("cpu", dtype=torch.bfloat16):
        method.network(batch["image"])
    short = [entry for entry in noted.seen if short_axis(*entry[:4]) is not None]
    assert short and all(entry[-1] is torch.float32 for entry in short)
    assert any(entry[-1] is torch.bfloat16 for entry in noted.seen)


def test_a_unet_of_monai() -> None:
    network = UNet(3, 1, 2, channels=(4, 8, 16, 32), strides=(2, 2, 2), num_res_units=1)
    assert assert_short_ones_are_float32(network, torch.rand(2, 1, 16, 16, 16)) >= 1


@pytest.mark.parametrize("everything", [{"dtype": torch.float16}, {"enabled": False}])
def test_nothing_happens_outside_bfloat16(everything: dict[str, Any]) -> None:
    layer, image = nn.Conv3d(1, 2, 3, padding=1), torch.rand(1, 1, 2, 2, 2)
    with ConvolutionGuard() as guard, torch.autocast("cpu", **everything):
        layer(image)
    assert guard.widened == 0


def test_result_keeps_its_number_type_and_every_call_counts() -> None:
    """Functions that are called by name, with or without a bias, transposed or not."""
    image, weight = torch.rand(1, 2, 2, 2, 2, requires_grad=True), torch.rand(2, 2, 3, 3, 3)
    with ConvolutionGuard() as guard, torch.autocast("cpu", dtype=torch.bfloat16):
        outputs = [
            nn.functional.conv3d(image, weight, padding=1),
            nn.functional.conv3d(image, weight, torch.ones(2), padding="same"),
            nn.functional.conv_transpose3d(image, weight, stride=1, padding=1),
            nn.functional.conv3d(input=image, weight=weight, bias=None, stride=1, padding=1),
        ]
    assert guard.widened == 4 and all(output.dtype is torch.bfloat16 for output in outputs)
    torch.stack([output.sum() for output in outputs]).sum().backward()
    assert image.grad is not None and image.grad.dtype is torch.float32


def test_state_copies_and_exports_are_untouched() -> None:
    """A trained network scripts, traces and pickles as one that was never trained."""
    method = TinyMethod()
    keys = list(method.state_dict())
    tiny_trainer(method, precision="bfloat16", max_epochs=1).run()
    assert list(method.state_dict()) == keys
    network = copy.deepcopy(method.network).eval()
    image = torch.rand(1, 1, 8, 8)
    for exported in (torch.jit.script(network), torch.jit.trace(network, image)):
        torch.testing.assert_close(exported(image), network(image))


@pytest.mark.parametrize("size", [(5, 8, 8), (6, 8, 8)])
def test_a_layer_that_nothing_mends_is_refused(size: tuple[int, ...]) -> None:
    layer = nn.Conv3d(1, 1, 7, stride=2, padding=3)
    with (
        ConvolutionGuard(),
        pytest.raises(UnsafeLayerError, match=r"patch_size that leaves at least 8 voxels on axis 0"),
    ):
        layer(torch.rand(1, 1, *size))
    with ConvolutionGuard(), torch.no_grad():
        layer(torch.rand(1, 1, *size))  # its forward pass is right


@needs_bfloat16
@pytest.mark.parametrize("layer", probe.LAYERS, ids=str)
def test_each_kind_of_layer(layer: probe.Layer) -> None:
    same, cosine = probe.agreement(layer, ConvolutionGuard)
    assert same and cosine > 0.99


@needs_bfloat16
def test_without_the_guard_layers_are_wrong_here() -> None:
    """Else these tests prove nothing on this machine (and torch has been mended: remove the guard)."""
    right: Any = (True, pytest.approx(1.0, abs=0.1))
    assert any(probe.agreement(layer, nullcontext) != right for layer in probe.LAYERS)


@needs_bfloat16
@pytest.mark.parametrize(("name", "patch"), BATCHES)
def test_gradients_of_a_whole_step(name: str, patch: tuple[int, ...] | None) -> None:
    """They do not depend on what memory held, and are those of a backward pass in float32."""
    method, batch = method_and_batch(name, patch)
    loss = loss_of(batch)
    first, second = (gradients_over(method, guarded(loss, ConvolutionGuard()), fill, CPU) for fill in FILLS)
    assert [key for key in first if not torch.equal(first[key], second[key])] == []
    right = gradients_over(method, guarded(loss, ConvolutionGuard(reference=True)), 1.0, CPU)
    weights = {key: value for key, value in first.items() if value.ndim > 2}
    assert weights and min(cosines(weights, right).values()) > 0.95
    assert suspect_gradients(method, loss, CPU) == []


@needs_bfloat16
def test_the_trial_finds_what_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a guard that lets everything pass, the trial of a batch names layers.

    Which shapes are wrong differs between CPUs: this one is with and without AMX.
    """
    method = nn.Sequential(nn.Conv3d(16, 16, 3, padding=1), nn.ReLU(), nn.Conv3d(16, 16, 3, 2, padding=1))
    image = torch.randn(2, 16, 4, 4, 1, generator=torch.Generator().manual_seed(0))

    def loss(double: nn.Module) -> torch.Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return torch.as_tensor(double(image)).float().square().mean()

    assert suspect_gradients(method, loss, CPU) == []
    monkeypatch.setattr(precision, "_is_short", lambda named, transposed: False)
    assert "2.weight" in suspect_gradients(method, loss, CPU)


def test_the_trial_leaves_no_trace() -> None:
    method = TinyMethod()
    image = torch.rand(2, 1, 8, 8)
    batch = {"image": image, "target": image}
    before = snapshot(method)
    states: Any = (random.getstate(), np.random.get_state(), torch.get_rng_state())

    def loss(double: nn.Module) -> torch.Tensor:
        random.random(), np.random.rand(), torch.rand(1)
        return torch.as_tensor(double(batch, Progress(0, 1)).total)

    assert suspect_gradients(method, loss, CPU) == []
    assert_same_to_the_bit(before, snapshot(method))
    assert method.seen == [] and all(parameter.grad is None for parameter in method.parameters())
    now: Any = np.random.get_state()
    assert random.getstate() == states[0] and np.array_equal(now[1], states[1][1])
    assert torch.equal(torch.get_rng_state(), states[2])


@pytest.mark.parametrize(
    ("word", "device", "dtype"),
    [
        ("float32", "cuda", torch.float32),
        ("bfloat16", "cuda", torch.bfloat16),
        ("float16", torch.device("cuda", 0), torch.float16),
        ("bfloat16", "cpu", torch.float32),
        ("float16", "cpu", torch.float32),
    ],
)
def test_an_evaluation_has_the_trainings_number_type_on_cuda(word: str, device: Any, dtype: torch.dtype) -> None:
    assert evaluation_amp(word, device) == {"amp": dtype != torch.float32, "amp_kwargs": {"dtype": dtype}}
    evaluator: Any = Validator(torch.device(device), [], torch.nn.Identity(), SimpleInferer(), 2, precision=word)
    assert (evaluator.amp, evaluator.amp_kwargs["dtype"]) == (dtype != torch.float32, dtype)


@pytest.mark.parametrize(
    "other", [torch.tensor([1.0, float("nan")]), torch.tensor([1.0, 2.1]), torch.tensor([0.0, 0.0])]
)
def test_gradients_that_disagree(other: torch.Tensor) -> None:
    right = torch.tensor([1.0, 2.0])
    assert disagreeing({"a": right, "b": right}, {"a": right.clone(), "b": other}) == ["b"]
    assert disagreeing({"a": torch.tensor([float("inf")])}, {"a": torch.tensor([float("inf")])}) == ["a"]


def test_cosines() -> None:
    found = cosines(
        {"a": torch.tensor([1.0, 0.0]), "b": torch.zeros(2), "c": torch.ones(2)},
        {"a": torch.tensor([1.0, 1.0]), "b": torch.zeros(2), "c": torch.zeros(2)},
    )
    assert found == {"a": pytest.approx(0.5**0.5), "b": 1.0, "c": 0.0}


# in the trainer


@pytest.fixture
def half(monkeypatch: pytest.MonkeyPatch) -> None:
    """``auto`` is bfloat16, whatever this CPU has."""
    monkeypatch.setattr(precision, "cpu_has_bfloat16", lambda: True)


@pytest.mark.parametrize("suspect", [[], ["network.layers.0.weight"]])
def test_auto_is_tried_on_the_first_batch(
    half: None, suspect: list[str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    calls = []

    def tried(*arguments: Any) -> list[str]:
        calls.append(arguments)
        return suspect

    monkeypatch.setattr(trainer, "suspect_gradients", tried)
    run = tiny_trainer(precision="auto")
    with caplog.at_level("INFO"):
        run.run()
    assert len(calls) == 1, "once, not once an epoch"
    expected = torch.float32 if suspect else torch.bfloat16
    assert run.state.output[0]["pred"].dtype is expected
    said = [message for message in caplog.messages if "precision auto" in message]
    assert len(said) == 1 and (not suspect or "network.layers.0.weight" in said[0])


def test_the_trial_changes_no_step(half: None) -> None:
    first, second = TinyMethod(), TinyMethod()
    second.load_state_dict(first.state_dict())
    for method, word in ((first, "auto"), (second, "bfloat16")):
        torch.manual_seed(1)
        tiny_trainer(method, precision=word).run()
    assert_same_to_the_bit(snapshot(first), snapshot(second))


def test_a_word_that_was_given_is_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainer, "suspect_gradients", lambda *arguments: pytest.fail("nobody asked"))
    tiny_trainer(precision="bfloat16", max_epochs=1).run()


def test_the_probe_prints_what_is_reported(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "LAYERS", probe.LAYERS[:1])
    probe.main()
    text = capsys.readouterr().out
    assert "precision auto: " in text and f"torch {torch.__version__}" in text
    assert ("Conv3d kernel 3" in text) == cpu_has_bfloat16()
