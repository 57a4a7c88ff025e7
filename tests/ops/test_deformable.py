from __future__ import annotations

import io
import itertools
import math
from typing import Any

import onnxruntime
import pytest
import torch
from torch.nn import functional

from common.ops import deformable
from common.ops.deformable import DeformableConv, deformable_conv


def naive(
    x: torch.Tensor,
    offset: torch.Tensor,
    weight: torch.Tensor,
    stride: int = 1,
    padding: int = 0,
    dilation: int = 1,
    groups: int = 1,
) -> torch.Tensor:
    """Loops over images, output voxels, taps and corners."""
    dims, size = x.ndim - 2, offset.shape[2:]
    taps = list(itertools.product(*map(range, weight.shape[2:])))
    share = weight.shape[1]
    out = torch.zeros(len(x), len(weight), *size, dtype=x.dtype)
    for b, place in itertools.product(range(len(x)), itertools.product(*map(range, size))):
        for number, tap in enumerate(taps):
            sampled = torch.zeros(x.shape[1], dtype=x.dtype)
            position = []
            for axis in range(dims):
                moved = float(offset[b, number * dims + axis][place])
                position.append(place[axis] * stride - padding + tap[axis] * dilation + moved)
            for corner in itertools.product((0, 1), repeat=dims):
                voxel = [math.floor(p) + c for p, c in zip(position, corner, strict=True)]
                if all(0 <= v < n for v, n in zip(voxel, x.shape[2:], strict=True)):
                    near = math.prod(1 - abs(p - v) for p, v in zip(position, voxel, strict=True))
                    there: Any = (b, slice(None), *voxel)
                    sampled += near * x[there]
            for o in range(len(weight)):
                group = o // (len(weight) // groups)
                taps_weight: Any = (o, slice(None), *tap)
                out[b, o][place] += weight[taps_weight] @ sampled[group * share : (group + 1) * share]
    return out


