"""Several answers of one network for an image: drawing them, maps of them, and their metrics.

For any network with ``samples(image, latent)``: image (B, channels, *S) and latent (B, n, D) in standard-normal units
to logits (B, n, C, *S), and with ``latent_size``, D.
"""

from __future__ import annotations

import os
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events
from ignite.metrics import Average
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.engines import SupervisedEvaluator
from monai.handlers import StatsHandler
from monai.inferers import SliceInferer, SlidingWindowInferer
from monai.transforms import Compose, Invertd, MapTransform, Transform

from ..data.contract.names import case_name
from ..data.loading.components import LargestComponentd
from ..data.loading.temperature import Weights
from ..data.loading.transforms import SaveNiftid, SegmentationAndUncertaintyd
from ..ops.likeliest import likeliest
from ..training.precision import evaluation_amp
from .ambiguity import AMBIGUITY_FILE, ambiguity_row, ambiguity_summary, pairs_that_differ, write_ambiguity
from .consensus import CONSENSUS, StapleConsensusd
from .samples import set_measures, set_rows, write_set_rows


class _Sampling:
    """Draw n answers for an image, each from one latent code in all of its windows and slices.

    One latent code is one rater: drawn anew for each window, an answer would change its mind at every seam. The codes
    follow from the seed alone, so an image's answers are the same whatever is inferred beside it and in whatever
    windows, and number j stands for the same rater in every image.
    """

    def __init__(self, *arguments: Any, samples: int, seed: int, temperature: float, **options: Any) -> None:
        if samples < 1 or temperature < 0.0:
            raise ValueError(f"samples must be at least 1 and temperature at least 0, got {samples} and {temperature}.")
        super().__init__(*arguments, **options)
        self.samples, self.seed, self.temperature = samples, seed, temperature

    def latent(self, size: int) -> torch.Tensor:
        """The latent codes (n, size), in standard-normal units."""
        generator = torch.Generator().manual_seed(self.seed)
        # one after the other, so that more samples begin with the same ones
        codes = [torch.randn(size, generator=generator) for _ in range(self.samples)]
        return self.temperature * torch.stack(codes)

    def __call__(self, inputs: torch.Tensor, network: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Probabilities (B, n * C, *S): the classes of the first answer, then of the second, ..."""
        codes = self.latent(network.latent_size).to(inputs.device)

        def answers(window: torch.Tensor) -> torch.Tensor:
            logits: torch.Tensor = network.samples(window, codes.expand(len(window), *codes.shape))
            # windows that overlap average probabilities, see inferers.py
            return logits.float().softmax(2).flatten(1, 2)

        result: torch.Tensor = super().__call__(inputs, answers)  # type: ignore[misc]
        return result


class SampleWindowInferer(_Sampling, SlidingWindowInferer):
    """n answers for an image, by sliding windows that average probabilities; one latent code an answer.

    Args:
        roi_size: window, voxels along each axis.
        sw_batch_size: windows a batch.
        overlap: share by which windows overlap, of all axes or of each.
        samples: n.
        seed: of the latent codes; the same seed gives the same answers, whatever the windows.
        temperature: factor on the latent codes: below 1 answers keep closer to the prior's mean.

    Raises:
        ValueError: when an argument is outside its range.
    """

    def __init__(
        self,
        roi_size: Sequence[int],
        sw_batch_size: int = 1,
        overlap: Sequence[float] | float = 0.25,
        samples: int = 16,
        seed: int = 0,
        temperature: float = 1.0,
    ) -> None:
        super().__init__(roi_size, sw_batch_size, overlap, samples=samples, seed=seed, temperature=temperature)


class SampleSliceInferer(_Sampling, SliceInferer):
    """n answers for a volume, by a 2D network on its slices; one latent code an answer, in all slices.

    Args:
        roi_size: window of a slice, pixels along each axis.
        spatial_dim: axis across which the slices lie, 0 to 2.
        sw_batch_size: windows a batch.
        overlap: share by which a slice's windows overlap.
        samples: n.
        seed: of the latent codes; the same seed gives the same answers, whatever the windows.
        temperature: factor on the latent codes: below 1 answers keep closer to the prior's mean.

    Raises:
        ValueError: when an argument is outside its range.
    """

    def __init__(
        self,
        roi_size: Sequence[int],
        spatial_dim: int = 0,
        sw_batch_size: int = 1,
        overlap: Sequence[float] | float = 0.25,
        samples: int = 16,
        seed: int = 0,
        temperature: float = 1.0,
    ) -> None:
        super().__init__(
            spatial_dim, roi_size, sw_batch_size, overlap, samples=samples, seed=seed, temperature=temperature
        )


class SplitSamplesd(MapTransform):
    """Probabilities (n * C, *S) of n answers to ``samples``, their mean and where they disagree.

    The item becomes the mean probability (C, *S). ``samples`` (n, *S) are the answers' class numbers,
    ``sample_probabilities`` is (n, C, *S), ``disagreement`` (1, *S) the share of pairs of answers that differ in their
    class, in [0, 1].

    Args:
        keys: the item.
        num_classes: C, background included.
    """

    def __init__(self, keys: KeysCollection, num_classes: int) -> None:
        super().__init__(keys)
        self.num_classes = num_classes

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Split the item."""
        d = dict(data)
        for key in self.key_iterator(d):
            meta = d[key].meta
            answers = torch.as_tensor(d[key]).unflatten(0, (-1, self.num_classes))
            classes = likeliest(answers, 1)
            d["sample_probabilities"] = answers
            d["samples"] = MetaTensor(classes.to(torch.uint8), meta=meta)
            differ = torch.from_numpy(pairs_that_differ(classes.cpu().numpy(), self.num_classes))
            d["disagreement"] = MetaTensor(differ.float()[None], meta=meta)
            d[key] = MetaTensor(answers.mean(0), meta=meta)
        return d


def sample_postprocessing(
    preprocessing: Compose,
    output_dir: str | os.PathLike[str],
    num_classes: int,
    measured: bool = True,
    weights: Weights | None = None,
    consensus: str = "mean",
    largest_component: bool = False,
) -> Compose:
    """From n answers to maps in the image's own space and their files.

    Written for each case: ``pred`` (the consensus), ``probability`` (C channels, the mean), ``uncertainty`` (its
    entropy divided by log C), ``samples`` (n channels of class numbers), ``disagreement``; and, if measured, ``image``,
    ``label`` and ``raters`` (R channels), for the report.

    Args:
        preprocessing: the transforms of ``image`` to invert.
        output_dir: folder to write to.
        num_classes: C, background included.
        measured: there are ``shown``, ``label`` and ``raters`` in the label's space.
        weights: the network's file of weights, whose calibration tempers the mean probability; None: none.
        consensus: ``mean``: the class of largest mean probability; ``staple``: see
            :class:`~.consensus.StapleConsensusd`.
        largest_component: keep of each structure of the consensus its largest component alone; the samples stay.

    Raises:
        ValueError: another consensus.
        ExpectedError: ``staple``, and SimpleITK is not installed.
    """
    if consensus not in CONSENSUS:
        raise ValueError(f"consensus must be one of {', '.join(CONSENSUS)}, got {consensus!r}.")
    folder = str(output_dir)
    steps = [
        Invertd("pred", transform=preprocessing, orig_keys="image", nearest_interp=False),
        SplitSamplesd("pred", num_classes),
        SegmentationAndUncertaintyd("pred", weights),
        *([StapleConsensusd("pred", num_classes)] if consensus == "staple" else []),
        LargestComponentd("pred", largest_component),
        SaveNiftid("pred", folder, "pred", dtype="uint8"),
        SaveNiftid("probabilities", folder, "probability"),
        SaveNiftid("uncertainty", folder, "uncertainty"),
        SaveNiftid("samples", folder, "samples", dtype="uint8"),
        SaveNiftid("disagreement", folder, "disagreement"),
    ]
    if measured:
        steps += [
            SaveNiftid("shown", folder, "image"),
            SaveNiftid("label", folder, "label", dtype="uint8", like="shown"),
            SaveNiftid("raters", folder, "raters", dtype="uint8", like="shown"),
        ]
    return Compose(steps)


class SetMetrics:
    """Measure the set of answers of every case against its raters; writes ``samples.csv`` and ``ambiguity.csv``.

    Args:
        output_dir: folder to write to.
        structures: names by label value, background left out or in.
    """

    def __init__(self, output_dir: str | os.PathLike[str], structures: Mapping[int, str]) -> None:
        self.folder = Path(output_dir)
        self.names = [name for value, name in sorted(structures.items()) if int(value) != 0]
        self.rows: list[dict[str, Any]] = []
        self.ambiguity: list[dict[str, Any]] = []

    def attach(self, engine: Engine) -> None:
        """Attach to an evaluator."""
        engine.add_event_handler(Events.STARTED, self.rows.clear)
        engine.add_event_handler(Events.STARTED, self.ambiguity.clear)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._case)
        engine.add_event_handler(Events.COMPLETED, self._completed)

    def _case(self, engine: Engine) -> None:
        for batch, output in zip(engine.state.batch, engine.state.output, strict=True):
            name = case_name(output["pred"].meta["filename_or_obj"])
            samples, raters = _arrays(output, batch)
            self.rows += set_rows(name, samples, raters, self.names)
            known = batch.get("probability")
            self.ambiguity.append(ambiguity_row(name, samples, raters, None if known is None else known.cpu().numpy()))

    def _completed(self) -> None:
        write_set_rows(self.folder / "samples.csv", self.rows)
        write_ambiguity(self.folder / AMBIGUITY_FILE, self.ambiguity)
        print(set_summary(self.rows), ambiguity_summary(self.ambiguity), sep="\n")


