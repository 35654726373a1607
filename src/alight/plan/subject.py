"""Steps to measure for a recipe: its own, or two smaller ones where that is too much for the machine."""

from collections.abc import Mapping
from typing import NamedTuple

import torch

from alight.config import PlanConfig, TrainFoundationConfig, TrainTokenizerConfig, TrainTransformerConfig
from alight.plan.inputs import Inputs
from alight.plan.untrained import num_layers
from alight.plan.workload import (
    BYTES,
    FoundationWorkload,
    TokenizerWorkload,
    TransformerWorkload,
    Workload,
    count_parameters,
)
from alight.training.tokenizer_schedule import tokenizer_schedule
from alight.training.transformer_networks import build_model

TrainingRecipe = TrainFoundationConfig | TrainTokenizerConfig | TrainTransformerConfig
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


def training_subject(config: PlanConfig, recipe: TrainingRecipe, machine: Machine, inputs: Inputs) -> Subject:
    """The steps of any training recipe.

    Raises:
        InputError: a part of the recipe is there and cannot be used.
    """
    if isinstance(recipe, TrainFoundationConfig):
        return foundation_subject(recipe, machine, inputs)
    if isinstance(recipe, TrainTokenizerConfig):
        return tokenizer_subject(config, recipe, machine, inputs)
    return transformer_subject(config, recipe, machine, inputs)


def foundation_subject(recipe: TrainFoundationConfig, machine: Machine, inputs: Inputs) -> Subject:
    """The recipe's model, which is a small one."""
    num_images, classes = inputs.images(recipe.images)
    works = {recipe.images.size**2: FoundationWorkload(recipe, machine.device, classes)}
    return Subject(works, recipe.images.size**2, recipe.training.steps, num_images, inputs.notes)


def transformer_subject(
    config: PlanConfig, recipe: TrainTransformerConfig, machine: Machine, inputs: Inputs
) -> Subject:
    """The recipe's model, or two shallow ones."""
    latents, num_images = inputs.latents(recipe.latents)
    latents = latents._replace(feature_dim=inputs.feature_dim(recipe))
    with torch.device("meta"):
        model = build_model(recipe, latents)
    parameters, depth, tokens = count_parameters(model), num_layers(recipe), model.grid.height * model.grid.width
    seconds = MEASURED_IMAGES * 6 * parameters * tokens / machine.rate
    fits = 5 * BYTES * parameters < machine.memory / 2 and seconds < config.seconds / 2
    measured: tuple[int, ...] = (depth,)
    if depth > FEW_LAYERS[-1] and not fits:
        measured = FEW_LAYERS
        inputs.note(
            f"The model is large for this machine or for the time: measured were models of {FEW_LAYERS[0]} and "
            f"{FEW_LAYERS[1]} layers, and the line through them was followed to {depth}."
        )
    works = {layers: TransformerWorkload(recipe, latents, machine.device, layers) for layers in measured}
    return Subject(works, depth, recipe.training.steps, num_images, inputs.notes)


def tokenizer_subject(config: PlanConfig, recipe: TrainTokenizerConfig, machine: Machine, inputs: Inputs) -> Subject:
    """The recipe's networks on its images, or on images of a quarter and of half the size.

    All but attention grows with the area, and attention is a hundredth of the work at 256 pixels and f16.
    """
    inputs.note("Measured with every loss of the recipe taking part, and with random weights in all networks.")
    num_images, _ = inputs.images(recipe.images)
    size, works = recipe.images.size, {}
    scalable = not recipe.frozen_encoder.enabled and size % (4 * recipe.model.downsampling_factor) == 0
    if scalable and size // 4 >= SMALLEST_IMAGE:
        quarter = TokenizerWorkload(recipe, machine.device, size // 4, inputs)
        seconds = MEASURED_IMAGES * 16 * quarter.flops_per_image / machine.rate
        if seconds > config.seconds / 2:
            half = TokenizerWorkload(recipe, machine.device, size // 2, inputs)
            works = {(size // 4) ** 2: quarter, (size // 2) ** 2: half}
            inputs.note(
                f"The images are large for this machine or for the time: measured was with {size // 4} and "
                f"{size // 2} pixels on a side, and the line through them was followed to the area of {size}."
            )
    if not works:
        works = {size**2: TokenizerWorkload(recipe, machine.device, size, inputs)}
    return Subject(works, size**2, tokenizer_schedule(recipe, num_images)[-1].stop, num_images, inputs.notes)
