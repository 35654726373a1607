"""The plan of a run on somebody's images, in words."""

from collections.abc import Iterator, Mapping, Sequence

import torch

from alight.config import QuickstartConfig
from alight.models.lightning_dit import PRESETS
from alight.options import EMBEDDED
from alight.runtime.device import resolve_device
from alight.runtime.hardware import available_cores
from alight.runtime.units import duration


def describe_plan(
    recipe: QuickstartConfig, name: str, minutes: float, seconds: Mapping[str, float], remarks: Sequence[str]
) -> Iterator[str]:
    """The plan a line at a time.

    Args:
        recipe: fitted to images and time.
        name: of the recipe that it comes from.
        minutes: that were asked for.
        seconds: of every stage.
        remarks: on the images.
    """
    images, device = recipe.images, resolve_device(recipe.device)
    threads, cores = torch.get_num_threads(), available_cores()
    where = (
        (f"{threads} of {cores} cores" if threads < cores else f"{cores} cores") if device.type == "cpu" else device
    )
    precision = recipe.transformer.training.precision
    yield from remarks
    yield f"Plan for {minutes:g} minutes on {where} in {precision}, from the recipe {name}:"
    flips = " and its mirror image" if images.horizontal_flip else ""
    held_out = f"{images.held_out_fraction:.0%} of the images held out"
    if images.source in EMBEDDED:
        held_out = "those meant for measuring held out"
    yield f"  {'images':<12} {images.size} pixels, {images.crop} crop{flips}; {held_out}"
    for stage, words in stage_words(recipe).items():
        time = f"  {duration(seconds[stage])}" if stage in seconds else ""
        yield f"  {stage:<12} {words}{time}"
    yield f"  {'in all':<12} {duration(sum(seconds.values()))}, into {recipe.output}"


def stage_words(recipe: QuickstartConfig) -> dict[str, str]:
    """The work of every stage in words."""
    tokenizer, model, sampling = recipe.tokenizer, recipe.transformer.model, recipe.samples.sampling
    shape = f"f{tokenizer.model.downsampling_factor}d{tokenizer.model.latent_channels}"
    words = {}
    if recipe.stock_tokenizer is not None:
        words["tokenizer"] = f"{recipe.stock_tokenizer}, as it is"
    else:
        if recipe.public_foundation is None:
            words["foundation"] = f"{recipe.foundation.task.replace('_', ' ')}, {steps(recipe, 'foundation')}"
        aligned = recipe.public_foundation or "the foundation model"
        words["tokenizer"] = f"{shape}, aligned with {aligned}, {steps(recipe, 'tokenizer')}"
    sizes = PRESETS[model.preset]._asdict() if model.preset else model.model_dump()
    network = f"{sizes['num_layers']} blocks of width {sizes['hidden_size']}"
    scales = {"guidance": sampling.guidance_scale, "internal guidance": sampling.internal_scale}
    guidance = ", ".join(f"{name} {scale:g}" for name, scale in scales.items() if scale != 1) or "no guidance"
    number = recipe.samples.samples_per_class
    return words | {
        "latents": "of every training image" + (" and its mirror image" if recipe.latents.flips else ""),
        "transformer": f"{network}, {steps(recipe, 'transformer')}",
        "samples": f"{number} of every class, {sampling.num_inference_steps} steps, {guidance}",
        "report": "figures and pictures",
    }


def steps(recipe: QuickstartConfig, stage: str) -> str:
    """Such as "1,200 steps of 16"."""
    training = getattr(recipe, stage).training
    return f"{training.steps:,} steps of {training.global_batch_size}"
