"""Attention as a learnt similarity of neighbours, without the matrix of all pairs."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch.autograd.function import once_differentiable

from .autocast import no_autocast
from .threads import image_parts, map_blocks, one_thread
from .windows import window_neighbours, window_offsets

_CPU_BLOCK, _GPU_BLOCK = 2**19, 2**26  # scores held at a time; on a CPU they should stay in its cache


class _Window(NamedTuple):
    """Of N voxels and their K neighbours, each (N, K).

    Attributes:
        neighbours: the neighbour q of p; p itself where the window leaves the image.
        inside: 1 where it does not, else 0.
        opposite: where in a flattened (N, K) table the pair (q, p) stands, for the place of (p, q).
        distance_map: exp(-|p - q|^2 / 2 sigma^2), 0 outside the image.
    """

    neighbours: torch.Tensor
    inside: torch.Tensor
    opposite: torch.Tensor
    distance_map: torch.Tensor

    def transposed(self, pairs: torch.Tensor) -> torch.Tensor:
        """Values of the pairs (q, p) at the places of (p, q), (..., N, K); 0 outside the image."""
        return pairs.flatten(-2)[..., self.opposite] * self.inside


@one_thread()
def attentive_similarity_loss(
    queries: torch.Tensor,
    keys: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    probabilities: torch.Tensor,
    radius: int = 5,
    sigma: float = 6.0,
    mask: torch.Tensor | None = None,
    neighbour_mask: torch.Tensor | None = None,
    plain: bool = False,
) -> torch.Tensor:
    """Mean over voxels p of the sum over neighbours q of M[p, q] S[p, q] (1 - P_p . P_q).

    Source: Sec. 2.4 and Eq. 6 of Tian et al., AttenScribble, arXiv 2312.06614. A_i = softmax of queries times keys over
    all keys, for each of n heads and layers; S = sigmoid(sum_i weight_i (A_i + A_i^T) + bias); M is
    exp(-distance^2 / 2 sigma^2). Scores are taken as they are: scale the queries before, if you want to.

    Of the N x N scores the loss needs each row's log-sum-exp and the neighbours' scores alone. They are formed in
    blocks of rows and forgotten; a second pass over the blocks yields the gradient.

    Args:
        queries: (B, n, N, d), N the product of the spatial sizes.
        keys: (B, n, N, d).
        weight: (n,).
        bias: (1,).
        probabilities: (B, C, H, W[, D]) at the resolution of the attention, summing to 1 over C.
        radius: of the window, in voxels.
        sigma: of the distance map, in voxels.
        mask: (B, 1, H, W[, D]), the voxels p to sum over, weights in [0, 1] or bool; None: all.
        neighbour_mask: the same for the neighbours q.
        plain: by ordinary operations on the whole matrix, for double-checking and for what cannot trace a custom
            function.

    Returns:
        scalar, at least 0, in float32 (float64 for float64 input); 0, with a gradient path, when there is nothing to
        sum.

    Raises:
        ValueError: when shapes do not belong together, radius is below 1, or sigma is not positive.

    Example:
        >>> q, p = torch.zeros(1, 1, 4, 2), torch.full((1, 2, 2, 2), 0.5)
        >>> round(attentive_similarity_loss(q, q, torch.ones(1), torch.zeros(1), p, radius=1, sigma=1.0).item(), 4)
        0.492
    """
    shape = probabilities.shape[2:]
    _check(queries, keys, weight, probabilities, mask, neighbour_mask)
    if sigma <= 0:
        raise ValueError(f"sigma must be positive, got {sigma}.")
    dtype = torch.float64 if probabilities.dtype is torch.float64 else torch.float32
    with no_autocast(probabilities):
        flat = probabilities.flatten(2).to(dtype)
        weights, neighbour_weights = (_flat_mask(m, flat) for m in (mask, neighbour_mask))
        window = _window(shape, radius, sigma, flat)
        loss = _plain_loss if plain else _AttentiveSimilarity.apply
        tensors = (queries.to(dtype), keys.to(dtype), weight.to(dtype), bias.to(dtype), flat)
        total: torch.Tensor = loss(*tensors, weights, neighbour_weights, window)
        return total / weights.sum().clamp_min(1.0)


class _AttentiveSimilarity(torch.autograd.Function):
    """Sum of the loss; forms the gradients with the value, as they need the same scores."""

    @staticmethod
    def forward(
        ctx: Any,
        queries: torch.Tensor,
        keys: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor,
        probabilities: torch.Tensor,
        mask: torch.Tensor,
        neighbour_mask: torch.Tensor,
        window: _Window,
    ) -> torch.Tensor:
        needed = any(ctx.needs_input_grad[:5])
        whole = (weight, bias)  # shared by the images: their gradients are sums
        own = [torch.zeros_like(tensor) for tensor in (queries, keys, probabilities)] if needed else []

        def loss(part: slice) -> tuple[torch.Tensor, ...]:
            q, k, p = queries[part], keys[part], probabilities[part]
            row_log_sum, local = _scores(q, k, window.neighbours)
            pairs = window.distance_map * mask[part, :, None] * neighbour_mask[part][:, window.neighbours]
            value, by_scores, *by_whole, by_p = _over_window(row_log_sum, local, weight, bias, p, pairs, window)
            if needed:
                found = (*_through_scores(q, k, row_log_sum, by_scores, window.neighbours), by_p)
                for gradient, share in zip(own, found, strict=True):
                    gradient[part] = share
            return value, *by_whole

        total, *sums = probabilities.new_zeros(()), *(torch.zeros_like(tensor) for tensor in whole)
        for value, *by_whole in map_blocks(loss, image_parts(queries), queries.device):
            total += value
            for gradient, share in zip(sums, by_whole, strict=True):
                gradient += share
        gradients = [*own[:2], *sums, *own[2:]] if needed else []
        ctx.save_for_backward(*gradients)
        return total

    @staticmethod
    @once_differentiable
    @one_thread()
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        return (*(grad * gradient for gradient in ctx.saved_tensors), None, None, None)


def _scores(q: torch.Tensor, k: torch.Tensor, index: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-sum-exp of every row of scores (B, n, N), and the scores of the neighbours (B, n, N, K)."""
    row_log_sum, local = q.new_empty(q.shape[:-1]), q.new_empty((*q.shape[:-1], index.shape[1]))
    for rows in _blocks(q):
        scores = q[:, :, rows] @ k.transpose(-1, -2)
        places = index[rows].expand(*scores.shape[:2], -1, -1)
        local[:, :, rows] = scores.gather(-1, places)
        largest = scores.amax(-1, keepdim=True)
        row_log_sum[:, :, rows] = scores.sub_(largest).exp_().sum(-1).log_().add_(largest[..., 0])
    return row_log_sum, local


