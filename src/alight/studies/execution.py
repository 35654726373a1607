"""All runs of a study; one that fails does not stop the others."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from statistics import fmean

from alight.config import TrainTransformerConfig
from alight.runtime.console import log
from alight.runtime.units import duration
from alight.studies.division import Division
from alight.studies.grid import LATENTS, TRANSFORMER, Run
from alight.training.average_snapshots import remove_snapshots
from alight.training.checkpoint import list_checkpoints, remove_checkpoint
from alight.training.longer import TRAINING_FOLDER


def remove_checkpoints(run: Run, runs: Sequence[Run]) -> None:
    """Remove checkpoints and snapshots of a run's transformer, once all of these runs that sample it are finished."""
    transformer = run.jobs["transformer"].output
    if all(each.is_finished for each in runs if each.jobs["transformer"].output == transformer):
        for _, path in list_checkpoints(transformer / TRAINING_FOLDER):
            remove_checkpoint(path)
        remove_snapshots(transformer)


def carry_out_all(runs: Sequence[Run], division: Division, keep_checkpoints: bool) -> dict[str, str]:
    """Run everything, and say how far it is.

    Args:
        runs: of the study.
        division: of the runs among processes.
        keep_checkpoints: of measured transformers.

    Returns:
        The reason of failure by the name of the run, in their order; empty if all went well.
    """
    failed: dict[str, str] = {}
    for parts in (common_parts(runs, LATENTS), origins(runs), common_parts(runs, ("transformer",))):
        with closing(division.outcomes(division.unfinished(parts))) as outcomes:
            for common, outcome in outcomes:
                if outcome.reason and division.is_main:  # and again in every run that needs it
                    log.warning("study: %s failed: %s", common.name, outcome.reason)
    open_runs = division.unfinished(runs)
    removing = division.is_main and not keep_checkpoints
    if removing:
        for run in runs:  # of which a command that was killed may have left some
            remove_checkpoints(run, runs)
    done, started = len(runs) - len(open_runs), time.perf_counter()
    seconds: list[float] = []
    with closing(division.outcomes(open_runs)) as outcomes:
        for run, outcome in outcomes:
            if outcome.reason:
                failed[run.name] = outcome.reason
            if removing:
                remove_checkpoints(run, runs)
            seconds.append(outcome.seconds)
            if division.is_main:
                if outcome.reason:
                    log.warning("study: %s failed and is left out: %s", run.name, outcome.reason)
                passed = time.perf_counter() - started
                log.info(
                    "study: %d of %d runs done in %s; %s",
                    *(done + len(seconds), len(runs), duration(passed)),
                    remaining(seconds, len(open_runs), division.together, passed),
                )
    return {run.name: failed[run.name] for run in runs if run.name in failed}


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


def origins(runs: Sequence[Run]) -> list[Run]:
    """The transformers that those of other settings start from, with all that leads to them."""
    wanted = {each.init_from for run in runs if isinstance(each := run.jobs["transformer"], TrainTransformerConfig)}
    parts: dict[Path, Run] = {}
    for run in runs:
        output = run.jobs["transformer"].output
        if str(output) in wanted:
            jobs = {name: run.jobs[name] for name in TRANSFORMER}
            parts.setdefault(output, Run("transformer that others start from", run.seed, output.parent, jobs))
    return list(parts.values())


def common_parts(runs: Sequence[Run], stages: Sequence[str]) -> list[Run]:
    """The jobs of some stages that several runs share: made first, no run waits for another."""
    users = Counter(job.output for run in runs for job in run.jobs.values())
    parts: dict[Path, Run] = {}
    for run in runs:
        jobs = {name: run.jobs[name] for name in stages if users[run.jobs[name].output] > 1}
        for folder in {job.output.parent for job in jobs.values()}:
            parts.setdefault(folder, Run(f"{stages[-1]} of several settings", run.seed, folder, jobs))
    return list(parts.values())
