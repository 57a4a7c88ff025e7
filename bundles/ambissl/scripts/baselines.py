"""The baselines of Sec. 4.3 on the probabilistic U-Net: how unlabelled images are used is all that tells them apart."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch.nn import functional

from common.training.method import LossTerm, MethodOutput, Progress

from .latents import Latent
from .losses import dice_loss, harden, pick
from .network import LatentEncoder, ProbabilisticUNet, crop
from .supervised import Branch, Labelled, RaterMethod, random_member, split_latent

VIEWS = ("weak", "strong")


class Learner(NamedTuple):
    """A network with its posterior."""

    network: ProbabilisticUNet
    posterior: LatentEncoder


class Lesson(NamedTuple):
    """What a learner made of a batch: supervised terms, labelled images' samples, the views' features and priors."""

    terms: dict[str, LossTerm]
    samples: torch.Tensor
    features: list[torch.Tensor]
    priors: list[Latent]


class Baseline(RaterMethod):
    """Base: Eq. 14 for a network of one decoder."""

    def learn(self, learner: Learner, name: str, data: Labelled, views: list[torch.Tensor]) -> Lesson:
        """Supervised terms of the labelled images, and features of further views, in one pass of the backbone."""
        lesson = self.encode(learner.network, data.image, *views)
        if len(data.image) == 0:
            return lesson._replace(terms={"kl": LossTerm(self.nothing(), 0.0)})
        posterior = self.encode_set(*data, learner.posterior)
        branches = {name: Branch(lesson.features[0], learner.network.head)}
        terms, samples = self.supervise(data, lesson.priors[0], posterior, branches)
        return lesson._replace(terms=terms, samples=samples)

    def encode(self, network: ProbabilisticUNet, *images: torch.Tensor) -> Lesson:
        """Features and priors of several sets of images, in one pass of the backbone; no terms yet."""
        sizes = [len(each) for each in images]
        stacked = torch.cat(images)
        features = list(network.decode(network.encode(stacked)).split(sizes))
        return Lesson({}, torch.empty(0), features, split_latent(Latent(*network.prior(stacked)), sizes))

    def close(self, batch: dict[str, Any], terms: dict[str, LossTerm], lesson: Lesson) -> MethodOutput:
        """The output for the first learner's lesson: to monitor, the labelled images' answers at the prior's mean."""
        image = batch["image"][batch["rater_count"] > 0]
        with torch.no_grad():
            branch = Branch(lesson.features[0], self.network.head)
            shown = self.answers(branch, lesson.priors[0].mean[:, None], image)[:, 0].log()
        return self.finish(terms, shown, lesson.priors[0], lesson.samples)


class SelfTraining(Baseline):
    """Baselines I and III: the network's own confident answers are pseudo-labels.

    ``view="weak"`` is Baseline I, self-training (Lee, 2013); ``view="strong"`` Baseline III, consistency between a weak
    and a strong view (FixMatch, NeurIPS 2020). ``unsupervised=0`` leaves the labelled images alone.

    Args:
        network: what ships.
        view: weak or strong, that learns from the weak view's answers to the same latent codes.
        threshold: pixels count whose probability is above it, in [0, 1).
        settings: as for :class:`~.supervised.RaterMethod`.

    Raises:
        ValueError: when an argument is outside its range.
    """

    def __init__(
        self, network: ProbabilisticUNet, view: str = "weak", threshold: float = 0.95, **settings: Any
    ) -> None:
        super().__init__(network, **settings)
        if view not in VIEWS:
            raise ValueError(f"view must be weak or strong, got {view!r}.")
        if not 0.0 <= threshold < 1.0:
            raise ValueError(f"threshold is a probability, in [0, 1), got {threshold}.")
        self.view, self.threshold = view, threshold

    def forward(self, batch: dict[str, Any], progress: Progress) -> MethodOutput:
        """Loss terms of a batch.

        Args:
            batch: as of :class:`~.method.AmbiSSL`.
            progress: where the training stands.

        Returns:
            terms ``kl``, ``seg_network``, ``bound_network`` (Eq. 14), ``pseudo_label`` and ``l2``; monitor
            ``confident``, the share of pixels that count.
        """
        unlabelled = batch["rater_count"] == 0
        names = ("image",) if self.view == "weak" else ("image", "strong")
        learns = self.unsupervised > 0.0 and bool(unlabelled.any())
        views = [batch[name][unlabelled] for name in names] if learns else []
        lesson = self.learn(Learner(self.network, self.posterior), "network", self.labelled(batch), views)
        terms, confident = dict(lesson.terms), None
        if learns:
            # the common latent code: of the weak view's prior, for teacher and student
            codes = lesson.priors[1].sample(self.noise(views[0], self.raters)).detach()
            with torch.no_grad():
                teacher = self.answers(Branch(lesson.features[1], self.network.head), codes, views[0])
            student = self.answers(Branch(lesson.features[-1], self.network.head), codes, views[-1])
            confident = teacher.amax(2, keepdim=True) > self.threshold
            loss = dice_loss(student.flatten(0, 1), harden(teacher).flatten(0, 1), confident.flatten(0, 1))
            terms["pseudo_label"] = LossTerm(loss, self.mu(progress.fraction))
        output = self.close(batch, terms, lesson)
        if confident is not None:
            output.monitors["confident"] = confident.float().mean()
        return output


