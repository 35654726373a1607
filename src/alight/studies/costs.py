"""The cost of a training step of every setting, as a multiple of that of the unchanged arrow.

Every setting's transformer takes steps in turn with the unchanged one, so that whatever else the machine does slows
both down, before any of them is trained. The multiples are kept in the study's folder: a study that goes on compares
at the same steps as before.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Annotated, NamedTuple

from pydantic import ConfigDict, Field, with_config
from typing_extensions import TypedDict

from alight.config import Job, PlanConfig, TrainTransformerConfig
from alight.plan.inputs import Inputs
from alight.plan.untrained import LatentShape, num_layers
from alight.plan.workload import TransformerWorkload
from alight.runtime.console import log
from alight.runtime.device import resolve_device
from alight.runtime.distributed import used_device
from alight.runtime.errors import one_line
from alight.runtime.files import write_text
from alight.runtime.hardware import synchronise
from alight.runtime.reading import read_json
from alight.studies.grid import Run
from alight.studies.workers import own_device

FILE = "costs.json"
WARM, ROUNDS = 2, 15  # steps of each of a pair
NEGLIGIBLE = 0.03  # a difference from 1 that is taken for none: repeated measurements differ by as much


class Subject(NamedTuple):
    """All that decides on the cost of a step.

    Attributes:
        config: of the transformer's training.
        latents: that it learns.
    """

    config: TrainTransformerConfig
    latents: LatentShape


@with_config(ConfigDict(strict=True, extra="forbid"))
class _Recorded(TypedDict):
    of: str
    cost: Annotated[float, Field(gt=0, le=1e6)] | None


def recorded_costs(folder: Path, runs: Sequence[Run], shared: Sequence[Job]) -> dict[str, float]:
    """The cost of a step of every setting: as recorded in the folder of the study, or measured and recorded there.

    Args:
        folder: of the study.
        runs: one of every setting, the unchanged one first.
        shared: jobs that make the models of all runs, which need not be there yet.

    Returns:
        Multiples by the name of the setting; 1 where nothing about the training of the transformer differs. A setting
        that cannot be measured is left out, and tried again by the next command.

    Raises:
        InputError: the record cannot be read.
    """
    path = folder / FILE
    remedy = "Delete it; the study measures again."
    known = read_json(path, dict[str, _Recorded], remedy) if path.is_file() else {}
    subjects = {run.setting: subject_of(run, shared) for run in runs}
    first, *others = subjects.values()
    record: dict[str, _Recorded] = {}
    measured: dict[str, float | None] = {digest(first, first): 1.0}
    measured |= {each["of"]: each["cost"] for each in known.values() if each["cost"] is not None}
    for setting, subject in subjects.items():
        of = digest(first, subject)
        if of not in measured:
            measured[of] = cost_of(setting, subject, first)
        record[setting] = {"of": of, "cost": measured[of]}
    if record != known:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps(record, indent=2) + "\n")
    return {setting: each["cost"] for setting, each in record.items() if each["cost"] is not None}


def step_at_equal_time(steps: int, cost: float) -> int:
    """The step, at most the last, at which a setting has used the time of all steps of the unchanged arrow."""
    return steps if cost <= 1 + NEGLIGIBLE else max(int(steps / cost), 1)


def subject_of(run: Run, shared: Sequence[Job]) -> Subject:
    """The training of a run's transformer, with latents and features of the shapes that they will have."""
    job = run.jobs["transformer"]
    assert isinstance(job, TrainTransformerConfig)
    inputs = Inputs(PlanConfig(), (*shared, *run.jobs.values()))
    latents, _ = inputs.latents(job.latents)
    return Subject(job, latents._replace(feature_dim=inputs.feature_dim(job)))


def digest(first: Subject, second: Subject) -> str:
    """A text that is the same where two subjects are, wherever the study is."""
    places = {"output", "latents", "device"}
    texts = [
        json.dumps([each.config.model_dump(mode="json", exclude=places), each.latents]) for each in (first, second)
    ]
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()[:16]


def cost_of(setting: str, subject: Subject, first: Subject) -> float | None:
    """The median of the cost of one step in that of the other, taken in turn; None where one of them fails."""
    device = resolve_device(own_device() or subject.config.device)
    try:
        with used_device(device):
            works = [TransformerWorkload(*each, device, num_layers(each.config)) for each in (subject, first)]
            times = [[seconds_of_a_step(work) for work in works] for _ in range(WARM + ROUNDS)][WARM:]
    except Exception as error:  # of any library; a run of this setting fails likewise, and the report says so
        log.warning("study: the cost of a step of '%s' cannot be measured: %s", setting, one_line(error))
        return None
    cost = round(median(own / unchanged for own, unchanged in times), 3)
    log.info("study: a step of '%s' costs %.2f steps of the unchanged transformer.", setting, cost)
    return cost


def seconds_of_a_step(work: TransformerWorkload) -> float:
    """Seconds of an optimizer step, with all its micro-batches."""
    parts = work.training.micro_batches()
    synchronise(work.device)
    started = time.perf_counter()
    for _ in range(parts):
        work.backward(work.training.global_batch_size // parts)
    work.update()
    synchronise(work.device)
    return time.perf_counter() - started
