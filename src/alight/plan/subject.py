"""Steps to measure for a recipe: its own, or two smaller ones where that is too much for the machine."""

from collections.abc import Mapping
from typing import NamedTuple

import torch

from alight.artifacts import is_complete
from alight.config import PlanConfig, TrainTokenizerConfig, TrainTransformerConfig
from alight.data.latents import LatentDataset
from alight.data.loading import open_source
from alight.plan.workload import (
    BYTES,
    LatentShape,
    TokenizerWorkload,
    TransformerWorkload,
    Workload,
    count_parameters,
    num_layers,
)
from alight.runtime.errors import InputError
from alight.training.tokenizer_schedule import tokenizer_schedule
from alight.training.transformer_networks import build_model

IMAGENET_IMAGES = 1_281_167  # of the training set
FEW_LAYERS = (2, 4)  # of the models that stand for a deep one
SMALLEST_IMAGE = 32  # in pixels, that all losses of a tokenizer accept
MEASURED_IMAGES = 25  # that a measurement takes at the very least: a few micro-batches, each a few times


class Subject(NamedTuple):
    """Steps to measure.

    Attributes:
        works: by their extent: layers of a transformer, pixels of a tokenizer's images.
        extent: of the recipe; where it is not among those of the works, their line leads there.
        steps: of the recipe.
        num_images: of an epoch.
        notes: what was taken for granted.
    """

    works: Mapping[int, Workload]
    extent: int
    steps: int
    num_images: int
    notes: list[str]


class Machine(NamedTuple):
    """This machine: its device, the bytes of memory that are free on it, and operations per second."""

    device: torch.device
    memory: int
    rate: float


def transformer_subject(config: PlanConfig, recipe: TrainTransformerConfig, machine: Machine) -> Subject:
    """The recipe's model, or two shallow ones."""
    notes: list[str] = []
    if is_complete(recipe.latents):
        dataset = LatentDataset(recipe.latents)
        latents, num_images = LatentShape(dataset.shape, dataset.num_classes), config.num_images or len(dataset)
    else:
        latents = LatentShape(config.latent_shape, config.num_classes)
        num_images = config.num_images or IMAGENET_IMAGES
        notes.append(
            f"There are no latents at {recipe.latents} yet: they are taken to be {num_images:,} of "
            f"{' x '.join(map(str, latents.shape))} in {latents.num_classes:,} classes; --num-images, --latent-shape "
            "and --num-classes say otherwise."
        )
    with torch.device("meta"):
        model = build_model(recipe, latents)
    parameters, depth, tokens = count_parameters(model), num_layers(recipe), model.grid.height * model.grid.width
    seconds = MEASURED_IMAGES * 6 * parameters * tokens / machine.rate
    fits = 5 * BYTES * parameters < machine.memory / 2 and seconds < config.seconds / 2
    measured: tuple[int, ...] = (depth,)
    if depth > FEW_LAYERS[-1] and not fits:
        measured = FEW_LAYERS
        notes.append(
            f"The model is large for this machine or for the time: measured were models of {FEW_LAYERS[0]} and "
            f"{FEW_LAYERS[1]} layers, and the line through them was followed to {depth}."
        )
    works = {layers: TransformerWorkload(recipe, latents, machine.device, layers) for layers in measured}
    return Subject(works, depth, recipe.training.steps, num_images, notes)


def tokenizer_subject(config: PlanConfig, recipe: TrainTokenizerConfig, machine: Machine) -> Subject:
    """The recipe's networks on its images, or on images of a quarter and of half the size.

    All but attention grows with the area, and attention is a hundredth of the work at 256 pixels and f16.
    """
    notes = ["Measured with every loss of the recipe taking part, and with random weights in all networks."]
    try:
        num_images = config.num_images or len(open_source(recipe.images, "train"))
    except InputError:
        num_images = IMAGENET_IMAGES
        notes.append(
            f"There are no images at {recipe.images.source} yet: an epoch is taken to have ImageNet's {num_images:,}; "
            "--num-images says otherwise."
        )
    size, works = recipe.images.size, {}
    if size % (4 * recipe.model.downsampling_factor) == 0 and size // 4 >= SMALLEST_IMAGE:
        quarter = TokenizerWorkload(recipe, machine.device, size // 4)
        seconds = MEASURED_IMAGES * 16 * quarter.flops_per_image / machine.rate
        if seconds > config.seconds / 2:
            works = {(size // 4) ** 2: quarter, (size // 2) ** 2: TokenizerWorkload(recipe, machine.device, size // 2)}
            notes.append(
                f"The images are large for this machine or for the time: measured was with {size // 4} and "
                f"{size // 2} pixels on a side, and the line through them was followed to the area of {size}."
            )
    if not works:
        works = {size**2: TokenizerWorkload(recipe, machine.device, size)}
    return Subject(works, size**2, tokenizer_schedule(recipe, num_images)[-1].stop, num_images, notes)
