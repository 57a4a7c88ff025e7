"""The Mamba block against its formula, its initial values, and its exports."""

from __future__ import annotations

import itertools
import math
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from common.networks.mamba import Mamba, SpatialMamba

SHAPES = {  # of mamba_ssm.Mamba(d_model=24): d_inner 48, rank ceil(24 / 16) = 2
    "A_log": (48, 16),
    "D": (48,),
    "in_proj.weight": (96, 24),
    "conv1d.weight": (48, 1, 4),
    "conv1d.bias": (48,),
    "x_proj.weight": (34, 48),
    "dt_proj.weight": (48, 2),
    "dt_proj.bias": (48,),
    "out_proj.weight": (24, 48),
}


def formula(state: dict[str, torch.Tensor], tokens: torch.Tensor) -> torch.Tensor:
    """Sec. 3.4 of the paper for one sequence (L, d), token by token in float64, from a state dict of ``mamba_ssm``."""
    w = {name: value.double() for name, value in state.items()}
    inner, states = w["A_log"].shape
    rank, taps = w["dt_proj.weight"].shape[1], w["conv1d.weight"].shape[-1]
    projected = tokens.double() @ w["in_proj.weight"].T
    x, z = projected[:, :inner], projected[:, inner:]
    h, rows = torch.zeros(inner, states, dtype=torch.float64), []
    for t in range(len(tokens)):
        v = w["conv1d.bias"].clone()
        for tap in range(taps):
            if t - tap >= 0:
                v += w["conv1d.weight"][:, 0, taps - 1 - tap] * x[t - tap]
        v = v / (1 + torch.exp(-v))
        p = w["x_proj.weight"] @ v
        dt, b, c = p[:rank], p[rank : rank + states], p[rank + states :]
        delta = torch.log(1 + torch.exp(w["dt_proj.weight"] @ dt + w["dt_proj.bias"]))
        h = torch.exp(-delta[:, None] * torch.exp(w["A_log"])) * h + (delta * v)[:, None] * b[None]
        y = h @ c + w["D"] * v
        rows.append(w["out_proj.weight"] @ (y * z[t] / (1 + torch.exp(-z[t]))))
    return torch.stack(rows)


@pytest.mark.parametrize(("d_model", "length"), [(24, 40), (8, 1), (7, 3)])
def test_equals_the_formula(d_model: int, length: int) -> None:
    torch.manual_seed(0)
    block, tokens = Mamba(d_model), torch.randn(2, length, d_model)
    found = block(tokens)
    for sequence, ours in zip(tokens, found, strict=True):
        torch.testing.assert_close(ours.double(), formula(block.state_dict(), sequence), rtol=1e-4, atol=1e-6)


def test_a_foreign_state_dict_loads_and_gives_the_formulas_output() -> None:
    generator = torch.Generator().manual_seed(3)
    state = {name: 0.3 * torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}
    block = Mamba(24)
    block.load_state_dict(state)
    tokens = torch.randn((1, 20, 24), generator=generator)
    expected = formula(state, tokens[0])
    assert float((block(tokens)[0] - expected).detach().norm() / expected.norm()) <= 1e-5


@pytest.mark.gpu
def test_equals_the_package_on_a_gpu() -> None:
    package = pytest.importorskip("mamba_ssm")
    theirs, ours = package.Mamba(d_model=24).cuda(), Mamba(24).cuda()
    ours.load_state_dict(theirs.state_dict())
    tokens = torch.randn(2, 100, 24, device="cuda")
    torch.testing.assert_close(ours(tokens), theirs(tokens), rtol=1e-3, atol=1e-4)


def test_initial_values() -> None:
    torch.manual_seed(0)
    block = Mamba(256)
    torch.testing.assert_close(block.A_log.exp(), torch.arange(1.0, 17).expand(512, 16))
    assert bool((block.D == 1).all())
    steps = torch.nn.functional.softplus(block.dt_proj.bias).detach()
    assert float(steps.min()) >= 0.00099 and float(steps.max()) <= 0.1001
    # log-uniform: the median is the geometric mean of the ends, 0.01
    assert float(steps.median()) == pytest.approx(0.01, rel=0.25)
    weight = block.dt_proj.weight.detach()
    assert float(weight.abs().max()) <= 0.25 and float(weight.std()) == pytest.approx(0.25 / math.sqrt(3), rel=0.05)
    assert [name for name, p in block.named_parameters() if getattr(p, "_no_weight_decay", False)] == ["A_log", "D"]


