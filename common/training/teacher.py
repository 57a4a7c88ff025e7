"""The teacher of Mean Teacher methods."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

_Tensors = tuple[torch.Tensor, ...] | list[torch.Tensor]


class Teacher(AveragedModel):
    """Exponential moving average of a student network, asked under noise and dropout.

    Source: Tarvainen and Valpola, Mean teachers are better role models, NeurIPS 2017.

    It is a copy: nothing is shared with the student, nothing in it has a gradient. In training mode its dropout is
    active and it normalises by the statistics of the batch, without leaving a trace in the averaged ones; those lag
    behind averaged weights while the learning rate is high.

    Call ``update_parameters(student)`` after each step. With t updates made before, counted in the state dict, it is

        teacher = a teacher + (1 - a) student,  a = min(1 - 1 / (t + 1), decay):

    the first copies the student, and as long as t + 1 is below 1 / (1 - decay) the teacher is the plain mean of all
    students so far. Else the untrained first one would weigh decay^t for long: 13% after 200 steps of 0.99.

    Weights loaded into the student (``load_state_dict`` of it, or of what holds it) reach the teacher at once, and the
    average begins anew. A method that resumes holds its student before its teacher, so that the teacher's own weights
    and count, loaded last, stay.

    Args:
        network: the student.
        decay: of the moving average once it has warmed up, in [0, 1).
        input_noise: standard deviation of the noise on the input, in units of the normalised image, at least 0.

    Raises:
        ValueError: when an argument is outside its range.
    """

    def __init__(self, network: nn.Module, decay: float = 0.99, input_noise: float = 0.1) -> None:
        if not 0.0 <= decay < 1.0:
            raise ValueError(f"ema_decay must be in [0, 1), got {decay}.")
        if input_noise < 0.0:
            raise ValueError(f"input_noise must be at least 0, got {input_noise}.")
        super().__init__(network, multi_avg_fn=_warmed_up(decay), use_buffers=True)
        self.input_noise = input_noise
        self.requires_grad_(False)
        for module in self.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.track_running_stats = False  # what is there is averaged, never gathered
        self.train()
        network.register_load_state_dict_post_hook(self._begin_anew)

    @torch.no_grad()
    def passes(self, image: torch.Tensor, count: int = 1) -> torch.Tensor:
        """Outputs, each under its own input noise and dropout.

        Args:
            image: (B, channels, *S).
            count: M, at least 1.

        Returns:
            (M, B, C, *S), probabilities, float32.
        """
        outputs = []
        for _ in range(count):
            noise = self.input_noise * torch.randn_like(image)
            outputs.append(self(image + noise).float().softmax(1))
        return torch.stack(outputs)

    @torch.no_grad()
    def _begin_anew(self, network: nn.Module, _keys: object) -> None:
        """Copy the student and forget the average; a hook of its ``load_state_dict``."""
        copies = itertools.chain(self.module.parameters(), self.module.buffers())
        for mine, value in zip(copies, itertools.chain(network.parameters(), network.buffers()), strict=True):
            mine.copy_(value)
        self.n_averaged.zero_()

    def train(self, mode: bool = True) -> Teacher:
        """Training mode of dropout and batch normalisation; the rest of a teacher never trains."""
        super().train(False)
        for module in self.modules():
            if isinstance(module, (nn.modules.dropout._DropoutNd, nn.modules.batchnorm._BatchNorm)):
                module.train(mode)
        return self


def _warmed_up(decay: float) -> Callable[[_Tensors, _Tensors, torch.Tensor | int], None]:
    """The step of a moving average whose decay rises to ``decay`` with the number of updates before."""

    def average(means: _Tensors, values: _Tensors, count: torch.Tensor | int) -> None:
        get_ema_multi_avg_fn(min(1.0 - 1.0 / (int(count) + 1), decay))(means, values, count)

    return average
