"""`alight plan`: from what a few training steps cost to what the whole recipe costs."""

import math
import time

import torch

from alight.config import PlanConfig, TrainTokenizerConfig, TrainTransformerConfig
from alight.config.recipes import load_config
from alight.plan.answer import MicroBatch, Plan
from alight.plan.measure import Cost, at_extent, sweep
from alight.plan.subject import Machine, tokenizer_subject, transformer_subject
from alight.plan.workload import BYTES
from alight.runtime.console import log
from alight.runtime.device import resolve_device
from alight.runtime.errors import InputError
from alight.runtime.hardware import free_disk, free_memory, matrix_product_rate

GOOD_ENOUGH = 0.95  # of the best speed; a larger micro-batch that brings no more only costs memory


def run(config: PlanConfig) -> Plan:
    """Measure a few training steps of a recipe, and estimate what all of them take.

    Raises:
        InputError: on a recipe that is of no use here, a batch that cannot be divided, or a device that is not there.
    """
    started = time.perf_counter()
    recipe = read_training(config)
    device, training = resolve_device(config.device or recipe.device), recipe.training
    own = training.global_batch_size // config.processes
    training.model_copy(update={"micro_batch_size": None}).pieces(config.processes)  # refuses what cannot be divided

    free, rate = free_memory(device), matrix_product_rate(device, training.precision)
    log.info("plan: %s multiplies matrices at %.3g TFLOP/s in %s.", device, rate / 1e12, training.precision)
    log.info("plan: measuring for about %.0f s.", config.seconds)
    machine = Machine(device, free, rate)
    if isinstance(recipe, TrainTransformerConfig):
        subject = transformer_subject(config, recipe, machine)
    else:
        subject = tokenizer_subject(config, recipe, machine)
    works, notes = subject.works, subject.notes
    costs = sweep(works, subject.extent, growing_divisors(own), free, deadline=started + config.seconds)
    if costs[-1].micro_batch < own:
        notes.append(
            f"Larger micro-batches than {costs[-1].micro_batch} were not measured: they would no longer pay, or take "
            "more memory or time than there is; --seconds gives more time."
        )

    def exactly(attribute: str) -> int:
        return round(at_extent({extent: getattr(work, attribute) for extent, work in works.items()}, subject.extent))

    parameters, averaged = exactly("parameters"), exactly("averaged_parameters")
    shards = config.processes if training.sharding == "shard" and isinstance(recipe, TrainTransformerConfig) else 1
    memory = {
        "weights": BYTES * (parameters // shards + exactly("frozen_parameters")),
        "gradients": BYTES * parameters // shards,
        "optimizer": 2 * BYTES * parameters // shards,
        "average": BYTES * averaged // shards,
    }
    flops, state = exactly("flops_per_image"), sum(memory.values())
    micro_batches = tuple(judge(cost, own, flops / rate, free - state) for cost in costs)
    chosen = choose(micro_batches)
    speed = config.processes * chosen.images_per_second
    notes.append("Reading data, writing checkpoints and drawing previews are not in the estimate.")
    if config.processes > 1:
        notes.append(f"{config.processes} processes are taken to lose no time in talking to each other.")
    return Plan(
        recipe=str(config.recipe),
        job="transformer train" if isinstance(recipe, TrainTransformerConfig) else "tokenizer train",
        device=torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else f"{device}, {torch.get_num_threads()} threads",
        precision=training.precision,
        operations_per_second=rate,
        operations_per_image=flops,
        parameters=parameters,
        memory=memory | {"activations": chosen.activations},
        free_memory=free,
        scaled_from=() if subject.extent in works else tuple(works),
        micro_batches=micro_batches,
        chosen=chosen,
        recipe_micro_batch=training.micro_batch_size or own,
        processes=config.processes,
        batch=training.global_batch_size,
        steps=subject.steps,
        num_images=subject.num_images,
        step_seconds=training.global_batch_size / speed,
        images_per_second=speed,
        epoch_seconds=subject.num_images / speed,
        total_seconds=subject.steps * training.global_batch_size / speed,
        output=str(recipe.output),
        checkpoint_size=BYTES * (3 * parameters + averaged),
        checkpoints=training.keep_checkpoints + 1,  # the newest is written before the oldest goes
        free_disk=free_disk(recipe.output),
        notes=tuple(notes),
    )


def read_training(config: PlanConfig) -> TrainTransformerConfig | TrainTokenizerConfig:
    """The recipe, if it is one that can be planned."""
    if config.recipe is None:
        raise InputError("'alight plan' needs a recipe, such as --recipe imagenet/transformer_xl_64ep.")
    recipe = load_config(config.recipe)
    if not isinstance(recipe, TrainTransformerConfig | TrainTokenizerConfig):
        raise InputError(
            "'alight plan' knows recipes for 'alight transformer train' and 'alight tokenizer train'; "
            f"{config.recipe} is for another command."
        )
    return recipe


def growing_divisors(count: int) -> list[int]:
    """Divisors of a batch, each at least twice the one before."""
    small = [divisor for divisor in range(1, math.isqrt(count) + 1) if count % divisor == 0]
    chosen: list[int] = []
    for divisor in sorted({*small, *(count // divisor for divisor in small)}):
        if not chosen or divisor >= 2 * chosen[-1]:
            chosen.append(divisor)
    return chosen


def judge(cost: Cost, own: int, ideal: float, free: int) -> MicroBatch:
    """A whole step in pieces of this size.

    Args:
        cost: of a piece.
        own: images of a step in one process.
        ideal: seconds that an image would take at the rate of matrix products.
        free: bytes for activations.
    """
    speed = own / (own // cost.micro_batch * cost.seconds + cost.update)
    activations = max(round(cost.activations), 0)
    return MicroBatch(cost.micro_batch, speed, ideal * speed, activations, activations <= free)


def choose(micro_batches: tuple[MicroBatch, ...]) -> MicroBatch:
    """The smallest that is nearly as fast as the fastest of those that fit; the smallest of all if none does."""
    fitting = [each for each in micro_batches if each.fits] or [micro_batches[0]]
    best = max(each.images_per_second for each in fitting)
    return next(each for each in fitting if each.images_per_second >= GOOD_ENOUGH * best)
