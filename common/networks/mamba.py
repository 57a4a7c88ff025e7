"""Mamba block, over sequences and over the voxels of feature maps."""

# A, B, C and D are the source's names.
# flake8: noqa: N803,N806
from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn import functional

from ..ops.autocast import no_autocast
from ..ops.selective_scan import selective_scan


class Mamba(nn.Module):
    """Selective state space block: in-projection, causal depth-wise convolution, SiLU, scan, gate, out-projection.

    Source: Gu and Dao, Mamba, arXiv 2312.00752, Sec. 3.4 and 3.6. Parameters have the names, shapes and initial
    distributions of ``mamba_ssm.Mamba``: a state dict of the one loads into the other. It runs without that package;
    the scan uses its kernel where there is one. Scan, gate and out-projection are float32 under autocast.

    ``A_log`` and ``D`` carry the attribute ``_no_weight_decay``, for optimisers that ask.

    Args:
        d_model: channels of a token.
        d_state: states a channel of the scan.
        d_conv: length of the convolution, in tokens.
        expand: channels of the scan in units of ``d_model``.
        dt_rank: rank of the step sizes' projection; None: d_model / 16, rounded up.

    Shape:
        tokens (B, L, d_model) to the same.

    Example:
        >>> Mamba(8)(torch.zeros(2, 5, 8)).shape
        torch.Size([2, 5, 8])
    """

    def __init__(
        self, d_model: int, d_state: int = 16, d_conv: int = 4, expand: int = 2, dt_rank: int | None = None
    ) -> None:
        super().__init__()
        inner = expand * d_model
        self.dt_rank = math.ceil(d_model / 16) if dt_rank is None else dt_rank
        self.d_state = d_state
        self.in_proj = nn.Linear(d_model, 2 * inner, bias=False)
        self.conv1d = nn.Conv1d(inner, inner, d_conv, groups=inner, padding=d_conv - 1)
        self.x_proj = nn.Linear(inner, self.dt_rank + 2 * d_state, bias=False)
        self.dt_proj = nn.Linear(self.dt_rank, inner)
        self.A_log = nn.Parameter(torch.arange(1.0, d_state + 1).log().repeat(inner, 1))
        self.D = nn.Parameter(torch.ones(inner))
        self.out_proj = nn.Linear(inner, d_model, bias=False)
        for parameter in (self.A_log, self.D):
            parameter._no_weight_decay = True  # type: ignore[attr-defined]
        bound = self.dt_rank**-0.5
        nn.init.uniform_(self.dt_proj.weight, -bound, bound)
        # steps log-uniform in [0.001, 0.1]; the bias is what softplus maps to them
        steps = torch.empty(inner).uniform_(math.log(1e-3), math.log(0.1)).exp().clamp_min(1e-4)
        self.dt_proj.bias.data.copy_(steps + torch.log(-torch.expm1(-steps)))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """What the block makes of tokens (B, L, d_model): the same shape."""
        x, z = self.in_proj(tokens).transpose(1, 2).chunk(2, dim=1)  # (B, inner, L)
        x = functional.silu(self.conv1d(x)[:, :, : tokens.shape[1]])  # cut: a token sees none that comes after it
        low_rank, B, C = self.x_proj(x.transpose(1, 2)).split([self.dt_rank, self.d_state, self.d_state], dim=-1)
        delta = functional.linear(low_rank, self.dt_proj.weight).transpose(1, 2)
        y = selective_scan(
            x.to(self.D.dtype),  # y is of the fifth degree in the tokens and leaves float16's range early
            delta,
            -torch.exp(self.A_log.float()),
            B.transpose(1, 2),
            C.transpose(1, 2),
            self.D,
            z,
            self.dt_proj.bias,
            delta_softplus=True,
        )
        if torch.jit.is_scripting():
            return self.out_proj(y.transpose(1, 2))
        with no_autocast(y):
            return self.out_proj(y.transpose(1, 2))


class SpatialMamba(nn.Module):
    """Mamba over the voxels of a feature map, in memory order (the last axis runs fastest), after LayerNorm.

    Source: Ma et al., U-Mamba, arXiv 2401.04722, Sec. 2.1.

    Args:
        channels: of the feature map.
        residual: whether the block adds to the feature; else it replaces it, as U-Mamba's does.

    Shape:
        (B, channels, H, W[, D]) to the same.

    Example:
        >>> SpatialMamba(8)(torch.zeros(2, 8, 4, 3, 2)).shape
        torch.Size([2, 8, 4, 3, 2])
    """

    def __init__(self, channels: int, residual: bool = True) -> None:
        super().__init__()
        self.residual = residual
        self.norm = nn.LayerNorm(channels)
        self.mamba = Mamba(channels)

    def forward(self, feature: torch.Tensor) -> torch.Tensor:
        """The feature (B, channels, *S) mixed over its voxels."""
        tokens = self.mamba(self.norm(feature.flatten(2).transpose(1, 2)))
        mixed = tokens.transpose(1, 2).reshape(feature.shape)
        return feature + mixed if self.residual else mixed
