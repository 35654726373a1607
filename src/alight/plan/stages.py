"""The time of a stage, and of whole arrows stage by stage."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from importlib import import_module
from typing import Any

from alight.config import ImagesConfig, Job, PlanConfig
from alight.config.commands import COMMANDS
from alight.plan.inputs import Inputs
from alight.plan.measure import sweep
from alight.plan.parts import Part, parts_of, reading
from alight.plan.passes import Passes
from alight.plan.subject import Machine, TrainingRecipe, training_subject
from alight.runtime.errors import InputError
from alight.runtime.units import duration

CACHED_BYTES = 256 * 2**20  # of centre crops that a data set keeps in memory
MEASUREMENTS = 4  # of a stage, about, which share its time
OMITTED = "Starting, writing files and drawing pictures are not in the estimate, nor is a classifier of labels."


@dataclass(frozen=True)
class StageTime:
    """The time of a stage.

    Attributes:
        stage: its name within the arrow.
        job: the command that it is.
        parts: of its work.
        notes: what was taken for granted.
        repeats: times that a study carries it out.
    """

    stage: str
    job: str
    parts: tuple[Part, ...]
    notes: tuple[str, ...]
    repeats: int = 1

    @property
    def seconds(self) -> float:
        """The seconds of all parts, over all repeats."""
        return self.repeats * sum(part.seconds for part in self.parts)


@dataclass(frozen=True)
class StagesPlan:
    """The time of every stage of a recipe, and of all together, in seconds."""

    recipe: str
    device: str
    processes: int
    stages: tuple[StageTime, ...]
    exit_code: int = 0

    @property
    def total_seconds(self) -> float:
        """The seconds of all stages, of which each process takes a share."""
        return sum(stage.seconds for stage in self.stages) / self.processes

    @property
    def notes(self) -> tuple[str, ...]:
        """The assumptions of all stages, each once."""
        return (*dict.fromkeys(note for stage in self.stages for note in stage.notes), OMITTED)

    def as_data(self) -> dict[str, Any]:
        """For programs."""
        stages = [
            {"stage": stage.stage, "job": stage.job, "seconds": stage.seconds, "repeats": stage.repeats}
            | {"parts": [part._asdict() | {"seconds": part.seconds} for part in stage.parts]}
            for stage in self.stages
        ]
        facts = {key: value for key, value in asdict(self).items() if key in ("recipe", "device", "processes")}
        return facts | {"stages": stages, "total_seconds": self.total_seconds, "notes": list(self.notes)}

    def __str__(self) -> str:
        rows: list[tuple[str, float, str]] = []
        for stage in self.stages:
            repeated = f", {stage.repeats} times" if stage.repeats > 1 else ""
            rows.append((stage.stage, stage.seconds, f"alight {stage.job}{repeated}"))
            rows += [
                (f"  {part.name}", part.seconds, f"{part.times:,.0f} x {short(part.seconds_each)}")
                for part in stage.parts
                if part.seconds
            ]
        shared = f"shared by {self.processes} processes" if self.processes > 1 else ""
        rows.append(("in all", self.total_seconds, shared))
        width = max(len(row[0]) for row in rows) + 2
        lines = [f"{name:<{width}}{duration(seconds):>13}   {detail}".rstrip() for name, seconds, detail in rows]
        return "\n".join([f"{self.recipe} on {self.device}", "", *lines, "", *self.notes])


def short(seconds: float) -> str:
    """Seconds of a single piece of work: 3.2 ms, 4.1 s."""
    return f"{1000 * seconds:.3g} ms" if seconds < 1 else duration(seconds)


def job_of(recipe: Any) -> str:
    """The name of the command that a configuration is for."""
    return next(name for name, command in COMMANDS.items() if command.config is type(recipe))


def stages_of(recipe: Job) -> Mapping[str, Job]:
    """The stages of an arrow, with their folders joined up; a job that is no arrow is its own only stage."""
    module = import_module(COMMANDS[job_of(recipe)].module)
    return module.wire(recipe) if hasattr(module, "wire") else {recipe.output.name: recipe}


def repeats_of(recipe: Job) -> Mapping[str, int]:
    """The number of times that a study carries out each of its stages; empty for other recipes."""
    module = import_module(COMMANDS[job_of(recipe)].module)
    return module.repeats(recipe) if hasattr(module, "repeats") else {}


def stage_times(
    stages: Mapping[str, Job],
    config: PlanConfig,
    machine: Machine,
    others: Iterable[Job] = (),
    repeats: Mapping[str, int] | None = None,
) -> tuple[StageTime, ...]:
    """Measure every stage; each has an equal share of `config.seconds`.

    Args:
        stages: by name.
        config: seconds to measure for, and numbers of what is not there yet.
        machine: to measure on.
        others: further jobs, which make what the stages are made from.
        repeats: times that a stage is carried out, by name, where it is more than once.

    Raises:
        InputError: a stage cannot be measured, or a part that it is made from cannot be used.
    """
    known = (*stages.values(), *others)
    shared = config.model_copy(update={"seconds": config.seconds / len(stages)})
    times = (stage_time(name, job, shared, machine, Inputs(shared, known)) for name, job in stages.items())
    return tuple(replace(time, repeats=(repeats or {}).get(time.stage, 1)) for time in times)


def stage_time(name: str, job: Job, config: PlanConfig, machine: Machine, inputs: Inputs) -> StageTime:
    """Measure one stage for about `config.seconds`.

    Raises:
        InputError: it cannot be measured, or a part that it is made from cannot be used.
    """
    if isinstance(job, TrainingRecipe):
        parts: Iterable[Part] | None = training_parts(job, config, machine, inputs)
    else:
        parts = parts_of(job, inputs, Passes(machine.device, config.seconds / MEASUREMENTS, inputs.note))
    if parts is None:
        raise InputError(
            f"'alight plan' cannot plan 'alight {job_of(job)}', which {config.recipe or name} is for. It knows "
            "training, extraction, sampling, evaluation, and the arrows that are made of them."
        )
    return StageTime(name, job_of(job), tuple(parts), tuple(inputs.notes))


def training_parts(job: TrainingRecipe, config: PlanConfig, machine: Machine, inputs: Inputs) -> list[Part]:
    """Steps of the recipe's own micro-batch, as far as the time allows, and the reading of its images."""
    deadline = time.perf_counter() + config.seconds
    subject, training = training_subject(config, job, machine, inputs), job.training
    batch = training.global_batch_size
    micro_batch = training.micro_batch_size or batch
    sizes = sorted({max(micro_batch // 8, 1), micro_batch})
    cost = sweep(subject.works, subject.extent, sizes, machine.memory, deadline)[-1]
    parts = [Part("train for a step", subject.steps, batch * cost.seconds / cost.micro_batch + cost.update)]
    images = getattr(job, "images", None)
    if isinstance(images, ImagesConfig):
        cached = images.crop == "center" and 3 * subject.num_images * images.size**2 <= CACHED_BYTES
        times = subject.num_images if cached else subject.steps * batch
        parts.append(reading(images.workers, times, inputs.reading(images)))
    return parts