def _over_window(
    row_log_sum: torch.Tensor,
    local: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    probabilities: torch.Tensor,
    pairs: torch.Tensor,
    window: _Window,
) -> tuple[torch.Tensor, ...]:
    """Loss, and its gradients by the neighbours' scores, weight, bias and probabilities; ``pairs`` is (B, N, K).

    The gradient by p's log-sum-exp is minus the sum of those by p's neighbours' scores.
    """
    attention = local.sub_(row_log_sum[..., None]).exp_()  # (B, n, N, K)
    both = attention + window.transposed(attention)
    similarity = torch.einsum("n,bnpk->bpk", weight, both).add_(bias).sigmoid_()
    near = probabilities.transpose(1, 2)[:, window.neighbours]  # (B, N, K, C)
    unlike = 1 - torch.einsum("bcp,bpkc->bpk", probabilities, near)
    weighted = pairs * similarity
    value = (weighted * unlike).sum(dtype=torch.float64).to(weighted.dtype)
    by_logit = weighted * unlike * (1 - similarity)
    by_weight = torch.einsum("bpk,bnpk->n", by_logit, both)
    by_attention = (by_logit + window.transposed(by_logit))[:, None] * weight[:, None, None]
    by_probabilities = -torch.einsum("bpk,bpkc->bcp", weighted + window.transposed(weighted), near)
    return value, by_attention * attention, by_weight, by_logit.sum().reshape(1), by_probabilities