def case(
    shape: tuple[int, ...], kernel: tuple[int, ...], groups: int, reach: float = 2.5, **geometry: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(len(shape))
    x = torch.randn((2, 4, *shape), generator=generator, dtype=torch.float64)
    weight = torch.randn((6, 4 // groups, *kernel), generator=generator, dtype=torch.float64)
    convolve = functional.conv3d if len(shape) == 3 else functional.conv2d
    size = convolve(x, weight, None, geometry.get("stride", 1), geometry.get("padding", 0), geometry.get("dilation", 1),
                    groups).shape[2:]  # fmt: skip
    offset = torch.rand((2, math.prod(kernel) * len(shape), *size), generator=generator, dtype=torch.float64)
    return x, (2 * offset - 1) * reach, weight


@pytest.mark.parametrize(
    ("shape", "kernel", "groups", "geometry"),
    [
        ((5, 4), (3, 3), 1, {"padding": 1}),
        ((6, 5), (3, 2), 2, {"stride": 2, "padding": 1}),
        ((3, 4, 2), (2, 3, 2), 1, {"padding": 2, "dilation": 2}),
        ((3, 1, 4), (3, 1, 3), 2, {"padding": 1}),
    ],
)
def test_equals_loops(shape: tuple[int, ...], kernel: tuple[int, ...], groups: int, geometry: dict[str, Any]) -> None:
    if 1 in kernel:  # one size of padding for all axes makes the output larger than the image here
        geometry = geometry | {"padding": 0, "stride": 1}
        shape = tuple(size + 2 for size in shape)
    x, offset, weight = case(shape, kernel, groups, **geometry)
    expected = naive(x, offset, weight, groups=groups, **geometry)
    found = deformable_conv(x, offset, weight, groups=groups, **geometry)
    torch.testing.assert_close(found, expected)
    with torch.no_grad():
        torch.testing.assert_close(deformable_conv(x, offset, weight, groups=groups, **geometry), expected)


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize(
    "geometry",
    [
        {},
        {"stride": 2},
        {"dilation": 2, "padding": 2},
        {"groups": 2},
        {"kernel_size": 1, "padding": 0},
        {"bias": False},
    ],
)
def test_is_a_plain_convolution_at_first(dims: int, geometry: dict[str, Any]) -> None:
    torch.manual_seed(0)
    module, x = DeformableConv(dims, 4, 6, **geometry), torch.randn(2, 4, *[7, 6, 5][:dims])
    convolve = functional.conv3d if dims == 3 else functional.conv2d
    settings = (module.stride, module.padding, module.dilation, module.groups)
    torch.testing.assert_close(module(x), convolve(x, module.weight, module.bias, *settings), rtol=1e-5, atol=1e-5)


def test_half_a_voxel_by_hand() -> None:
    """0 1 2 3 read half a voxel to the right, and one and a half below the image's end: nothing."""
    x = torch.arange(4.0).reshape(1, 1, 1, 4)
    right = torch.tensor([0.0, 0.5]).reshape(1, 2, 1, 1).expand(1, 2, 1, 4)
    assert deformable_conv(x, right, torch.ones(1, 1, 1, 1)).flatten().tolist() == [0.5, 1.5, 2.5, 1.5]
    assert deformable_conv(x, right + 1.5, torch.ones(1, 1, 1, 1)).flatten().tolist() == [0.0] * 4


@pytest.mark.parametrize(("shape", "kernel"), [((3, 3), (2, 2)), ((2, 2, 2), (2, 1, 2))])
def test_gradients_are_those_of_finite_differences(shape: tuple[int, ...], kernel: tuple[int, ...]) -> None:
    x, offset, weight = case(shape, kernel, 2, reach=0.9)
    inputs = [tensor[:1].contiguous().requires_grad_() for tensor in (x, offset)] + [weight.requires_grad_()]
    assert torch.autograd.gradcheck(lambda a, b, c: deformable_conv(a, b, c, groups=2), inputs)


def test_blocks_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    x, offset, weight = (tensor.requires_grad_() for tensor in case((3, 4, 2), (2, 3, 2), 2, padding=1))
    found = []
    for block in (1, 200, 2**20):  # a voxel at a time, some, everything
        monkeypatch.setattr(deformable, "_CPU_BLOCK", block)
        out = deformable_conv(x, offset, weight, padding=1, groups=2)
        found.append((out, *torch.autograd.grad(out.square().sum(), (x, offset, weight))))
    torch.testing.assert_close(found[0], found[2])
    torch.testing.assert_close(found[1], found[2])


def test_the_gradient_of_a_gpu_is_that_of_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sums sorted by voxel, as they are formed there, against one pass over the shares."""
    x, offset, weight = (tensor.requires_grad_() for tensor in case((3, 4, 2), (2, 3, 2), 2, padding=1))

    def gradients() -> tuple[torch.Tensor, ...]:
        return torch.autograd.grad(deformable_conv(x, offset, weight, padding=1, groups=2).square().sum(), (x, offset))

    expected = gradients()
    monkeypatch.setattr(deformable, "_sum_samples", deformable._sum_sorted)
    torch.testing.assert_close(gradients(), expected)


def test_offsets_learn() -> None:
    module = DeformableConv(3, 2, 2)
    module(torch.randn(1, 2, 4, 4, 4)).square().sum().backward()
    assert module.offset.weight.grad is not None and float(module.offset.weight.grad.abs().sum()) > 0


@pytest.mark.parametrize("dims", [2, 3])
def test_torchscript_and_onnx_give_the_same(dims: int) -> None:
    torch.manual_seed(0)
    module, x = DeformableConv(dims, 2, 4, groups=2).eval(), torch.randn(1, 2, *[6, 5, 4][:dims])
    torch.nn.init.normal_(module.offset.weight, std=0.2)
    with torch.no_grad():
        expected = module(x)
    for scripted in (torch.jit.script(module), torch.jit.trace(module, x)):
        stored = io.BytesIO()
        torch.jit.save(scripted, stored)
        stored.seek(0)
        torch.testing.assert_close(torch.jit.load(stored)(x), expected)
    exported = torch.onnx.export(module, (x,), dynamo=True)
    assert exported is not None
    session = onnxruntime.InferenceSession(exported.model_proto.SerializeToString())
    (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    torch.testing.assert_close(torch.from_numpy(found), expected, rtol=1e-4, atol=1e-5)


def test_autocast_gives_float32() -> None:
    torch.manual_seed(0)
    x, offset, weight = (tensor.float() for tensor in case((4, 4), (3, 3), 1, padding=1))
    expected = deformable_conv(x, offset, weight, padding=1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = deformable_conv(x, offset, weight.requires_grad_(), padding=1)
    assert found.dtype is torch.float32
    torch.testing.assert_close(found, expected)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="3 groups"):
        DeformableConv(2, 4, 6, groups=3)
    with pytest.raises(ValueError, match=r"offset must be \[1, 18, 4, 4\]"):
        deformable_conv(torch.zeros(1, 1, 4, 4), torch.zeros(1, 9, 4, 4), torch.zeros(1, 1, 3, 3), padding=1)
