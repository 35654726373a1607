"""A plan as a person reads it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from alight.runtime.console import duration

if TYPE_CHECKING:
    from alight.plan.estimate import Plan

MEANINGS = {"average": "average (EMA)", "activations": "activations, measured"}


def describe(plan: Plan) -> str:
    """All of a plan in a few tables."""
    needed = sum(plan.memory.values())
    disk = plan.checkpoints * plan.checkpoint_size
    rows = [
        (plan.recipe, f"{plan.job} in {plan.precision} on {plan.device}"),
        ("parameters", f"{plan.parameters / 1e6:,.1f} million"),
        ("work per image", f"{plan.operations_per_image / 1e9:,.1f} GFLOP, forward and backward"),
        ("matrix products", f"{plan.operations_per_second / 1e12:,.2f} TFLOP/s on this machine, measured"),
        None,
        ("memory of a process", f"with a micro-batch of {plan.chosen.size}"),
        *((f"  {MEANINGS.get(name, name)}", f"{size(count):>10}") for name, count in plan.memory.items() if count),
        ("  in all", f"{size(needed):>10} of {size(plan.free_memory)} free: {verdict(needed, plan.free_memory)}"),
        None,
        ("micro-batch", "  images/s  share of rate   activations"),
        *(
            (
                f"  {each.size}",
                f"{each.images_per_second:>10.3g}{each.share_of_rate:>14.0%} {size(each.activations):>12}"
                f"{'' if each.fits else '  does not fit'}{'  pays' if each == plan.chosen else ''}",
            )
            for each in plan.micro_batches
        ),
        None,
        ("processes", f"{plan.processes}, together {plan.images_per_second:.3g} images/s"),
        ("micro-batch", f"{plan.chosen.size} is enough; the recipe says {plan.recipe_micro_batch}"),
        ("step", f"{duration(plan.step_seconds)} for {plan.batch:,} images"),
        ("epoch", f"{long_duration(plan.epoch_seconds)} for {plan.num_images:,} images"),
        ("in all", f"{long_duration(plan.total_seconds)} for {plan.steps:,} steps"),
        (
            "checkpoints",
            f"{plan.checkpoints} of {size(plan.checkpoint_size)} = {size(disk)}; the disk of {plan.output} has "
            f"{size(plan.free_disk)} free: {verdict(disk, plan.free_disk)}",
        ),
        None,
    ]
    width = max(len(row[0]) for row in rows if row is not None) + 2
    lines = [f"{row[0]:<{width}}{row[1]}" if row is not None else "" for row in rows]
    return "\n".join([*lines, *plan.notes])


def size(count: float) -> str:
    """Bytes in the unit that suits them."""
    units = ["KiB", "MiB", "GiB", "TiB"]
    power = min(int(math.log(max(count / 1000, 1), 1024)), len(units) - 1)
    return f"{count / 1024 ** (power + 1):.1f} {units[power]}"


def long_duration(seconds: float) -> str:
    """Days where there are many hours."""
    return duration(seconds) if seconds < 72 * 3600 else f"{seconds / 86400:,.1f} days"


def verdict(needed: float, free: float) -> str:
    """Whether it fits."""
    return "fits" if needed <= free else "DOES NOT FIT"