def set_summary(rows: Sequence[Mapping[str, Any]]) -> str:
    """Means over cases and structures, with n: one line a measure."""
    counts = sorted({row["samples"] for row in rows})
    lines = [f"{'samples against raters':<24}n = {', '.join(map(str, counts))}"]
    for name in ("ged", "ged_unbiased", "dice_soft", "dice_max", "dice_match", "spread_correlation"):
        lines.append(f"{name:<24}{sum(row[name] for row in rows) / len(rows):.4f}")
    return "\n".join(lines)


class SetValidator(SupervisedEvaluator):
    """The set's metrics against the raters while a network trains; the key metric is ``negative_ged``.

    It is -GED, the mean over cases and structures: the larger the better. ``dice_soft`` and ``dice_max`` are beside it.

    Args:
        device: where to run.
        val_data_loader: batches of one case, with ``image`` and ``raters``.
        network: the one that is trained.
        inferer: a :class:`SampleSliceInferer` or :class:`SampleWindowInferer`.
        num_classes: background included.
        postprocessing: to ``measures``; default: :func:`measured_answers`.
        val_handlers: handlers beside those that this class attaches.
        precision: of the network on CUDA, see :func:`~common.training.precision.evaluation_amp`.
    """

    def __init__(
        self,
        device: torch.device,
        val_data_loader: Any,
        network: torch.nn.Module,
        inferer: Any,
        num_classes: int,
        postprocessing: Any = None,
        val_handlers: Sequence[Any] = (),
        precision: str = "auto",
    ) -> None:
        if postprocessing is None:
            postprocessing = measured_answers(num_classes)
        names = ("dice_soft", "dice_max")
        super().__init__(
            device=device,
            val_data_loader=val_data_loader,
            network=network,
            inferer=inferer,
            postprocessing=postprocessing,
            key_val_metric={"negative_ged": Average(lambda output: -output[0]["measures"]["ged"])},
            additional_metrics={name: Average(lambda output, name=name: output[0]["measures"][name]) for name in names},
            val_handlers=[StatsHandler(iteration_log=False, output_transform=lambda output: None), *val_handlers],
            **evaluation_amp(precision, device),
        )


def measured_answers(num_classes: int) -> Compose:
    """From probabilities (n * C, *S) to what :class:`SplitSamplesd` and :class:`MeasureSetd` give."""
    return Compose([SplitSamplesd("pred", num_classes), MeasureSetd()])


class MeasureSetd(Transform):
    """Add ``measures``: those of :func:`~.samples.set_measures`, the mean over the structures.

    Compares ``sample_probabilities`` (n, C, *S) with ``raters`` (R, *S).
    """

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Add the measures."""
        samples, raters = _arrays(data, data)
        rows = [set_measures(samples[:, number], raters == number) for number in range(1, samples.shape[1])]
        return {**data, "measures": {name: sum(row[name] for row in rows) / len(rows) for name in rows[0]}}


def _arrays(output: Mapping[Any, Any], batch: Mapping[Any, Any]) -> tuple[Any, Any]:
    return output["sample_probabilities"].cpu().numpy(), torch.as_tensor(batch["raters"]).cpu().numpy()
