"""Which number type a training runs in, and what keeps its gradients right; the one place that knows of bad kernels.

With oneDNN on CPUs with AVX512-BF16 (torch 2.8 to 2.13) the weight gradient of a bfloat16 convolution is computed from
uninitialised memory, or simply wrong, when an axis is shorter than the kernel's reach: NaN, 1e35, or finite and of
normal size and wrong. Forward pass and input gradient are right. :class:`ConvolutionGuard` runs such convolutions in
float32. With kernels of 7 and more and a stride of 2 and more even float32 writes beyond its memory: such a layer is
refused.

``python -m common.training.precision`` prints what this machine does, for a report of a fault.
"""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.overrides import TorchFunctionMode

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
REFUSED_KERNEL = 7  # with a stride above 1, on an axis shorter than its reach
FILLS = (1e30, -7.0)  # what memory holds before a gradient is taken; a right one does not depend on it
TOLERANCE = 1e-2  # relative difference of two gradients of one batch
LEAST_COSINE = 0.95  # with right gradients; wrong ones of normal size had 0.5
_CONVOLUTIONS: dict[Any, bool] = {torch.conv1d: False, torch.conv2d: False, torch.conv3d: False}
_CONVOLUTIONS |= {torch.conv_transpose1d: True, torch.conv_transpose2d: True, torch.conv_transpose3d: True}
_NAMES = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
_NAMES_TRANSPOSED = ("input", "weight", "bias", "stride", "padding", "output_padding", "groups", "dilation")


class UnsafeLayerError(ValueError):
    """A convolution that no precision computes rightly on this device; the message says what to do."""


def cpu_has_bfloat16() -> bool:
    """Whether the CPU has instructions for bfloat16 (AVX512-BF16 or AMX); without, it is emulated and slow."""
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def resolve_precision(precision: str, device: torch.device) -> torch.dtype:
    """Number type for autocast.

    ``auto`` is bfloat16 where the device has instructions for it, else float16 on CUDA and float32 on a CPU: without
    such instructions a CPU is tens of times slower in bfloat16 than in float32.

    Args:
        precision: auto, float32, bfloat16 or float16.
        device: where the training runs.

    Raises:
        ValueError: for another word, or float16 on a CPU.
    """
    if precision == "auto":
        if device.type == "cuda":
            return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
        return torch.bfloat16 if device.type == "cpu" and cpu_has_bfloat16() else torch.float32
    if precision not in PRECISIONS:
        raise ValueError(f"precision: {precision!r} is unknown. Fix: give auto, {', '.join(PRECISIONS)}.")
    if precision == "float16" and device.type != "cuda":
        raise ValueError("precision: float16 needs CUDA. Fix: give auto, bfloat16 or float32.")
    return PRECISIONS[precision]


def evaluation_amp(precision: str, device: str | torch.device) -> dict[str, Any]:
    """``amp`` and ``amp_kwargs`` of an evaluator: on CUDA the number type of a training, on a CPU float32.

    MONAI's own default under ``amp`` is float16, whatever the training took.

    Args:
        precision: see :func:`resolve_precision`.
        device: where the evaluator runs.
    """
    device = torch.device(device)
    dtype = resolve_precision(precision, device) if device.type == "cuda" else torch.float32
    return {"amp": dtype is not torch.float32, "amp_kwargs": {"dtype": dtype}}


def short_axis(
    size: Sequence[int], kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int]
) -> int | None:
    """The first axis on which a convolution is not to be trusted in bfloat16, None if there is none.

    Args:
        size: spatial sizes of the input; of the output where the convolution is transposed.
        kernel: of the convolution, as stride and dilation: one number an axis.
        stride: see kernel.
        dilation: see kernel.

    Example:
        >>> short_axis((2, 8, 8), (3, 3, 3), (1, 1, 1), (1, 1, 1)), short_axis((4, 4), (3, 3), (1, 1), (1, 1))
        (0, None)
    """
    for axis, (n, k, s, d) in enumerate(zip(size, kernel, stride, dilation, strict=True)):
        if k > 1 and n < d * (k - 1) + s:
            return axis
    return None


