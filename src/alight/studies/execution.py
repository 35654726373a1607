"""The runs of a study, one after the other or several at once; one that fails does not stop the others."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from importlib import import_module
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

import torch

from alight.artifacts import is_complete
from alight.config import Job
from alight.outputs import check_output
from alight.runtime.console import log
from alight.runtime.device import resolve_device
from alight.runtime.errors import InputError
from alight.runtime.hardware import available_cores
from alight.runtime.units import duration
from alight.studies.grid import LATENTS, Run, kind_of, module_of
from alight.studies.workers import Workers, own_device
from alight.training.checkpoint import list_checkpoints, remove_checkpoint
from alight.training.longer import TRAINING_FOLDER


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


def remove_checkpoints(run: Run, runs: Sequence[Run]) -> None:
    """Remove the checkpoints of a run's transformer, once all of these runs that draw samples from it are finished."""
    transformer = run.jobs["transformer"].output
    if all(each.is_finished for each in runs if each.jobs["transformer"].output == transformer):
        for _, path in list_checkpoints(transformer / TRAINING_FOLDER):
            remove_checkpoint(path)


def carry_out_all(runs: Sequence[Run], jobs: int, keep_checkpoints: bool) -> dict[str, str]:
    """Run everything, and say how far it is.

    Args:
        runs: of the study.
        jobs: that run at once, on several GPUs one on each.
        keep_checkpoints: of measured transformers.

    Returns:
        The reason of failure by the name of the run; empty if all went well.
    """
    failed: dict[str, str] = {}
    for stages in (LATENTS, ("transformer",)):
        for common, outcome in _outcomes(common_parts(runs, stages), jobs):
            if outcome.reason:  # and again in every run that needs it
                log.warning("study: %s failed: %s", common.name, outcome.reason)
    open_runs = [run for run in runs if not run.is_finished]
    if not keep_checkpoints:
        for run in runs:  # of which a command that was killed may have left some
            remove_checkpoints(run, runs)
    done, started = len(runs) - len(open_runs), time.perf_counter()
    seconds: list[float] = []
    for run, outcome in _outcomes(open_runs, jobs):
        if outcome.reason:
            failed[run.name] = outcome.reason
            log.warning("study: %s failed and is left out: %s", run.name, outcome.reason)
        if not keep_checkpoints:
            remove_checkpoints(run, runs)
        seconds.append(outcome.seconds)
        passed = time.perf_counter() - started
        log.info(
            "study: %d of %d runs done in %s; %s",
            *(done + len(seconds), len(runs), duration(passed)),
            remaining(seconds, len(open_runs), jobs, passed),
        )
    return failed


def remaining(seconds: Sequence[float], runs: int, jobs: int, passed: float) -> str:
    """The time that a study still needs, in words.

    Args:
        seconds: of the runs that have ended.
        runs: of this command, those that have ended among them.
        jobs: that run at once; as many runs are on their way when one ends.
        passed: seconds since the first of them began.
    """
    if len(seconds) == runs:
        return "none left."
    whole = fmean(seconds) * math.ceil(runs / jobs)
    return f"about {duration(max(whole - passed, 1.0))} left."


def common_parts(runs: Sequence[Run], stages: Sequence[str]) -> list[Run]:
    """The unfinished jobs of some stages that several runs share: made first, no run waits for another."""
    users = Counter(job.output for run in runs for job in run.jobs.values())
    parts: dict[Path, Run] = {}
    for run in runs:
        shared = {name: run.jobs[name] for name in stages if users[run.jobs[name].output] > 1}
        jobs = {name: job for name, job in shared.items() if not is_complete(job.output)}
        for folder in {job.output.parent for job in jobs.values()}:
            parts.setdefault(folder, Run(f"{stages[-1]} of several settings", run.seed, folder, jobs))
    return list(parts.values())


def _outcomes(runs: Sequence[Run], jobs: int) -> Iterator[tuple[Run, Outcome]]:
    """Every run that has ended, in the order of their ends."""
    if jobs == 1 or len(runs) <= 1:
        for run in runs:
            yield run, _attempt(run)
        return
    with Workers(_devices_of(runs[0], jobs), max(available_cores() // jobs, 1)) as workers:
        waiting = ThreadPoolExecutor(jobs)
        try:
            futures = {waiting.submit(_attempt_apart, workers, run): run for run in runs}
            for future in as_completed(futures):
                yield futures[future], future.result()
        finally:
            waiting.shutdown(cancel_futures=True)


def _devices_of(run: Run, jobs: int) -> list[str]:
    """A device for every worker: the GPUs in turn, or that of the jobs."""
    wanted = next(iter(run.jobs.values())).device
    if resolve_device(wanted).type != "cuda" or torch.cuda.device_count() < 2 or ":" in wanted:
        return [wanted] * jobs
    return [f"cuda:{number % torch.cuda.device_count()}" for number in range(jobs)]


def _attempt_apart(workers: Workers, run: Run) -> Outcome:
    """Carry a run out in a process of its own."""
    started = time.perf_counter()
    try:
        return workers.call(_attempt, run)
    except BrokenProcessPool:
        reason = "its process was killed, most often because the memory was full. Fewer --jobs need less of it."
        return Outcome(reason, time.perf_counter() - started)


def _attempt(run: Run) -> Outcome:
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
