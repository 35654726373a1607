"""The runs of a study, divided among worker processes of this one or among the processes that torchrun started.

Under torchrun every process takes the next run as soon as it is free, by a counter in the store in which they meet. It
carries the run out in a worker process of its own, which knows of no other: stages in it work as in one process, and
one that is killed takes no other run with it. Rank 0 writes the report.
"""

from __future__ import annotations

import itertools
import json
import os
import signal
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing, contextmanager
from typing import TypeVar

import torch

from alight.config import GridStudyConfig
from alight.runtime.device import resolve_device
from alight.runtime.distributed import own_device, watched
from alight.runtime.errors import InputError
from alight.runtime.files import seen_in_time
from alight.runtime.hardware import available_cores
from alight.runtime.interrupt import Interrupted, termination_as_exception
from alight.runtime.meeting import own_store
from alight.runtime.watch import Watch
from alight.studies.attempt import Outcome, attempt, carry_out
from alight.studies.grid import Run
from alight.studies.workers import Workers

_LOOK = 0.2  # seconds between looks for what other processes have done
_INTERRUPTED = "interrupted"
Value = TypeVar("Value")
Outcomes = Generator[tuple[Run, Outcome], None, None]


class Division(ABC):
    """The processes that carry out the runs of a study.

    Attributes:
        together: number of runs at once.
        is_main: True in the process that reports.
    """

    together: int
    is_main = True

    @abstractmethod
    def share(self, runs: Sequence[Run]) -> None:
        """Carry out what all runs need.

        Raises:
            InputError: a job cannot run.
        """

    @abstractmethod
    def outcomes(self, runs: Sequence[Run]) -> Outcomes:
        """Carry out runs, the same ones in all processes; gives each in the order of their ends.

        To be closed, also after a signal: the runs of workers then end.
        """

    def call(self, function: Callable[..., Value], *arguments: object) -> Value:
        """Call a function where runs are carried out, while none is."""
        return function(*arguments)

    def agreed(self, value: Value) -> Value:
        """A value of the process that reports, which the others wait for; plain data."""
        return value

    def unfinished(self, runs: Sequence[Run]) -> list[Run]:
        """The runs that are left, in all processes the same."""
        left = self.agreed([number for number, run in enumerate(runs) if not run.is_finished])
        return [runs[number] for number in left]


