"""Selective scan of Mamba: a linear recurrence whose coefficients depend on the input, on any device."""

# A, B, C and D are the source's names.
# flake8: noqa: N803,N806
from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.nn import functional

from .autocast import no_autocast
from .threads import one_thread

_STEPS = 32  # of a chunk; between chunks states are kept for the backward pass, inside they are computed again
_CPU_STATE = 4096  # elements of the states that advance together: a chunk of them stays in a core's cache


def selective_scan(
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
    """h_t = exp(delta_t A) h_{t-1} + delta_t B_t u_t and y_t = C_t . h_t + D u_t, gated by SiLU(z_t); h_0 = 0.

    Source: Gu and Dao, Mamba, arXiv 2312.00752, Sec. 3.2 and Alg. 2; arguments and shapes are those of mamba-ssm's
    ``selective_scan_fn``, whose CUDA kernel does the work where the package is installed and the tensors are on CUDA.

    Elsewhere chunks of steps run one after the other in buffers that stay in the cache, on one thread, and only the
    states between chunks are kept: the backward pass computes a chunk's states again. Time is linear in L. Under
    tracing, scripting and ``torch.export`` it is a plain loop, which becomes a loop of the exported graph, for any L;
    what ``torch.export`` makes is for inference: no gradient flows through its scan.

    Args:
        u: input (B, channels, L).
        delta: step sizes (B, channels, L).
        A: (channels, N), N states a channel; negative for a recurrence that forgets.
        B: (B, N, L), or (B, groups, N, L): consecutive channels / groups channels share a group's.
        C: as B.
        D: weight of the direct path, (channels); None: no such path.
        z: gate (B, channels, L); None: no gate.
        delta_bias: added to delta, (channels).
        delta_softplus: whether delta, bias included, goes through softplus.

    Returns:
        (B, channels, L), in the type of u; computed in float32 (float64 for float64 u), under autocast too.

    Raises:
        ValueError: when shapes do not fit, or for the forms that no Mamba block uses: B or C that do not depend on the
            input, and complex numbers.
        RuntimeError: when a second derivative is asked for (``create_graph``).

    Example:
        >>> ones = torch.ones(1, 1, 3)
        >>> selective_scan(ones, ones, -torch.full((1, 1), 0.6931472), ones, ones)
        tensor([[[1.0000, 1.5000, 1.7500]]])
    """
    if torch.jit.is_scripting():
        _check(u, delta, A, B, C, D, z, delta_bias)
        return _plain(u, delta, A, B, C, D, z, delta_bias, delta_softplus)
    if torch.jit.is_tracing() or torch.compiler.is_exporting():
        with no_autocast(u):
            return _plain(u, delta, A, B, C, D, z, delta_bias, delta_softplus)
    _check(u, delta, A, B, C, D, z, delta_bias)
    with no_autocast(u):
        kernel = _cuda_kernel() if u.is_cuda and u.dtype is not torch.float64 else None
        if kernel is not None:
            given = [None if x is None else x.float() for x in (u, delta, A, B, C, D, z, delta_bias)]
            return kernel(*given, delta_softplus).to(u.dtype)
        return _plain(u, delta, A, B, C, D, z, delta_bias, delta_softplus)


@functools.cache
def _cuda_kernel() -> Callable[..., torch.Tensor] | None:
    try:
        from mamba_ssm.ops.selective_scan_interface import selective_scan_fn
    except ImportError:
        return None
    return selective_scan_fn


def _plain(
    u: torch.Tensor,
    delta: torch.Tensor,
    A: torch.Tensor,
    B: torch.Tensor,
    C: torch.Tensor,
    D: torch.Tensor | None,
    z: torch.Tensor | None,
    delta_bias: torch.Tensor | None,
    delta_softplus: bool,
) -> torch.Tensor:
    """What surrounds the recurrence, with a group's channels as images of their own."""
    dtype = torch.float64 if u.dtype == torch.float64 else torch.float32
    x, step = u.to(dtype), delta.to(dtype)
    if delta_bias is not None:
        step = step + delta_bias.to(dtype).unsqueeze(-1)
    if delta_softplus:
        step = functional.softplus(step)
    groups = B.shape[1] if B.dim() == 4 else 1
    shape = [u.shape[0] * groups, u.shape[1] // groups, u.shape[2]]
    decay = A.to(dtype).reshape(1, groups, -1, A.shape[1]).expand(u.shape[0], -1, -1, -1).flatten(0, 1)
    b, c = B.to(dtype).reshape(shape[0], -1, shape[2]), C.to(dtype).reshape(shape[0], -1, shape[2])
    y = _recurrence(x.reshape(shape), step.reshape(shape), decay, b, c).reshape(u.shape)
    if D is not None:
        y = y + D.to(dtype).unsqueeze(-1) * x
    if z is not None:
        y = y * functional.silu(z.to(dtype))
    return y.to(u.dtype)


def _recurrence(
    u: torch.Tensor, delta: torch.Tensor, A: torch.Tensor, B: torch.Tensor, C: torch.Tensor
) -> torch.Tensor:
    """y_t = C_t . h_t of u, delta (M, channels, L), A (M, channels, N), B, C (M, N, L)."""
    if torch.jit.is_scripting():
        return _loop(u, delta, A, B, C)
    if torch.compiler.is_exporting():
        return _exported_loop(u, delta, A, B, C)
    if torch.jit.is_tracing():
        return _scripted_loop()(u, delta, A, B, C)
    keep = torch.is_grad_enabled() and any(x.requires_grad for x in (u, delta, A, B, C))
    return _Scan.apply(u, delta, A, B, C, keep)


def _loop(u: torch.Tensor, delta: torch.Tensor, A: torch.Tensor, B: torch.Tensor, C: torch.Tensor) -> torch.Tensor:
    state = torch.zeros_like(A)
    outputs: list[torch.Tensor] = []
    for t in range(u.shape[2]):
        step = delta[:, :, t].unsqueeze(-1)
        drive = (step * u[:, :, t].unsqueeze(-1)) * B[:, :, t].unsqueeze(1)
        state = torch.exp(step * A) * state + drive  # not exp2, which ONNX lacks
        outputs.append((state * C[:, :, t].unsqueeze(1)).sum(-1))
    return torch.stack(outputs, -1)


@functools.cache
def _scripted_loop() -> Callable[..., torch.Tensor]:
    """A trace keeps a scripted function as it is: its loop stays one, for any length."""
    return torch.jit.script(_loop)


def _exported_loop(
    u: torch.Tensor, delta: torch.Tensor, A: torch.Tensor, B: torch.Tensor, C: torch.Tensor
) -> torch.Tensor:
    """The loop as an operator of the exported graph, which ONNX has as Scan; without gradients."""
    from torch._higher_order_ops.scan import scan

    def advance(carry: list[torch.Tensor], now: list[torch.Tensor]) -> tuple[list[torch.Tensor], torch.Tensor]:
        (state, rate), (x, step, b, c) = carry, now
        step = step.unsqueeze(-1)
        state = torch.exp(step * rate) * state + (step * x.unsqueeze(-1)) * b.unsqueeze(1)
        return [state, rate.clone()], (state * c.unsqueeze(1)).sum(-1)

    # A is carried along: one that the body took from outside would bring its symbolic size, which ONNX refuses, as it
    # does the sizes that gradients of a scan would keep. All are contiguous, for strides of views are compared by sizes
    # that the export of the loop does not know
    rates, *sequences = (x.detach() for x in (A, u, delta, B, C))
    rates = rates.contiguous()
    _, outputs = scan(advance, [torch.zeros_like(rates), rates], [x.permute(2, 0, 1).contiguous() for x in sequences])
    return outputs.permute(1, 2, 0)


class _Scan(torch.autograd.Function):
    """The recurrence in chunks; keeps the state before each chunk, (chunks, M, N, channels)."""

    @staticmethod
    def forward(
        ctx: Any,
        u: torch.Tensor,
        delta: torch.Tensor,
        A: torch.Tensor,
        B: torch.Tensor,
        C: torch.Tensor,
        keep: bool,
    ) -> torch.Tensor:
        y = torch.empty_like(u)
        chunks = -(-u.shape[2] // _STEPS) if keep else 0
        starts = u.new_empty((chunks, len(u), A.shape[2], u.shape[1]))
        with one_thread():
            for images, channels in _blocks(A):
                own = (images, channels)
                _forward(u[own], delta[own], A[own], B[images], C[images], y[own], starts[:, images, :, channels])
        ctx.save_for_backward(u, delta, A, B, C, starts)
        return y

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise RuntimeError("The selective scan has no second derivative: ask for gradients without create_graph.")
        u, delta, A, B, C, starts = ctx.saved_tensors
        # B and C serve all channels: their gradients are sums over the blocks
        gradients = [*map(torch.empty_like, (u, delta, A)), *map(torch.zeros_like, (B, C))]
        with one_thread(), no_autocast(u):  # backward may be called inside autocast
            for images, channels in _blocks(A):
                own = (images, channels)
                _backward(
                    (u[own], delta[own], A[own], B[images], C[images], grad[own]),
                    starts[:, images, :, channels],
                    [*(x[own] for x in gradients[:3]), *(x[images] for x in gradients[3:])],
                )
        return *gradients, None


def _blocks(A: torch.Tensor) -> Iterator[tuple[slice, slice]]:
    """Images and channels that advance together: some on a CPU, all on a GPU."""
    images, channels, states = A.shape
    if A.is_cuda:
        yield slice(0, images), slice(0, channels)
        return
    parts = max(1, math.ceil(channels * states / _CPU_STATE))
    width = math.ceil(channels / parts)
    count = max(1, _CPU_STATE // (width * states))
    for image in range(0, images, count):
        for channel in range(0, channels, width):
            yield slice(image, image + count), slice(channel, channel + width)


class _Chunk:
    """Buffers of one block, and the recurrence over a chunk of its steps; time comes first, channels last."""

    def __init__(self, A: torch.Tensor) -> None:
        M, channels, N = A.shape
        self.A = A.transpose(1, 2).contiguous()
        self.rate = self.A / math.log(2.0)  # exp2 takes a quarter of exp's time on CPUs
        self.decay, self.work = (A.new_empty((_STEPS, M, N, channels)) for _ in range(2))
        self.state = A.new_zeros((_STEPS + 1, M, N, channels))
        self.decays, self.states = self.decay.unbind(0), self.state.unbind(0)

    def run(self, step: torch.Tensor, drive: torch.Tensor, B: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Decays and states of the steps, from the state in place 0; step, drive (T, M, channels), B (T, M, N)."""
        length = len(step)
        decay, state = self.decay[:length], self.state[1 : length + 1]
        torch.mul(step.unsqueeze(2), self.rate, out=decay).exp2_()
        torch.mul(drive.unsqueeze(2), B.unsqueeze(3), out=state)
        for t in range(length):
            self.states[t + 1].addcmul_(self.decays[t], self.states[t])
        return decay, state


def _time_first(x: torch.Tensor, steps: slice) -> torch.Tensor:
    """(M, channels, L) to (T, M, channels)."""
    return x[:, :, steps].permute(2, 0, 1).contiguous()


def _forward(
    u: torch.Tensor,
    delta: torch.Tensor,
    A: torch.Tensor,
    B: torch.Tensor,
    C: torch.Tensor,
    y: torch.Tensor,
    starts: torch.Tensor,
) -> None:
    chunk = _Chunk(A)
    for number, begin in enumerate(range(0, u.shape[2], _STEPS)):
        steps = slice(begin, begin + _STEPS)
        if len(starts):
            starts[number] = chunk.state[0]
        step = _time_first(delta, steps)
        _, state = chunk.run(step, step * _time_first(u, steps), _time_first(B, steps))
        y[:, :, steps] = (_time_first(C, steps).unsqueeze(2) @ state).squeeze(2).permute(1, 2, 0)
        chunk.state[0] = state[-1]


def _backward(inputs: tuple[torch.Tensor, ...], starts: torch.Tensor, gradients: list[torch.Tensor]) -> None:
    """With g_t the gradient of h_t: g_t = C_t dy_t + exp(delta_{t+1} A) g_{t+1}, and every gradient follows from it."""
    A, length = inputs[2], inputs[0].shape[2]
    grad_u, grad_delta, grad_A, grad_B, grad_C = gradients
    chunk = _Chunk(A)
    adjoint = torch.empty_like(chunk.decay)
    adjoints = adjoint.unbind(0)
    carry, sum_A = torch.zeros_like(chunk.A), torch.zeros_like(chunk.A)
    for number in reversed(range(len(starts))):
        steps = slice(number * _STEPS, min(length, (number + 1) * _STEPS))
        u, step, B, C, grad = (_time_first(x, steps) for x in (*inputs[:2], *inputs[3:]))
        chunk.state[0] = starts[number]
        drive = step * u
        decay, state = chunk.run(step, drive, B)
        g = torch.mul(grad.unsqueeze(2), C.unsqueeze(3), out=adjoint[: len(u)])
        adjoints[len(u) - 1].add_(carry)
        for t in range(len(u) - 2, -1, -1):
            adjoints[t].addcmul_(chunk.decays[t + 1], adjoints[t + 1])
        torch.mul(adjoints[0], chunk.decays[0], out=carry)

        grad_C[:, :, steps] += (grad.unsqueeze(2) @ state.transpose(2, 3)).squeeze(2).permute(1, 2, 0)
        grad_B[:, :, steps] += (drive.unsqueeze(2) @ g.transpose(2, 3)).squeeze(2).permute(1, 2, 0)
        grad_drive = (B.unsqueeze(2) @ g).squeeze(2)
        grad_exponent = decay.mul_(chunk.state[: len(u)]).mul_(g)  # of delta_t A: exp(delta_t A) h_{t-1} g_t
        weighted = torch.mul(grad_exponent, chunk.A, out=chunk.work[: len(u)])
        grad_u[:, :, steps] = (grad_drive * step).permute(1, 2, 0)
        grad_delta[:, :, steps] = weighted.sum(2).addcmul_(grad_drive, u).permute(1, 2, 0)
        sum_A += grad_exponent.mul_(step.unsqueeze(2)).sum(0)
    grad_A.copy_(sum_A.transpose(1, 2))


def _check(
    u: torch.Tensor,
    delta: torch.Tensor,
    A: torch.Tensor,
    B: torch.Tensor,
    C: torch.Tensor,
    D: torch.Tensor | None,
    z: torch.Tensor | None,
    delta_bias: torch.Tensor | None,
) -> None:
    if u.dim() != 3 or u.shape[2] == 0:
        raise ValueError(f"u must be (B, channels, L) with L at least 1, got {list(u.shape)}.")
    if delta.shape != u.shape:
        raise ValueError(f"delta {list(delta.shape)} must have the shape of u, {list(u.shape)}.")
    if z is not None and z.shape != u.shape:
        raise ValueError(f"z {list(z.shape)} must have the shape of u, {list(u.shape)}.")
    channels = u.shape[1]
    if A.dim() != 2 or A.shape[0] != channels:
        raise ValueError(f"A must be (channels, N) with {channels} channels as u has, got {list(A.shape)}.")
    if A.is_complex() or B.is_complex() or C.is_complex():
        raise ValueError("A, B and C must be real: complex numbers are not supported.")
    if B.dim() not in (3, 4) or B.shape != C.shape:
        raise ValueError(
            f"B and C must have one shape, (B, N, L) or (B, groups, N, L), got {list(B.shape)} and {list(C.shape)}; "
            "those of shape (channels, N), which do not depend on the input, are not supported."
        )
    groups = B.shape[1] if B.dim() == 4 else 1
    if B.shape[0] != u.shape[0] or B.shape[-2] != A.shape[1] or B.shape[-1] != u.shape[2]:
        raise ValueError(f"B {list(B.shape)} does not fit u {list(u.shape)} and A {list(A.shape)}.")
    if groups == 0 or channels % groups != 0:
        raise ValueError(f"{channels} channels cannot be shared out among {groups} groups.")
    if D is not None and (D.dim() != 1 or D.shape[0] != channels):
        raise ValueError(f"D must be ({channels},), got {list(D.shape)}.")
    if delta_bias is not None and (delta_bias.dim() != 1 or delta_bias.shape[0] != channels):
        raise ValueError(f"delta_bias must be ({channels},), got {list(delta_bias.shape)}.")
