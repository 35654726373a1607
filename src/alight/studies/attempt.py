"""One run of a study: its jobs in their order, and the reason if it fails."""

from __future__ import annotations

import time
from collections.abc import Mapping
from importlib import import_module
from typing import NamedTuple

from alight.artifacts import is_complete
from alight.config import Job
from alight.outputs import check_output
from alight.runtime.console import log
from alight.runtime.errors import InputError
from alight.studies.grid import Run, kind_of, module_of
from alight.studies.workers import own_device


class Outcome(NamedTuple):
    """The end of a run.

    Attributes:
        reason: of its failure, or nothing.
        seconds: that it took.
    """

    reason: str
    seconds: float


def check(jobs: Mapping[str, Job]) -> None:
    """Refuse folders that hold something else before any work starts.

    Raises:
        InputError: names the folder.
    """
    for name, job in jobs.items():
        check_output(job.output, job.model_dump(mode="json"), kind_of(name))


def carry_out(jobs: Mapping[str, Job]) -> None:
    """Run jobs in their order; what is finished already is kept.

    Raises:
        InputError: a job cannot run.
    """
    for name, job in jobs.items():
        if is_complete(job.output):
            check_output(job.output, job.model_dump(mode="json"), kind_of(name))
        else:
            import_module(module_of(name)).run(job)


def attempt(run: Run) -> Outcome:
    """Carry a run out."""
    started, reason = time.perf_counter(), ""
    device = own_device()
    here = {"device": device} if device is not None else {}
    try:
        carry_out({name: job.model_copy(update=here) for name, job in run.jobs.items()})
    except InputError as error:
        reason = str(error)
    except Exception as error:  # of any library; the other runs go on, and the report names this one
        log.debug("study: %s", run.name, exc_info=True)
        reason = f"{type(error).__name__}: {error}"
    return Outcome(reason, time.perf_counter() - started)
