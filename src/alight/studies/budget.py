"""A recipe of the whole arrow fitted to a time: its steps are timed on this machine and scaled, all alike."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeVar

import torch

from alight.config import QuickstartConfig, TrainFoundationConfig, TrainTokenizerConfig, TrainTransformerConfig
from alight.plan.workload import LatentShape, TokenizerWorkload, TransformerWorkload
from alight.runtime.device import autocast, resolve_device
from alight.runtime.errors import InputError
from alight.runtime.hardware import synchronise
from alight.runtime.units import duration
from alight.stages import train_foundation
from alight.training.optimizer import make_optimizer, optimizer_step

TrainConfig = TypeVar("TrainConfig", TrainFoundationConfig, TrainTokenizerConfig, TrainTransformerConfig)
FORWARD_SHARE = 1 / 3  # of a training step: the backward pass costs two forward passes
SETTING_UP = 30.0  # seconds that imports, reading images, comparing them and writing reports take in all
IN_RESERVE = 0.05  # share of the time for checkpoints, previews, and what else the machine does
SHORTEST = 0.2  # of the recipe's steps, below which its networks learn next to nothing
SECONDS_BETWEEN_CHECKPOINTS = 60.0
LONGEST_AVERAGE = 0.9999  # decay of a moving average


@dataclass(frozen=True)
class Costs:
    """Seconds on this machine.

    Attributes:
        steps: of one optimizer step, by the stage that trains.
        passing: of everything that does not train, by stage.
    """

    steps: dict[str, float]
    passing: dict[str, float]

    def seconds(self, recipe: QuickstartConfig) -> dict[str, float]:
        """The whole time of every stage."""
        return self.trained(recipe) | self.passing

    def trained(self, recipe: QuickstartConfig) -> dict[str, float]:
        """The time of every stage that trains."""
        return {stage: getattr(recipe, stage).training.steps * each for stage, each in self.steps.items()}


def measure_costs(recipe: QuickstartConfig, num_images: int, num_classes: int) -> Costs:
    """Time a few training steps of every stage, with random weights on random images.

    Args:
        recipe: with its image size filled in.
        num_images: that are encoded; a tenth as many again are reconstructed for the report.
        num_classes: that are sampled.
    """
    device, size = resolve_device(recipe.device), recipe.images.size
    side = size // recipe.tokenizer.model.downsampling_factor
    latents = LatentShape((recipe.tokenizer.model.latent_channels, side, side), num_classes)
    steps: dict[str, float] = {}
    with TemporaryDirectory() as folder:
        foundation = recipe.public_foundation
        if foundation is None:
            steps["foundation"] = foundation_step(recipe, num_classes, device, Path(folder))
            foundation = folder
        alignment = recipe.tokenizer.alignment.model_copy(update={"foundation": foundation})
        aligned = recipe.tokenizer.model_copy(update={"alignment": alignment})
        work = TokenizerWorkload(aligned, device, size)
        batch = micro_batch(recipe.tokenizer)
        passes = recipe.tokenizer.training.micro_batches()
        per_image = timed(lambda: work.backward(batch), device) / batch
        steps["tokenizer"] = passes * batch * per_image + timed(work.update, device)
    transformer = TransformerWorkload(recipe.transformer, latents, device, recipe.transformer.model.num_layers or 1)
    batch, passes = micro_batch(recipe.transformer), recipe.transformer.training.micro_batches()
    per_latent = timed(lambda: transformer.backward(batch), device) / batch
    steps["transformer"] = passes * batch * per_latent + timed(transformer.update, device)
    coding = FORWARD_SHARE * per_image / 2  # encoder or decoder alone
    samples = recipe.samples.samples_per_class * num_classes
    calls = recipe.samples.sampling.num_inference_steps * (1 if recipe.samples.sampling.guidance_scale == 1 else 2)
    passing = {
        "latents": num_images * (1 + recipe.latents.flips) * coding,
        "samples": samples * (calls * FORWARD_SHARE * per_latent + coding),
        "report": SETTING_UP + 2 * 0.1 * num_images * coding,
    }
    return Costs(steps, passing)


def foundation_step(recipe: QuickstartConfig, num_classes: int, device: torch.device, folder: Path) -> float:
    """Time a step of the foundation model, and leave its configuration in a folder, where alignment finds its size."""
    config = recipe.foundation.model_copy(update={"images": recipe.images})
    model = train_foundation.build_model(config, num_classes).to(device)
    model.vit.config.save_pretrained(folder)
    optimizer, batch = make_optimizer(model.named_parameters(), config.optimizer), micro_batch(config)
    images = torch.zeros(batch, 3, config.images.size, config.images.size, device=device)
    labels = torch.zeros(batch, dtype=torch.int64, device=device)

    def step() -> None:
        for _ in range(config.training.micro_batches()):
            with autocast(device, config.training.precision):
                loss = train_foundation.objective(model, images, labels, seed=0, step=0)
            loss.backward()
        optimizer_step(optimizer, 0.0, config.optimizer.max_grad_norm)

    return timed(step, device)


def micro_batch(config: TrainFoundationConfig | TrainTokenizerConfig | TrainTransformerConfig) -> int:
    """Images in a forward pass."""
    return config.training.micro_batch_size or config.training.global_batch_size


def timed(action: Callable[[], None], device: torch.device, repeats: int = 3) -> float:
    """Seconds of an action: the least of a few, after one to warm up, since all else only makes it slower."""
    action()
    times = []
    for _ in range(repeats):
        synchronise(device)
        started = time.perf_counter()
        action()
        synchronise(device)
        times.append(time.perf_counter() - started)
    return min(times)


def fitting_factor(recipe: QuickstartConfig, costs: Costs, minutes: float) -> float:
    """The factor that all steps of a recipe must be multiplied by to fill the time."""
    available = 60 * minutes * (1 - IN_RESERVE) - sum(costs.passing.values())
    return available / sum(costs.trained(recipe).values())


def fit(recipe: QuickstartConfig, costs: Costs, minutes: float) -> QuickstartConfig:
    """Scale the steps of every stage by one factor, so that all of it takes about the given time.

    Raises:
        InputError: the time is too short; says what would do.
    """
    factor = fitting_factor(recipe, costs, minutes)
    if factor < SHORTEST:
        trained = sum(costs.trained(recipe).values())
        needed = (SHORTEST * trained + sum(costs.passing.values())) / (1 - IN_RESERVE)
        raise InputError(
            f"{minutes:g} minutes are too short for this machine: at {recipe.images.size} pixels, the shortest "
            f"training that shows anything takes about {duration(needed)}. Give --minutes {needed / 60 + 1:.0f}, or "
            "smaller images with --size."
        )
    return recipe.model_copy(
        update={stage: longer(getattr(recipe, stage), factor, costs.steps[stage]) for stage in costs.steps}
    )


def longer(config: TrainConfig, factor: float, step_seconds: float) -> TrainConfig:
    """The same training with `factor` times the steps: warm-up and moving average keep their shares of the run."""
    training, optimizer = config.training, config.optimizer
    steps = max(round(training.steps * factor), 1)
    ema = training.ema_decay and min(max(1 - (1 - training.ema_decay) / factor, 0.0), LONGEST_AVERAGE)
    changed = {
        "steps": steps,
        "ema_decay": ema,
        "checkpoint_every": max(round(SECONDS_BETWEEN_CHECKPOINTS / step_seconds), 1),
    }
    warmup = min(optimizer.warmup_steps, round(optimizer.warmup_steps * factor))
    return config.model_copy(
        update={
            "training": training.model_copy(update=changed),
            "optimizer": optimizer.model_copy(update={"warmup_steps": warmup}),
        }
    )
