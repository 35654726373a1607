"""`alight plan`: from the cost of a few steps or images to the cost of the whole recipe."""

import math
import time
from collections.abc import Iterable, Iterator
from typing import NamedTuple, Self

import torch

from alight.config import Job, PlanConfig, TrainTransformerConfig, TransformerTrainingConfig
from alight.config.commands import COMMANDS
from alight.config.recipes import load_config
from alight.device_settings import settled
from alight.options import OptimizerName
from alight.plan.answer import MicroBatch, Plan
from alight.plan.inputs import Inputs
from alight.plan.measure import Cost, at_extent, sweep
from alight.plan.stages import StagesPlan, job_of, repeats_of, stage_times, stages_of
from alight.plan.subject import Machine, Subject, TrainingRecipe, training_subject
from alight.plan.usable_precision import in_usable_precision
from alight.plan.workload import BYTES
from alight.runtime.console import log
from alight.runtime.device import fast_float32, resolve_device
from alight.runtime.errors import InputError
from alight.runtime.hardware import free_disk, free_memory, matrix_product_rate

GOOD_ENOUGH = 0.95  # of the best speed; a larger micro-batch that brings no more only costs memory


def run(config: PlanConfig) -> Plan | StagesPlan:
    """Estimate what a recipe takes: memory and time of a training run, or the time of every stage of another recipe.

    Raises:
        InputError: on a recipe that cannot be planned, a batch that cannot be divided, or a device that is not there.
    """
    if config.recipe is None:
        raise InputError("'alight plan' needs a recipe, such as --recipe imagenet/transformer_xl_64ep.")
    recipe = load_config(config.recipe)
    if not isinstance(recipe, Job):
        raise InputError(f"'alight plan' cannot plan 'alight {job_of(recipe)}', which {config.recipe} is for.")
    if config.processes > 1 and not COMMANDS[job_of(recipe)].distributed:
        raise InputError(f"'alight {job_of(recipe)}' runs in one process; leave --processes out.")
    device = resolve_device(config.device or recipe.device)
    recipe = in_usable_precision(settled(recipe, device), device)
    with fast_float32(device):
        return plan_training(config, recipe) if isinstance(recipe, TrainingRecipe) else plan_stages(config, recipe)


def plan_stages(config: PlanConfig, recipe: Job) -> StagesPlan:
    """Measure parts of every stage of a recipe that does more than to train, and estimate what all of it takes."""
    machine = open_machine(config.device or recipe.device)
    log.info("plan: measuring for about %.0f s.", config.seconds)
    stages = stage_times(stages_of(recipe), config, machine, repeats=repeats_of(recipe))
    return StagesPlan(str(config.recipe), device_name(machine.device), config.processes, stages)


def seconds_for(
    recipe: Job, *, jobs: Iterable[Job] = (), seconds: float = 5.0, num_images: int | None = None
) -> float:
    """Estimate the seconds that a job takes on this machine, from measurements of about `seconds`.

        seconds_for(load_config("own_images/tokenizer"), seconds=3.0)

    Args:
        recipe: the configuration of a job, or of an arrow such as the quickstart.
        jobs: that make what is not there yet, such as the other stages of the same arrow; shipped recipes are known.
        seconds: to measure for; of an arrow, shared by its stages.
        num_images: of an epoch; None = of the recipe's data.

    Raises:
        InputError: as `run`.
    """
    config = PlanConfig(seconds=seconds, num_images=num_images)
    device = resolve_device(recipe.device)
    recipe = in_usable_precision(settled(recipe, device), device)
    with fast_float32(device):
        times = stage_times(stages_of(recipe), config, open_machine(recipe.device), jobs)
    return sum(stage.seconds for stage in times)


def open_machine(device: str, precision: str = "fp32") -> Machine:
    """Measure the device that a recipe asks for."""
    resolved = resolve_device(device)
    return Machine(resolved, free_memory(resolved), matrix_product_rate(resolved, precision))


def plan_training(config: PlanConfig, recipe: TrainingRecipe) -> Plan:
    """Measure a few training steps of a recipe, and estimate what all of them take.

    Raises:
        InputError: as `run`.
    """
    started, training = time.perf_counter(), recipe.training
    training.model_copy(update={"micro_batch_size": None}).micro_batches(config.processes)  # refuses uneven batches
    machine = open_machine(config.device or recipe.device, training.precision)
    log.info("plan: %s multiplies at %.3g TFLOP/s in %s.", machine.device, machine.rate / 1e12, training.precision)
    log.info("plan: measuring for about %.0f s.", config.seconds)
    subject = training_subject(config, recipe, machine, Inputs(config))
    deadline, own = started + config.seconds, training.global_batch_size // config.processes
    costs = sweep(subject.works, subject.extent, growing_divisors(own), machine.memory, deadline)
    return joined(config, recipe, machine, subject, costs)


