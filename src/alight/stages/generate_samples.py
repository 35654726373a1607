"""Stage 4: noise and class labels -> images, one file each, with everything that determined them."""

import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from alight.artifacts import SAMPLES_GRID, SAMPLES_NPZ, SAMPLES_RECORD, Artifact, read_artifact, write_manifest
from alight.config import SampleConfig
from alight.data.image_npz import write_shuffled_npz
from alight.data.provenance import software
from alight.data.sample_folder import Request, SampleFolder
from alight.device_settings import joined
from alight.lineage import require_tokenizer_of
from alight.models.lightning_dit import LightningDiT
from alight.models.pretrained import load_strictly
from alight.outputs import claimed_output, read_written, writing_folder
from alight.pipelines import LightningDiTPipeline
from alight.pipelines.compilation import compile_pipeline
from alight.pipelines.guidance_check import check_solver
from alight.pipelines.requests import label_protocol, plan_requests
from alight.pipelines.snapshot import pipeline_of_snapshot
from alight.reporting.class_rows import MOST_COLUMNS, class_rows, left_out
from alight.reporting.pictures import image_grid
from alight.reporting.row_names import with_row_names
from alight.runtime.background import BackgroundWork
from alight.runtime.console import log, progress_bar
from alight.runtime.device import autocast, narrow_weights
from alight.runtime.distributed import Processes
from alight.runtime.errors import InputError
from alight.runtime.files import file_hash, write_text
from alight.runtime.pixels import UINT8_RULE
from alight.runtime.units import duration
from alight.training.average_snapshots import average_at_end
from alight.training.snapshot import Snapshot, transformer_to_sample

TRAJECTORY = "trajectory.png"
TRAJECTORY_COLUMNS = 8
WRITERS = 4  # threads that compress and store images while the next ones are generated


class Models(NamedTuple):
    """The networks in memory, and the artifacts that they came from by kind."""

    pipeline: LightningDiTPipeline
    guide: LightningDiT | None
    artifacts: dict[str, Artifact]

    @property
    def hashes(self) -> dict[str, str]:
        """The weights of every network, by kind."""
        return {kind: artifact.hash for kind, artifact in self.artifacts.items()}

    @property
    def class_names(self) -> list[str]:
        """By label; the labels themselves where the classes have no names."""
        known = self.pipeline.class_names
        return list(known) or [str(label) for label in range(self.pipeline.transformer.config.num_classes)]


