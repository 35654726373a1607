"""The figure that is to decide on the order of a meter, refused beforehand where it cannot be measured."""

import math
from collections.abc import Sequence

from alight.config import MeterLatentsConfig
from alight.evaluation.latent_meter import FAMILY_OF, IMAGES_PER_DIMENSION
from alight.evaluation.meter_subjects import Subject
from alight.metrics.latent_figures import PERPLEXITY
from alight.runtime.errors import InputError

DECODED = ("Gram agreement", "drift", "midpoints")  # families that need the images or the decoder of a tokenizer


def require_options(config: MeterLatentsConfig) -> None:
    """Refuse a deciding figure for which an option is missing.

    The default, `probe_loss`, passes without steps of the probe: another figure then decides, which is said.

    Raises:
        InputError: names the option.
    """
    family = FAMILY_OF[config.rank_by]
    if family == "Gram agreement" and config.foundation is None:
        _refuse(config, "it needs a foundation model", "Give one (--foundation)")
    if family in DECODED and config.latents:
        _refuse(config, "stored latents have no decoder and no images", "Leave --latents out")
    if family == "density" and not config.density_runs:
        _refuse(config, "it needs a t-SNE map", "Give --density-runs 1 or more")
    if family == "density" and config.count <= 3 * PERPLEXITY:
        _refuse(config, f"it needs more than {3 * PERPLEXITY} images", "Give a larger --count")


def require_measurable(config: MeterLatentsConfig, subjects: Sequence[Subject]) -> None:
    """Refuse a deciding figure that some of the latents cannot have, before anything is measured.

    Raises:
        InputError: names the latents, and the option to change.
    """
    for each in subjects:
        images, channels, numbers = len(each.latents), each.shape[0], math.prod(each.shape)
        if config.rank_by == "neighbour_accuracy" and each.labels is None:
            _refuse(config, f"the images of {each.name} have one class, or none", "Give labelled images (--images)")
        if FAMILY_OF[config.rank_by] == "density" and images <= 3 * PERPLEXITY:
            _refuse(
                config,
                f"it needs more than {3 * PERPLEXITY} images, and {each.name} has {images}",
                "Give more images, and a --count as large",
            )
        if config.rank_by == "whole_ambiguity_bound" and numbers == channels:
            _refuse(config, f"{each.name} has a single position", "Give --rank-by ambiguity_bound")
        if config.rank_by == "whole_ambiguity_bound" and images < IMAGES_PER_DIMENSION * numbers:
            _refuse(
                config,
                f"{each.name} has latents of {numbers:,} numbers, which need {IMAGES_PER_DIMENSION * numbers:,} "
                f"images, and there are {images:,}",
                "Give more images, and a --count as large",
            )


def _refuse(config: MeterLatentsConfig, reason: str, remedy: str) -> None:
    raise InputError(f"The order cannot be by {config.rank_by}: {reason}. {remedy}, or another --rank-by.")
