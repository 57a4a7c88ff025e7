"""F^seg, the head of 1x1 convolutions that turns a latent code into an answer, for many codes at once."""

from __future__ import annotations

from typing import Any

import torch
from monai.networks.layers.factories import Conv
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from common.ops.threads import image_parts, map_blocks

_HIDDEN = 3  # layers
_BLOCK = 2048  # pixels whose hidden layers are held at a time: they should stay in a core's cache


class Head(nn.Module):
    """F^seg: three hidden 1x1 convolutions and the output, on features beside the latent code.

    The first convolution of the concatenation (f, z) is W_f f + W_z z: its costly part is computed once for all
    latent codes, and z needs no copy at each pixel. On a CPU in full precision the other layers stream over blocks of
    pixels, and are computed anew in the backward pass.

    Args:
        spatial_dims: 2 or 3.
        features: channels of the decoder.
        latent_size: D.
        width: channels of the hidden layers.
        out_channels: classes, background included.

    Shape:
        features (B, features, H, W[, D]) and latent codes (B, n, D) to logits (B, n, out_channels, H, W[, D]).
    """

    def __init__(self, spatial_dims: int, features: int, latent_size: int, width: int, out_channels: int) -> None:
        super().__init__()
        convolution = Conv[Conv.CONV, spatial_dims]
        self.features = convolution(features, width, 1)
        self.latent = nn.Linear(latent_size, width, bias=False)
        self.hidden = nn.ModuleList([convolution(width, width, 1) for _ in range(_HIDDEN - 1)])
        self.output = convolution(width, out_channels, 1)
        # orthogonal, the first layer as the one matrix that it is
        first = nn.init.orthogonal_(torch.empty(width, features + latent_size))
        with torch.no_grad():
            self.features.weight.copy_(first[:, :features].reshape(self.features.weight.shape))
            self.latent.weight.copy_(first[:, features:])
        for layer in [*self.hidden, self.output]:
            nn.init.orthogonal_(layer.weight)
        for layer in [self.features, *self.hidden, self.output]:
            nn.init.trunc_normal_(layer.bias, std=0.001)

    def forward(self, features: torch.Tensor, latent: torch.Tensor) -> torch.Tensor:
        """Logits for every latent code."""
        per_pixel, per_sample = self.features(features), self.latent(latent)
        if not torch.jit.is_scripting():  # noqa: SIM102 - what stands under this alone TorchScript does not compile
            if _streams(per_pixel):
                return self._stream(per_pixel, per_sample)
        images, count = latent.shape[:2]
        for _ in range(features.ndim - 2):
            per_sample = per_sample.unsqueeze(-1)
        hidden = functional.relu(per_pixel.unsqueeze(1) + per_sample).flatten(0, 1)
        for layer in self.hidden:
            hidden = functional.relu(layer(hidden))
        logits = self.output(hidden)
        return logits.reshape([images, count] + list(logits.shape[1:]))

    def _stream(self, per_pixel: torch.Tensor, per_sample: torch.Tensor) -> torch.Tensor:
        """The layers behind the first one, block by block."""
        pixels = per_pixel.flatten(2).transpose(1, 2).contiguous()
        layers = [part for layer in [*self.hidden, self.output] for part in (layer.weight.flatten(1), layer.bias)]
        logits: torch.Tensor = _Stream.apply(pixels, per_sample, *layers)
        return logits.unflatten(3, per_pixel.shape[2:])


def _streams(per_pixel: torch.Tensor) -> bool:
    """Whether blocks are faster: on a CPU in full precision, where no graph of plain operations is asked for."""
    plain = torch.compiler.is_compiling() or torch.jit.is_tracing()
    return not plain and per_pixel.device.type == "cpu" and per_pixel.dtype in (torch.float32, torch.float64)


class _Stream(torch.autograd.Function):
    """ReLU layers and the output, of every pixel with every code.

    Convolutions of so few channels spend their time on moving the hidden layers of all codes to memory and back.
    """

    @staticmethod
    def forward(ctx: Any, pixels: torch.Tensor, codes: torch.Tensor, *layers: torch.Tensor) -> torch.Tensor:
        """First layer's pixels (B, P, W) and codes (B, n, W), weights and biases in turn to logits (B, n, C, P)."""
        ctx.save_for_backward(pixels, codes, *layers)
        logits = pixels.new_empty((*codes.shape[:2], len(layers[-1]), pixels.shape[1]))
        *hidden, weight, bias = layers

        def work(images: slice) -> None:
            for image in range(images.start, images.stop):
                for block in _blocks(pixels.shape[1]):
                    for number, code in enumerate(codes[image]):
                        last = _hidden(pixels[image, block], code, hidden)[-1]
                        torch.addmm(bias[:, None], weight, last.t(), out=logits[image, number, :, block])

        map_blocks(work, image_parts(pixels))
        return logits

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Gradients of all that came in."""
        pixels, codes, *layers = ctx.saved_tensors
        *hidden, weight, _ = layers
        grad = grad.contiguous()
        of_pixels, of_codes = torch.zeros_like(pixels), torch.zeros_like(codes)

        def work(images: slice) -> list[torch.Tensor]:
            of_layers = [torch.zeros_like(each) for each in layers]
            for image in range(images.start, images.stop):
                for block in _blocks(pixels.shape[1]):
                    for number, code in enumerate(codes[image]):
                        outputs = _hidden(pixels[image, block], code, hidden)
                        of_output = grad[image, number, :, block]
                        of_layers[-2].addmm_(of_output, outputs[-1])
                        of_layers[-1] += of_output.sum(1)
                        of_hidden = (of_output.t() @ weight).mul_(outputs[-1].sign())  # 0 or 1: ReLU's derivative
                        for index in range(len(outputs) - 1, 0, -1):
                            of_layers[2 * index - 2].addmm_(of_hidden.t(), outputs[index - 1])
                            of_layers[2 * index - 1] += of_hidden.sum(0)
                            of_hidden = (of_hidden @ hidden[2 * index - 2]).mul_(outputs[index - 1].sign())
                        of_pixels[image, block] += of_hidden
                        of_codes[image, number] += of_hidden.sum(0)
            return of_layers

        parts = map_blocks(work, image_parts(pixels))
        return of_pixels, of_codes, *(torch.stack(each).sum(0) for each in zip(*parts, strict=True))


def _blocks(pixels: int) -> list[slice]:
    return [slice(start, min(start + _BLOCK, pixels)) for start in range(0, pixels, _BLOCK)]


def _hidden(pixels: torch.Tensor, code: torch.Tensor, layers: list[torch.Tensor]) -> list[torch.Tensor]:
    """Hidden layers (P, W) of some pixels with one code."""
    outputs = [(pixels + code).relu_()]
    for weight, bias in zip(layers[::2], layers[1::2], strict=True):
        outputs.append(torch.addmm(bias, outputs[-1], weight.t()).relu_())
    return outputs
