"""The whole arrow in one command: foundation -> tokenizer -> latents -> transformer -> samples -> report."""

import time
from importlib import import_module
from pathlib import Path

from alight.artifacts import (
    PIPELINE_INDEX,
    PIPELINE_OF_A_RUN,
    WEIGHTS_FILE,
    Artifact,
    is_complete,
    read_artifact,
    write_manifest,
)
from alight.config import ConvertConfig, ImagesConfig, Job, QuickstartConfig
from alight.outputs import STARTED, check_output, claimed_output, writing_folder
from alight.runtime.console import log
from alight.runtime.files import file_hash
from alight.runtime.units import duration
from alight.studies.feasibility import require_fit

StageConfig = Job | ConvertConfig
STAGES = {
    "foundation": "alight.stages.train_foundation",
    "tokenizer": "alight.stages.train_tokenizer",
    "latents": "alight.stages.extract_latents",
    "transformer": "alight.stages.train_transformer",
    "samples": "alight.stages.generate_samples",
    "report": "alight.stages.evaluate",
}
IMPORT = "alight.stages.convert"  # in place of the tokenizer's stage, where an existing one is used


def run(config: QuickstartConfig) -> Artifact:
    """Run every stage into a folder of its own below `output`; what is finished already is kept.

    Raises:
        InputError: if a stage cannot run; what was finished before stays.
    """
    plan = wire(config)
    pipeline = config.output / PIPELINE_OF_A_RUN
    for stage, job in plan.items():  # a mismatch in the last stage should not cost the time of the first
        check_output(job.output, job.model_dump(mode="json"), stage)
    joined = is_complete(pipeline) or is_older_pipeline(pipeline)
    if not joined:
        check_output(pipeline, pipeline_inputs(plan), "pipeline")
    if joined and all(is_complete(job.output) for job in plan.values()):
        log.info("%s is finished already. Nothing was done; delete it or choose another --output.", config.output)
        return read_artifact(plan["report"].output, "report")
    timings: dict[str, float] = {}
    for stage, job in plan.items():
        kept = is_complete(job.output)
        started = time.perf_counter()
        stage_run = import_module(IMPORT if isinstance(job, ConvertConfig) else STAGES[stage]).run
        artifact: Artifact = stage_run(job, timings) if stage == "report" and not kept else stage_run(job)
        timings[stage] = artifact.seconds if kept else max(time.perf_counter() - started, artifact.seconds)
        log.info("%-12s %12s   %s%s", stage, duration(timings[stage]), artifact.path, " (kept)" if kept else "")
    if not is_older_pipeline(pipeline):
        save_pipeline(plan, pipeline)
    log.info("%-44s %14s", "Total time", duration(sum(timings.values())))
    return artifact


def wire(config: QuickstartConfig) -> dict[str, StageConfig]:
    """The configuration of every stage, with the folders joined up and one seed, device and image source for all."""
    folders = {stage: config.output / stage for stage in STAGES}
    shared: dict[str, object] = {"seed": config.seed, "device": config.device}
    tokenizer, transformer = {"tokenizer": folders["tokenizer"]}, {"transformer": folders["transformer"]}
    foundation = config.public_foundation or str(folders["foundation"])

    def joined(job: Job, stage: str, **links: object) -> Job:
        images = getattr(job, "images", None)
        if images == ImagesConfig():
            links["images"] = config.images
        return job.model_copy(update={"output": folders[stage], **shared, **links})

    alignment = config.tokenizer.alignment.model_copy(update={"foundation": foundation})
    plan: dict[str, StageConfig] = {}
    measured_in: str | None = foundation
    if config.stock_tokenizer is not None:
        plan["tokenizer"] = ConvertConfig(
            kind="tokenizer", source=Path(config.stock_tokenizer), output=folders["tokenizer"]
        )
        measured_in = config.public_foundation
    else:
        if config.public_foundation is None:
            plan["foundation"] = joined(config.foundation, "foundation")
            aligned = config.tokenizer.model_copy(update={"alignment": alignment})
            require_fit(aligned, config.foundation, "The recipe")
        frozen = config.tokenizer.frozen_encoder
        if frozen.enabled:
            frozen = frozen.model_copy(update={"foundation": foundation})
        plan["tokenizer"] = joined(config.tokenizer, "tokenizer", alignment=alignment, frozen_encoder=frozen)
    return plan | {
        "latents": joined(config.latents, "latents", **tokenizer),
        "transformer": joined(config.transformer, "transformer", latents=folders["latents"]),
        "samples": joined(config.samples, "samples", **tokenizer, **transformer),
        "report": joined(
            config.report, "report", **tokenizer, **transformer, samples=folders["samples"], foundation=measured_in
        ),
    }


def pipeline_inputs(plan: dict[str, StageConfig]) -> dict[str, str]:
    """The folders that the pipeline is made from."""
    return {kind: str(plan[kind].output) for kind in ("transformer", "tokenizer")}


def is_older_pipeline(folder: Path) -> bool:
    """Tell if version 0.1 wrote the pipeline: it has no manifest, and is not unfinished either."""
    return (folder / PIPELINE_INDEX).is_file() and not is_complete(folder) and not (folder / STARTED).exists()


def save_pipeline(plan: dict[str, StageConfig], folder: Path) -> None:
    """Join transformer and tokenizer in the folder that `LightningDiTPipeline.from_pretrained` opens."""
    from alight.pipelines import LightningDiTPipeline

    config, started = pipeline_inputs(plan), time.perf_counter()
    parts = {kind: read_artifact(Path(place), kind) for kind, place in config.items()}
    with claimed_output(folder, "pipeline", config) as finished:
        if finished is not None:
            return
        with writing_folder(folder) as staging:
            LightningDiTPipeline.from_artifacts(*(part.path for part in parts.values())).save_pretrained(staging)
            digest = file_hash(*(staging / kind / WEIGHTS_FILE for kind in parts))
            inputs = {kind: part.hash for kind, part in parts.items()}
            write_manifest(staging, "pipeline", config, digest, inputs, seconds=time.perf_counter() - started)
