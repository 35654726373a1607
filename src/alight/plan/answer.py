"""A plan: the estimated cost of a training run, as data and as text."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from alight.runtime.units import duration, size_text

MEANINGS = {"average": "averages of weights", "activations": "activations, measured"}


@dataclass(frozen=True)
class MicroBatch:
    """A step of the recipe in micro-batches of one size.

    Attributes:
        size: images in a forward pass of a process.
        images_per_second: of one process, over whole steps.
        share_of_rate: of the machine's matrix-product rate that the network reaches (MFU).
        activations: bytes, measured.
        fits: true if they fit into the free memory, beside all else.
    """

    size: int
    images_per_second: float
    share_of_rate: float
    activations: int
    fits: bool


@dataclass(frozen=True)
class Plan:
    """The answer; sizes are in bytes, times in seconds."""

    recipe: str
    job: str
    device: str
    precision: str
    operations_per_second: float  # of a large matrix product
    operations_per_image: int  # forward and backward
    parameters: int  # that are trained
    memory: dict[str, int]  # of a process, by what it is for; computed, all but the activations
    free_memory: int
    scaled_from: tuple[int, ...]  # layers, or pixels of an image; empty: the recipe's own step was measured
    micro_batches: tuple[MicroBatch, ...]
    chosen: MicroBatch
    recipe_micro_batch: int  # of each process
    processes: int
    batch: int
    steps: int
    num_images: int
    step_seconds: float
    images_per_second: float  # of all processes
    epoch_seconds: float
    total_seconds: float
    output: str
    checkpoint_size: int
    checkpoints: int  # that lie there at the same time
    snapshot_size: int  # of an average
    snapshots: int  # that lie there at the end, of all averages whose length is chosen after training
    free_disk: int
    notes: tuple[str, ...]
    exit_code: int = 0

    def as_data(self) -> dict[str, Any]:
        """For programs."""
        return {key: value for key, value in asdict(self).items() if key != "exit_code"}

    def __str__(self) -> str:
        return describe(self)


def describe(plan: Plan) -> str:
    """All of a plan in a few tables."""
    needed = sum(plan.memory.values())
    disk, stored = plan.checkpoints * plan.checkpoint_size, plan.snapshots * plan.snapshot_size
    rows = [
        (plan.recipe, f"{plan.job} in {plan.precision} on {plan.device}"),
        ("parameters", f"{plan.parameters / 1e6:,.1f} million"),
        ("work per image", f"{plan.operations_per_image / 1e9:,.1f} GFLOP, forward and backward"),
        ("matrix products", f"{plan.operations_per_second / 1e12:,.2f} TFLOP/s on this machine, measured"),
        None,
        ("memory of a process", f"with a micro-batch of {plan.chosen.size}"),
        *((f"  {MEANINGS.get(part, part)}", f"{size_text(used):>10}") for part, used in plan.memory.items() if used),
        ("  in all", f"{size_text(needed):>10} of {verdict(needed, plan.free_memory)}"),
        None,
        ("micro-batch", "  images/s  share of rate   activations"),
        *(
            (
                f"  {each.size}",
                f"{each.images_per_second:>10.3g}{each.share_of_rate:>14.0%} {size_text(each.activations):>12}"
                f"{'' if each.fits else '  does not fit'}{'  pays' if each == plan.chosen else ''}",
            )
            for each in plan.micro_batches
        ),
        None,
        ("processes", f"{plan.processes}, together {plan.images_per_second:.3g} images/s"),
        ("micro-batch", f"{plan.chosen.size} is enough; the recipe says {plan.recipe_micro_batch}"),
        ("step", f"{duration(plan.step_seconds)} for {plan.batch:,} images"),
        ("epoch", f"{duration(plan.epoch_seconds)} for {plan.num_images:,} images"),
        ("in all", f"{duration(plan.total_seconds)} for {plan.steps:,} steps"),
        (
            "checkpoints",
            f"{plan.checkpoints} of {size_text(plan.checkpoint_size)} = {size_text(disk)}; "
            f"the disk of {plan.output} has {verdict(disk, plan.free_disk)}",
        ),
        *(
            [
                (
                    "snapshots",
                    f"{plan.snapshots} of {size_text(plan.snapshot_size)} = {size_text(stored)} of averages; with the "
                    f"checkpoints the disk has {verdict(disk + stored, plan.free_disk)}",
                )
            ]
            if plan.snapshots
            else []
        ),
        None,
    ]
    width = max(len(row[0]) for row in rows if row is not None) + 2
    lines = [f"{row[0]:<{width}}{row[1]}" if row is not None else "" for row in rows]
    return "\n".join([*lines, *plan.notes])


def verdict(needed: float, free: float) -> str:
    """The free bytes, and if the needed ones fit into them."""
    return f"{size_text(free)} free: {'fits' if needed <= free else 'DOES NOT FIT'}"
