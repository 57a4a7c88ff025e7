"""Time one AffinityUMamba step as shipped against the same step written plainly.

``python -m ci.benchmarks.affinity_training_step`` prints a table. The plain step is the same method, network and
optimiser in float32, with its operators as the equations say them: the selective scan token by token, every window as
a tensor of window times image. Steps of both are timed in turn; the losses of the first ones are compared.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from unittest import mock

import fire
import torch
from torch.nn import functional

from bundles.affinity_umamba.scripts import losses, method, network
from common.networks import mamba
from common.ops.affinity import LocalAffinity
from common.training.precision import resolve_precision

from .steps import check_losses, compare, inside, shipped_step
from .windows import unfolded_affinity, unfolded_bilateral, unfolded_gate, unfolded_loss, unfolded_spread


def main(
    size: int = 64,
    batch_size: int = 1,
    classes: int = 4,
    mamba_levels: tuple[int, ...] = (1, 2),
    steps: int = 3,
    precision: str = "auto",
    device: str = "cuda" if torch.cuda.is_available() else "cpu",
) -> None:
    """Print the table.

    Args:
        size: of a patch, in voxels along every axis.
        batch_size: patches.
        classes: background included.
        mamba_levels: decoder levels with Mamba; full resolution has 262,144 tokens at a size of 64.
        steps: timed steps of each kind, after one that is not timed.
        precision: of the shipped step, as in the configs.
        device: where to run.
    """
    target = torch.device(device)
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(batch_size, 1, size, size, size, generator=generator)
    smooth = functional.avg_pool3d(image, 9, 1, 4)
    bounds = torch.quantile(smooth.flatten()[:100_000], torch.linspace(0, 1, classes + 1)[1:-1])
    batch = {"image": image.to(target), "label": torch.bucketize(smooth, bounds).to(target)}
    dtype = resolve_precision(precision, target)
    shipped, plain = (_method(classes, mamba_levels).to(target) for _ in range(2))
    print(f"{target}, torch {torch.__version__}, {torch.get_num_threads()} threads, {dtype} as shipped")
    print(f"{batch_size} patches of {size}^3, {classes} classes, Mamba at levels {list(mamba_levels)}")
    check_losses(shipped, plain, batch, _plain_operators)
    plain_step = inside(_plain_operators, shipped_step(plain, batch, torch.float32))
    compare(shipped_step(shipped, batch, dtype), plain_step, steps, target)


def _method(classes: int, levels: tuple[int, ...]) -> method.AffinityUMamba:
    torch.manual_seed(0)
    return method.AffinityUMamba(
        network.AffinityUMamba(3, 1, classes, filters=[16, 32, 64, 128], mamba_levels=list(levels))
    )


@contextlib.contextmanager
def _plain_operators() -> Iterator[None]:
    """The bundle's operators replaced by their equations."""
    with (
        mock.patch.object(mamba, "selective_scan", _sequential_scan),
        mock.patch.object(network, "affinity_gate", lambda feature, guide, normalise: unfolded_gate(feature, guide)),
        mock.patch.object(
            network, "bilateral_enhancement", lambda logits, image, **_: unfolded_bilateral(logits, image)
        ),
        mock.patch.object(losses, "local_affinity", _local_affinity),
        mock.patch.object(losses, "local_spread", unfolded_spread),
        mock.patch.object(method, "local_affinity_loss", unfolded_loss),
    ):
        yield


@torch.no_grad()
def _local_affinity(probabilities: torch.Tensor, own: torch.Tensor, others: torch.Tensor) -> LocalAffinity:
    return LocalAffinity(*unfolded_affinity(probabilities, own, others).chunk(3, dim=1))


def _sequential_scan(
    u: torch.Tensor,
    delta: torch.Tensor,
    A: torch.Tensor,
    B: torch.Tensor,
    C: torch.Tensor,
    D: torch.Tensor,
    z: torch.Tensor,
    delta_bias: torch.Tensor,
    delta_softplus: bool,
) -> torch.Tensor:
    """Token by token: h_t = exp(delta_t A) h_(t-1) + delta_t B_t u_t, y_t = C_t h_t; (B, channels, L)."""
    delta = delta + delta_bias[:, None]
    delta = functional.softplus(delta) if delta_softplus else delta
    state, found = torch.zeros(*u.shape[:2], A.shape[1], device=u.device), []
    for step, drive, b, c in zip(delta.unbind(2), (delta * u).unbind(2), B.unbind(2), C.unbind(2), strict=True):
        state = torch.exp(step[..., None] * A) * state + drive[..., None] * b[:, None]
        found.append((state * c[:, None]).sum(-1))
    return (torch.stack(found, 2) + D[:, None] * u) * functional.silu(z)


if __name__ == "__main__":
    fire.Fire(main)
