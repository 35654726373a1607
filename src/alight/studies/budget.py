"""A recipe of the whole arrow fitted to a time: its steps are timed on this machine and scaled, all alike."""

from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from alight.config import (
    Job,
    PlanConfig,
    QuickstartConfig,
    TrainFoundationConfig,
    TrainTokenizerConfig,
    TrainTransformerConfig,
)
from alight.plan.estimate import open_machine
from alight.plan.inputs import Inputs
from alight.plan.measure import sweep
from alight.plan.stages import job_of, stage_time
from alight.plan.subject import Machine, TrainingRecipe, training_subject
from alight.runtime.errors import InputError
from alight.runtime.units import duration, size_text
from alight.studies.quickstart import wire

TrainConfig = TypeVar("TrainConfig", TrainFoundationConfig, TrainTokenizerConfig, TrainTransformerConfig)
MEASURING = 4.0  # seconds of measuring a stage that does not train
STEP_OF_A_RUN = 1.1  # times a step measured alone: reading, logging, pictures and checkpoints
SETTING_UP = 3.0  # seconds of a stage for its start, pictures and files
IN_RESERVE = 0.05  # share of the time, for looking at the images and for what else the machine does
SHORTEST = 0.2  # of the recipe's steps, below which its networks learn next to nothing
SECONDS_BETWEEN_CHECKPOINTS = 60.0
LONGEST_AVERAGE = 0.9999  # decay of a moving average


@dataclass(frozen=True)
class Costs:
    """Seconds on this machine.

    Attributes:
        steps: of one optimizer step, by the stage that trains.
        passing: of everything else, by stage.
    """

    steps: dict[str, float]
    passing: dict[str, float]

    def seconds(self, recipe: QuickstartConfig) -> dict[str, float]:
        """The whole time of every stage."""
        trained = self.trained(recipe)
        return {stage: trained.get(stage, 0.0) + passing for stage, passing in self.passing.items()}

    def trained(self, recipe: QuickstartConfig) -> dict[str, float]:
        """The time of every stage that trains."""
        return {stage: getattr(recipe, stage).training.steps * each for stage, each in self.steps.items()}


def measure_costs(recipe: QuickstartConfig) -> Costs:
    """Time a few steps or images of every stage, with random weights where a part is not there yet.

    Raises:
        InputError: a part cannot be used.
    """
    jobs = {stage: job for stage, job in wire(recipe).items() if isinstance(job, Job)}  # an import takes no time
    if recipe.stock_tokenizer is not None:
        existing = {"tokenizer": Path(recipe.stock_tokenizer)}
        jobs |= {stage: jobs[stage].model_copy(update=existing) for stage in ("latents", "samples", "report")}
    config, machine, known = PlanConfig(seconds=MEASURING), open_machine(recipe.device), tuple(jobs.values())
    steps, passing = {}, {}
    for stage, job in jobs.items():
        if isinstance(job, TrainingRecipe):
            steps[stage], rest = STEP_OF_A_RUN * step_seconds(job, config, machine, Inputs(config, known)), 0.0
        else:
            rest = stage_time(stage, job, config, machine, Inputs(config, known)).seconds
        passing[stage] = rest + SETTING_UP
    return Costs(steps, passing)


def step_seconds(job: TrainingRecipe, config: PlanConfig, machine: Machine, inputs: Inputs) -> float:
    """Time steps of the recipe's own batch."""
    subject, training = training_subject(config, job, machine, inputs), job.training
    micro_batch = training.micro_batch_size or training.global_batch_size
    (cost,) = sweep(subject.works, subject.extent, [micro_batch], machine.memory, deadline=0.0)
    if cost.activations > machine.memory:
        raise InputError(
            f"A step of {micro_batch} images of 'alight {job_of(job)}' takes {size_text(cost.activations)} of memory, "
            f"and {size_text(machine.memory)} are free. Give a smaller --size."
        )
    return training.micro_batches() * cost.seconds + cost.update


def fitting_factor(recipe: QuickstartConfig, costs: Costs, minutes: float) -> float:
    """The factor that all steps of a recipe must be multiplied by to fill the time."""
    available = 60 * minutes * (1 - IN_RESERVE) - sum(costs.passing.values())
    return available / sum(costs.trained(recipe).values())


def fit(recipe: QuickstartConfig, costs: Costs, minutes: float, spent: float = 0.0) -> QuickstartConfig:
    """Scale the steps of every stage by one factor, so that all of it takes about the given time.

    Args:
        recipe: of the whole arrow.
        costs: of its stages.
        minutes: for all of it.
        spent: minutes that have gone into the plan.

    Raises:
        InputError: the time is too short; says what would do.
    """
    factor = fitting_factor(recipe, costs, minutes - spent)
    if factor < SHORTEST:
        trained = sum(costs.trained(recipe).values())
        needed = (SHORTEST * trained + sum(costs.passing.values())) / (1 - IN_RESERVE) + 60 * spent
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