def run(config: SampleConfig) -> Artifact:
    """Generate the images that are not there yet, each from its own seed; several processes share the work.

    Returns:
        The samples artifact: `images/*.png`, `samples.json`, `grid.png`, and, where asked for, `trajectory.png` and
        `samples.npz`.

    Raises:
        InputError: on unusable transformer, guide or tokenizer, unknown classes, or an output folder that cannot be
            written or holds other samples.
    """
    config = with_tokenizer(config)
    artifacts = open_artifacts(config)
    with (
        joined(config) as (processes, config),
        claimed_output(
            config.output, "samples", config.model_dump(mode="json"), is_main=processes.is_main
        ) as finished,
    ):
        if finished is not None:
            for artifact in artifacts.values():
                finished.require_input(artifact)
            return finished
        models = open_models(config, artifacts, processes.device)
        requests = plan_requests(models.pipeline, config, config.seed)
        config = compile_pipeline(models.pipeline, config, len(requests) // processes.world_size, models.guide)
        folder = SampleFolder(config.output, config.model_dump(mode="json"), models.hashes)
        started = time.perf_counter()
        if processes.is_main:
            started -= folder.start()  # as if the run had never been interrupted
        processes.barrier()  # the folder is there
        for _ in generate(models, requests, folder, config, processes):
            if processes.is_main:
                folder.record_time(time.perf_counter() - started)
        processes.barrier()  # all images are there
        if processes.is_main:
            finish(models, requests, folder, config, started)
        processes.barrier()  # the artifact is there
    return read_written(config.output, "samples")


def with_tokenizer(config: SampleConfig) -> SampleConfig:
    """The configuration with the tokenizer that the records of the transformer lead to, where none is given."""
    if config.tokenizer is not None:
        return config
    transformer = transformer_to_sample(config.transformer, config.checkpoint)
    return config.model_copy(update={"tokenizer": require_tokenizer_of(transformer)})


def open_artifacts(config: SampleConfig) -> dict[str, Artifact]:
    """The folders of tokenizer, transformer and guide, which must belong together."""
    assert config.tokenizer is not None  # see `with_tokenizer`
    tokenizer = read_artifact(config.tokenizer, "tokenizer")
    transformer = transformer_to_sample(config.transformer, config.checkpoint)
    transformer.require_input(tokenizer)
    artifacts = {"transformer": transformer, "tokenizer": tokenizer}
    if config.guide is not None:
        guide = transformer_to_sample(config.guide, config.guide_checkpoint)
        guide.require_input(tokenizer)
        if guide.hash == transformer.hash:
            raise InputError(
                f"The guide in {config.guide} is the transformer itself, which gives no direction. Give a weaker one: "
                "another folder, or an earlier checkpoint of the same run with --guide-checkpoint."
            )
        for name in ("latents_mean", "latents_std", "path", "prediction"):
            if guide.facts.get(name) != transformer.facts.get(name):
                raise InputError(
                    f"The guide in {config.guide} was trained with another {name} than the transformer in "
                    f"{config.transformer}. Give a guide that was trained on the same latents with the same flow."
                )
        artifacts["guide"] = replace(guide, kind="guide")  # its part in making the samples
    return artifacts


def open_models(config: SampleConfig, artifacts: dict[str, Artifact], device: torch.device) -> Models:
    """Load the networks, and check that they can be guided as configured."""
    transformer, tokenizer = artifacts["transformer"], artifacts["tokenizer"].path
    if isinstance(transformer, Snapshot):
        pipeline = pipeline_of_snapshot(transformer, tokenizer)
    else:
        pipeline = LightningDiTPipeline.from_artifacts(config.transformer, tokenizer)
    if config.average is not None:
        weights = average_at_end(transformer, config.average).weights
        load_strictly(pipeline.transformer, weights, f"the snapshots of {config.transformer}")
    pipeline = pipeline.to(device)
    narrow_weights(pipeline.tokenizer, config.tokenizer_weights)
    guide = open_guide(artifacts["guide"]).to(device) if "guide" in artifacts else None
    sampling = config.sampling
    pipeline.check_guidance(
        sampling.guidance_scale, sampling.guidance_channels, guide, sampling.guidance, sampling.internal_scale
    )
    check_solver(pipeline.transformer, sampling.solver)
    return Models(pipeline, guide, artifacts)


def open_guide(artifact: Artifact) -> LightningDiT:
    """The weaker transformer: the finished one of a run, or that of one of its checkpoints."""
    if isinstance(artifact, Snapshot):
        return artifact.model()
    model: LightningDiT = LightningDiT.from_pretrained(artifact.path)
    return model


# --- generation -------------------------------------------------------------------------------------------------


def generate(
    models: Models, requests: list[Request], folder: SampleFolder, config: SampleConfig, processes: Processes
) -> Iterator[int]:
    """Make this process's share of the images that are missing; yields the size of each batch when it is stored.

    That happens while the next batch is generated, and no more than these two are in memory.

    The batches are the same for any number of processes and for any point of resumption. So are the images: rounding
    and adaptive step sizes are shared within a batch, always with the same neighbours.
    """
    numbered = list(enumerate(requests))
    starts = range(0, len(requests), config.batch_size)[processes.rank :: processes.world_size]
    batches = [numbered[start : start + config.batch_size] for start in starts]
    missing = [batch for batch in batches if not all(folder.holds(number, request) for number, request in batch)]
    total, kept = sum(map(len, missing)), sum(map(len, batches)) - sum(map(len, missing))
    if kept:
        log.info("samples: %d images are there already, %d are missing.", kept, total)
    share = f" (1 of {processes.world_size} processes)" if processes.world_size > 1 else ""
    started = time.perf_counter()
    progress = progress_bar(total=total, desc=f"samples{share}", unit=" img")
    with progress as bar, BackgroundWork(WRITERS, waiting=2 * config.batch_size) as work:
        before: list[Future[None]] = []
        for batch in missing:
            begun = make_batch(models, batch, folder, config, processes.device, work)
            if before:
                yield finished(before, bar.update)
            before = begun
        if before:
            yield finished(before, bar.update)
    seconds = time.perf_counter() - started
    if total:
        log.info("samples%s: %d images in %s, %.2f img/s.", share, total, duration(seconds), total / seconds)


def finished(begun: list[Future[None]], report: Callable[[], object]) -> int:
    """Wait until images are stored, reporting each; gives their number.

    Raises:
        InputError: the disk refuses one of them.
    """
    for image in begun:
        image.result()
        report()
    return len(begun)


def make_batch(
    models: Models,
    batch: list[tuple[int, Request]],
    folder: SampleFolder,
    config: SampleConfig,
    device: torch.device,
    work: BackgroundWork,
) -> list[Future[None]]:
    """Generate a few images, and begin to store each; the first batch also shows some of them on their way."""
    shown = config.trajectory_images if batch[0][0] == 0 else 0
    common = common_settings(models, config)
    states: list[Tensor] = []
    with autocast(device, config.precision):
        result = models.pipeline(
            class_labels=[request.label for _, request in batch],
            seeds=[request.seed for _, request in batch],
            guide=models.guide,
            output_type="uint8",
            on_step=trajectory_recorder(states, shown, config.sampling.num_inference_steps) if shown else None,
            **config.sampling.model_dump(),
        )
        frames = [models.pipeline.decode(state) for state in states]
    if frames:  # before the images: where they are complete, it is there too
        strip = torch.stack(frames, dim=1).flatten(0, 1)  # (images * columns, H, W, 3), a row per image
        folder.write_picture(TRAJECTORY, image_grid(strip.cpu().numpy(), len(frames)), software() | common)
    begun = []
    for (number, request), pixels in zip(batch, result.images.cpu().numpy(), strict=True):
        settings = software() | {"class": models.class_names[request.label]} | common
        begun.append(work.begin(folder.write, number, pixels, request, result.nfe, settings))
    return begun


def trajectory_recorder(states: list[Tensor], images: int, steps: int) -> Callable[[int, Tensor], None]:
    """A callback that keeps the first images' latents after the first step, the last, and some evenly between."""
    columns = min(TRAJECTORY_COLUMNS, steps)
    kept = set(torch.linspace(1, steps, columns).round().int().tolist())

    def record(step: int, latents: Tensor) -> None:
        if step in kept:
            states.append(latents[:images].clone())

    return record


# --- the artifact -----------------------------------------------------------------------------------------------


def finish(
    models: Models, requests: list[Request], folder: SampleFolder, config: SampleConfig, started: float
) -> None:
    """Write the record, the overview and the manifest beside the images."""
    settings = describe(models, requests, folder, config)
    folder.write_picture(
        SAMPLES_GRID, class_grid(models, requests, folder, config), software() | common_settings(models, config)
    )
    with writing_folder(folder.path) as staging:
        write_text(staging / SAMPLES_RECORD, json.dumps(settings, indent=2) + "\n")
        if config.npz:
            write_shuffled_npz(staging / SAMPLES_NPZ, folder.read, len(requests), config.seed, settings)
        images = [folder.image_path(number) for number in range(len(requests))]
        digest, beside = file_hash(*images), [*images, folder.path / SAMPLES_GRID]
        facts = {key: settings[key] for key in ("count", "nfe", "label_protocol", "class_names")}
        seconds = time.perf_counter() - started
        write_manifest(staging, "samples", folder.config, digest, models.hashes, facts, seconds, beside)
    folder.finish()


def describe(models: Models, requests: list[Request], folder: SampleFolder, config: SampleConfig) -> dict[str, Any]:
    """Every setting that determined the images."""
    costs = [folder.evaluations(number) for number in range(len(requests))]
    trained_on = models.artifacts["transformer"].inputs.get("tokenizer", models.hashes["tokenizer"])
    improved = {"latents_tokenizer": trained_on} if trained_on != models.hashes["tokenizer"] else {}
    return {
        "count": len(requests),
        "label_protocol": label_protocol(config),
        "nfe": costs[0] if len(set(costs)) == 1 else sum(costs) / len(costs),  # adaptive solvers differ by batch
        "seed": config.seed,
        **common_settings(models, config),
        **improved,  # its decoder was trained after the transformer
        "labels": [request.label for request in requests],
        "seeds": [request.seed for request in requests],
        "class_names": models.class_names,
    }


def common_settings(models: Models, config: SampleConfig) -> dict[str, Any]:
    """The settings that all images share; with its label and its seed they determine each image."""
    return {
        "sampling": config.sampling.effective(),
        **({} if config.average is None else {"average": config.average}),
        "precision": config.precision,
        **({} if config.tokenizer_weights == "fp32" else {"tokenizer_weights": config.tokenizer_weights}),
        "batch_size": config.batch_size,
        "uint8_rule": UINT8_RULE,
        **models.hashes,
    }


def class_grid(models: Models, requests: list[Request], folder: SampleFolder, config: SampleConfig) -> np.ndarray:
    """A row per class with its name and the first images, not chosen."""
    wanted = [request.label for request in requests]
    (first,) = folder.read([0])
    rows = class_rows(wanted, config.grid_classes, len(first))
    images = np.stack(list(folder.read([number for row in rows.values() for number in row])))
    labels = [label for label, row in rows.items() for _ in row]
    grid = image_grid(images, MOST_COLUMNS, labels=labels)
    if missing := left_out(wanted, config.grid_classes, "--grid-classes"):
        log.info("%s:%s", folder.path / SAMPLES_GRID, missing)
    return with_row_names(grid, [models.class_names[label] for label in rows])
