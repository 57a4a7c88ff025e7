"""Time and memory of the window operators against plain formulations of the same formulas.

``python -m ci.benchmarks.ops`` prints a table, forward and backward. The plain energy unfolds every window, the plain
similarity forms all pairs; both are written here, for the benchmark, and their values and gradients are compared. Time
is the median of runs in turn; memory is what a run needs at its peak beyond its inputs. On a CPU a second row times the
operator again while another process keeps one core busy.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable
from functools import partial

import fire
import torch
from torch.nn import functional

from common.ops.energy import pairwise_window_energy
from common.ops.similarity import attentive_similarity_loss

from .memory import peak_extra_memory
from .neighbour import busy_neighbour

RADIUS, SIGMA_POSITION, SIGMA_INTENSITY = 5, 6.0, 0.1
CLASSES = 4
Loss = Callable[[], tuple[torch.Tensor, list[torch.Tensor]]]


def main(
    batches: tuple[int, ...] = (4, 12),
    image_size: int = 256,
    attention_size: int = 64,
    channels: int = 64,
    repeats: int = 3,
    device: str = "cuda" if torch.cuda.is_available() else "cpu",
) -> None:
    """Print the table.

    Args:
        batches: numbers of images.
        image_size: height and width of the energy's images, in pixels.
        attention_size: height and width of the attention's map.
        channels: of queries and keys.
        repeats: timed runs, after one that is not timed.
        device: where to run.
    """
    target = torch.device(device)
    print(f"{target}, torch {torch.__version__}, {torch.get_num_threads()} threads, forward and backward, float32")
    header = f"{'operator':<12}{'batch':>6}{'seconds':>9}{'plain':>9}{'ratio':>7}{'MB':>9}{'plain':>9}{'ratio':>7}"
    print(header + f"{'value':>9}{'gradient':>9}")
    for batch in batches:
        for name, (ours, plain) in {
            "energy": _energies(batch, image_size, target),
            "similarity": _similarities(batch, attention_size, channels, target),
        }.items():
            _row(name, batch, ours, plain, repeats, target)


def _row(name: str, batch: int, ours: Loss, plain: Loss, repeats: int, device: torch.device) -> None:
    (value, gradients), (plain_value, plain_gradients) = _run(ours), _run(plain)
    value_error = abs(value - plain_value) / abs(plain_value)
    gradient_error = max(
        float((a - b).abs().max() / b.abs().max()) for a, b in zip(gradients, plain_gradients, strict=True)
    )
    del gradients, plain_gradients
    seconds: list[list[float]] = [[], []]
    for _ in range(repeats):
        for kind, loss in enumerate((ours, plain)):
            start = time.perf_counter()
            _run(loss)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            seconds[kind].append(time.perf_counter() - start)
    beside = _beside(ours, repeats) if device.type == "cpu" else None
    fast, slow = (statistics.median(times) for times in seconds)
    small, large = (peak_extra_memory(partial(_run, loss), device) / 1e6 for loss in (ours, plain))
    times = f"{fast:>9.3f}{slow:>9.3f}{slow / fast:>7.1f}"
    sizes = f"{small:>9.1f}{large:>9.1f}{large / small:>7.1f}"
    print(f"{name:<12}{batch:>6}{times}{sizes}{value_error:>9.0e}{gradient_error:>9.0e}", flush=True)
    if beside is not None:
        print(
            f"{name:<12}{batch:>6}{beside:>9.3f}  beside a busy process: {beside / fast:.1f} times as long", flush=True
        )


def _beside(loss: Loss, repeats: int) -> float:
    """Median seconds while another process keeps one core busy."""
    seconds = []
    with busy_neighbour():
        for _ in range(repeats):
            start = time.perf_counter()
            _run(loss)
            seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def _run(loss: Loss) -> tuple[float, list[torch.Tensor]]:
    value, inputs = loss()
    return value.item(), list(torch.autograd.grad(value, inputs))


def _energies(batch: int, size: int, device: torch.device) -> tuple[Loss, Loss]:
    torch.manual_seed(0)
    probabilities = torch.randn(batch, CLASSES, size, size, device=device).softmax(1).requires_grad_()
    image = torch.rand(batch, 1, size, size, device=device)
    mask = (torch.rand(batch, 1, size, size, device=device) > 0.03).float()

    def ours() -> tuple[torch.Tensor, list[torch.Tensor]]:
        energy = pairwise_window_energy(probabilities, image, RADIUS, SIGMA_POSITION, SIGMA_INTENSITY, mask)
        return energy, [probabilities]

    def plain() -> tuple[torch.Tensor, list[torch.Tensor]]:
        return _plain_energy(probabilities, image, mask), [probabilities]

    return ours, plain


def _plain_energy(probabilities: torch.Tensor, image: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Eq. 4 of AttenScribble with every window unfolded."""
    b, c, h, w = probabilities.shape
    side = 2 * RADIUS + 1

    def windows(x: torch.Tensor) -> torch.Tensor:
        return functional.unfold(x, side, padding=RADIUS).reshape(b, x.shape[1], side * side, h, w)

    steps = torch.arange(-RADIUS, RADIUS + 1, device=image.device)
    distance = (steps[:, None] ** 2 + steps[None] ** 2).reshape(1, side * side, 1, 1)
    difference = (windows(image) - image[:, :, None]).square().sum(1)
    kernel = torch.exp(-distance / (2 * SIGMA_POSITION**2) - difference / (2 * SIGMA_INTENSITY**2))
    kernel = kernel * windows(torch.ones_like(image))[:, 0] * (distance > 0)
    unlike = 1 - (windows(probabilities) * probabilities[:, :, None]).sum(1)
    return (mask * kernel * unlike).sum() / mask.sum()


