"""The selective scan against its recurrence, written as a loop in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from common.ops import selective_scan as module
from common.ops.selective_scan import selective_scan

Inputs = dict[str, Any]  # tensors by the names of the arguments


def naive(
    u: torch.Tensor,
    delta: torch.Tensor,
    A: torch.Tensor,
    B: torch.Tensor,
    C: torch.Tensor,
    D: torch.Tensor | None = None,
    z: torch.Tensor | None = None,
    delta_bias: torch.Tensor | None = None,
    delta_softplus: bool = False,
) -> torch.Tensor:
    """Step by step; a group's B and C repeated for each of its channels."""
    if delta_bias is not None:
        delta = delta + delta_bias[None, :, None]
    if delta_softplus:
        delta = torch.log1p(torch.exp(delta))
    per_channel = []
    for x in (B, C):
        x = x[:, None] if x.ndim == 3 else x
        per_channel.append(torch.repeat_interleave(x, u.shape[1] // x.shape[1], dim=1).unbind(-1))
    state, outputs = torch.zeros(len(u), *A.shape, dtype=u.dtype), []
    for x, step, b, c in zip(u.unbind(-1), delta.unbind(-1), *per_channel, strict=True):
        state = torch.exp(step[..., None] * A) * state + step[..., None] * b * x[..., None]
        outputs.append((c * state).sum(-1))
    y = torch.stack(outputs, -1)
    if D is not None:
        y = y + D[None, :, None] * u
    return y if z is None else y * z * torch.sigmoid(z)


def case(
    length: int,
    batch: int = 2,
    channels: int = 6,
    states: int = 3,
    groups: int = 0,
    steps: tuple[float, float] = (0.01, 0.2),
) -> Inputs:
    """Float64 inputs; steps: range of delta."""
    generator = torch.Generator().manual_seed(length + channels)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    kind = (batch, groups, states, length) if groups else (batch, states, length)
    rates = torch.rand((channels, states), generator=generator, dtype=torch.float64)
    delta = torch.rand((batch, channels, length), generator=generator, dtype=torch.float64)
    return {
        "u": normal(batch, channels, length),
        "delta": steps[0] + (steps[1] - steps[0]) * delta,
        "A": -0.5 - 15 * rates,
        "B": normal(*kind),
        "C": normal(*kind),
    }


def extras(inputs: Inputs) -> Inputs:
    channels = inputs["u"].shape[1]
    generator = torch.Generator().manual_seed(1)
    direct, bias = torch.randn((2, channels), generator=generator, dtype=torch.float64)
    return {**inputs, "D": direct, "z": inputs["u"].flip(-1) + 0.3, "delta_bias": bias}


def value_and_gradients(function: Any, inputs: Inputs, **settings: Any) -> list[torch.Tensor]:
    leaves = {name: x.clone().requires_grad_() for name, x in inputs.items()}
    y = function(**leaves, **settings)
    weights = torch.cos(torch.arange(y.numel(), dtype=torch.float64)).reshape(y.shape).to(y.dtype)
    return [y.detach(), *torch.autograd.grad((y * weights).sum(), list(leaves.values()))]


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found.double() - expected).norm() / expected.norm())


def single(inputs: Inputs) -> Inputs:
    return {name: x.float() for name, x in inputs.items()}


def assert_as_exact_as_asked(inputs: Inputs, **settings: Any) -> None:
    found, expected = (
        value_and_gradients(f, x, **settings) for f, x in ((selective_scan, single(inputs)), (naive, inputs))
    )
    assert relative(found[0], expected[0]) <= 1e-5
    for name, ours, exact in zip(inputs, found[1:], expected[1:], strict=True):
        assert relative(ours, exact) <= 1e-4, name


