"""Time n answers of the set-valued network against its backbone, against one pass for one answer, and against n passes.

``python -m ci.benchmarks.ambissl_sampling`` prints a table; one thread, or a GPU where there is one. The backbone is
encoder and decoder; prior and head come on top of it. Medians of rounds in turn; on a CPU, of its own time, so that
other programs do not count.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from functools import partial

import fire
import torch

from bundles.ambissl.scripts.network import ProbabilisticUNet

SETTINGS = {
    "phantom, as in train.yaml": {
        "backbone": "resnet18",
        "decoder_channels": (128, 64, 32, 32, 16),
        "prior_channels": (16, 32, 64, 96),
        "out_channels": 4,
    },
    "the paper's size, as in lidc.yaml": {"backbone": "resnet34", "out_channels": 2},
}


def main(samples: int = 16, side: int = 128, batch: int = 2, rounds: int = 5) -> None:
    """Print the table.

    Args:
        samples: n.
        side: of the images, in pixels.
        batch: images.
        rounds: of which the median is taken, after one that is not timed.
    """
    torch.set_num_threads(1)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    print(f"{device}, torch {torch.__version__}, one thread; {batch} images of {side} x {side}, n = {samples}")
    print(f"{'network':<36}{'backbone':>10}{'n answers':>11}{'n passes':>11}{'n / backbone':>14}{'n / one pass':>14}")
    for name, settings in SETTINGS.items():
        torch.manual_seed(0)
        network = ProbabilisticUNet(**settings).eval().to(device)  # type: ignore[arg-type]
        image = torch.rand(batch, 1, side, side, device=device)
        latent = torch.randn(batch, samples, network.latent_size, device=device)
        times = _medians(
            {
                "backbone": partial(_backbone, network, image),
                "answers": partial(network.samples, image, latent),
                "passes": partial(_passes, network, image, latent),
            },
            rounds,
            device,
        )
        cells = "".join(f"{1000 * times[kind]:>8.1f} ms" for kind in ("backbone", "answers", "passes"))
        ratios = (times["answers"] / times["backbone"], times["answers"] / (times["passes"] / samples))
        print(f"{name:<36}{cells}{ratios[0]:>14.2f}{ratios[1]:>14.2f}")


def _backbone(network: ProbabilisticUNet, image: torch.Tensor) -> torch.Tensor:
    return network.decode(network.encode(image))


def _passes(network: ProbabilisticUNet, image: torch.Tensor, latent: torch.Tensor) -> list[torch.Tensor]:
    return [network(image, code) for code in latent.unbind(1)]


@torch.no_grad()
def _medians(kinds: dict[str, Callable[[], object]], rounds: int, device: torch.device) -> dict[str, float]:
    """Seconds of each kind; they run in turn."""
    clock = time.perf_counter if device.type == "cuda" else time.process_time
    found: dict[str, list[float]] = {name: [] for name in kinds}
    for number in range(rounds + 1):
        for name, run in kinds.items():
            start = clock()
            run()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            if number > 0:
                found[name].append(clock() - start)
    return {name: statistics.median(values) for name, values in found.items()}


if __name__ == "__main__":
    fire.Fire(main)
