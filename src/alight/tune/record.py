"""Finished trials on the disk, which outlive an interruption and are never mixed with trials of other images."""

import json
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field, JsonValue, ValidationError

from alight.config import SolverConfig
from alight.runtime.errors import InputError
from alight.runtime.files import write_text
from alight.runtime.reading import read_json
from alight.tune.settings import settings_from

PROGRESS = "unfinished.json"


@dataclass(frozen=True)
class Trial:
    """Settings that were tried, their cost and their distance; less is better."""

    settings: SolverConfig
    distance: float
    nfe: float
    seconds: float


class _TrialState(BaseModel, strict=True, extra="forbid"):
    settings: dict[str, JsonValue]
    distance: float | None = Field(allow_inf_nan=False)  # None = not finite
    nfe: float = Field(ge=0, allow_inf_nan=False)
    seconds: float = Field(ge=0, allow_inf_nan=False)


class _SearchState(BaseModel, strict=True, extra="forbid"):
    measurement: dict[str, JsonValue]
    comparable: str
    trials: list[_TrialState]


class TrialRecord:
    """The trials of an unfinished search, in a file that is replaced after each of them.

    Args:
        folder: of the search's output.
        measurement: everything but the settings that determines the figure of a trial, as plain data.
    """

    def __init__(self, folder: Path, measurement: Mapping[str, Any]) -> None:
        self.path, self._measurement = folder / PROGRESS, dict(measurement)

    def write(self, trials: Iterable[Trial], comparable: str) -> None:
        """Replace the file; `comparable` are the figures that those of the trials may be compared with.

        Raises:
            InputError: the disk refuses; the earlier file is unchanged.
        """
        states = [
            {"settings": trial.settings.model_dump(mode="json")}
            | {"distance": trial.distance if math.isfinite(trial.distance) else None}
            | {"nfe": trial.nfe, "seconds": trial.seconds}
            for trial in trials
        ]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        state = {"measurement": self._measurement, "comparable": comparable, "trials": states}
        write_text(self.path, json.dumps(state, allow_nan=False) + "\n")

    def read(self) -> tuple[list[Trial], str]:
        """The trials that an interrupted search has left, none if there is no file, and what `write` was told.

        Raises:
            InputError: the file is damaged, or its trials were measured otherwise.
        """
        if not os.path.lexists(self.path):
            return [], ""
        remedy = f"Delete {self.path} to begin the search again."
        state = read_json(self.path, _SearchState, remedy)
        if changed := sorted(
            name
            for name in {*state.measurement, *self._measurement}
            if state.measurement.get(name) != self._measurement.get(name)
        ):
            raise InputError(
                f"{self.path.parent} holds an unfinished search whose trials cannot be compared with those of this "
                f"one: they differ in {', '.join(changed)}. Choose another --output, or delete that folder."
            )
        return [self._trial(entry, remedy) for entry in state.trials], state.comparable

    def _trial(self, entry: _TrialState, remedy: str) -> Trial:
        try:
            settings = settings_from(entry.settings)
        except ValidationError as error:
            reason = error.errors()[0]["msg"]
            raise InputError(f"{self.path} holds invalid settings ({reason:.200}). {remedy}") from error
        distance = math.inf if entry.distance is None else entry.distance
        return Trial(settings, distance, entry.nfe, entry.seconds)