def test_a_token_sees_only_those_before_it() -> None:
    torch.manual_seed(0)
    block, tokens = Mamba(8), torch.randn(1, 50, 8)
    changed = tokens.clone()
    changed[:, 30] += 1
    difference = (block(changed) - block(tokens)).abs().amax((0, 2))
    assert bool((difference[:30] == 0).all()) and bool((difference[30:] > 0).all())


def test_every_parameter_learns() -> None:
    block = Mamba(8)
    block(torch.randn(2, 20, 8)).square().sum().backward()
    assert all(p.grad is not None and float(p.grad.abs().max()) > 0 for p in block.parameters())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_finite_under_autocast_and_scan_in_float32(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    block, tokens = Mamba(16), 50 * torch.randn(2, 64, 16)
    seen: list[torch.dtype] = []
    from common.ops import selective_scan as module

    original = module._recurrence

    def watched(*inputs: torch.Tensor) -> torch.Tensor:
        seen.extend(x.dtype for x in inputs)
        return original(*inputs)

    monkeypatch.setattr(module, "_recurrence", watched)
    with torch.autocast("cpu", dtype=dtype):
        found = block(tokens).detach()
        block(tokens / 50).square().mean().backward()  # larger gradients are for a GradScaler
    assert set(seen) == {torch.float32} and bool(found.isfinite().all())
    assert float(found.abs().max()) > torch.finfo(torch.float16).max  # half precision would have been too narrow
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in block.parameters())
    expected = block(tokens).detach()
    assert float((found - expected).norm() / expected.norm()) < 0.05


@pytest.mark.parametrize("shape", [(3, 5), (2, 3, 4)])
@pytest.mark.parametrize("residual", [True, False])
def test_over_voxels_in_memory_order(shape: tuple[int, ...], residual: bool) -> None:
    torch.manual_seed(0)
    layer, feature = SpatialMamba(8, residual), torch.randn(2, 8, *shape)
    places = list(itertools.product(*map(range, shape)))
    indices: list[Any] = [(slice(None), slice(None), *place) for place in places]
    tokens = torch.stack([feature[index] for index in indices], 1)
    mixed, found = layer.mamba(layer.norm(tokens)), layer(feature)
    for index, here in enumerate(indices):
        torch.testing.assert_close(found[here], mixed[:, index] + (feature[here] if residual else 0))


@pytest.mark.parametrize("how", ["script", "trace"])
def test_torchscript_serves_any_size(how: str) -> None:
    torch.manual_seed(0)
    layer = SpatialMamba(8).eval()
    image, other = torch.randn(1, 8, 4, 4, 2), torch.randn(2, 8, 3, 6, 5)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        exported = torch.jit.script(layer) if how == "script" else torch.jit.trace(layer, image)
        torch.testing.assert_close(exported(image), layer(image), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(exported(other), layer(other), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("dynamo", [True, False])
def test_onnx_serves_any_size(dynamo: bool, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    torch.manual_seed(0)
    layer = SpatialMamba(8).eval()
    image, other, file = torch.randn(2, 8, 4, 4, 3), torch.randn(3, 8, 3, 6, 5), tmp_path / "layer.onnx"
    axes: dict[str, Any] = {"dynamic_axes": {"x": dict(enumerate(["b", "c", "h", "w", "d"]))}}
    if dynamo:
        auto = torch.export.Dim.AUTO
        axes = {"dynamic_shapes": ({0: auto, 2: auto, 3: auto, 4: auto},)}
    else:
        del axes["dynamic_axes"]["x"][1]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(layer, (image,), file, input_names=["x"], dynamo=dynamo, **axes)
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    for x in (image, other):
        (found,) = session.run(None, {"x": x.numpy()})
        torch.testing.assert_close(torch.from_numpy(found), layer(x).detach(), rtol=1e-3, atol=1e-4)


def test_the_cuda_package_is_not_imported_on_a_cpu() -> None:
    code = (
        "import sys, torch; from common.networks.mamba import Mamba; Mamba(4)(torch.zeros(1, 3, 4));"
        "sys.exit(any(name.split('.')[0] in ('mamba_ssm', 'causal_conv1d', 'triton') for name in sys.modules))"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2], timeout=120)