class ProbabilisticUNetMethod(Baseline):
    """The probabilistic U-Net: the posterior sees the one mask that its code is to bring back.

    So a code can tell raters apart, which a posterior of the whole set cannot. The bound of the evidence, cross entropy
    summed over the pixels plus the divergence, is divided by the number of pixels. Labelled images alone.

    Source: Kohl et al., A Probabilistic U-Net for Segmentation of Ambiguous Images, NeurIPS 2018, Eq. 4, with beta
    ``supervised_kl``.

    Args:
        network: what ships.
        settings: as for :class:`~.supervised.RaterMethod`, of which it uses ``posterior``, ``rater_order``,
            ``supervised_kl``, ``l2``, ``free_nats`` and ``printed_kl``.
    """

    def forward(self, batch: dict[str, Any], progress: Progress) -> MethodOutput:
        """Loss terms of a batch.

        Args:
            batch: as of :class:`~.method.AmbiSSL`.
            progress: not used, no weight changes during the training.

        Returns:
            terms ``kl``, ``seg_network`` (cross entropy, mean over the pixels) and ``l2``.
        """
        data = self.labelled(batch)
        lesson = self.encode(self.network, data.image)
        terms = {"kl": LossTerm(self.nothing(), 0.0)}
        if len(data.image) > 0:
            mask = pick(data.masks, random_member(data.raters))
            posterior = self.encode_set(data.image, mask[:, None], torch.ones_like(data.raters))
            code = posterior.sample(self.noise(data.image, 1))
            logits = crop(self.network.head(lesson.features[0], code), data.image)[:, 0].float()
            divergence = self.divergence(lesson.priors[0], posterior, "normal")
            terms = {
                "kl": LossTerm(divergence, self.supervised_kl / mask[0, 0].numel()),
                "seg_network": LossTerm(functional.cross_entropy(logits, mask), 1.0),
            }
        return self.close(batch, terms, lesson)


class CrossPseudoSupervision(Baseline):
    """Baseline II: two networks with random weights of their own, each learns from the other's answers.

    Source: Chen et al., Semi-supervised semantic segmentation with cross pseudo supervision, CVPR 2021. One
    standard-normal noise is the common latent code of both.

    Args:
        network: what ships.
        settings: as for :class:`~.supervised.RaterMethod`.
    """

    def __init__(self, network: ProbabilisticUNet, **settings: Any) -> None:
        super().__init__(network, **settings)
        self.twin = network.fresh()
        self.twin_posterior = self.new_posterior(network)

    def forward(self, batch: dict[str, Any], progress: Progress) -> MethodOutput:
        """Loss terms of a batch.

        Args:
            batch: as of :class:`~.method.AmbiSSL`; ``strong`` is not used.
            progress: where the training stands.

        Returns:
            Eq. 14's terms of both networks (``..._twin`` the second one's), ``cross_network``, ``cross_twin``, ``l2``.
        """
        data, unlabelled = self.labelled(batch), batch["rater_count"] == 0
        views = [batch["image"][unlabelled]]
        learners = {
            "network": Learner(self.network, self.posterior),
            "twin": Learner(self.twin, self.twin_posterior),
        }
        lessons = {name: self.learn(learner, name, data, views) for name, learner in learners.items()}
        terms = dict(lessons["network"].terms)
        terms |= {
            name if name.endswith("_twin") else f"{name}_twin": term for name, term in lessons["twin"].terms.items()
        }
        if len(views[0]) > 0:
            noise = self.noise(views[0], self.raters)
            answers = {
                name: self.answers(
                    Branch(lesson.features[1], learners[name].network.head), lesson.priors[1].sample(noise), views[0]
                ).flatten(0, 1)
                for name, lesson in lessons.items()
            }
            for name, other in (("network", "twin"), ("twin", "network")):
                target = harden(answers[other].detach().unsqueeze(0))[0]
                terms[f"cross_{name}"] = LossTerm(dice_loss(answers[name], target), self.mu(progress.fraction))
        return self.close(batch, terms, lessons["network"])