@pytest.mark.parametrize("length", [1, 2, 31, 32, 33, 64, 97, 256])
def test_equals_the_recurrence_at_any_length(length: int) -> None:
    inputs = extras(case(length))
    for found, expected in zip(
        value_and_gradients(selective_scan, inputs, delta_softplus=True),
        value_and_gradients(naive, inputs, delta_softplus=True),
        strict=True,
    ):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("groups", [1, 2, 3])
def test_groups_share_b_and_c(groups: int) -> None:
    inputs = extras(case(40, groups=groups))
    for found, expected in zip(*(value_and_gradients(f, inputs) for f in (selective_scan, naive)), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize(("batch", "channels", "states"), [(3, 600, 16), (5, 9, 100), (1, 1, 1), (7, 100, 3)])
def test_blocks_of_channels_and_images_join(batch: int, channels: int, states: int) -> None:
    inputs = case(37, batch, channels, states)
    for found, expected in zip(*(value_and_gradients(f, inputs) for f in (selective_scan, naive)), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("length", "steps"),
    [
        (1024, (1.0, 5.0)),  # sums of delta A far beyond float32's exponents, in a chunk already
        (1024, (50.0, 100.0)),
        (2048, (1e-6, 1e-5)),
        (2048, (1e-6, 5.0)),
        (8192, (0.001, 0.1)),
    ],
)
def test_float32_is_exact_for_large_and_small_steps(length: int, steps: tuple[float, float]) -> None:
    assert_as_exact_as_asked(case(length, 1, 8, 16, steps=steps))


@pytest.mark.slow
@pytest.mark.parametrize("steps", [(0.001, 0.1), (1e-5, 2e-5), (1e-5, 5.0)])
def test_float32_is_exact_over_a_whole_volume(steps: tuple[float, float]) -> None:
    assert_as_exact_as_asked(case(32768, 1, 8, 16, steps=steps))


def test_impulse_response_by_hand() -> None:
    """One impulse of 2 at t = 1: y = C B delta u exp(delta A)^(t - 1), and twice the input through D."""
    u = torch.tensor([[[0.0, 2.0, 0.0, 0.0]]])
    ones = torch.ones(1, 1, 4)
    y = selective_scan(u, 0.5 * ones, torch.tensor([[-2.0]]), 3 * ones, 5 * ones, torch.tensor([2.0]))
    first = 5 * 3 * 0.5 * 2.0
    expected = torch.tensor([[[0.0, first + 4, first * 0.36787944, first * 0.36787944**2]]])
    torch.testing.assert_close(y, expected)


@pytest.mark.parametrize("length", [5, 70])
def test_gradcheck(length: int) -> None:
    inputs = case(length, 2, 3, 2)
    assert torch.autograd.gradcheck(selective_scan, tuple(x.requires_grad_() for x in inputs.values()))


def test_only_wanted_gradients() -> None:
    inputs = case(40)
    every = value_and_gradients(naive, inputs)
    for place, name in enumerate(inputs, start=1):
        wanted = {**inputs, name: inputs[name].clone().requires_grad_()}
        y = selective_scan(**wanted)
        weights = torch.cos(torch.arange(y.numel(), dtype=torch.float64)).reshape(y.shape)
        (found,) = torch.autograd.grad((y * weights).sum(), wanted[name])
        torch.testing.assert_close(found, every[place], rtol=1e-9, atol=1e-10)


def test_no_second_derivatives() -> None:
    inputs = case(5)
    y = selective_scan(**{**inputs, "B": inputs["B"].requires_grad_()})
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(y.sum(), inputs["B"], create_graph=True)


@pytest.mark.parametrize("layout", ["channels last", "expanded"])
def test_any_layout_of_the_inputs(layout: str) -> None:
    inputs = case(45)
    expected = value_and_gradients(naive, inputs)
    if layout == "expanded":
        inputs["u"] = inputs["u"][:, :1].expand(-1, 6, -1)
        expected = value_and_gradients(naive, inputs)
        found = selective_scan(**inputs)
    else:
        inputs = {name: x.transpose(-1, -2).contiguous().transpose(-1, -2) for name, x in inputs.items()}
        found = selective_scan(**inputs)
    torch.testing.assert_close(found, expected[0], rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_float32_inside_under_autocast_and_for_half_inputs(dtype: torch.dtype) -> None:
    inputs = single(case(200, steps=(0.001, 4.0)))
    with torch.autocast("cpu", dtype=dtype):
        found = value_and_gradients(selective_scan, inputs)
    assert all(torch.equal(a, b) for a, b in zip(found, value_and_gradients(selective_scan, inputs), strict=True))
    halves = {name: x.to(dtype) for name, x in inputs.items()}
    half = value_and_gradients(selective_scan, halves)
    assert half[0].dtype is dtype and all(bool(x.isfinite().all()) for x in half)
    exact = selective_scan(**single(halves))
    torch.testing.assert_close(half[0], exact.to(dtype))


def test_number_of_threads_is_put_back() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        value_and_gradients(selective_scan, case(33))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_traced_loop_serves_any_size() -> None:
    inputs = single(extras(case(7)))
    order = tuple(inputs.values())

    def scan(*tensors: torch.Tensor) -> torch.Tensor:
        named: dict[str, Any] = dict(zip(inputs, tensors, strict=True))
        return selective_scan(**named, delta_softplus=True)

    traced = torch.jit.trace(scan, order)
    other = single(extras(case(50, batch=3)))
    expected = selective_scan(**other, delta_softplus=True)
    torch.testing.assert_close(traced(*other.values()), expected, rtol=1e-4, atol=1e-5)


def test_scripted_function_is_the_same() -> None:
    inputs = single(extras(case(40, groups=2)))
    scripted, expected = torch.jit.script(selective_scan), selective_scan(**inputs, delta_softplus=True)
    torch.testing.assert_close(scripted(**inputs, delta_softplus=True), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"u": torch.zeros(2, 6)}, "u must be"),
        ({"u": torch.zeros(2, 6, 0), "delta": torch.zeros(2, 6, 0)}, "L at least 1"),
        ({"delta": torch.zeros(2, 6, 4)}, "delta .* shape of u"),
        ({"A": torch.zeros(5, 3)}, "A must be"),
        ({"A": torch.zeros(6, 3, dtype=torch.complex64)}, "complex"),
        ({"B": torch.zeros(6, 3)}, "do not depend on the input"),
        ({"B": torch.zeros(2, 4, 5), "C": torch.zeros(2, 4, 5)}, "does not fit"),
        ({"B": torch.zeros(2, 4, 3, 5), "C": torch.zeros(2, 4, 3, 5)}, "among 4 groups"),
        ({"D": torch.zeros(5)}, "D must be"),
        ({"z": torch.zeros(2, 6, 1)}, "z .* shape of u"),
        ({"delta_bias": torch.zeros(6, 1)}, "delta_bias must be"),
    ],
)
def test_what_does_not_fit_is_refused(change: Inputs, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        selective_scan(**{**single(case(5)), **change})


@pytest.mark.gpu
def test_same_on_a_gpu_with_and_without_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = extras(case(300, 2, 64, 16))
    expected = value_and_gradients(naive, inputs, delta_softplus=True)
    on_gpu = {name: x.float().cuda() for name, x in inputs.items()}
    routes = [None] if module._cuda_kernel() is None else [None, module._cuda_kernel()]
    for kernel in routes:
        monkeypatch.setattr(module, "_cuda_kernel", lambda kernel=kernel: kernel)
        leaves = {name: x.clone().requires_grad_() for name, x in on_gpu.items()}
        y = selective_scan(**leaves, delta_softplus=True)
        weights = torch.cos(torch.arange(y.numel(), dtype=torch.float64)).reshape(y.shape).float().cuda()
        found = [y.detach(), *torch.autograd.grad((y * weights).sum(), list(leaves.values()))]
        assert all(relative(a.cpu(), b) <= 1e-4 for a, b in zip(found, expected, strict=True))
