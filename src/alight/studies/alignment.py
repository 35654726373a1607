"""The effect of alignment in one command: a plain and an aligned tokenizer -> one report that shows both."""

from importlib import import_module
from pathlib import Path
from typing import Any

from alight.artifacts import Artifact
from alight.config import AlignmentStudyConfig, Job
from alight.outputs import check_output
from alight.runtime.console import log
from alight.runtime.units import duration
from alight.studies.feasibility import require_fit

STAGES = {
    "foundation": "alight.stages.train_foundation",
    "plain": "alight.stages.train_tokenizer",
    "aligned": "alight.stages.train_tokenizer",
    "report": "alight.stages.evaluate_tokenizer",
}
KINDS = {"plain": "tokenizer", "aligned": "tokenizer"}  # of artifact, where the stage's name does not say it


def run(config: AlignmentStudyConfig) -> Artifact:
    """Train a foundation model and two tokenizers, with and without alignment, and compare them.

    Both tokenizers begin from the same weights and see the same batches and noise; what is finished already is kept.

    Raises:
        InputError: if a stage cannot run; what was finished before stays.
    """
    plan = wire(config)
    for stage, job in plan.items():
        check_output(job.output, job.model_dump(mode="json"), KINDS.get(stage, stage))
    for stage, job in plan.items():
        artifact: Artifact = import_module(STAGES[stage]).run(job)
        log.info("%-12s %12s   %s", stage, duration(artifact.seconds), artifact.path)
    return artifact


def wire(config: AlignmentStudyConfig) -> dict[str, Job]:
    """The configuration of every stage, with the folders joined up and one seed and device for all."""
    folders = {stage: config.output / stage for stage in STAGES}

    def joined(job: Job, stage: str, **links: Any) -> Job:
        shared: dict[str, Any] = {"output": folders[stage], "seed": config.seed, "device": config.device}
        return job.model_copy(update=shared | links)

    foundation = str(folders["foundation"])
    aligned = config.tokenizer.alignment.model_copy(update={"foundation": foundation})
    require_fit(config.tokenizer.model_copy(update={"alignment": aligned}), config.foundation, "The recipe")
    plain = aligned.model_copy(update={"foundation": None})
    compared: tuple[Path, ...] = (folders["plain"],)
    return {
        "foundation": joined(config.foundation, "foundation"),
        "plain": joined(config.tokenizer, "plain", alignment=plain),
        "aligned": joined(config.tokenizer, "aligned", alignment=aligned),
        "report": joined(
            config.report, "report", tokenizer=folders["aligned"], compare=compared, foundation=foundation
        ),
    }
