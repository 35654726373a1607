"""A recipe for somebody's images: size, crop, flips, task and classes chosen by a look at them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from alight.config import ImagesConfig, QuickstartConfig, StartConfig
from alight.data.images import ImageSource
from alight.data.survey import ImageSurvey
from alight.options import EMBEDDED, Crop, FixedPrecision, Split
from alight.runtime.device import faster_precision, resolve_device
from alight.runtime.errors import InputError

FEWEST_IMAGES = 16  # distinct ones, from which a tokenizer learns anything that holds for others
FEWEST_HELD_OUT = 4  # images without which no figure means anything
FEW_IMAGES, FEW_PER_CLASS = 200, 10  # below which a transformer repeats its training images
ELONGATED, MANY_ELONGATED = 1.6, 0.25  # ratio of the sides, and the share of such images from which they are padded


@dataclass(frozen=True)
class Proposal:
    """A recipe for some images.

    Attributes:
        recipe: of the whole arrow; its steps do not yet fit a time.
        remarks: everything about the images and the choices that a user should know, a line each.
    """

    recipe: QuickstartConfig
    remarks: tuple[str, ...]


def require_trainable(survey: ImageSurvey, source: str) -> None:
    """Refuse images that no generator can be trained on.

    Raises:
        InputError: there are too few that differ from each other.
    """
    distinct = survey.count - sum(len(group) - 1 for group in survey.duplicates.exact)
    if distinct < FEWEST_IMAGES:
        same = f", of which only {distinct:,} differ" if distinct < survey.count else ""
        raise InputError(
            f"{source} holds {survey.count:,} image{'s' * (survey.count != 1)}{same}. A generator learns from "
            f"at least {FEWEST_IMAGES} different images, better from hundreds in every class. Add images, or give the "
            "folder above this one if it holds further classes."
        )


def propose(config: StartConfig, survey: ImageSurvey, recipe: QuickstartConfig, held_out_fraction: float) -> Proposal:
    """Fill a recipe of the whole arrow in for some images.

    Args:
        config: of the command; what it sets is kept.
        survey: of the images.
        recipe: to begin from.
        held_out_fraction: of the images; 0 = the report is about training images.
    """
    images = recipe.images.model_copy(
        update={
            "source": config.source,
            "size": config.size or recipe.images.size,
            "crop": config.crop or choose_crop(survey, recipe.images.crop),
            "background": config.background,
            "horizontal_flip": mirrors(config),
            "unconditional": config.unconditional,
            "image_column": config.image_column,
            "label_column": config.label_column,
            "held_out_fraction": held_out_fraction,
        }
    )
    task = "classifier" if len(survey.classes) > 1 else "masked_autoencoder"
    recipe = trained_in(config.precision or faster_precision(resolve_device(config.device)), recipe)
    filled = recipe.model_copy(
        update={
            "images": images,
            "foundation": recipe.foundation.model_copy(update={"task": task}),
            "latents": recipe.latents.model_copy(update={"flips": images.horizontal_flip}),
            "report": recipe.report.model_copy(update={"split": split_of(images)}),
            "seed": config.seed,
            "device": config.device,
        }
    )
    # validated as a whole: a size that does not fit the network is refused here
    checked = QuickstartConfig.model_validate(filled.model_dump())
    return Proposal(checked, tuple(remarks(survey, images)))


def trained_in(precision: FixedPrecision, recipe: QuickstartConfig) -> QuickstartConfig:
    """The recipe, with all training in a precision."""
    return recipe.model_copy(
        update={
            stage: (job := getattr(recipe, stage)).model_copy(
                update={"training": job.training.model_copy(update={"precision": precision})}
            )
            for stage in ("foundation", "tokenizer", "transformer")
        }
    )


def choose_held_out(source: ImageSource, fraction: float) -> float:
    """The wanted share of held-out images, or a larger one that holds out a few of a small folder; 0 if none does."""
    for share in (fraction, 0.2, 0.35, 0.5):
        if fraction == 0 or source.held_out(share).sum() >= FEWEST_HELD_OUT:
            return max(share, fraction)
    return 0.0


def split_of(images: ImagesConfig) -> Split:
    """The images that are measured: held-out ones, where there are any."""
    return "held_out" if images.held_out_fraction or images.source in EMBEDDED else "all"


def choose_crop(survey: ImageSurvey, default: Crop) -> Crop:
    """The recipe's crop, or padding where cutting would lose a lot of many images."""
    ratio = survey.sizes.max(axis=1) / np.maximum(survey.sizes.min(axis=1), 1)
    return "pad" if np.mean(ratio > ELONGATED) > MANY_ELONGATED else default