class ConvolutionGuard(TorchFunctionMode):
    """Inside the ``with``, convolutions that a CPU gets wrong in bfloat16 run in float32; the others as they would.

    It looks at every convolution that is called, whichever network or function calls it, and changes no module. What a
    convolution gives keeps the number type that it would have had.

    Args:
        reference: the other convolutions run backwards in float32 too, on their operands rounded to bfloat16: what a
            right bfloat16 convolution computes, to compare with.

    Attributes:
        widened: how many calls ran in float32.

    Raises:
        UnsafeLayerError: in the forward pass, for a convolution that float32 does not get right either.
    """

    def __init__(self, reference: bool = False) -> None:
        super().__init__()
        self.reference = reference
        self.widened = 0

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Called by torch for each of its functions."""
        transposed = _CONVOLUTIONS.get(func)
        if transposed is None:
            return func(*args, **(kwargs or {}))
        named = dict(zip(_NAMES_TRANSPOSED if transposed else _NAMES, args, strict=False)) | (kwargs or {})
        if named["input"].device.type != "cpu":
            return func(**named)
        short = _is_short(named, transposed)
        if not (short or self.reference) or not _half_on_cpu():
            return func(**named)
        self.widened += 1
        bias = named.pop("bias", None)
        operands = [named.pop("input"), named.pop("weight"), *([] if bias is None else [bias])]

        def convolve(*tensors: torch.Tensor) -> Any:
            return func(*tensors[:2], *(tensors[2:] or [None]), **named)

        with torch.autocast("cpu", enabled=False):
            if short:
                return convolve(*(operand.float() for operand in operands)).to(torch.bfloat16)
            return _RightBackward.apply(convolve, *(operand.to(torch.bfloat16) for operand in operands))


class _RightBackward(torch.autograd.Function):
    """A bfloat16 convolution whose gradients are those of the float32 convolution of the same operands."""

    @staticmethod
    def forward(ctx: Any, convolve: Callable[..., torch.Tensor], *operands: torch.Tensor) -> torch.Tensor:
        ctx.convolve = convolve
        ctx.save_for_backward(*operands)
        return convolve(*operands)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        with torch.enable_grad():
            operands = [operand.detach().float().requires_grad_() for operand in ctx.saved_tensors]
            result = ctx.convolve(*operands)
        found = torch.autograd.grad(result, operands, gradients[0].float())
        return None, *(gradient.to(torch.bfloat16) for gradient in found)


def _half_on_cpu() -> bool:
    return torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") is torch.bfloat16


def _is_short(named: dict[str, Any], transposed: bool) -> bool:
    """Whether an axis is too short; raises for layers that nothing mends."""
    kernel = tuple(named["weight"].shape[2:])
    dims = len(kernel)
    stride, dilation = (_each(named.get(name, 1), dims) for name in ("stride", "dilation"))
    size = tuple(named["input"].shape[-dims:])
    if transposed:
        padding, extra = (_each(named.get(name, 0), dims) for name in ("padding", "output_padding"))
        size = tuple(
            (n - 1) * s - 2 * p + d * (k - 1) + e + 1
            for n, k, s, d, p, e in zip(size, kernel, stride, dilation, padding, extra, strict=True)
        )
    axis = short_axis(size, kernel, stride, dilation)
    if axis is None:
        return False
    if dims == 3 and kernel[axis] >= REFUSED_KERNEL and stride[axis] > 1 and torch.is_grad_enabled():
        least = dilation[axis] * (kernel[axis] - 1) + stride[axis]
        raise UnsafeLayerError(
            f"A convolution with kernel {kernel} and stride {stride} gets a feature map of {size}: on a CPU its "
            f"gradient is wrong in every precision. Fix: a patch_size that leaves at least {least} voxels on axis "
            f"{axis} there, a smaller kernel, or a GPU."
        )
    return True


def _each(value: Any, dims: int) -> tuple[int, ...]:
    return (value,) * dims if isinstance(value, int) else tuple(value) * (dims if len(value) == 1 else 1)


def poison_memory(value: float, device: torch.device) -> None:
    """Leave a value in memory that is handed out next: blocks of many sizes are filled and freed.

    Args:
        value: float32.
        device: whose memory.
    """
    blocks = [torch.full((2**power,), value, device=device) for power in range(6, 23) for _ in range(3)]
    del blocks


@contextmanager
def same_randomness() -> Iterator[None]:
    """All random generators are afterwards as they were before."""
    states = random.getstate(), np.random.get_state()
    with torch.random.fork_rng():
        yield
    random.setstate(states[0])
    np.random.set_state(states[1])


def gradients_over(
    method: nn.Module, loss: Callable[[nn.Module], torch.Tensor], fill: float, device: torch.device
) -> dict[str, torch.Tensor]:
    """Gradients of a copy of a method, taken over memory that holds a given value; the method is left as it was.

    Args:
        method: it is copied.
        loss: the scalar to derive, of the copy; autocast and guard are its own matter.
        fill: what memory holds, see :func:`poison_memory`.
        device: of the method.

    Returns:
        by parameter name, those that have a gradient.
    """
    with same_randomness():
        double = copy.deepcopy(method)
        total = loss(double)
        poison_memory(fill, device)
        total.backward()
    return {name: p.grad for name, p in double.named_parameters() if p.grad is not None}


def disagreeing(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> list[str]:
    """Names of the parameters whose two gradients are not the same number, or not finite.

    Kernels that add in no fixed order differ in the last digits; that much passes. Of biases and scales on CUDA, where
    kernels do that, it may be all there is: the gradient of a bias before a normalisation is rounding alone. They have
    to be finite.

    Args:
        first: gradients by name.
        second: of the same batch.
    """
    bad = []
    for name, gradient in first.items():
        other = second[name]
        apart = float((gradient.float() - other.float()).norm())
        if gradient.is_cuda and gradient.ndim < 2 and math.isfinite(apart):
            continue
        if not apart <= TOLERANCE * float(other.float().norm()):  # NaN compares as False
            bad.append(name)
    return bad


def suspect_gradients(method: nn.Module, loss: Callable[[nn.Module], torch.Tensor], device: torch.device) -> list[str]:
    """Try the gradients of a batch: twice over differently filled memory and, on a CPU, against right ones.

    Args:
        method: it and all random generators are left as they were.
        loss: makes the scalar from a copy of the method, in autocast.
        device: of the method.

    Returns:
        names of the parameters whose gradient depends on what memory held, is not finite, or, of weights of
        convolutions, points elsewhere than with a backward pass in float32; empty when all is well.
    """

    def taken(guard: ConvolutionGuard, fill: float) -> dict[str, torch.Tensor]:
        def guarded(double: nn.Module) -> torch.Tensor:
            with guard:
                return loss(double)

        return gradients_over(method, guarded, fill, device)

    first, second = (taken(ConvolutionGuard(), fill) for fill in FILLS)
    suspect = disagreeing(first, second)
    if device.type == "cpu":
        right = taken(ConvolutionGuard(reference=True), FILLS[0])
        # other gradients, such as that of a bias before a normalisation, may be rounding alone
        weights = {name: gradient for name, gradient in first.items() if gradient.ndim > 2 and name not in suspect}
        suspect += [name for name, value in cosines(weights, right).items() if value < LEAST_COSINE]
    return suspect


def cosines(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> dict[str, float]:
    """Cosine of each parameter's two gradients; 1 where both vanish.

    Args:
        first: gradients by name.
        second: of the same parameters.
    """
    found = {}
    for name, gradient in first.items():
        a, b = gradient.double().flatten(), second[name].double().flatten()
        lengths = float(a.norm() * b.norm())
        found[name] = float(a @ b) / lengths if lengths > 0 else float(torch.equal(a, b))
    return found


if __name__ == "__main__":
    from .probe import main

    main()
