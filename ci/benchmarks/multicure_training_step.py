"""Time one MultiCURE step as shipped against the same step written plainly.

``python -m ci.benchmarks.multicure_training_step`` prints a table. The plain step is what the paper says, one
equation after the other, in float32, eager, with PyTorch's default memory layout: a deformable convolution that holds
the samples of all taps, the module's 1x1x1 convolution before its mean, features of all levels upsampled and
concatenated before theirs, loops over classes and prototypes. Steps of both are timed in turn.
"""

from __future__ import annotations

from typing import Any

import fire
import torch
from torch import nn
from torch.nn import functional

from bundles.multicure.scripts.method import MultiCURE
from bundles.multicure.scripts.network import MultiCUREModule, MultiCURENet
from common.training.precision import resolve_precision

from .deformable import plain_deformable_conv
from .steps import Step, compare, segmentation_loss, shipped_step


def main(
    patch: tuple[int, int, int] = (64, 64, 32),
    labelled: int = 2,
    unlabelled: int = 2,
    steps: int = 5,
    precision: str = "auto",
    device: str = "cuda" if torch.cuda.is_available() else "cpu",
) -> None:
    """Print the table.

    Args:
        patch: spatial size of a patch, in voxels.
        labelled: patches with labels in a batch.
        unlabelled: patches without labels in a batch.
        steps: timed steps of each kind, after one that is not timed.
        precision: of the shipped step, as in the configs.
        device: where to run.
    """
    torch.manual_seed(0)
    target = torch.device(device)
    count = labelled + unlabelled
    batch = {
        "image": torch.randn(count, 1, *patch, device=target),
        "label": torch.randint(0, 2, (count, 1, *patch), device=target),
        "labelled": torch.arange(count, device=target) < labelled,
    }
    dtype = resolve_precision(precision, target)
    method = MultiCURE(MultiCURENet()).to(target)
    print(f"{target}, torch {torch.__version__}, {torch.get_num_threads()} threads, {dtype} as shipped")
    print(f"patches {patch}, {labelled} labelled + {unlabelled} unlabelled")
    compare(shipped_step(method, batch, dtype), _plain_step(batch), steps, target)


class _PlainModule(nn.Module):
    """The MultiCURE module as its figure shows it; takes over the shipped module's layers."""

    def __init__(self, module: MultiCUREModule) -> None:
        super().__init__()
        self.module = module

    def forward(self, feature: torch.Tensor, uncertainty: torch.Tensor) -> torch.Tensor:
        module, deformable = self.module, self.module.deformable
        bent = plain_deformable_conv(feature, deformable.offset(feature), deformable.weight)
        if deformable.bias is not None:
            bent = bent + deformable.bias.reshape(1, -1, 1, 1, 1)
        branches = [branch(feature) for branch in module.plain] + [bent + module.pool(uncertainty)]
        joined = functional.conv3d(torch.cat(branches, 1), module.fuse.weight[..., None, None, None], module.fuse.bias)
        squeezed = module.squeeze(joined.mean((2, 3, 4)))
        weights = torch.stack([head(squeezed) for head in module.heads]).softmax(0)[..., None, None, None]
        return sum((b * w for b, w in zip(branches, weights, strict=True)), torch.zeros_like(feature))


def _plain_step(batch: dict[str, Any]) -> Step:
    image, label, labelled = batch["image"], batch["label"], batch["labelled"]
    network = MultiCURENet().to(image.device).train()
    network.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    assert network.auxiliary.refine is not None
    network.auxiliary.refine = _PlainModule(network.auxiliary.refine)  # type: ignore[assignment]
    project = nn.Conv3d(112, 16, 1).to(image.device)
    optimizers = [
        torch.optim.SGD(parameters, lr=0.01, momentum=0.9, weight_decay=1e-4)
        for parameters in (network.predictive.parameters(), [*network.auxiliary.parameters(), *project.parameters()])
    ]

    def step() -> None:
        for optimizer in optimizers:
            optimizer.zero_grad()
        outputs = network.branches(image)
        total = sum(
            2 * segmentation_loss(logits[labelled], label[labelled])
            for logits in (outputs.predictive, outputs.auxiliary)
        )
        probability = outputs.predictive.softmax(1)
        confidence, predicted = probability.detach().max(1, keepdim=True)
        total = total + _pseudo_label_losses(
            probability[~labelled], outputs.auxiliary[~labelled], predicted[~labelled], confidence[~labelled] > 0.7
        )
        size = image.shape[2:]
        features = project(
            torch.cat([functional.interpolate(level, size=size, mode="trilinear") for level in outputs.features], 1)
        )
        total = total + 0.1 * _contrast(features, predicted, confidence, labelled)
        total.backward()
        for optimizer in optimizers:
            optimizer.step()

    return step


def _pseudo_label_losses(
    predictive: torch.Tensor, auxiliary: torch.Tensor, predicted: torch.Tensor, confident: torch.Tensor
) -> torch.Tensor:
    """Eq. 2; ``predictive`` are probabilities, ``auxiliary`` logits, of unlabelled images."""
    sure = confident[:, 0]
    entropy = functional.cross_entropy(auxiliary, predicted[:, 0], reduction="none")[sure].sum() / sure.sum().clamp(1)
    probability = auxiliary.softmax(1)
    ours, theirs = probability[:, 1][sure], (predicted[:, 0] == 1).float()[sure]
    dice = 1 - (2 * (ours * theirs).sum() + 1e-5) / (ours.sum() + theirs.sum() + 1e-5)
    differ = (auxiliary.argmax(1) != predicted[:, 0]) & sure
    distance = (predictive[:, 1] - probability[:, 1]).abs()[differ]
    return entropy + dice + distance.sum() / differ.sum().clamp(1)


def _contrast(
    features: torch.Tensor, predicted: torch.Tensor, confidence: torch.Tensor, labelled: torch.Tensor
) -> torch.Tensor:
    """Eqs. 4 and 5 and the prototypes' separation, class by class."""
    rows, classes, sure = features.movedim(1, -1), predicted[:, 0], confidence[:, 0]
    centres = {k: rows[(classes == k) & (sure > 0.7)].mean(0) for k in (0, 1) if ((classes == k) & (sure > 0.7)).any()}
    unsure = (sure < 0.7) & ~labelled.reshape(-1, 1, 1, 1)
    total = features.sum() * 0.0
    for k, centre in centres.items():
        voxels = rows[unsure & (classes == k)]
        voxels = voxels[torch.randperm(len(voxels))[:4096]]
        if len(voxels) > 0:
            scores = torch.stack([functional.cosine_similarity(voxels, other[None]) for other in centres.values()], 1)
            own = functional.cosine_similarity(voxels, centre[None])
            total = total + (torch.logsumexp(scores / 0.1, 1) - own / 0.1).mean() / len(centres)
    if len(centres) == 2:
        total = total + 0.5 * (1 + functional.cosine_similarity(centres[0], centres[1], 0))
    return total


if __name__ == "__main__":
    fire.Fire(main)
