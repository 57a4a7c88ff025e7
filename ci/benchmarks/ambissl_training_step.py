"""Time one AmbiSSL step as shipped against the same step whose heads are plain convolutions.

``python -m ci.benchmarks.ambissl_training_step`` prints a table. Network and batch are those of ``train.yaml``, the
method is in float32 on a CPU; steps of both kinds are timed in turn, and the losses of the first ones compared.
"""

from __future__ import annotations

from unittest import mock

import fire
import torch
from torch.nn import functional

from bundles.ambissl.scripts import head
from bundles.ambissl.scripts.method import AmbiSSL
from bundles.ambissl.scripts.network import ProbabilisticUNet

from .ambissl_sampling import SETTINGS
from .steps import check_losses, compare, inside, shipped_step


def main(side: int = 64, images: int = 6, raters: int = 5, steps: int = 5) -> None:
    """Print the table.

    Args:
        side: of the slices, in pixels.
        images: with raters, and as many without.
        raters: of an image.
        steps: timed steps of each kind, after one that is not timed.
    """
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(2 * images, 1, side, side, generator=generator)
    smooth = functional.avg_pool2d(image[:, 0], 9, 1, 4)
    shifts = torch.linspace(-0.02, 0.02, raters)[None, :, None, None]  # each rater draws larger than the one before
    masks = torch.bucketize(smooth[:, None] + shifts, torch.tensor([0.49, 0.51, 0.53]))
    count = torch.tensor([raters] * images + [0] * images)
    batch = {"image": image, "strong": image.sqrt(), "raters": masks, "rater_count": count}
    shipped, plain = _method(raters), _method(raters)
    print(f"cpu, torch {torch.__version__}, {torch.get_num_threads()} threads, float32")
    print(f"{images} + {images} slices of {side} x {side}, {raters} raters")
    check_losses(shipped, plain, batch, _convolutions)
    plain_step = inside(_convolutions, shipped_step(plain, batch, torch.float32))
    compare(shipped_step(shipped, batch, torch.float32), plain_step, steps, torch.device("cpu"))


def _method(raters: int) -> AmbiSSL:
    torch.manual_seed(0)
    return AmbiSSL(ProbabilisticUNet(**SETTINGS["phantom, as in train.yaml"]), raters=raters)  # type: ignore[arg-type]


def _convolutions() -> mock._patch[object]:
    return mock.patch.object(head, "_streams", lambda _: False)


if __name__ == "__main__":
    fire.Fire(main)
