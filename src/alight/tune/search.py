"""A trained pipeline -> the sampling settings that make the best images for every cost."""

import time

from alight.artifacts import Artifact, find_pipeline, read_artifact, write_manifest
from alight.config import TuneConfig
from alight.evaluation.features import SPACES, FeatureNetworks, open_feature_networks
from alight.evaluation.real_images import RealImages, measure_reference, open_training_images
from alight.evaluation.reference_set import ReferenceSet, open_reference_set
from alight.outputs import claimed_output, writing_folder
from alight.pipelines.live_images import LiveImages
from alight.pipelines.opening import open_pipeline
from alight.reporting.files import figure_lines, write_report, write_table
from alight.runtime.console import log
from alight.runtime.device import resolve_device
from alight.runtime.distributed import Processes, process_group
from alight.runtime.errors import InputError
from alight.runtime.files import file_hash
from alight.tune.report import TABLE, describe, table
from alight.tune.storing import stored_settings, warn_if_not_to_be_stored, write_settings
from alight.tune.trial import PROGRESS, SettingsSearch


def run(config: TuneConfig) -> Artifact:
    """Try settings, write a report of quality against cost, and store the best in the pipeline.

    Every trial generates the same labels from the same noise, so that only the settings differ. Trials that an
    interrupted run has finished are not repeated. If the pipeline cannot be written, the best settings go into the
    report.

    Returns:
        The report artifact, with `settings.csv`.

    Raises:
        InputError: on an unusable pipeline, reference or network, or settings that do not go together.
    """
    started = time.perf_counter()
    resolved = config.model_dump(mode="json")
    config = config.model_copy(update={"pipeline": find_pipeline(config.pipeline)})
    pipeline = open_pipeline(config.pipeline)
    with (
        process_group(resolve_device(config.device)) as processes,
        claimed_output(config.output, "report", resolved, is_main=processes.is_main) as finished,
    ):
        if finished is not None:
            return finished
        if processes.is_main and config.store:
            warn_if_not_to_be_stored(config.pipeline, config.output)
        pipeline.to(processes.device)
        size = LiveImages(pipeline, config.pipeline, config.draw, config.seed).size
        networks, key = choose_space(config, size[0], processes)
        reference = open_reference(config, networks, key, size, processes)
        search = SettingsSearch(config, pipeline, networks, reference, key, processes)
        trials = search.run()
        best = min(trials, key=lambda trial: trial.distance)
        if processes.is_main:
            stored = config.store and stored_settings(config.pipeline, best.settings)
            report = describe(config, search, trials, best, stored, time.perf_counter() - started)
            with writing_folder(config.output) as staging:
                write_report(staging, report)
                write_table(staging / TABLE, table(trials))
                if config.store and not stored:
                    write_settings(staging, best.settings)
                digest, seconds = file_hash(staging / "report.json"), time.perf_counter() - started
                write_manifest(staging, "report", resolved, digest, seconds=seconds)
            (config.output / PROGRESS).unlink(missing_ok=True)
            for line in figure_lines(report):
                log.info(line)
        processes.barrier()  # the artifact is there
    return read_artifact(config.output, "report")


def choose_space(config: TuneConfig, image_size: int, processes: Processes) -> tuple[FeatureNetworks, str]:
    """The networks, and the key of the space whose distance is made small.

    Raises:
        InputError: the space that was asked for needs a network that was not given.
    """
    networks = open_feature_networks(config, image_size, processes.device)
    key = networks.keys[0] if config.measure == "auto" else config.measure
    if key not in networks.keys:
        option = SPACES[key].option.replace("_", "-")
        raise InputError(f"measure {key} needs its network; give --{option}, or set measure to auto.")
    return networks, key


def open_reference(
    config: TuneConfig, networks: FeatureNetworks, key: str, size: tuple[int, int], processes: Processes
) -> ReferenceSet:
    """Statistics from a file, or measured on the training images.

    Raises:
        InputError: the reference is unusable, of another size (H, W), or lacks the space `key`.
    """
    if config.reference is None:
        dataset, workers = open_training_images(config.images, size, config.pipeline.name), config.images.workers
        images = RealImages.of_dataset(dataset, "training images", config.batch_size, workers, processes)
        return measure_reference(networks, images, processes, keep=0)
    reference = open_reference_set(config.reference, networks, processes, config.batch_size)
    reference.require_size(size, config.pipeline.name)
    if key not in reference.statistics:
        raise InputError(
            f"The reference ({reference.description}) has no statistics of the features '{key}'. Choose another "
            "--measure, or another reference."
        )
    return reference
