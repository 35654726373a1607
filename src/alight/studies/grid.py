"""A grid of runs: settings of one arrow, several seeds of each, and the jobs that every run consists of."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from alight.artifacts import is_complete
from alight.config import GridStudyConfig, Job
from alight.config.recipes import override, validate
from alight.runtime.errors import InputError
from alight.runtime.seeding import derive_seed
from alight.studies.feasibility import require_fit

Config = TypeVar("Config", bound=GridStudyConfig)
MODULES = {  # the stage of every job, by the first word of its name
    "foundation": "alight.stages.train_foundation",
    "observer": "alight.stages.train_foundation",
    "tokenizer": "alight.stages.train_tokenizer",
    "reconstruction": "alight.stages.evaluate_tokenizer",
    "latents": "alight.stages.extract_latents",
    "transformer": "alight.stages.train_transformer",
    "samples": "alight.stages.generate_samples",
    "report": "alight.stages.evaluate",
}
KINDS = {"observer": "foundation", "reconstruction": "report"}  # of artifact, where the job's name does not say it
RUNS = "runs"  # folder of all runs
UNCHANGED = "unchanged"  # the study's own arrow; as `transformer.init_from` of a change, the transformer of that arrow
LATENTS = ("tokenizer", "reconstruction", "latents")  # sections that decide on latents, and jobs that make them
TRANSFORMER = (*LATENTS, "transformer")  # sections that decide on a transformer


class Setting(NamedTuple):
    """A setting of the arrow.

    Attributes:
        name: of a few words.
        changes: dotted keys of the study's configuration, and their values.
        seeds: number of runs.
    """

    name: str
    changes: Mapping[str, Any]
    seeds: int


@dataclass(frozen=True)
class Run:
    """A run of a setting with one seed.

    Attributes:
        setting: its name.
        seed: of all its jobs.
        folder: of all its artifacts.
        jobs: by their names, in order; samples and reports carry the step behind a slash.
    """

    setting: str
    seed: int
    folder: Path
    jobs: Mapping[str, Job]

    @property
    def name(self) -> str:
        """Name in messages."""
        return f"{self.setting}, seed {self.seed}"

    @property
    def is_finished(self) -> bool:
        """True if every job has its artifact."""
        return all(is_complete(job.output) for job in self.jobs.values())


def shared_jobs(config: GridStudyConfig) -> dict[str, Job]:
    """The models that all runs share: the foundation model, where none is given, and the observer.

    The observer has another seed, so that not even its initial weights are those of the foundation model.
    """
    common: dict[str, Any] = {"device": config.device, "images": config.images}
    jobs: dict[str, Job] = {}
    if config.public_foundation is None:
        own = {"output": config.output / "foundation", "seed": config.seed}
        jobs["foundation"] = config.foundation.model_copy(update=common | own)
    own = {"output": config.output / "observer", "seed": derive_seed(config.seed, "observer") % 2**31}
    return jobs | {"observer": config.observer.model_copy(update=common | own)}


def all_runs(
    config: GridStudyConfig, settings: Sequence[Setting], further_steps: Mapping[str, int] | None = None
) -> list[Run]:
    """Every run of a study: seed by seed, so that a study that was interrupted has all settings of some seeds.

    Args:
        config: of the study.
        settings: under study.
        further_steps: by setting, one more step after which samples of the transformer are measured.

    Raises:
        InputError: a change names no key, or has a value that does not fit; a setting asks for more than the study's
            own foundation model has; settings are measured after different steps; or the unchanged transformer is to
            start from itself.
    """
    if config.transformer.init_from == UNCHANGED:
        raise InputError(
            f"transformer.init_from: {UNCHANGED} is for the changes of an ablation, whose transformers start from "
            "that of the unchanged setting. Leave it out of the section 'transformer'."
        )
    most = max(setting.seeds for setting in settings)
    configs = {UNCHANGED: config} | {setting.name: changed(config, setting) for setting in settings}
    for name, each in configs.items():
        if each.public_foundation is None and name in {setting.name for setting in settings}:
            require_fit(each.tokenizer, config.foundation, f"The setting '{name}'")
        if each.measured_steps != config.measured_steps:
            raise InputError(
                f"The setting '{name}' changes the steps after which samples are measured, but a study compares after "
                "the same steps. Leave transformer.training.steps and measurements out of the changes."
            )
    return [
        one_run(configs, setting.name, config.seed + number, (further_steps or {}).get(setting.name))
        for number in range(most)
        for setting in settings
        if number < setting.seeds
    ]


def one_run(configs: Mapping[str, GridStudyConfig], setting: str, seed: int, further_step: int | None = None) -> Run:
    """The jobs of a run, with their folders joined up.

    Latents and transformers are made once for all settings that agree in what decides on them, in the folder of the
    first of these settings.

    Args:
        configs: of all settings by name, that of the study first.
        setting: name of the run's.
        seed: of all jobs.
        further_step: after which samples are measured, too.
    """
    own = configs[setting]

    def folder_of(name: str) -> Path:
        return own.output / RUNS / f"{slug(name)}-seed{seed}"

    def first_with(sections: Sequence[str]) -> Path:
        wanted = [getattr(own, section) for section in sections]
        equal = (name for name, each in configs.items() if [getattr(each, section) for section in sections] == wanted)
        return folder_of(next(equal))

    folders = folder_of(setting), first_with(LATENTS), first_with(TRANSFORMER)
    if own.transformer.init_from == UNCHANGED:
        transformer = own.transformer.model_copy(update={"init_from": str(folder_of(UNCHANGED) / "transformer")})
        own = own.model_copy(update={"transformer": transformer})
    return Run(setting, seed, folders[0], dict(wire(own, *folders, seed, further_step)))


def changed(config: Config, setting: Setting) -> Config:
    """The configuration of a study with the changes of a setting.

    Raises:
        InputError: a change names no key, or has a value that does not fit.
    """
    values = config.model_dump(mode="json")
    for dotted, value in setting.changes.items():
        override(values, dotted, value)
    return validate(type(config), values, f"The setting '{setting.name}'")


def wire(
    config: GridStudyConfig, folder: Path, first: Path, second: Path, seed: int, further_step: int | None = None
) -> Iterator[tuple[str, Job]]:
    """The jobs of a run by name, from the tokenizer to the last report.

    Args:
        config: with the changes of the setting.
        folder: of samples and reports.
        first: of tokenizer, its report and latents.
        second: of the transformer.
        seed: of all jobs.
        further_step: after which samples are measured, beside even shares of the training.
    """
    foundation = config.public_foundation or str(config.output / "foundation")
    observer, steps = str(config.output / "observer"), config.measured_steps
    tokenizer, latents, transformer = first / "tokenizer", first / "latents", second / "transformer"

    def joined(job: Job, output: Path, **links: Any) -> Job:
        pictures = {"images": config.images} if hasattr(job, "images") else {}
        common = {"output": output, "seed": seed, "device": config.device}
        return job.model_copy(update=pictures | common | links)

    plain = config.tokenizer.alignment.foundation is None
    alignment = config.tokenizer.alignment.model_copy(update={"foundation": None if plain else foundation})
    frozen = config.tokenizer.frozen_encoder
    if frozen.enabled:
        frozen = frozen.model_copy(update={"foundation": foundation})
    yield "tokenizer", joined(config.tokenizer, tokenizer, alignment=alignment, frozen_encoder=frozen)
    measured = {"tokenizer": tokenizer, "foundation": foundation, "observer": observer}
    yield "reconstruction", joined(config.reconstruction, first / "reconstruction", **measured)
    features = config.latents.features
    if features.foundation is not None:
        features = features.model_copy(update={"foundation": foundation})
    yield "latents", joined(config.latents, latents, tokenizer=tokenizer, features=features)
    training = config.transformer.training
    saved: dict[str, Any] = {"checkpoint_every": steps[0], "keep_every": steps[0]}
    if further_step is not None and further_step not in steps:
        if config.samples.average is not None and further_step % training.snapshot_interval:
            raise InputError(
                f"At equal time this study would measure an average at step {further_step}, which has no snapshot. "
                "Leave samples.average out of settings that change the cost of a step, or set equal_time to false."
            )
        saved["save_at"] = (further_step,)
        steps = tuple(sorted({*steps, further_step}))
    training = training.model_copy(update=saved)
    yield "transformer", joined(config.transformer, transformer, latents=latents, training=training)
    for step in steps:
        last = step == steps[-1]
        samples = folder / "samples" / f"{step:07d}"
        whose = {"transformer": transformer, "tokenizer": tokenizer, "checkpoint": None if last else str(step)}
        yield f"samples/{step}", joined(config.samples, samples, **whose)
        links: dict[str, Any] = {"samples": samples, "foundation": foundation, "observer": observer}
        if last:
            links |= {"tokenizer": tokenizer, "transformer": transformer, "latents": latents}
        else:
            links |= {"neighbours": 0, "density_runs": 0}
        yield f"report/{step}", joined(config.report, folder / "report" / f"{step:07d}", **links)


def typical_jobs(config: GridStudyConfig, settings: Sequence[Setting]) -> dict[str, Job]:
    """The shared jobs and those of one run, of the last setting: all that a plan has to measure."""
    return shared_jobs(config) | dict(all_runs(config, settings)[len(settings) - 1].jobs)


def repetitions(config: GridStudyConfig, settings: Sequence[Setting]) -> dict[str, int]:
    """The number of times that each of the typical jobs is carried out in the whole study."""
    runs = all_runs(config, settings)
    return {
        name: len({run.jobs[name].output for run in runs}) if name in runs[0].jobs else 1
        for name in typical_jobs(config, settings)
    }


def module_of(job: str) -> str:
    """The module that runs a job."""
    return MODULES[job.partition("/")[0]]


def kind_of(job: str) -> str:
    """The kind of artifact that a job makes."""
    stage = job.partition("/")[0]
    return KINDS.get(stage, stage)


def slug(name: str) -> str:
    """A name as part of a file name."""
    return re.sub(r"[^\w.]+", "-", name.lower()).strip("-")
