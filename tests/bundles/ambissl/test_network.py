"""The network that ships: size, shapes, samples, mean answer, export."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.networks.nets import FlexibleUNet

from bundles.ambissl.scripts.latents import laplace_noise
from bundles.ambissl.scripts.method import AmbiSSL
from bundles.ambissl.scripts.network import LatentEncoder, PaddedShortcut, ProbabilisticUNet, with_backbone

from .small import small_network


def test_the_whole_model_has_the_papers_size() -> None:
    """31.60 million; four raters, one image channel."""
    method = AmbiSSL(ProbabilisticUNet(out_channels=2), raters=4, posterior="stacked")
    size = sum(parameter.numel() for parameter in method.parameters())
    assert size == pytest.approx(31.60e6, rel=0.01)


@pytest.mark.parametrize(("dims", "shape"), [(2, (33, 50)), (2, (64, 96)), (3, (20, 33, 40))])
@pytest.mark.parametrize("classes", [2, 4])
def test_any_size_and_number_of_classes(dims: int, shape: tuple[int, ...], classes: int) -> None:
    network = small_network(classes, dims).eval()
    image = torch.rand(2, 1, *shape)
    mean = network(image)
    assert mean.shape == network(image, torch.zeros(2, 4)).shape == (2, classes, *shape)
    torch.testing.assert_close(mean.exp().sum(1), torch.ones(2, *shape))
    assert network.samples(image, torch.zeros(2, 3, 4)).shape == (2, 3, classes, *shape)


def test_samples_equal_passes_one_by_one_and_run_the_backbone_once() -> None:
    network, image, latent = small_network().eval(), torch.rand(2, 1, 40, 32), torch.randn(2, 5, 4)
    passes: list[Any] = []
    network.encoder.register_forward_hook(lambda *_: passes.append(1))
    together = network.samples(image, latent)
    assert len(passes) == 1
    for number in range(5):
        torch.testing.assert_close(together[:, number], network(image, latent[:, number]), rtol=1e-4, atol=1e-5)


def test_mean_answer_is_the_mean_over_fixed_codes() -> None:
    network, image = small_network(mean_samples=7).eval(), torch.rand(1, 1, 32, 32)
    noise = network.mean_noise
    assert noise.shape == (7, 4) and bool((noise[0] == 0).all())
    torch.testing.assert_close(noise.mean(0), torch.zeros(4), atol=1e-6, rtol=0)
    expected = torch.stack([network(image, code[None]).softmax(1) for code in noise]).mean(0)
    torch.testing.assert_close(network(image).softmax(1), expected, rtol=1e-4, atol=1e-6)
    assert torch.equal(network(image), network(image))
    alone = small_network(mean_samples=0).eval()
    torch.testing.assert_close(alone(image), alone(image, torch.zeros(1, 4)).log_softmax(1))
    assert not [name for name in network.state_dict() if "noise" in name]


def test_more_codes_come_closer_to_the_mean_of_the_prior() -> None:
    image = torch.rand(1, 1, 32, 32)
    torch.manual_seed(3)
    network = small_network().eval()
    with torch.no_grad():
        network.prior.output.bias[4:] = 0.5  # a wide prior
        truth = network.samples(image, torch.randn(1, 1500, 4)).softmax(2).mean(1)
        errors = []
        for count in (0, 3, 31):
            other = small_network(mean_samples=count).eval()
            other.load_state_dict(network.state_dict())
            errors.append(float((other(image).exp() - truth).abs().mean()))
    assert errors[0] > errors[1] > errors[2]


def test_laplace_codes_at_inference() -> None:
    normal, laplace = small_network(), small_network(family="laplace")
    laplace.load_state_dict(normal.state_dict())
    image, latent = torch.rand(1, 1, 32, 32), torch.randn(1, 4)
    torch.testing.assert_close(laplace.eval()(image, latent), normal.eval()(image, laplace_noise(latent)))


@pytest.mark.parametrize("backbone", ["resnet10", "resnet18"])
@pytest.mark.parametrize("export", ["script", "trace"])
def test_torchscript_parity(backbone: str, export: str) -> None:
    network = small_network(backbone=backbone).eval()
    image, latent = torch.rand(2, 1, 40, 32), torch.randn(2, 4)
    for arguments in ((image,), (image, latent)):
        exported = torch.jit.script(network) if export == "script" else torch.jit.trace(network, arguments)
        torch.testing.assert_close(exported(*arguments), network(*arguments), rtol=1e-4, atol=1e-5)


def test_the_shortcut_passes_a_gradient_and_equals_monais() -> None:
    """MONAI's type A shortcut, of resnet18 and resnet34, is computed on detached values."""
    torch.manual_seed(0)
    reference = FlexibleUNet(1, 2, "resnet18").encoder.eval()
    network = small_network(backbone="resnet18").eval()
    network.encoder.load_state_dict(reference.state_dict())
    image = torch.rand(1, 1, 64, 64)
    for ours, theirs in zip(network.encoder(image), reference(image), strict=True):
        torch.testing.assert_close(ours, theirs)
    assert len([module for module in network.modules() if isinstance(module, PaddedShortcut)]) == 3
    features = torch.rand(1, 3, 4, 4, requires_grad=True)
    found = PaddedShortcut(2, 5, 2)(features)
    assert torch.equal(found[:, :3], features[:, :, ::2, ::2]) and bool((found[:, 3:] == 0).all())
    found.sum().backward()
    assert features.grad is not None and float(features.grad.sum()) == 12.0


def test_latent_encoder_is_bounded_and_float32() -> None:
    encoder = LatentEncoder(2, 2, (4, 8), 3)
    with torch.no_grad():
        encoder.output.bias[3:] = 1e4
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mean, log_scale = encoder(torch.rand(2, 2, 17, 9))
    assert mean.dtype is log_scale.dtype is torch.float32 and log_scale.max().item() == 10.0


def test_backbone_weights_from_a_file(tmp_path: Path) -> None:
    source, target = small_network(), small_network()
    torch.save(source.encoder.state_dict(), tmp_path / "encoder.pt")
    with_backbone(target, tmp_path / "encoder.pt", torch.device("cpu"))
    torch.testing.assert_close(target.encoder.state_dict(), source.encoder.state_dict())
    with pytest.raises(FileNotFoundError, match="nothing.pt"):
        with_backbone(target, tmp_path / "nothing.pt", torch.device("cpu"))
    torch.save({"weight": torch.zeros(1)}, tmp_path / "other.pt")
    with pytest.raises(ValueError, match="another network"):
        with_backbone(target, tmp_path / "other.pt", torch.device("cpu"))


def test_a_state_dict_goes_through_a_file() -> None:
    network, again = small_network().eval(), small_network().eval()
    buffer = io.BytesIO()
    torch.save(network.state_dict(), buffer)
    buffer.seek(0)
    again.load_state_dict(torch.load(buffer, weights_only=True))
    image = torch.rand(1, 1, 32, 32)
    assert torch.equal(network(image), again(image))


@pytest.mark.parametrize(
    "settings", [{"latent_size": 0}, {"mean_samples": -1}, {"family": "cauchy"}, {"classes": 1}], ids=str
)
def test_wrong_settings_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="must be|counts the background"):
        small_network(**settings)