class OwnWorkers(Division):
    """This process alone or, for several jobs, workers of it.

    Args:
        jobs: number of workers.
    """

    def __init__(self, jobs: int) -> None:
        self.together = jobs

    def share(self, runs: Sequence[Run]) -> None:
        """See `Division`; in this process."""
        for run in runs:
            carry_out(run.jobs)

    def outcomes(self, runs: Sequence[Run]) -> Outcomes:
        """See `Division`."""
        jobs = self.together
        if jobs == 1 or len(runs) <= 1:
            for run in runs:
                yield run, attempt(run)
            return
        with Workers(_devices_of(runs[0], jobs), max(available_cores() // jobs, 1)) as workers:
            waiting = ThreadPoolExecutor(jobs)
            try:
                futures = {waiting.submit(_attempt_apart, workers, run, "--jobs"): run for run in runs}
                for future in as_completed(futures):
                    yield futures[future], future.result()
            except BaseException:  # a signal may have come to this process alone
                workers.terminate()
                raise
            finally:
                waiting.shutdown(cancel_futures=True)


class Ranks(Division):
    """The processes that torchrun started, each with a worker.

    Args:
        watch: of this process.
        workers: one.
        world_size: number of processes.
    """

    def __init__(self, watch: Watch, workers: Workers, world_size: int) -> None:
        self.together, self.is_main = world_size, watch.rank == 0
        self._store, self._workers = own_store(f"{watch.name}/study"), workers
        self._phases, self._agreements = itertools.count(), itertools.count()

    def call(self, function: Callable[..., Value], *arguments: object) -> Value:
        """See `Division`."""
        try:
            return self._workers.call(function, *arguments)
        except BrokenProcessPool as error:
            raise InputError("A process of the study was killed, most often because the memory was full.") from error

    def agreed(self, value: Value) -> Value:
        """See `Division`."""
        key = f"agreed/{next(self._agreements)}"
        if self.is_main:
            self._store.set(key, json.dumps(value))
            return value
        self._wait_for([key])
        agreed: Value = json.loads(self._store.get(key))
        return agreed

    def share(self, runs: Sequence[Run]) -> None:
        """See `Division`."""
        with closing(self.outcomes(self.unfinished(runs))) as outcomes:
            reasons = [outcome.reason for _, outcome in outcomes if outcome.reason]
        if reasons:
            raise InputError(reasons[0])

    def outcomes(self, runs: Sequence[Run]) -> Outcomes:
        """See `Division`; ends when all runs have ended, wherever."""
        phase = f"phase/{next(self._phases)}"
        keys = {f"{phase}/{number}": run for number, run in enumerate(runs)}
        while (number := self._store.add(f"{phase}/next", 1) - 1) < len(runs):
            outcome = _attempt_apart(self._workers, runs[number], "processes")
            self._store.set(f"{phase}/{number}", json.dumps(outcome))
            yield from self._ended(keys)
            self._stop_with_others()
        while keys:
            self._stop_with_others()
            yield from self._ended(keys)
            time.sleep(_LOOK)

    def _ended(self, keys: dict[str, Run]) -> Iterator[tuple[Run, Outcome]]:
        """The runs that have ended since the last look; they are taken out."""
        for key in [key for key in keys if self._store.check([key])]:
            run, outcome = keys.pop(key), Outcome(*json.loads(self._store.get(key)))
            if not outcome.reason:  # another machine may have written it
                seen_in_time(lambda run=run: run.is_finished)  # type: ignore[misc]
            yield run, outcome

    def _wait_for(self, keys: list[str]) -> None:
        while not self._store.check(keys):
            self._stop_with_others()
            time.sleep(_LOOK)

    def interrupt(self, number: int) -> None:
        """Tell the others of a signal, which ends the whole study."""
        self._store.set(_INTERRUPTED, str(number))

    def _stop_with_others(self) -> None:
        if self._store.check([_INTERRUPTED]):
            raise Interrupted(int(self._store.get(_INTERRUPTED)), agreed=True)


@contextmanager
def divided(config: GridStudyConfig) -> Iterator[Division]:
    """Divide the runs of a study, for the length of the block, as `jobs` or torchrun says.

    Raises:
        InputError: both say something, the processes cannot meet, or one has no device.
    """
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    if world_size == 1:
        with termination_as_exception():
            yield OwnWorkers(config.jobs)
        return
    together = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    with watched(config.model_dump(mode="json")) as watch:
        if config.jobs > 1:
            raise InputError(
                f"--jobs {config.jobs} starts workers of one process, but torchrun has started {world_size} "
                "processes, which share the runs of a study among themselves. Leave out --jobs, or torchrun."
            )
        device = str(own_device(config.device))
        with Workers([device], max(available_cores() // together, 1)) as workers:
            ranks = Ranks(watch, workers, world_size)
            try:
                yield ranks
            except KeyboardInterrupt as interrupt:
                number = getattr(interrupt, "exit_code", 128 + signal.SIGINT) - 128
                ranks.interrupt(number)
                workers.terminate()
                raise Interrupted(number, agreed=True) from interrupt


def _devices_of(run: Run, jobs: int) -> list[str]:
    """A device for every worker: the GPUs in turn, or that of the jobs."""
    wanted = next(iter(run.jobs.values())).device
    if resolve_device(wanted).type != "cuda" or torch.cuda.device_count() < 2 or ":" in wanted:
        return [wanted] * jobs
    return [f"cuda:{number % torch.cuda.device_count()}" for number in range(jobs)]


def _attempt_apart(workers: Workers, run: Run, fewer: str) -> Outcome:
    """Carry a run out in a process of its own; `fewer` of what need less memory."""
    started = time.perf_counter()
    try:
        return workers.call(attempt, run)
    except BrokenProcessPool:
        reason = f"its process was killed, most often because the memory was full. Fewer {fewer} need less of it."
        return Outcome(reason, time.perf_counter() - started)
