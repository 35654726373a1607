"""The whole arrow in one command: foundation -> tokenizer -> latents -> transformer -> samples -> report."""

import time
from importlib import import_module
from pathlib import Path

from alight.artifacts import Artifact, check_output, is_complete, read_artifact, writing_folder
from alight.config import Job, QuickstartConfig, SampleConfig
from alight.runtime.console import duration, log

STAGES = {
    "foundation": "alight.stages.train_foundation",
    "tokenizer": "alight.stages.train_tokenizer",
    "latents": "alight.stages.extract_latents",
    "transformer": "alight.stages.train_transformer",
    "samples": "alight.stages.generate_samples",
    "report": "alight.stages.evaluate",
}


def run(config: QuickstartConfig) -> Artifact:
    """Run every stage into a folder of its own below `output`; what is finished already is kept.

    Returns:
        The report artifact.

    Raises:
        InputError: if a stage cannot run; what was finished before stays.
    """
    plan = wire(config)
    for stage, job in plan.items():  # a mismatch in the last stage should not cost the time of the first
        check_output(job.output, job.model_dump(mode="json"), stage)
    if all(is_complete(job.output) for job in plan.values()):
        log.info("%s is finished already; delete it or choose another --output to run again.", config.output)
        return read_artifact(plan["report"].output, "report")
    timings: dict[str, float] = {}
    for stage, job in plan.items():
        kept = is_complete(job.output)
        started = time.perf_counter()
        stage_run = import_module(STAGES[stage]).run
        artifact: Artifact = stage_run(job, timings) if stage == "report" else stage_run(job)
        timings[stage] = artifact.seconds if kept else max(time.perf_counter() - started, artifact.seconds)
        log.info("%-12s %12s   %s%s", stage, duration(timings[stage]), artifact.path, " (kept)" if kept else "")
    save_pipeline(plan, config.output / "pipeline")
    log.info("%-44s %14s", "Total time", duration(sum(timings.values())))
    return artifact


def wire(config: QuickstartConfig) -> dict[str, Job]:
    """The configuration of every stage, with the folders joined up and one seed and device for all."""
    folders = {stage: config.output / stage for stage in STAGES}

    def joined(job: Job, stage: str, **links: object) -> Job:
        shared = {"output": folders[stage], "seed": config.seed, "device": config.device}
        return job.model_copy(update=shared | links)

    alignment = config.tokenizer.alignment.model_copy(update={"foundation": str(folders["foundation"])})
    tokenizer, transformer = {"tokenizer": folders["tokenizer"]}, {"transformer": folders["transformer"]}
    return {
        "foundation": joined(config.foundation, "foundation"),
        "tokenizer": joined(config.tokenizer, "tokenizer", alignment=alignment),
        "latents": joined(config.latents, "latents", **tokenizer),
        "transformer": joined(config.transformer, "transformer", latents=folders["latents"]),
        "samples": joined(config.samples, "samples", **tokenizer, **transformer),
        "report": joined(
            config.report,
            "report",
            **tokenizer,
            **transformer,
            samples=folders["samples"],
            foundation=str(folders["foundation"]),
        ),
    }


def save_pipeline(plan: dict[str, Job], folder: Path) -> None:
    """Join transformer and tokenizer in the folder that `LightningDiTPipeline.from_pretrained` opens."""
    from alight.pipelines import LightningDiTPipeline

    samples = plan["samples"]
    assert isinstance(samples, SampleConfig)
    with writing_folder(folder) as staging:
        LightningDiTPipeline.from_artifacts(samples.transformer, samples.tokenizer).save_pretrained(staging)