def mirrors(config: StartConfig) -> bool:
    """Tell if mirrored images are as good as the real ones."""
    return config.source != "digits" if config.horizontal_flip is None else config.horizontal_flip


def split_remarks(source: ImageSource, survey: ImageSurvey, fraction: float) -> list[str]:
    """Remarks on what a split into training images and held-out ones does to classes and copies."""
    held_out, lines = source.held_out(fraction), []
    trained = set(source.labels[~held_out].tolist())
    if gone := [name for label, name in enumerate(survey.classes) if survey.classes[name] and label not in trained]:
        lines.append(
            f"All images of {few(gone)} are among the held-out ones, so nothing is learned of "
            f"{'them' if len(gone) > 1 else 'it'}; --held-out-fraction 0 trains on all."
        )
    groups = [*survey.duplicates.exact, *survey.duplicates.near]
    if straddling := sum(len(set(held_out[list(group)].tolist())) > 1 for group in groups):
        lines.append(
            f"{straddling:,} held-out image{'s are' if straddling > 1 else ' is'} also, or nearly, among the training "
            "images, which flatters the figures a little; 'alight info images' lists duplicates."
        )
    return lines


def few(names: Sequence[str]) -> str:
    """The first names of a list, and dots where there are more."""
    return ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")


def remarks(survey: ImageSurvey, images: ImagesConfig) -> list[str]:
    """Remarks on images and on the choices made for them."""
    lines = [survey.description + "."]
    counts = list(survey.classes.values())
    if len(counts) > 1:
        lines.append(f"Classes hold {min(counts):,} to {max(counts):,} images; 'alight info images' lists them.")
        if rare := [name for name, count in survey.classes.items() if count < FEW_PER_CLASS]:
            lines.append(
                f"{len(rare)} of {len(counts)} classes hold fewer than {FEW_PER_CLASS} images ({few(rare)}): of "
                "these, expect copies of the training images."
            )
    else:
        lines.append("There is one class, so images are generated without a label.")
    if (survey.count < FEW_IMAGES) and len(counts) == 1:
        lines.append(f"{survey.count:,} images are few: expect copies of the training images.")
    if small := survey.smaller_than(images.size):
        lines.append(f"{small:,} are smaller than {images.size} pixels and are enlarged.")
    if survey.transparent:
        lines.append(f"{survey.transparent:,} are partly transparent and lie on a background of {images.background}.")
    if images.crop == "pad":
        lines.append("Many are tall or wide, so all are padded to squares; --crop center cuts them instead.")
    if images.horizontal_flip:
        lines.append(
            "Mirrored images are trained on, too; --horizontal-flip False where left and right differ (text)."
        )
    if survey.skipped:
        reasons = "; ".join(f"{count:,} {reason}" for reason, count in survey.skipped.items())
        lines.append(f"Skipped: {reasons}.")
    if survey.ignored:
        others = ", ".join(f"{count:,} {extension}" for extension, count in list(survey.ignored.items())[:6])
        lines.append(f"Not images, and ignored: {others}.")
    if survey.duplicates.exact:
        copies = sum(len(group) - 1 for group in survey.duplicates.exact)
        lines.append(f"{copies:,} {'are copies' if copies > 1 else 'is a copy'} of another image.")
    return lines
