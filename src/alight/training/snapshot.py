"""A transformer as a checkpoint of its run holds it, to sample from before the run is finished."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from pydantic import ConfigDict, TypeAdapter, ValidationError
from torch import Tensor
from typing_extensions import TypedDict

from alight.artifacts import Artifact, is_complete, read_artifact
from alight.models.lightning_dit import LightningDiT
from alight.models.pretrained import load_strictly
from alight.runtime.console import log
from alight.runtime.errors import InputError
from alight.training.checkpoint import damaged_file, list_checkpoints, read_checkpoint, recorded_hash, require_run
from alight.training.longer import TRAINING_FOLDER

LATEST = "latest"


class _Facts(TypedDict):
    """The facts about latents that sampling needs."""

    __pydantic_config__ = ConfigDict(strict=True, extra="allow")  # type: ignore[misc]

    class_names: list[str]
    latents_mean: list[float]
    latents_std: list[float]
    path: str
    prediction: str


class _Record(TypedDict):
    """The record that a run of a transformer writes into its checkpoints beside the state."""

    model: dict[str, Any]
    inputs: dict[str, str]
    facts: _Facts


_RECORD = TypeAdapter(_Record)


@dataclass(frozen=True)
class Snapshot(Artifact):
    """The artifact that a run would have been at the step of a checkpoint, with its weights.

    Attributes:
        arguments: of `LightningDiT`.
        weights: the averaged ones, or the raw ones where the run keeps no average.
    """

    arguments: dict[str, Any] = field(default_factory=dict)
    weights: dict[str, Tensor] = field(default_factory=dict)

    def model(self) -> LightningDiT:
        """The transformer, in eval mode.

        Raises:
            InputError: the weights do not fit it.
        """
        model = LightningDiT(**self.arguments)
        load_strictly(model, self.weights, source=f"the checkpoint of {self.path}")
        return model.eval()


def transformer_to_sample(folder: Path, checkpoint: str | None) -> Artifact:
    """The finished transformer of a folder, or a snapshot where a checkpoint is asked for.

    Raises:
        InputError: there is no such transformer or checkpoint, or it cannot be used.
    """
    if checkpoint is not None:
        return open_snapshot(folder, checkpoint)
    if not is_complete(folder) and (found := list_checkpoints(folder / TRAINING_FOLDER)):
        raise InputError(
            f"The transformer in {folder} is not finished, but there is a checkpoint of step {found[-1][0]}. Sample "
            "from it with --checkpoint latest, or start its training with the same --output again."
        )
    return read_artifact(folder, "transformer")


def open_snapshot(folder: Path, checkpoint: str = LATEST) -> Snapshot:
    """Read the weights to sample with from a checkpoint of a transformer's run, whether it is finished or not.

    Raises:
        InputError: there is no such checkpoint, it is damaged, or it is none of a transformer.
    """
    path = _find(folder / TRAINING_FOLDER, checkpoint)
    digest = recorded_hash(path)
    content = read_checkpoint(path, mapped=True, parts=())  # its weights follow
    require_run(content, path)
    try:
        record = _RECORD.validate_python(content.get("artifact", {}))
        with torch.device("meta"):
            LightningDiT(**record["model"])
    except (ValidationError, TypeError, KeyError) as error:
        raise InputError(
            f"{path} cannot be sampled from: it does not describe a transformer and its latents. Give the --output of "
            "'alight transformer train'; runs of earlier versions must be finished first."
        ) from error
    part = "ema" if "ema" in content["state"] else "model"
    weights = read_checkpoint(path, mapped=True, parts=(part,))["state"].get(part)
    if not isinstance(weights, dict) or not all(isinstance(value, Tensor) for value in weights.values()):
        raise InputError(f"{path} holds no weights of a transformer. Give another checkpoint.")
    facts = {**record["facts"], "steps": content["step"]}
    log.info("%s: the transformer after step %d.", path, content["step"])
    return Snapshot(
        path=folder,
        kind="transformer",
        config=content["config"],
        hash=digest,
        inputs=record["inputs"],
        facts=facts,
        seconds=content["seconds"],
        arguments=record["model"],
        weights=weights,
    )


def snapshot_record(
    arguments: Mapping[str, Any], inputs: Mapping[str, str], facts: Mapping[str, Any]
) -> dict[str, Any]:
    """The record for `open_snapshot` in a checkpoint beside the state, as plain data."""
    plain = {name: list(value) if isinstance(value, tuple) else value for name, value in arguments.items()}
    return {"model": plain, "inputs": dict(inputs), "facts": dict(facts)}


def _find(folder: Path, checkpoint: str) -> Path:
    found = list_checkpoints(folder)
    wanted = [path for step, path in found if checkpoint in (LATEST, str(step))]
    for path in reversed(wanted):
        if (damaged := damaged_file(path)) is None:
            return path
        log.warning("The checkpoint %s is damaged and was passed over.", damaged)
    steps = ", ".join(str(step) for step, _ in found) or "none"
    lacking = "no whole checkpoint" if checkpoint == LATEST else f"no whole checkpoint of step {checkpoint}"
    raise InputError(f"There is {lacking} in {folder} (steps that are there: {steps}). Check the path and the step.")
