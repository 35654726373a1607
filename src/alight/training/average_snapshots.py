"""Snapshots of power-function averages: written while a transformer is trained, combined to other averages afterwards.

A snapshot is `training/averages/step-00001000-width-0.05.safetensors` in the folder of a run: the averaged weights in
float32, and in its header the step, the width, the exponent, and configuration and inputs of the run. Beside it lies
its SHA-256 in the form that `sha256sum --check` reads. A snapshot reaches the disk before the checkpoint of its step
does, so a run that goes on after it was killed lacks none, and writes those after its last checkpoint once more with
the same bytes.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import torch
from pydantic import Field, TypeAdapter, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from typing_extensions import TypedDict

from alight.artifacts import Artifact, differences
from alight.config import TransformerTrainingConfig
from alight.runtime.console import progress_bar
from alight.runtime.distributed import Processes
from alight.runtime.errors import InputError, one_line
from alight.runtime.files import explained_disk_errors, file_hash, replacing, write_text
from alight.training.checkpoint import checksum_path, is_whole
from alight.training.ema import PowerAverage
from alight.training.inputs import changed_inputs
from alight.training.longer import TRAINING_FOLDER, of_length
from alight.training.parallel import ModelState, whole_weights
from alight.training.power_profile import (
    TOLERANCE,
    Profile,
    combination,
    combination_error,
    describe_ranges,
    profile_of,
    widths_within_reach,
)

FOLDER = "averages"  # within `TRAINING_FOLDER`
_RECORD = "snapshot"  # the one key of a header: several would be stored in an order that varies
_PLACES = ("output", "device")  # keys of a configuration that say nothing about the weights


class _Header(TypedDict):
    """The record in the header of a snapshot."""

    step: Annotated[int, Field(ge=1)]
    width: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    exponent: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    config: dict[str, Any]
    inputs: dict[str, str]


_HEADER = TypeAdapter(_Header)


# --- while training -----------------------------------------------------------------------------------------------


def remove_snapshots(run: Path) -> None:
    """Remove all snapshots of the averages of a run, if there are any."""
    if (folder := run / TRAINING_FOLDER / FOLDER).is_dir():
        shutil.rmtree(folder)


class AverageTracks:
    """Power-function averages of a model in training, and their snapshots.

    Args:
        averages: of the model; none where the run keeps none, and then nothing is done or written.
        folder: of the run.
        training: length of the run and interval of the snapshots.
        config: the resolved configuration of the run.
        inputs: hashes of what the run is made from.
        processes: that share the work; each of them must call `update`.
    """

    def __init__(
        self,
        averages: Sequence[PowerAverage[Any]],
        folder: Path,
        training: TransformerTrainingConfig,
        config: Mapping[str, Any],
        inputs: Mapping[str, str],
        processes: Processes,
    ) -> None:
        self.averages, self.folder, self.processes = averages, folder / TRAINING_FOLDER / FOLDER, processes
        if averages and processes.is_main:
            for left in self.folder.glob(".*"):  # by a process that was killed while it wrote
                left.unlink()
        self._interval, self._steps = training.snapshot_interval, training.steps
        self._run = {
            "config": {key: value for key, value in config.items() if key not in _PLACES},
            "inputs": dict(inputs),
        }

    def states(self) -> dict[str, ModelState]:
        """The averages by their names, for checkpoints."""
        return {average.name: ModelState(average.model) for average in self.averages}

    def update(self, model: nn.Module, step: int) -> None:
        """Average in the weights after a step (counted from 0), and write the snapshots that are due.

        Raises:
            InputError: the disk refuses.
        """
        for average in self.averages:
            average.update(model, step)
        done = step + 1
        if done % self._interval and done != self._steps:
            return
        for average in self.averages:
            weights = whole_weights(average.model)  # gathered by all processes
            if self.processes.is_main:
                record = {"step": done, "width": average.width, "exponent": average.exponent, **self._run}
                write_snapshot(self.folder / f"step-{done:08d}-{average.name}.safetensors", weights, record)


def write_snapshot(path: Path, weights: Mapping[str, Tensor], record: Mapping[str, Any]) -> None:
    """Write a snapshot and its checksum, so that a process that is killed leaves the earlier one or a whole one.

    Raises:
        InputError: the disk refuses.
    """
    with explained_disk_errors(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {name: value.detach().cpu().contiguous() for name, value in weights.items()}
    with replacing(path) as temporary:
        save_file(tensors, temporary, metadata={_RECORD: json.dumps(record, sort_keys=True)})
        write_text(checksum_path(path), f"{file_hash(temporary)}  {path.name}\n")


# --- afterwards ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class AverageSnapshot:
    """A snapshot on the disk, by what its header says.

    Attributes:
        path: of the file.
        profile: of the average.
        config: of the run, without the place of its output.
        inputs: hashes of what the run is made from.
    """

    path: Path
    profile: Profile
    config: Mapping[str, Any]
    inputs: Mapping[str, str]


class Average(NamedTuple):
    """An average that was put together from snapshots.

    Attributes:
        weights: by name, in the type of the snapshots.
        record: its width, exponent and step, the number and the widths of the snapshots, and the error of its profile.
    """

    weights: dict[str, Tensor]
    record: dict[str, Any]


def list_snapshots(run: Artifact) -> list[AverageSnapshot]:
    """The snapshots of a run, by step and width; only their headers are read.

    Args:
        run: a finished transformer, or one as a checkpoint of its run holds it.

    Raises:
        InputError: there are none, a header cannot be read, or a snapshot is of another run.
    """
    folder = run.path / TRAINING_FOLDER / FOLDER
    found = [_read_header(path) for path in sorted(folder.glob("*.safetensors"))]
    if not found:
        raise InputError(
            f"{run.path} holds no snapshots of averages, so the length of its average is fixed. Train with "
            "--training.power-averages 0.05 0.1 to choose it afterwards."
        )
    for snapshot in found:
        _require_same_run(snapshot, run)
    return sorted(found, key=lambda snapshot: (snapshot.profile.steps, snapshot.profile.width))


def snapshots_until(snapshots: Sequence[AverageSnapshot], step: int | None) -> tuple[list[AverageSnapshot], int]:
    """The snapshots up to a step, and that step; None = the last one at which every average has a snapshot.

    Raises:
        InputError: the averages have no snapshots at this step.
    """
    widths = {snapshot.profile.exponent for snapshot in snapshots}
    at_step: dict[int, set[float]] = {}
    for snapshot in snapshots:
        at_step.setdefault(snapshot.profile.steps, set()).add(snapshot.profile.exponent)
    steps = [number for number, present in sorted(at_step.items()) if present == widths]
    if not steps or (step is not None and step not in steps):
        shown = ", ".join(map(str, steps[-8:])) or "none"
        raise InputError(
            f"An average can end where every average of the run has a snapshot, and step {step} is no such step. The "
            f"last of {len(steps)} such steps are {shown}. Choose one of them, or the end of the run."
            if step is not None
            else f"No step has a snapshot of every average in {snapshots[0].path.parent}. Restore the missing files."
        )
    end = steps[-1] if step is None else step
    return [snapshot for snapshot in snapshots if snapshot.profile.steps <= end], end


def reconstruct(snapshots: Sequence[AverageSnapshot], width: float, step: int | None = None) -> Average:
    """Put together the average of a width from snapshots of other widths.

    Args:
        snapshots: as `list_snapshots` gives them.
        width: standard deviation of the profile as a share of its steps.
        step: where the average ends; None = at the last snapshot.

    Raises:
        InputError: the width is outside of what the snapshots can give, the step has no snapshot, or a file is
            damaged.
    """
    used, end = snapshots_until(snapshots, step)
    stored, wanted = [snapshot.profile for snapshot in used], profile_of(width, end)
    shares = combination(stored, wanted)
    error = combination_error(stored, shares, wanted)
    if error > TOLERANCE:
        ranges = describe_ranges(widths_within_reach(stored, end))
        raise InputError(
            f"The {len(used)} snapshots in {used[0].path.parent} cannot give an average of width {width:g} at step "
            f"{end:,}: its profile would be wrong by {error:.0%}. Widths within reach: {ranges}. Choose one of them, "
            "or train with other training.power_averages or a smaller training.snapshot_every."
        )
    record = {
        "width": width,
        "exponent": wanted.exponent,
        "step": end,
        "snapshots": len(used),
        "snapshot_widths": sorted({round(profile.width, 6) for profile in stored}),
        "profile_error": error,
    }
    return Average(_combined([snapshot.path for snapshot in used], shares.tolist()), record)


def average_at_end(run: Artifact, width: float) -> Average:
    """The average of a width as it was when a run ended, or at the step of the checkpoint that stands for the run.

    Args:
        run: as for `list_snapshots`.
        width: as for `reconstruct`.

    Raises:
        InputError: the run has no snapshots at this step, or they cannot give this width.
    """
    return reconstruct(list_snapshots(run), width, run.facts.get("steps"))


def _combined(paths: Sequence[Path], shares: Sequence[float]) -> dict[str, Tensor]:
    """The weighted sum of snapshots, tensor by tensor in float64; what is no real number is that of the last one."""
    for path in progress_bar(paths, desc="verify snapshots", unit="file", delay=2):
        if not is_whole(path):
            raise _damaged(path, "its SHA-256 is not the one that was written beside it")
    weights: dict[str, Tensor] = {}
    with ExitStack() as stack:
        files = [stack.enter_context(safe_open(path, framework="pt")) for path in paths]
        for name in progress_bar(files[-1].keys(), desc="average", unit="tensor", delay=2):
            last: Tensor = files[-1].get_tensor(name)
            if not last.is_floating_point():
                weights[name] = last
                continue
            total = torch.zeros(last.shape, dtype=torch.float64)
            for path, file, share in zip(paths, files, shares, strict=True):
                try:
                    total.add_(file.get_tensor(name).double(), alpha=share)
                except (SafetensorError, RuntimeError) as error:
                    raise _damaged(path, one_line(error)) from error
            weights[name] = total.to(last.dtype)
    return weights


def _read_header(path: Path) -> AverageSnapshot:
    """Read the header of a snapshot.

    Raises:
        InputError: it is none.
    """
    try:
        with safe_open(path, framework="pt") as file:
            record = _HEADER.validate_json((file.metadata() or {})[_RECORD])
    except (SafetensorError, ValidationError, KeyError, OSError, ValueError) as error:
        raise _damaged(path, f"its header is not that of a snapshot: {one_line(error)}") from error
    profile = Profile(record["exponent"], record["step"])
    return AverageSnapshot(path, profile, record["config"], record["inputs"])


def _require_same_run(snapshot: AverageSnapshot, run: Artifact) -> None:
    """Refuse a snapshot of another configuration or of other inputs; the length of the run may have changed."""
    was = dict(snapshot.config)
    changed = differences(was, of_length(run.config, was)) + changed_inputs(snapshot.inputs, run.inputs)
    if changed:
        raise InputError(
            f"{snapshot.path} is a snapshot of another run than the transformer in {run.path} "
            f"({'; '.join(changed[:4])}). Move it to the run that it belongs to, or delete it and its .sha256 file."
        )


def _damaged(path: Path, reason: str) -> InputError:
    return InputError(
        f"The snapshot {path} is damaged ({reason}). Restore it, or delete it and its .sha256 file: an average can be "
        "put together from the others, with a smaller choice of widths."
    )
