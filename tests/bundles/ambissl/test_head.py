"""The head: the paper's formula, its streaming form and that form's gradients."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from bundles.ambissl.scripts import head as module
from bundles.ambissl.scripts.head import Head


def _concatenated(head: Head, features: torch.Tensor, latent: torch.Tensor) -> torch.Tensor:
    """F^seg of the paper for one image: each latent code repeated over all pixels, behind the features."""
    first = torch.cat((head.features.weight.flatten(1), head.latent.weight), 1)
    answers = []
    for code in latent:
        repeated = code.reshape(-1, *[1] * (features.ndim - 1)).expand(-1, *features.shape[1:])
        hidden = torch.cat((features, repeated)).flatten(1)
        hidden = (first @ hidden + head.features.bias[:, None]).relu()
        for layer in head.hidden:
            assert isinstance(layer, nn.Conv2d | nn.Conv3d) and layer.bias is not None
            hidden = (layer.weight.flatten(1) @ hidden + layer.bias[:, None]).relu()
        answers.append(head.output.weight.flatten(1) @ hidden + head.output.bias[:, None])
    return torch.stack(answers).unflatten(2, features.shape[1:])


@pytest.mark.parametrize("threads", [1, 4])
@pytest.mark.parametrize(("dims", "shape"), [(2, (70, 61)), (3, (17, 16, 19))])
def test_values_and_gradients_are_those_of_the_concatenation(
    dims: int, shape: tuple[int, ...], threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More than one block, the last one not full; images on one thread and on two."""
    monkeypatch.setattr(module, "_BLOCK", 512)
    head = Head(dims, 5, 3, 7, 4).double()
    features = torch.randn(2, 5, *shape, dtype=torch.float64, requires_grad=True)
    latent = torch.randn(2, 6, 3, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(2, 6, 4, *shape, dtype=torch.float64)
    wanted = [features, latent, *head.parameters()]
    expected = torch.stack([_concatenated(head, *pair) for pair in zip(features, latent, strict=True)])
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        found = head(features, latent)
        gradients = torch.autograd.grad((found * weights).sum(), wanted)
    finally:
        torch.set_num_threads(before)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(gradients, torch.autograd.grad((expected * weights).sum(), wanted))


@pytest.mark.parametrize(("dims", "shape"), [(2, (70, 61)), (3, (17, 16, 19))])
def test_streaming_and_convolutions_are_equal(
    dims: int, shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a gradient and without: more than one block, the last one not full."""
    head, features, latent = Head(dims, 5, 3, 7, 4), torch.randn(2, 5, *shape), torch.randn(2, 6, 3)
    streamed = head(features, latent)
    assert type(streamed.grad_fn.next_functions[0][0]).__name__ == "_StreamBackward"
    with torch.no_grad():
        found = head(features, latent)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert head(features, latent).dtype == torch.bfloat16
    monkeypatch.setattr(module, "_streams", lambda _: False)
    expected = head(features, latent)
    assert found.shape == expected.shape == (2, 6, 4, *shape) and not found.requires_grad and expected.requires_grad
    for values in (streamed, found):
        torch.testing.assert_close(values, expected, rtol=1e-5, atol=1e-6)


def test_half_precision_and_tracing_take_the_convolutions() -> None:
    head, features, latent = Head(2, 5, 3, 7, 2), torch.randn(1, 5, 8, 8), torch.randn(1, 2, 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert head(features, latent).dtype == torch.bfloat16
    graph = str(torch.jit.trace(head, (features, latent)).inlined_graph)
    assert graph.count("aten::_convolution") == 4 and "PythonOp" not in graph


def test_frozen_layers_and_inference() -> None:
    head, features, latent = Head(2, 5, 3, 7, 2), torch.randn(1, 5, 8, 8), torch.randn(1, 2, 3)
    nn.Module.requires_grad_(head, False)
    assert not head(features, latent).requires_grad
    with torch.inference_mode():
        assert head(features, latent).shape == (1, 2, 2, 8, 8)
