"""Training beyond the planned length: which configurations go on from each other, and what the length changes.

A run is longer if `training.steps` is larger, or if the last phase of a schedule (the recipe key `stages`) is
longer or further ones follow.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from alight.artifacts import is_complete, read_artifact
from alight.config import OptimizerConfig
from alight.runtime.errors import InputError
from alight.training.checkpoint import list_checkpoints
from alight.training.optimizer import learning_rate

TRAINING_FOLDER = "training"  # of a run: checkpoints, log, pictures


def of_length(config: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration with the length of another one, so that a comparison shows in what else they differ."""
    result = dict(config)
    training, its_training = config.get("training"), other.get("training")
    if isinstance(training, Mapping) and isinstance(its_training, Mapping) and "steps" in its_training:
        result["training"] = {**training, "steps": its_training["steps"]}
    stages, its_stages = config.get("stages"), other.get("stages")
    if stages and its_stages and isinstance(its_stages, list | tuple) and len(stages) >= len(its_stages):
        last, its_last = stages[len(its_stages) - 1], its_stages[-1]
        if isinstance(its_last, Mapping):
            lengths = {unit: its_last.get(unit) for unit in ("steps", "epochs") if _both(unit, last, its_last)}
            result["stages"] = [*stages[: len(its_stages) - 1], {**last, **lengths}]
    return result


def is_longer(new: Mapping[str, Any], old: Mapping[str, Any], folder: Path) -> bool:
    """Tell if a configuration asks for more steps than an earlier one, from which it differs in nothing else.

    Raises:
        InputError: it asks for fewer.
    """
    if old.get("stages") and new.get("stages"):
        before, after = _phase_lengths(old["stages"]), _phase_lengths(new["stages"])
        refusal = "holds a run whose schedule is longer than these phases. Give at least the phases that it has"
    else:
        before, after = ([config.get("training", {}).get("steps") or 0] for config in (old, new))
        refusal = f"holds a run of {before[0]} steps, more than training.steps {after[0]}. Give at least {before[0]}"
    if after < before:
        raise InputError(f"{folder} {refusal}, or choose another --output for a shorter run.")
    return after > before


def expected_config(config: Mapping[str, Any], folder: Path, kind: str) -> dict[str, Any]:
    """The configuration that a finished artifact must have for this run to keep it or to go on from it.

    Raises:
        InputError: the manifest cannot be read.
    """
    return of_length(config, read_artifact(folder, kind, verify=False).config) if is_complete(folder) else dict(config)


def goes_on(config: Mapping[str, Any], folder: Path, kind: str) -> bool:
    """Tell if there are steps to take: the output is not finished, or it is and the run is to be longer.

    Raises:
        InputError: the run is to be shorter than the finished one, or no checkpoint is left to go on from.
    """
    if not is_complete(folder):
        return True
    if not is_longer(config, read_artifact(folder, kind, verify=False).config, folder):
        return False
    if not list_checkpoints(folder / TRAINING_FOLDER):
        raise InputError(
            f"The finished {kind} in {folder} cannot be trained longer: {folder / TRAINING_FOLDER} holds no "
            "checkpoint any more, and the weights alone are not enough to go on exactly. Restore the last checkpoint, "
            "or start a run of its own from these weights with --init-from and another --output."
        )
    return True


def length_note(old: Mapping[str, Any], new: Mapping[str, Any], step: int, before: int, after: int) -> str:
    """Describe the changes of the schedule in a longer run, in one line for the log."""
    optimizer = OptimizerConfig.model_validate(new["optimizer"]) if "optimizer" in new else OptimizerConfig()
    notes = []
    phases = len(new.get("stages") or ())
    if phases:
        added = phases - len(old.get("stages") or ())
        follow = "1 more phase follows" if added == 1 else f"{added} more phases follow"
        notes.append(follow if added else f"the last phase ends at step {after:,}")
    notes.append(
        "warm-up and EMA are unchanged" if new.get("training", {}).get("ema_decay") else "warm-up is unchanged"
    )
    if optimizer.schedule == "constant":
        notes.append(f"the learning rate is constant, so the result is that of {after:,} steps from the start")
    elif phases:
        notes.append(f"the {optimizer.schedule} decay of the last phase now ends with it, so the result is not that")
        notes[-1] += f" of {after:,} steps from the start"
    else:
        was, becomes = (learning_rate(step, total, optimizer) for total in (before, after))
        notes.append(
            f"the {optimizer.schedule} decay now ends at step {after:,}, so the learning rate at step {step:,} is "
            f"{becomes:.3g} instead of {was:.3g}, and the result is not that of {after:,} steps from the start"
        )
    return f"{before:,} steps were planned, now {after:,}: {'; '.join(notes)}."


def _both(unit: str, one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    return one.get(unit) is not None and other.get(unit) is not None


def _phase_lengths(stages: Any) -> list[float]:
    """Lengths for comparison: further phases, or a longer last one, are more."""
    return [float(phase.get("steps") or phase.get("epochs") or 0) for phase in stages]