def _similarities(batch: int, size: int, channels: int, device: torch.device) -> tuple[Loss, Loss]:
    torch.manual_seed(0)
    queries, keys = (
        (0.3 * torch.randn(batch, 1, size * size, channels, device=device)).requires_grad_() for _ in range(2)
    )
    weight, bias = torch.ones(1, device=device).requires_grad_(), torch.zeros(1, device=device).requires_grad_()
    probabilities = torch.randn(batch, CLASSES, size, size, device=device).softmax(1).requires_grad_()
    inputs = [queries, keys, weight, bias, probabilities]
    distance_map = _distance_map(size, device)

    def ours() -> tuple[torch.Tensor, list[torch.Tensor]]:
        return attentive_similarity_loss(queries, keys, weight, bias, probabilities, RADIUS, SIGMA_POSITION), inputs

    def plain() -> tuple[torch.Tensor, list[torch.Tensor]]:
        return _plain_similarity(queries, keys, weight, bias, probabilities, distance_map), inputs

    return ours, plain


def _distance_map(size: int, device: torch.device) -> torch.Tensor:
    places = torch.tensor(list(itertools.product(range(size), repeat=2)), device=device)
    steps = (places[:, None] - places[None]).abs()
    near = (steps.amax(-1) <= RADIUS) & (steps.amax(-1) > 0)
    return torch.exp(-steps.square().sum(-1) / (2 * SIGMA_POSITION**2)) * near


def _plain_similarity(
    queries: torch.Tensor,
    keys: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    probabilities: torch.Tensor,
    distance_map: torch.Tensor,
) -> torch.Tensor:
    """Eq. 6 of AttenScribble on the matrix of all pairs."""
    attention = (queries @ keys.transpose(-1, -2)).softmax(-1)
    both = attention + attention.transpose(-1, -2)
    similarity = ((both * weight[:, None, None]).sum(1) + bias).sigmoid()
    flat = probabilities.flatten(2)
    unlike = 1 - flat.transpose(1, 2) @ flat
    return (distance_map * similarity * unlike).sum() / flat[:, 0].numel()


if __name__ == "__main__":
    fire.Fire(main)
