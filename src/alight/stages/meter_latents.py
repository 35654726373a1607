"""Latents of several tokenizers -> the order in which they will be easier to generate, with its certainty."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from alight.artifacts import library_versions, write_manifest
from alight.config import MeterImagesConfig, MeterLatentsConfig
from alight.device_settings import joined
from alight.evaluation.latent_meter import Meter, Metered, measure, open_networks, seconds_of
from alight.evaluation.meter_decider import require_measurable, require_options
from alight.evaluation.meter_plan import Plan, plan
from alight.evaluation.meter_report import (
    Order,
    answer_of,
    comparison_of,
    figures_of,
    notes_of,
    numbered,
    order_of,
    rank_figures,
    replaced_by,
    table_text,
)
from alight.evaluation.meter_subjects import open_subjects
from alight.evaluation.study_meter import meter_study
from alight.outputs import claimed_output, writing_folder
from alight.reporting.files import write_report
from alight.reporting.report import Report, Stage
from alight.runtime.console import log, progress_bar
from alight.runtime.errors import InputError
from alight.runtime.files import file_hash


@dataclass(frozen=True)
class MeterResult:
    """A finished meter: the folder of its report, its text for the terminal, and its data for programs."""

    path: Path
    text: str
    data: dict[str, Any]

    def as_data(self) -> dict[str, Any]:
        """For programs."""
        return {"kind": "report", "path": str(self.path), **self.data}

    def __str__(self) -> str:
        return f"{self.text}\n\nReport: {self.path}/report.html"


def run(config: MeterLatentsConfig) -> MeterResult:
    """Measure the figures of all tokenizers, or those of a study, and write the report.

    Raises:
        InputError: on unusable tokenizers, latents, images or networks, latents that do not compare, or an output
            folder that holds something else.
    """
    if config.study is not None:
        require_study_alone(config)
    resolved = config.model_dump(mode="json")
    with (
        claimed_output(config.output, "report", resolved, renew=True),
        joined(config) as (processes, settled),
    ):
        started = time.perf_counter()
        if config.study is not None:
            report, text, data = meter_study(settled, processes.device)
        else:
            report, text, data = meter_tokenizers(settled, processes.device)
        with writing_folder(config.output) as staging:
            write_report(staging, report)
            digest = file_hash(staging / "report.json")
            seconds = time.perf_counter() - started
            write_manifest(staging, "report", resolved, digest, seconds=seconds)
    return MeterResult(config.output, text, data)


def require_study_alone(config: MeterLatentsConfig) -> None:
    """Refuse options beside a study that would have no effect.

    Raises:
        InputError: names them.
    """
    if config.tokenizers or config.latents:
        raise InputError("A study brings its own tokenizers; give --study, or tokenizers and latents, not both.")
    if config.images != MeterImagesConfig():
        raise InputError("A study is measured on its own images; leave --images out beside --study.")
    if config.rank_by != MeterLatentsConfig().rank_by:
        raise InputError(
            "With a study no figure decides, since all are compared with its samples; leave --rank-by out beside "
            "--study."
        )


def meter_tokenizers(config: MeterLatentsConfig, device: torch.device) -> tuple[Report, str, dict[str, Any]]:
    """Measure tokenizers and stored latents: the report, its text and its data."""
    started = time.perf_counter()
    if config.tokenizers or config.latents:
        require_options(config)
    networks = open_networks(config, device)
    subjects, images = open_subjects(config, device)
    require_measurable(config, subjects)
    encoding = time.perf_counter() - started
    meter = Meter(config, images, networks, device)
    planned = plan(meter, subjects[0], len(subjects))
    log.info("Plan for %d: %s.", len(subjects), planned)
    bar = progress_bar(subjects, desc="meter", unit="tokenizer")
    measured = [measure(meter, subject, planned.families) for subject in bar]
    order = order_of(measured, config.rank_by)
    if note := replaced_by(measured, order, config.rank_by):
        log.warning(note)
    report = describe(meter, measured, order, planned, encoding)
    return report, text_of(measured, order, config.perturbation), data_of(measured, order)


def describe(meter: Meter, measured: Sequence[Metered], order: Order, planned: Plan, encoding: float) -> Report:
    """The whole report."""
    figures, images = [figures_of(meter, each) for each in measured], meter.images
    of = f" of {len(images.indices):,} images ({images.dataset.source.description})" if images is not None else ""
    answer, notes = answer_of(measured, order, meter.config.perturbation), notes_of(measured, order, meter.config)
    if planned.left_out:
        notes.append(f"Left out, to end within {planned.minutes:g} minutes: {', '.join(planned.left_out)}.")
    return Report(
        title="Latent meter",
        summary=f"Latents of {', '.join(each.subject.name for each in measured)}{of}. {answer.question} "
        f"{answer.answer}",
        figures=[*rank_figures(measured, order), *numbered(measured, figures)],
        answer=answer,
        comparison=comparison_of(measured, figures),
        stages=[Stage("encoding", encoding), *(Stage(name, spent) for name, spent in seconds_of(measured).items())],
        configuration={"meter": meter.config.model_dump(mode="json")},
        versions=library_versions(),
        notes=[f"Planned: {planned}.", *notes],
    )


def text_of(measured: Sequence[Metered], order: Order, step: float) -> str:
    """The table, and the answer below it."""
    answer = answer_of(measured, order, step)
    lines = [table_text(measured, order, seconds_of(measured)), "", f"{answer.question} {answer.answer}"]
    return "\n".join([*lines, *answer.reasons, *answer.advice])


def data_of(measured: Sequence[Metered], order: Order) -> dict[str, Any]:
    """The figures and the order, for programs."""
    names = [each.subject.name for each in measured]
    return {
        "order": [names[number] for number in order.places],
        "by": order.figure,
        "probabilities": order.sure,
        "figures": {
            each.subject.name: {
                name: {"value": found.value, "interval": list(found.interval)} for name, found in each.figures.items()
            }
            for each in measured
        },
    }
