"""A study: its shared models, its runs, and one report of their figures."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean
from typing import Any

import numpy as np
from PIL import Image

from alight.artifacts import Artifact, library_versions, read_artifact, read_manifest, write_manifest
from alight.config import GridStudyConfig, Job, SampleConfig, TrainTokenizerConfig, TrainTransformerConfig
from alight.evaluation.tokenizer_report import magnification
from alight.outputs import check_output, claimed_output, read_written, writing_folder
from alight.reporting.files import figure_lines, write_report
from alight.reporting.pictures import image_grid
from alight.reporting.report import Bars, Comparison, Conditions, Curve, Figure, Picture, Report, Stage
from alight.runtime.console import log
from alight.runtime.errors import InputError
from alight.runtime.files import file_hash
from alight.studies.attempt import check
from alight.studies.costs import recorded_costs, step_at_equal_time
from alight.studies.division import Division, divided
from alight.studies.execution import carry_out_all
from alight.studies.grid import Run, Setting, all_runs, shared_jobs
from alight.studies.results import GENERATION, LABELS, OBSERVER, Results, StudyMeasure

SHOWN_SAMPLES = 16  # of every setting, with the same labels and noise


class Study(ABC):
    """The parts of a report that differ from study to study."""

    title: str

    @abstractmethod
    def summary(self, results: Results) -> str:
        """The finding in a few sentences."""

    @abstractmethod
    def figures(self, results: Results, conditions: Mapping[str, Conditions]) -> Iterator[Figure]:
        """Differences with their intervals."""

    @abstractmethod
    def plots(self, results: Results) -> Iterator[Curve]:
        """Plots of settings against each other."""

    @abstractmethod
    def comparison(self, results: Results, conditions: Mapping[str, Conditions]) -> Comparison:
        """A table of all settings."""

    def further_comparisons(self, results: Results, conditions: Mapping[str, Conditions]) -> Iterator[Comparison]:
        """More tables."""
        yield from ()


def carry_out_study(
    config: GridStudyConfig, settings: Sequence[Setting], study: Study, equal_time: bool = False
) -> Artifact:
    """Train the shared models, carry out all runs, and write the report.

    Args:
        config: of the study.
        settings: under study, the baseline first.
        study: makes the report.
        equal_time: also measure settings after the time that the baseline trains, by the cost of their steps.

    Raises:
        InputError: no run can be carried out, or the folder holds another study.
    """
    with divided(config) as division:
        shared, costs = shared_jobs(config), dict[str, float]()
        if equal_time:
            costs = division.agreed(costs_of(config, settings, division) if division.is_main else {})
        steps = config.transformer.training.steps
        runs = all_runs(config, settings, {name: step_at_equal_time(steps, cost) for name, cost in costs.items()})
        before = division.agreed(prepare(config, shared, runs) if division.is_main else [])
        division.share([Run(name, job.seed, job.output, {name: job}) for name, job in shared.items()])
        failed = carry_out_all(runs, division, config.keep_checkpoints)
        if division.is_main:
            results = Results.read(runs, config.measured_steps, costs)
            write_if_new(study, config, runs, results, failed, renew=finished_runs(runs) != before)
        division.agreed("reported")
    return read_written(config.output / "report", "report")


def costs_of(config: GridStudyConfig, settings: Sequence[Setting], division: Division) -> dict[str, float]:
    """The cost of a training step of every setting, measured before anything else runs.

    Raises:
        InputError: the folder holds another study, or a record that cannot be read.
    """
    check_output(config.output / "report", resolved(config), "report")
    firsts = list({run.setting: run for run in reversed(all_runs(config, settings))}.values())[::-1]
    return division.call(recorded_costs, config.output, firsts, list(shared_jobs(config).values()))


def prepare(config: GridStudyConfig, shared: Mapping[str, Job], runs: Sequence[Run]) -> list[str]:
    """Refuse folders that hold something else before any work starts; gives the names of finished runs.

    Raises:
        InputError: names the folder.
    """
    check_output(config.output / "report", resolved(config), "report")
    for jobs in (shared, *(run.jobs for run in runs)):
        check(jobs)
    settings = len({run.setting for run in runs})
    log.info("study: %d settings, %d runs, into %s.", settings, len(runs), config.output)
    return finished_runs(runs)


def resolved(config: GridStudyConfig) -> dict[str, Any]:
    """The configuration as plain data, without the number of jobs, which changes no result."""
    return config.model_dump(mode="json", exclude={"jobs"})


def finished_runs(runs: Sequence[Run]) -> list[str]:
    """The names of the runs of which every job is finished."""
    return [run.name for run in runs if run.is_finished]


def write_if_new(
    study: Study,
    config: GridStudyConfig,
    runs: Sequence[Run],
    results: Results,
    failed: Mapping[str, str],
    renew: bool,
) -> None:
    """Write the report artifact, unless it is there and nothing has changed.

    Raises:
        InputError: there is nothing to report.
    """
    started, folder = time.perf_counter(), config.output / "report"
    if not results.settings:
        raise InputError(f"Not a single run of the study succeeded. The first reason: {next(iter(failed.values()))}")
    with claimed_output(folder, "report", resolved(config), renew=renew) as finished:
        if finished is not None:
            return
        conditions = {run.setting: conditions_of(run, config) for run in runs}
        described = describe(study, config, runs, results, failed, conditions)
        with writing_folder(folder) as staging:
            write_report(staging, described)
            digest = file_hash(staging / "report.json")
            write_manifest(staging, "report", resolved(config), digest, seconds=time.perf_counter() - started)
    for line in figure_lines(described):
        log.info(line)


def describe(
    study: Study,
    config: GridStudyConfig,
    runs: Sequence[Run],
    results: Results,
    failed: Mapping[str, str],
    conditions: Mapping[str, Conditions],
) -> Report:
    """The whole report."""
    pictures = [samples_picture(runs, results)]
    return Report(
        title=study.title,
        summary=study.summary(results),
        figures=list(study.figures(results, conditions)),
        comparison=study.comparison(results, conditions),
        further_comparisons=list(study.further_comparisons(results, conditions)),
        pictures=[picture for picture in pictures if picture is not None],
        results=list(study.plots(results)),
        curves=[learning_curves(results, measure) for measure in (LABELS, OBSERVER) if results.has(measure)],
        stages=list(times(runs, in_parts=bool(results.costs))),
        configuration={"study": resolved(config)},
        versions=library_versions(),
        notes=list(notes(results, failed)),
    )


def conditions_of(run: Run, config: GridStudyConfig) -> Conditions:
    """The budget of a run with the changes of its setting, and the way in which its samples are drawn."""
    jobs = run.jobs["tokenizer"], run.jobs["transformer"], run.jobs[f"samples/{config.measured_steps[-1]}"]
    assert isinstance(jobs[0], TrainTokenizerConfig)
    assert isinstance(jobs[1], TrainTransformerConfig)
    assert isinstance(jobs[2], SampleConfig)
    tokenizer, transformer = jobs[0].training, jobs[1].training
    return {
        "setting": run.setting,
        "images": f"{config.images.source}, {config.images.size} pixels",
        "tokenizer": f"{tokenizer.steps:,} steps of {tokenizer.global_batch_size}",
        "transformer": f"{transformer.steps:,} steps of {transformer.global_batch_size}",
        "sampling": str(jobs[2].sampling),
        **({"average": jobs[2].average} if jobs[2].average is not None else {}),
    }


def learning_curves(results: Results, measure: StudyMeasure) -> Curve:
    """A figure of samples over the steps of training, a line per setting with the intervals over seeds."""
    series: dict[str, tuple[list[float], list[float]]] = {}
    bars: dict[str, list[Bars]] = {}
    for setting in results.settings:
        found = results.learning_curve(setting, measure)
        if found:
            series[setting] = [float(step) for step in found], [each.mean for each in found.values()]
            bars[setting] = [Bars(step, step, each.low, each.high) for step, each in found.items()]
    return Curve(f"{measure.label} while transformers train", "step", measure.label, series, bars=bars)


def samples_picture(runs: Sequence[Run], results: Results) -> Picture | None:
    """The first samples of every setting, of the same labels and noise."""
    first = {run.setting: run for run in reversed(runs) if run.setting in results.values}
    rows, names = [], []
    for setting in results.settings:
        images = first[setting].jobs[f"samples/{results.steps[-1]}"].output / "images"
        files = sorted(images.rglob("*.png"))
        if files:
            spread = np.linspace(0, len(files) - 1, min(SHOWN_SAMPLES, len(files))).astype(int)
            rows.append(np.stack([np.asarray(Image.open(files[number]).convert("RGB")) for number in spread]))
            names.append(setting)
    if not rows:
        return None
    width = min(map(len, rows))
    grid = image_grid(np.concatenate([row[:width] for row in rows]), width)
    caption = "Samples of every setting, without guidance, a row each: equal labels and equal noise in every column."
    return Picture("Samples", caption, grid, magnification(rows[0]), names)


def times(runs: Sequence[Run], in_parts: bool) -> Iterator[Stage]:
    """The time of every setting, over all its seeds; in parts, also of a step of training and of a sample."""
    finished: dict[str, list[Run]] = {}
    for run in runs:
        if run.is_finished:
            finished.setdefault(run.setting, []).append(run)
    for setting, each in finished.items():
        spent = sum(read_manifest(job.output).seconds for run in each for job in run.jobs.values())
        yield Stage(setting, spent, parts(each) if in_parts else {})


def parts(runs: Sequence[Run]) -> dict[str, object]:
    """Seconds of a training step and of a sample, as these runs took them: with whatever else the machine did."""
    steps = fmean(read_manifest(run.jobs["transformer"].output).seconds for run in runs)
    last = [list(run.jobs.items())[-2] for run in runs]
    count = read_artifact(last[0][1].output, "samples", verify=False).facts.get("count")
    samples = fmean(read_manifest(job.output).seconds for _, job in last)
    training = runs[0].jobs["transformer"]
    assert isinstance(training, TrainTransformerConfig)
    return {
        "seconds per training step": f"{steps / training.training.steps:.4f}",
        "seconds per sample": f"{samples / count:.4f}" if count else "unknown",
    }


def notes(results: Results, failed: Mapping[str, str]) -> Iterator[str]:
    """Failed runs, and what the figures do not say."""
    for name, reason in failed.items():
        yield f"{name} failed and is left out: {reason}"
    yield "Intervals are Student's, over seeds, and hold the true mean with a probability of 95 %."
    yield "Differences are paired: runs of the same seed share initial weights where shapes agree, batches and noise."
    absent = [measure.label for measure in GENERATION if not results.has(measure)]
    if absent:
        yield f"Not measured: {', '.join(absent)}."
