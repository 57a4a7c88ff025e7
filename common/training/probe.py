"""What this machine's convolutions are worth in bfloat16: a table for people who report a fault."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from torch import nn

from ..device import device_name, processor_flags
from .precision import (
    FILLS,
    ConvolutionGuard,
    cosines,
    cpu_has_bfloat16,
    disagreeing,
    gradients_over,
    resolve_precision,
)

FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "amx_tile", "bf16", "sve")


class Layer(NamedTuple):
    """One kind of convolution and the feature map that it is given."""

    build: type[nn.Module]
    size: tuple[int, ...]
    kernel: int
    stride: int = 1
    dilation: int = 1

    def __str__(self) -> str:
        sizes = " x ".join(map(str, self.size))
        return f"{self.build.__name__} kernel {self.kernel}, stride {self.stride}, dilation {self.dilation} on {sizes}"

    def make(self, channels: int = 16) -> nn.Module:
        """The layer, the same each time."""
        padding = self.dilation * (self.kernel // 2)
        arguments: dict[str, Any] = {"stride": self.stride, "padding": padding, "dilation": self.dilation}
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return self.build(channels, channels, self.kernel, **arguments)


#: kernels of 7 and more are left out: unguarded some of them write beyond their memory
LAYERS = (
    Layer(nn.Conv3d, (8, 8, 8), 3),
    Layer(nn.Conv3d, (4, 4, 4), 3),
    Layer(nn.Conv3d, (2, 2, 2), 3),
    Layer(nn.Conv3d, (2, 8, 8), 3),
    Layer(nn.Conv3d, (2, 1, 1), 3),
    Layer(nn.Conv3d, (4, 4, 1), 3, 2),
    Layer(nn.Conv3d, (2, 2, 2), 2, 2),
    Layer(nn.Conv3d, (4, 8, 8), 3, 1, 2),
    Layer(nn.Conv3d, (2, 8, 8), 5),
    Layer(nn.Conv3d, (3, 8, 8), 5),
    Layer(nn.ConvTranspose3d, (2, 2, 2), 3),
    Layer(nn.ConvTranspose3d, (1, 1, 1), 3, 2),
    Layer(nn.ConvTranspose3d, (2, 2, 2), 2, 2),
    Layer(nn.Conv2d, (8, 8), 3),
    Layer(nn.Conv2d, (8, 1), 3, 2),
    Layer(nn.Conv2d, (2, 2), 5),
)


def layer_gradients(layer: Layer, guard: Callable[[], Any], fill: float) -> dict[str, torch.Tensor]:
    """Gradients of a layer in bfloat16 on the CPU.

    Args:
        layer: which.
        guard: makes the context that its forward pass runs in.
        fill: what memory holds before the backward pass.
    """
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(2, 16, *layer.size, generator=generator)

    def loss(module: nn.Module) -> torch.Tensor:
        with guard(), torch.autocast("cpu", dtype=torch.bfloat16):
            output = module(image)
        weights = torch.randn(output.shape, generator=torch.Generator().manual_seed(1))
        return (output.float() * weights).sum()

    return gradients_over(layer.make(), loss, fill, torch.device("cpu"))


def agreement(layer: Layer, guard: Callable[[], Any]) -> tuple[bool, float]:
    """Whether a layer's gradients depend on what memory held, and how they agree with right ones.

    Args:
        layer: which.
        guard: makes the context that its forward pass runs in.

    Returns:
        whether two gradients over differently filled memory are equal, and the least cosine, over its parameters, with
        a float32 convolution of the same operands rounded to bfloat16.
    """
    first, second = (layer_gradients(layer, guard, fill) for fill in FILLS)
    right = layer_gradients(layer, lambda: ConvolutionGuard(reference=True), FILLS[0])
    return not disagreeing(first, second), min(cosines(first, right).values())


def main() -> None:
    """Print device, instructions, what `auto` chooses and why, and the table."""
    cuda = torch.cuda.is_available()
    device = torch.device("cuda" if cuda else "cpu")
    chosen = resolve_precision("auto", device)
    print(f"torch {torch.__version__}, oneDNN {'on' if torch.backends.mkldnn.is_available() else 'off'}")
    print(f"device: {device_name()}")
    known = processor_flags()
    flags = ", ".join(flag for flag in FLAGS if flag in known) or "unknown"
    print(f"cores {os.cpu_count()}, threads {torch.get_num_threads()}, instructions: {flags}")
    if cuda:
        why = "the GPU has bfloat16" if chosen is torch.bfloat16 else "the GPU has no bfloat16 of its own"
    else:
        why = "the CPU has instructions for it" if cpu_has_bfloat16() else "the CPU would emulate bfloat16, slowly"
    print(f"precision auto: {str(chosen).removeprefix('torch.')}, as {why}\n")
    if not cpu_has_bfloat16():
        print("No table: bfloat16 is not used on this CPU.")
        return
    print("Gradients in bfloat16: same = they do not depend on what memory held; the number: cosine with right ones")
    print(f"{'layer':<66} {'unguarded':>16} {'guarded':>16}")
    for layer in LAYERS:
        cells = []
        for guard in (nullcontext, ConvolutionGuard):
            same, cosine = agreement(layer, guard)
            cells.append(f"{'same' if same else 'DIFFER'} {cosine:.3f}")
        print(f"{layer!s:<66} {cells[0]:>16} {cells[1]:>16}")
