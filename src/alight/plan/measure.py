"""Time and memory of a training step at several micro-batch sizes."""

import gc
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import torch

from alight.plan.workload import Workload
from alight.runtime.errors import InputError
from alight.runtime.hardware import PeakMemory, synchronise

REPEATS, LONG = 5, 1.0  # repetitions of a timing, and the seconds after which it ends earlier
PAYS = 1.03  # two doublings of the micro-batch must make it faster by this factor, or there is no third
MEMORY_SHARE = 0.8  # of the free memory, that a measurement may be expected to take


class Cost(NamedTuple):
    """Cost of a micro-batch.

    Attributes:
        micro_batch: images in it.
        seconds: of its forward and backward pass.
        update: seconds of optimizer and moving average, once in a step.
        activations: bytes that it needs for a while, beside weights, gradients, optimizer and average.
    """

    micro_batch: int
    seconds: float
    update: float
    activations: float


def at_extent(values: Mapping[int, float], extent: int) -> float:
    """A value by the extent of what it was measured of: as it is there, or on the line through two smaller ones."""
    if extent in values:
        return values[extent]
    (low, at_low), (high, at_high) = values.items()
    return at_high + max(at_high - at_low, 0) * (extent - high) / (high - low)  # noise makes nothing cheaper


def sweep(
    works: Mapping[int, Workload], extent: int, micro_batches: Iterable[int], memory: int, deadline: float
) -> list[Cost]:
    """Costs of growing micro-batches, until the next would take too much time or memory, or no longer pays.

    Args:
        works: by their extent: the one that is asked for, or two smaller ones.
        extent: that is asked for.
        micro_batches: rising.
        memory: bytes that are free.
        deadline: on the clock of `time.perf_counter`; the first micro-batch is measured in any case.

    Raises:
        InputError: not even the first of them fits into the memory.
    """
    costs: list[Cost] = []
    taken = grown = 0.0  # in the last measurement
    for micro_batch in micro_batches:
        if costs:
            factor = micro_batch / costs[-1].micro_batch
            if time.perf_counter() + factor * taken > deadline or factor * grown > MEMORY_SHARE * memory:
                break
        started = time.perf_counter()
        try:
            measured = [_measure(work, micro_batch) for work in works.values()]
        except torch.OutOfMemoryError as error:
            if costs:
                break
            raise InputError(
                f"Not even {micro_batch} image fits into the memory of this device beside the model. Set "
                "training.activation_checkpointing, or take a device with more memory."
            ) from error
        taken, grown = time.perf_counter() - started, max(cost.activations for cost in measured)
        columns = zip(*(cost[1:] for cost in measured), strict=True)  # seconds, update, activations
        costs.append(Cost(micro_batch, *(at_extent(dict(zip(works, each, strict=True)), extent) for each in columns)))
        if len(costs) > 2 and _rate(costs[-1]) < PAYS * _rate(costs[-3]):
            break
    return costs


def _measure(work: Workload, micro_batch: int) -> Cost:
    def seconds(action: Callable[[], None]) -> float:
        synchronise(work.device)
        started = time.perf_counter()
        action()
        synchronise(work.device)
        return time.perf_counter() - started

    def backward() -> None:
        work.backward(micro_batch)

    gc.collect()
    backward()  # chooses kernels and allocates the gradients
    with PeakMemory(work.device) as peak:
        times = [seconds(backward)]
    while len(times) < REPEATS and sum(times) < LONG:
        times.append(seconds(backward))
    return Cost(micro_batch, statistics.median(times), seconds(work.update), peak.growth)


def _rate(cost: Cost) -> float:
    return cost.micro_batch / cost.seconds
