"""Time one Adaptive Label Correction step as shipped against the same step written plainly.

``python -m ci.benchmarks.alc_training_step`` prints a table. The plain step is what the paper's equations say, one
after the other, in float32, eager, with PyTorch's default memory layout: student forward for clean and for noisy
images, a loop over teacher passes, a loop over parameters for the moving average. Steps of both are timed in turn.
"""

from __future__ import annotations

import copy
from typing import Any

import fire
import torch

from bundles.alc.scripts.method import AdaptiveLabelCorrection
from common.networks import VNet
from common.training.precision import resolve_precision

from .steps import Step, compare, segmentation_loss, shipped_step


def main(
    patch: tuple[int, int, int] = (64, 64, 32),
    clean: int = 2,
    noisy: int = 4,
    passes: int = 4,
    steps: int = 5,
    precision: str = "auto",
    device: str = "cuda" if torch.cuda.is_available() else "cpu",
) -> None:
    """Print the table.

    Args:
        patch: spatial size of a patch, in voxels.
        clean: patches with clean labels in a batch.
        noisy: patches with noisy labels in a batch.
        passes: teacher passes.
        steps: timed steps of each kind, after one that is not timed.
        precision: of the shipped step, as in the configs.
        device: where to run.
    """
    torch.manual_seed(0)
    target = torch.device(device)
    batch = {
        "image": torch.randn(clean + noisy, 1, *patch, device=target),
        "label": torch.randint(0, 2, (clean + noisy, 1, *patch), device=target),
        "clean": torch.tensor([True] * clean + [False] * noisy, device=target),
    }
    dtype = resolve_precision(precision, target)
    method = AdaptiveLabelCorrection(VNet(), passes=passes).to(target)
    print(f"{target}, torch {torch.__version__}, {torch.get_num_threads()} threads, {dtype} as shipped")
    print(f"patches {patch}, {clean} clean + {noisy} noisy, {passes} teacher passes")
    compare(shipped_step(method, batch, dtype), _plain_step(batch, passes), steps, target)


def _plain_step(batch: dict[str, Any], passes: int) -> Step:
    image, label, clean = batch["image"], batch["label"], batch["clean"]
    student = VNet().to(image.device).train()
    student.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    teacher = copy.deepcopy(student)
    optimizer = torch.optim.SGD(student.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4)

    def step() -> None:
        optimizer.zero_grad()
        clean_loss = segmentation_loss(student(image[clean]), label[clean])
        noisy_image, noisy_label = image[~clean], label[~clean]
        logits = student(noisy_image)
        with torch.no_grad():
            outputs = [teacher(noisy_image + 0.1 * torch.randn_like(noisy_image)).softmax(1) for _ in range(passes)]
            mean = torch.stack(outputs).mean(0)
            weights = [torch.exp(-(mean * torch.log((mean + 1e-8) / (p + 1e-8))).sum(1, keepdim=True)) for p in outputs]
            normaliser = torch.stack(weights).sum(0)
            refined = sum(w * p / normaliser for w, p in zip(weights, outputs, strict=True)).argmax(1, keepdim=True)
            order = torch.stack(outputs).var(0).flatten(1).mean(1).argsort()
        chosen, rest = order[: len(order) // 2], order[len(order) // 2 :]
        consistency = (mean - logits.softmax(1)).abs().mean()
        total = clean_loss + 0.3 * (
            3 * segmentation_loss(logits[chosen], refined[chosen])
            + 2 * segmentation_loss(logits[rest], noisy_label[rest])
            + consistency
        )
        total.backward()
        optimizer.step()
        with torch.no_grad():
            for average, value in zip(teacher.parameters(), student.parameters(), strict=True):
                average.mul_(0.99).add_(value, alpha=0.01)

    return step


if __name__ == "__main__":
    fire.Fire(main)
