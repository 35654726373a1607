"""Snapshots of a transformer's averages -> the transformer of an average whose length is chosen afterwards."""

import time
from pathlib import Path
from typing import Any, NamedTuple

from alight.artifacts import Artifact, is_complete, read_artifact, write_manifest
from alight.config import AverageConfig
from alight.models.lightning_dit import LightningDiT
from alight.models.pretrained import WEIGHTS_FILE, load_strictly
from alight.outputs import claimed_output, writing_folder
from alight.runtime.console import log
from alight.runtime.errors import InputError
from alight.runtime.files import file_hash
from alight.training.average_snapshots import Average, AverageSnapshot, list_snapshots, reconstruct, snapshots_until
from alight.training.checkpoint import list_checkpoints
from alight.training.longer import TRAINING_FOLDER
from alight.training.snapshot import Snapshot, open_snapshot


def run(config: AverageConfig) -> Artifact:
    """Put an average of another length together, without training, and write it like a trained transformer.

    Returns:
        The transformer artifact; its configuration is that of the run, with `average` beside it, and its facts say
        which average it is and how exact.

    Raises:
        InputError: there is no such run, it holds no snapshots, some are damaged or of another run, or they cannot
            give this width.
    """
    if config.width is None:
        raise InputError("Say how long the average is to be, for example --width 0.08 for 8 % of the training.")
    source = open_run(config.run)
    _, step = snapshots_until(source.snapshots, config.step)
    average = {"run": str(config.run), "width": config.width, "step": step}
    resolved = {**source.artifact.config, "output": str(config.output), "average": average}
    with claimed_output(config.output, "transformer", resolved) as finished:
        if finished is None:
            started = time.perf_counter()
            found = reconstruct(source.snapshots, config.width, step)
            save(found, source, config.output, resolved, started)
    return read_artifact(config.output, "transformer")


class AveragedRun(NamedTuple):
    """A transformer's run, and the snapshots of its averages."""

    artifact: Artifact
    snapshots: list[AverageSnapshot]

    def model(self) -> LightningDiT:
        """The transformer of the run, in eval mode."""
        if isinstance(self.artifact, Snapshot):
            return self.artifact.model()
        model: LightningDiT = LightningDiT.from_pretrained(self.artifact.path)
        return model


def open_run(folder: Path) -> AveragedRun:
    """Open a run that keeps averages, finished or not.

    Raises:
        InputError: there is no run of a transformer, or it holds no usable snapshots.
    """
    unfinished = not is_complete(folder) and list_checkpoints(folder / TRAINING_FOLDER)
    artifact = open_snapshot(folder) if unfinished else read_artifact(folder, "transformer")
    return AveragedRun(artifact, list_snapshots(artifact))


def save(average: Average, source: AveragedRun, output: Path, resolved: dict[str, Any], started: float) -> None:
    """Write the averaged weights as a transformer artifact, with the records of the run that they come from."""
    model = source.model()
    load_strictly(model, average.weights, f"the snapshots of {source.artifact.path}")
    record = average.record
    log.info(
        "average: width %g at step %s from %d snapshots; the error of its profile is %.2g %%.",
        *(record["width"], f"{record['step']:,}", record["snapshots"], 100 * record["profile_error"]),
    )
    inputs = source.artifact.inputs | {"transformer": source.artifact.hash}
    parameters = sum(parameter.numel() for parameter in model.parameters())
    facts = {**source.artifact.facts, "parameters": parameters, "steps": record["step"], "average": record}
    with writing_folder(output) as staging:
        model.save_pretrained(staging)
        digest, seconds = file_hash(staging / WEIGHTS_FILE), source.artifact.seconds + time.perf_counter() - started
        write_manifest(staging, "transformer", resolved, digest, inputs, facts, seconds)