def _through_scores(
    q: torch.Tensor, k: torch.Tensor, row_log_sum: torch.Tensor, by_local: torch.Tensor, index: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Gradients by queries and keys, from those by the neighbours' scores."""
    by_q, by_k = torch.empty_like(q), torch.zeros_like(k)
    by_row = -by_local.sum(-1)
    for rows in _blocks(q):
        scores = q[:, :, rows] @ k.transpose(-1, -2)
        scores.sub_(row_log_sum[:, :, rows, None]).exp_().mul_(by_row[:, :, rows, None])
        scores.scatter_add_(-1, index[rows].expand(*scores.shape[:2], -1, -1), by_local[:, :, rows])
        by_q[:, :, rows] = scores @ k
        by_k += scores.transpose(-1, -2) @ q[:, :, rows]
    return by_q, by_k


def _blocks(q: torch.Tensor) -> Iterator[slice]:
    """Blocks of rows whose scores fit."""
    rows = max(1, (_GPU_BLOCK if q.is_cuda else _CPU_BLOCK) // max(q[..., 0].numel(), 1))
    return (slice(start, start + rows) for start in range(0, q.shape[2], rows))


def _plain_loss(
    queries: torch.Tensor,
    keys: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    probabilities: torch.Tensor,
    mask: torch.Tensor,
    neighbour_mask: torch.Tensor,
    window: _Window,
) -> torch.Tensor:
    attention = (queries @ keys.transpose(-1, -2)).softmax(-1)
    both = attention + attention.transpose(-1, -2)
    similarity = (torch.einsum("n,bnpq->bpq", weight, both) + bias).sigmoid()
    distance_map = both.new_zeros(both.shape[-2:]).scatter_add(1, window.neighbours, window.distance_map)
    unlike = 1 - probabilities.transpose(1, 2) @ probabilities
    return (mask[:, :, None] * neighbour_mask[:, None] * distance_map * similarity * unlike).sum()


def _window(shape: Sequence[int], radius: int, sigma: float, like: torch.Tensor) -> _Window:
    index, inside = window_neighbours(shape, radius, like.device)
    offsets = like.new_tensor(window_offsets(radius, len(shape)))
    distance_map = torch.exp(-0.5 * offsets.square().sum(1) / sigma**2) * inside
    places = index.shape[1]
    opposite = index * places + torch.arange(places - 1, -1, -1, device=like.device)
    return _Window(index, inside.to(like.dtype), opposite, distance_map.to(like.dtype))


def _flat_mask(mask: torch.Tensor | None, probabilities: torch.Tensor) -> torch.Tensor:
    """(B, N) weights of the voxels, ones for no mask."""
    if mask is None:
        return torch.ones_like(probabilities[:, 0])
    return mask.detach().to(probabilities.dtype).flatten(1)


def _check(
    queries: torch.Tensor, keys: torch.Tensor, weight: torch.Tensor, probabilities: torch.Tensor, *masks: Any
) -> None:
    shape = probabilities.shape[2:]
    if queries.shape != keys.shape or queries.ndim != 4:
        raise ValueError(f"queries {tuple(queries.shape)} and keys {tuple(keys.shape)} must both be (B, n, N, d).")
    if queries.shape[1:3] != (len(weight), math.prod(shape)) or len(queries) != len(probabilities):
        raise ValueError(
            f"queries {tuple(queries.shape)} do not match {len(weight)} weights and "
            f"probabilities {tuple(probabilities.shape)}."
        )
    for mask in masks:
        if mask is not None and tuple(mask.shape) != (len(probabilities), 1, *shape):
            raise ValueError(f"a mask must have shape {(len(probabilities), 1, *shape)}, got {tuple(mask.shape)}.")
