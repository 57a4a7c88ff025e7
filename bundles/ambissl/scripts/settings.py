"""The settings of this bundle: names, types, ranges, meanings."""

from __future__ import annotations

from common.evaluation.consensus import CONSENSUS
from common.settings import COMMON, MIRRORED_SLICES, CheckedSettings, Setting, SettingsTable
from common.settings.table import batch_not_empty

from .latents import FAMILIES
from .supervised import ORDERS, POSTERIORS

SLICES = (
    MIRRORED_SLICES,
    Setting("slice_axis", "whole number", "axis of the files' arrays across which slices lie", least=0, most=2),
    Setting("slice_size", "whole number", "to which slices are resized", "pixels", least=16, items=2),
    Setting("raters_per_batch", "whole number", "slices of images with raters in a batch", least=0),
    Setting("unlabelled_per_batch", "whole number", "slices of unlabelled images in a batch", least=0),
    Setting("flip_prob", "number", "probability of a flip along each axis", least=0, most=1),
    Setting("rotate90_prob", "number", "probability of turns by 90 degrees", least=0, most=1),
    Setting("rotate_prob", "number", "probability of a rotation", least=0, most=1),
    Setting("rotate_range", "number", "largest angle of a rotation", "radians", least=0),
    Setting("strong_prob", "number", "probability of each change of the strong view", least=0, most=1),
    Setting("cutout_prob", "number", "probability of a cut-out in the strong view", least=0, most=1),
)
NETWORK = (
    Setting("backbone", "word", "encoder of the U-Net, as MONAI's FlexibleUNet names it"),
    Setting("backbone_weights", "path", "file with weights of the encoder; null: from scratch", optional=True),
    Setting("decoder_channels", "whole number", "of the decoder's blocks, the deepest first", least=1, items=5),
    Setting("prior_channels", "whole number", "of the blocks of prior and posterior", least=1, items=4),
    Setting("head_channels", "whole number", "of the head's hidden layers", least=1),
    Setting("latent_size", "whole number", "axes of the latent code", least=1),
    Setting("latent_family", "word", "of latent codes at inference", choices=FAMILIES),
    Setting("mean_samples", "whole number", "fixed latent codes of the mean answer; 0: the prior's mean", least=0),
    Setting("samples", "whole number", "answers for an image", least=1),
    Setting("sample_seed", "whole number", "of the answers' latent codes", least=0),
    Setting("temperature", "number", "factor on the answers' latent codes", least=0),
    Setting("consensus", "word", "one segmentation from the answers", choices=CONSENSUS),
)
METHOD = (
    Setting("raters", "whole number", "pseudo-labels of an image, places of a stacked posterior", least=1),
    Setting("posterior", "word", "how the posterior sees the raters' masks", choices=POSTERIORS),
    Setting("rater_order", "word", "of stacked masks", choices=ORDERS),
    Setting("supervised_kl", "number", "alpha_l, weight of the divergence on labelled images", least=0),
    Setting("unsupervised_kl", "number", "alpha_u, weight of the divergences on unlabelled images", least=0),
    Setting("bound", "number", "beta, weight of the bound loss", least=0),
    Setting("bound_samples", "whole number", "samples of the prior for the bound loss", least=1),
    Setting("unsupervised", "number", "final weight of the losses on unlabelled images", least=0),
    Setting("l2", "number", "weight of the L2 term", least=0),
    Setting("free_nats", "number", "divergence of each latent axis that costs nothing", "nats", least=0),
    Setting("printed_kl", "switch", "KL(prior || posterior) as printed"),
    Setting("prune_from", "whole number", "L, first decoder block to prune", least=0, most=4),
    Setting("keep_fraction", "number", "a, share of weights that a pruned layer keeps", above=0, most=1),
    Setting("prune_probability", "number", "q_k, that a layer is pruned", above=0, below=1),
    Setting("prune_interval", "whole number", "after which the pruning is drawn anew; 0: never", "steps", least=0),
    Setting("unlabelled_family", "word", "of latent codes of unlabelled images", choices=FAMILIES),
    Setting("soft_pseudo_labels", "switch", "pseudo-labels are probabilities"),
    Setting("paired_codes", "switch", "decoders learn from the other's answer to the same latent code"),
    Setting("threshold", "number", "pixels count whose probability is above it, of the baselines", least=0, below=1),
)
SETTINGS = SettingsTable(
    COMMON, SLICES, NETWORK, METHOD, checks=(batch_not_empty("raters_per_batch", "unlabelled_per_batch"),)
)


def check() -> CheckedSettings:
    """Check all settings of the config that is being run, see :class:`~common.settings.CheckedSettings`."""
    return CheckedSettings(SETTINGS)
