"""U-Mamba and AffinityUMamba: their sizes, what steers what, and their exports."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from bundles.affinity_umamba.scripts.blocks import Upsample
from bundles.affinity_umamba.scripts.network import AffinityUMamba, UMamba
from common.networks.mamba import SpatialMamba
from common.ops.bilateral import bilateral_enhancement
from common.ops.gate import affinity_gate

# nnU-Net's plan for ACDC, with the three foreground classes and the background
ACDC: dict[str, Any] = {
    "out_channels": 4,
    "filters": (32, 64, 128, 256, 320, 320),
    "strides": (1, (1, 2, 2), 2, 2, (1, 2, 2), (1, 2, 2)),
    "kernels": ((1, 3, 3), 3, 3, 3, 3, 3),
}
SMALL: dict[str, Any] = {"out_channels": 3, "filters": (4, 6, 8)}
# published U-Mamba has a head for each of the 4 levels below full resolution, with 4 classes: deep supervision
HEADS = sum(4 * channels + 4 for channels in (64, 128, 256, 320))


def parameters(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


def small(**changes: Any) -> AffinityUMamba:
    torch.manual_seed(0)
    return AffinityUMamba(**{**SMALL, **changes})


def image(dims: int = 3, channels: int = 1, side: int = 8, batch: int = 1) -> torch.Tensor:
    return torch.rand(batch, channels, *[side] * dims, generator=torch.Generator().manual_seed(1))


def assert_same(found: torch.Tensor, expected: torch.Tensor) -> None:
    """To a ten-thousandth of the largest logit."""
    torch.testing.assert_close(found, expected, rtol=0.0, atol=1e-4 * float(expected.abs().max()))


def mamba_parameters(d: int) -> int:
    """LayerNorm and block by hand, from the table of shapes."""
    inner, rank = 2 * d, -(-d // 16)
    block = 2 * inner * d + 5 * inner + (rank + 32) * inner + rank * inner + inner + 16 * inner + inner + inner * d
    return 2 * d + block


@pytest.mark.parametrize(
    ("stages", "expected"),
    [
        ((), 41_261_268 - HEADS),  # nnU-Net's residual U-Net
        (None, 41_937_108 - HEADS),  # U-Mamba_Bot
        (range(6), 41_261_268 - HEADS + sum(map(mamba_parameters, (32, 64, 128, 256, 320, 320)))),
    ],
)
def test_parameters_of_u_mamba_for_acdc(stages: Any, expected: int) -> None:
    with torch.device("meta"):
        assert parameters(UMamba(mamba_stages=stages, **ACDC)) == expected


def test_parameters_of_affinity_u_mamba_for_acdc() -> None:
    with torch.device("meta"):
        assert parameters(AffinityUMamba(**ACDC)) == 68_397_544 - 2 * HEADS


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("channels", [1, 3])
def test_shapes(dims: int, channels: int) -> None:
    x = image(dims, channels, side=16, batch=2)
    network = small(spatial_dims=dims, in_channels=channels, dropout=0.2)
    cnn, am = network.branches(x)
    assert cnn.shape == am.shape == network(x).shape == (2, 3, *[16] * dims)
    plain = UMamba(dims, channels, **SMALL)
    assert plain(x).shape == (2, 3, *[16] * dims)


def test_forward_is_the_am_branch() -> None:
    network, x = small().eval(), image()
    assert torch.equal(network(x), network.branches(x).am)
    without = small(iae=False).eval()
    assert torch.equal(without(x), without.branches(x).am)


def test_anisotropic_strides_and_kernels() -> None:
    network = small(strides=(1, (2, 2, 1), 2), kernels=((3, 3, 1), 3, 3))
    assert network(torch.rand(1, 1, 8, 12, 6)).shape == (1, 3, 8, 12, 6)
    with pytest.raises(ValueError, match=r"multiples of \[4, 4, 2\], got \[8, 12, 5\]"):
        network(torch.rand(1, 1, 8, 12, 5))


@pytest.mark.parametrize(("normalise", "average"), [(True, False), (False, False), (True, True)])
def test_iae_is_steered_by_the_cnn_decoder_at_each_level(normalise: bool, average: bool) -> None:
    """The AM decoder's levels one by one: Mamba after the blocks, then the gate with the CNN decoder's feature."""
    network, x = small(iae_normalise=normalise, iae_average=average).eval(), image()
    features = network.encoder(x)
    guides = network.cnn(features)
    feature = features[-1]
    for level, guide in enumerate(guides):
        joined = torch.cat([network.am.up[level](feature), features[-2 - level]], 1)
        feature = affinity_gate(network.am.mamba[level](network.am.blocks[level](joined)), guide, normalise=normalise)
        feature = feature / 2 if average else feature
    torch.testing.assert_close(network.am.classes(feature), network(x))
    off = small(iae=False).eval()
    off.load_state_dict(network.state_dict())
    assert not torch.allclose(off(x), network(x))


def test_pne_acts_on_the_cnn_logits_alone() -> None:
    network, x = small(pne_average=True, pne_sigma=0.2).eval(), image()
    off = small(pne=False).eval()
    off.load_state_dict(network.state_dict())
    raw = off.branches(x)
    torch.testing.assert_close(raw.cnn, off.cnn.classes(off.cnn(off.encoder(x))[-1]))
    enhanced = network.branches(x)
    torch.testing.assert_close(enhanced.cnn, bilateral_enhancement(raw.cnn, x, sigma=0.2, average=True))
    assert torch.equal(enhanced.am, raw.am) and not torch.allclose(enhanced.cnn, raw.cnn)


@pytest.mark.parametrize(
    ("branch", "silent"),
    [("cnn", "am."), ("am", "cnn.")],  # Eq. 1 compares the CNN decoder's feature: an indicator has no gradient
)
def test_what_learns_from_each_branch(branch: str, silent: str) -> None:
    network = small()
    getattr(network.branches(image()), branch).square().mean().backward()
    for name, parameter in network.named_parameters():
        reached = parameter.grad is not None and bool(parameter.grad.abs().max() > 0)
        # an instance norm takes away the bias of the convolution before it
        assert reached != name.startswith(silent) or ".body." in name and name.endswith("bias"), name


@pytest.mark.parametrize(("levels", "filters"), [(None, [6, 4]), ((), []), ((1,), [6]), ((0, 2), [8, 4]), ([2], [8])])
def test_mamba_stands_in_the_am_decoder_where_asked(levels: Any, filters: list[int]) -> None:
    network = small(mamba_levels=levels, mamba_residual=False)
    found = [module for module in network.modules() if isinstance(module, SpatialMamba)]
    assert [module.norm.normalized_shape[0] for module in found] == filters
    assert not any(module.residual for module in found)
    assert found == [module for module in network.am.modules() if isinstance(module, SpatialMamba)]
    network(image())


def test_mamba_stands_behind_the_stages_where_asked() -> None:
    network = UMamba(mamba_stages=[0, 2], **SMALL)
    assert [isinstance(layer, SpatialMamba) for layer in network.encoder.mamba] == [True, False, True]
    assert [isinstance(layer, SpatialMamba) for layer in UMamba(**SMALL).encoder.mamba] == [False, False, True]


def test_upsampling_before_the_convolution_is_the_same() -> None:
    torch.manual_seed(0)
    layer, x = Upsample(3, 4, 2, (1, 2, 2)), torch.randn(1, 4, 3, 4, 5)
    repeated = x.repeat_interleave(2, 3).repeat_interleave(2, 4)
    torch.testing.assert_close(layer(x), layer.convolution(repeated))


def test_initial_weights() -> None:
    network = small(filters=(32, 64))
    for module in network.modules():
        if isinstance(module, nn.Conv3d):
            fan_in = module.weight[0].numel()
            assert float(module.weight.detach().std()) == pytest.approx((2 / fan_in / 1.0001) ** 0.5, rel=0.25)
            assert module.bias is not None and not bool(module.bias.any())
    mamba = next(module for module in network.modules() if isinstance(module, SpatialMamba)).mamba
    torch.testing.assert_close(mamba.A_log.exp()[0], torch.arange(1.0, 17))


def test_dropout_works_in_training_only() -> None:
    network, x = small(dropout=0.5, mamba_levels=()), image()
    assert not torch.equal(network(x), network(x))
    network.eval()
    assert torch.equal(network(x), network(x))
    assert torch.equal(small(mamba_levels=())(x), small(mamba_levels=())(x))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_finite_under_autocast(dtype: torch.dtype) -> None:
    network, x = small(), image()
    with torch.autocast("cpu", dtype=dtype):
        cnn, am = network.branches(x)
    (cnn.float().square().mean() + am.float().square().mean()).backward()
    assert all(p.grad is None or bool(p.grad.isfinite().all()) for p in network.parameters())
    exact = network.branches(x)
    for half, full in zip((cnn, am), exact, strict=True):
        assert float((half.float() - full).norm().detach() / full.norm().detach()) < 0.05


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"spatial_dims": 4}, "spatial_dims must be 2 or 3"),
        ({"filters": (4,)}, "filters must be 2 or more"),
        ({"strides": (1, 2)}, "strides must hold 3 entries"),
        ({"strides": (2, 2, 2)}, "strides must begin with 1"),
        ({"strides": (1, (2, 2), 2)}, "strides .* a positive number or 3 of them"),
        ({"kernels": (3, 3, 2)}, "kernels must be odd"),
        ({"mamba_levels": (3,)}, "mamba_levels must be 0 to 2"),
        ({"iae": "perhaps"}, "iae must be true or false"),
    ],
)
def test_impossible_settings_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small(**arguments)


def test_sizes_that_do_not_fit_are_refused() -> None:
    for network in (small(), UMamba(**SMALL)):
        with pytest.raises(ValueError, match=r"multiples of \[4, 4, 4\], got \[8, 8, 10\]"):
            network(torch.rand(1, 1, 8, 8, 10))
        with pytest.raises(ValueError, match="single voxel"):
            network(torch.rand(1, 1, 4, 4, 4))
        with pytest.raises(ValueError, match="mamba_stages must be 0 to 2"):
            UMamba(mamba_stages=[-1], **SMALL)


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("kind", [AffinityUMamba, UMamba])
@pytest.mark.parametrize("how", ["script", "trace"])
def test_torchscript_serves_any_size(how: str, kind: type[nn.Module], dims: int) -> None:
    torch.manual_seed(0)
    network = kind(spatial_dims=dims, **SMALL).eval()
    x, other = image(dims), torch.rand(2, 1, *(12, 8, 16)[:dims])
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        exported = torch.jit.script(network) if how == "script" else torch.jit.trace(network, x)
        assert_same(exported(x), network(x))
        assert_same(exported(other), network(other))


def test_rounding_is_no_other_answer() -> None:
    """IAE's indicator, as printed, jumps where a feature lies within rounding of its window's mean."""
    torch.manual_seed(0)
    network, x = AffinityUMamba(spatial_dims=3, **SMALL).eval(), image(side=24)
    with torch.no_grad():
        single = network(x)
        assert_same(single.double(), network.double()(x.double()))


@pytest.mark.slow
@pytest.mark.parametrize("kind", [AffinityUMamba, UMamba])
def test_onnx_serves_any_size(kind: type[nn.Module], tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    torch.manual_seed(0)
    network, file = kind(spatial_dims=2, **SMALL).eval(), tmp_path / "network.onnx"
    x, other = image(2, batch=2), torch.rand(3, 1, 12, 16)
    auto = torch.export.Dim.AUTO
    sizes = ({0: auto, 2: auto, 3: auto},)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(network, (x,), file, input_names=["x"], dynamo=True, dynamic_shapes=sizes)
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    for given in (x, other):
        (found,) = session.run(None, {"x": given.numpy()})
        assert_same(torch.from_numpy(found), network(given).detach())