def joined(
    config: PlanConfig,
    recipe: TrainingRecipe,
    machine: Machine,
    subject: Subject,
    costs: list[Cost],
) -> Plan:
    """Join the measured costs to a plan of the whole run."""
    training, batch = recipe.training, recipe.training.global_batch_size
    own = batch // config.processes
    sizes = Sizes.of(subject)
    shards = config.processes if training.sharding == "shard" and isinstance(recipe, TrainTransformerConfig) else 1
    memory = sizes.memory(shards)
    free = machine.memory - sum(memory.values())
    micro_batches = tuple(micro_batch_cost(cost, own, sizes.flops_per_image / machine.rate, free) for cost in costs)
    chosen = choose(micro_batches)
    speed = config.processes * chosen.images_per_second
    return Plan(
        recipe=str(config.recipe),
        job=job_of(recipe),
        device=device_name(machine.device),
        precision=training.precision,
        operations_per_second=machine.rate,
        operations_per_image=sizes.flops_per_image,
        parameters=sizes.parameters,
        memory=memory | {"activations": chosen.activations},
        free_memory=machine.memory,
        scaled_from=() if subject.extent in subject.works else tuple(subject.works),
        micro_batches=micro_batches,
        chosen=chosen,
        recipe_micro_batch=training.micro_batch_size or own,
        processes=config.processes,
        batch=batch,
        steps=subject.steps,
        num_images=subject.num_images,
        step_seconds=batch / speed,
        images_per_second=speed,
        epoch_seconds=subject.num_images / speed,
        total_seconds=subject.steps * batch / speed,
        output=str(recipe.output),
        checkpoint_size=sizes.checkpoint,
        checkpoints=training.keep_checkpoints + 1,  # the newest is written before the oldest goes
        snapshot_size=BYTES * sizes.parameters,
        snapshots=training.num_snapshots if isinstance(training, TransformerTrainingConfig) else 0,
        free_disk=free_disk(recipe.output),
        notes=(*subject.notes, *assumptions(config.processes, costs[-1].micro_batch, own, recipe.optimizer.name)),
    )


class Sizes(NamedTuple):
    """Numbers in the state of a run, and floating-point operations of its work.

    Attributes:
        parameters: trained.
        frozen_parameters: not trained.
        averaged_parameters: in the averages of the weights.
        state_size: in the memory of the optimizers.
        flops_per_image: forward and backward.
    """

    parameters: int
    frozen_parameters: int
    averaged_parameters: int
    state_size: int
    flops_per_image: int

    @classmethod
    def of(cls, subject: Subject) -> Self:
        """Read them from the recipe's own step, or from the line through the steps that were measured."""
        values = ({extent: getattr(work, name) for extent, work in subject.works.items()} for name in cls._fields)
        return cls(*(round(at_extent(each, subject.extent)) for each in values))

    def memory(self, shards: int) -> dict[str, int]:
        """Bytes of a process by their purpose, where each of the processes holds one shard."""
        return {
            "weights": BYTES * (self.parameters // shards + self.frozen_parameters),
            "gradients": BYTES * self.parameters // shards,
            "optimizer": BYTES * self.state_size // shards,
            "average": BYTES * self.averaged_parameters // shards,
        }

    @property
    def checkpoint(self) -> int:
        """Bytes of a checkpoint."""
        return BYTES * (self.parameters + self.state_size + self.averaged_parameters)


def device_name(device: torch.device) -> str:
    """A device in words."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device}, {torch.get_num_threads()} threads"


def assumptions(processes: int, largest: int, own: int, optimizer: OptimizerName) -> Iterator[str]:
    """Notes on the limits of the estimate, for micro-batches of at most `largest` of a process's `own` images."""
    if largest < own:
        yield (
            f"Larger micro-batches than {largest} were not measured: they would no longer pay, or take more memory or "
            "time than there is; --seconds gives more time."
        )
    yield "Reading data, writing checkpoints and drawing previews are not in the estimate."
    if processes > 1:
        yield f"{processes} processes are taken to lose no time in talking to each other."
    if processes > 1 and optimizer == "muon":
        yield "Each of them is timed as if it orthogonalised all matrices for Muon; they share them, which is faster."


def growing_divisors(count: int) -> list[int]:
    """Divisors of a batch, each at least twice the one before."""
    small = [divisor for divisor in range(1, math.isqrt(count) + 1) if count % divisor == 0]
    chosen: list[int] = []
    for divisor in sorted({*small, *(count // divisor for divisor in small)}):
        if not chosen or divisor >= 2 * chosen[-1]:
            chosen.append(divisor)
    return chosen


def micro_batch_cost(cost: Cost, own: int, ideal: float, free: int) -> MicroBatch:
    """The cost of a step in micro-batches of one size, with `free` bytes and `ideal` seconds per image."""
    speed = own / (own // cost.micro_batch * cost.seconds + cost.update)
    activations = max(round(cost.activations), 0)
    return MicroBatch(cost.micro_batch, speed, ideal * speed, activations, activations <= free)


def choose(micro_batches: tuple[MicroBatch, ...]) -> MicroBatch:
    """The smallest that is nearly as fast as the fastest of those that fit; the smallest of all if none does."""
    fitting = [each for each in micro_batches if each.fits] or [micro_batches[0]]
    best = max(each.images_per_second for each in fitting)
    return next(each for each in fitting if each.images_per_second >= GOOD_ENOUGH * best)
