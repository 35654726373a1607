"""A trained pipeline -> the sampling settings that make the best images for every cost."""

import math
from typing import Any

import numpy as np

from alight.artifacts import Artifact, find_pipeline, read_artifact, write_manifest
from alight.config import TuneConfig
from alight.device_settings import ENCODED, joined, with_compilation
from alight.outputs import claimed_output, writing_folder
from alight.pipelines.compilation import compile_pipeline
from alight.pipelines.live_images import LiveImages
from alight.pipelines.opening import open_pipeline
from alight.reporting.files import figure_lines, write_report, write_table
from alight.runtime.console import log
from alight.runtime.files import file_hash
from alight.tune.averages import average_of, without_average
from alight.tune.measure import open_measure
from alight.tune.record import PROGRESS, Trial
from alight.tune.report import TABLE, describe, table
from alight.tune.storing import stored_settings, storing_note, warn_if_not_to_be_stored, write_settings
from alight.tune.trial import SettingsSearch, preferred, selection
from alight.tune.trust import reason_against_comparing


def run(config: TuneConfig) -> Artifact:
    """Try settings, write a report of quality against cost, and store the best in the pipeline.

    Every trial generates the same labels from the same noise, so that only the settings differ. Trials that an
    interrupted run has finished are not repeated. If the pipeline cannot be written, the best settings go into the
    report; if their figures cannot be compared, they are not stored at all.

    Returns:
        The report artifact, with `settings.csv`.

    Raises:
        InputError: on an unusable pipeline, reference or network, or settings that do not go together.
    """
    pipeline = open_pipeline(find_pipeline(config.pipeline))
    with (
        joined(config) as (processes, config),
        claimed_output(config.output, "report", config.model_dump(mode="json"), is_main=processes.is_main) as finished,
    ):
        if finished is not None:
            return finished
        resolved = config.model_dump(mode="json")
        config = config.model_copy(update={"pipeline": find_pipeline(config.pipeline)})
        pipeline.to(processes.device)
        pipeline.check_guidance(1.0, internal_scale=next((each for each in config.internal_scales if each != 1), 1.0))
        images = LiveImages(pipeline, config.pipeline, config.draw, config.seed)
        share = images.count // processes.world_size
        config = with_compilation(config, processes.device, share, ENCODED)
        config = config.model_copy(update={"draw": compile_pipeline(pipeline, config.draw, share)})
        measure = open_measure(config, images.size, processes)
        doubt = reason_against_comparing(config, measure, np.asarray(images.labels).tolist(), images.class_names)
        if processes.is_main and config.store:
            warn_if_not_to_be_stored(config.pipeline, config.output, doubt)
        search = SettingsSearch(config, pipeline, measure, processes)
        trials = search.run()
        if processes.is_main:
            write(config, search, trials, doubt, resolved)
        processes.barrier()  # the artifact is there
    return read_artifact(config.output, "report")


def write(
    config: TuneConfig, search: SettingsSearch, trials: list[Trial], doubt: str | None, resolved: dict[str, Any]
) -> None:
    """Store the best settings unless something speaks against them, and write the report.

    Raises:
        InputError: the disk refuses.
    """
    best = preferred(trials, config.within)
    if math.isinf(best.distance):
        doubt = "no settings gave images that are finite"
    average, settings = average_of(best.settings), without_average(best.settings)
    record = selection(config, search, trials, best)
    place = config.pipeline, settings, record
    stored = config.store and doubt is None and average is None and stored_settings(*place)
    storing = storing_note(config, stored, doubt, average)
    if config.store and doubt is not None:
        log.warning("tune: %s", storing)
    report = describe(config, search, trials, best, storing, doubt, record)
    with writing_folder(config.output) as staging:
        write_report(staging, report)
        write_table(staging / TABLE, table(trials))
        if config.store and doubt is None and not stored:
            write_settings(staging, settings)
        seconds = sum(trial.seconds for trial in trials)
        write_manifest(staging, "report", resolved, file_hash(staging / "report.json"), seconds=seconds)
    (config.output / PROGRESS).unlink(missing_ok=True)
    for line in figure_lines(report):
        log.info(line)
