"""Trials of sampling settings: the same labels from the same noise, generated and measured, each once."""

import itertools
import json
import math
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from pydantic import BaseModel, Field, JsonValue, ValidationError

from alight.config import DrawConfig, SolverConfig, TuneConfig
from alight.evaluation.batches import contiguous_share
from alight.evaluation.features import SPACES, FeatureNetworks, gather_features
from alight.evaluation.generation_report import comparable
from alight.evaluation.reference_set import ReferenceSet, statistics_of
from alight.metrics.frechet import frechet_distance
from alight.pipelines import LightningDiTPipeline
from alight.pipelines.live_images import LiveImages
from alight.runtime.console import log, progress_bar
from alight.runtime.distributed import Processes
from alight.runtime.errors import InputError
from alight.runtime.files import write_text
from alight.runtime.reading import read_json
from alight.tune.settings import changed, choices, grid

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
    """The state of an unfinished search on the disk."""

    config: dict[str, JsonValue]
    weights: dict[str, str]
    comparable: str
    trials: list[_TrialState]


class SettingsSearch:
    """Tries settings and keeps their results, also beyond an interruption."""

    def __init__(
        self,
        config: TuneConfig,
        pipeline: LightningDiTPipeline,
        networks: FeatureNetworks,
        reference: ReferenceSet,
        key: str,
        processes: Processes,
    ) -> None:
        self.config, self.pipeline, self.networks = config, pipeline, networks
        self.reference, self.key, self.processes = reference, key, processes
        self.comparable = ""
        self._done: dict[str, Trial] = {}
        self._path = config.output / PROGRESS
        self._record = {"config": config.model_dump(mode="json"), "weights": self.images(config.draw.sampling).hashes}
        self._resume()

    def run(self) -> list[Trial]:
        """All trials, in the order in which they were first made."""
        if self.config.search == "grid":
            for settings in grid(self.config):
                self.trial(settings)
            return list(self._done.values())
        best = self.trial(self.config.draw.sampling)
        for name, values in choices(self.config).items():
            for value in values:
                candidate = changed(best.settings, **{name: value})
                if candidate is not None:
                    best = min(best, self.trial(candidate), key=lambda trial: trial.distance)
        # then every solver with every number of steps, at the guidance and shift that were found
        for solver, steps in itertools.product(self.config.solvers, self.config.steps):
            candidate = changed(best.settings, solver=solver, num_inference_steps=steps)
            if candidate is not None:
                self.trial(candidate)
        return list(self._done.values())

    def trial(self, settings: SolverConfig) -> Trial:
        """Generate and measure; settings that were tried before give their earlier result."""
        name = settings.model_dump_json()
        if name not in self._done:
            started = time.perf_counter()
            images = self.images(settings)
            share = contiguous_share(images.count, self.config.batch_size, self.processes)
            batches = progress_bar(
                images.read(*share, self.config.batch_size),
                total=-(-(share[1] - share[0]) // self.config.batch_size),
                desc=str(settings),
                unit="batch",
            )
            seen = gather_features(self.networks, share, batches, self.processes, keep=False)
            found = frechet_distance(statistics_of(seen)[self.key], self.reference.statistics[self.key])
            self.comparable = comparable(found, images.count)
            nfe = float(np.mean([value for part in self.processes.gather(images.evaluations) for value in part]))
            distance = found.value if math.isfinite(found.value) else math.inf  # never the best
            self._done[name] = Trial(settings, distance, nfe, time.perf_counter() - started)
            log.info("tune: %s: %s %.4g, NFE %g.", settings, SPACES[self.key].distance, distance, nfe)
            self._save()
        return self._done[name]

    def images(self, settings: SolverConfig) -> LiveImages:
        """The images of these settings, generated when they are read."""
        draw: DrawConfig = self.config.draw.model_copy(update={"sampling": settings})
        return LiveImages(self.pipeline, self.config.pipeline, draw, self.config.seed)

    def _save(self) -> None:
        if self.processes.is_main:
            trials = [
                {"settings": trial.settings.model_dump(mode="json")}
                | {"distance": trial.distance if math.isfinite(trial.distance) else None}
                | {"nfe": trial.nfe, "seconds": trial.seconds}
                for trial in self._done.values()
            ]
            self._path.parent.mkdir(parents=True, exist_ok=True)
            state = self._record | {"comparable": self.comparable, "trials": trials}
            write_text(self._path, json.dumps(state, allow_nan=False) + "\n")

    def _resume(self) -> None:
        if not os.path.lexists(self._path):
            return
        remedy = f"Delete {self._path} to begin the search again."
        state = read_json(self._path, _SearchState, remedy)
        if {"config": state.config, "weights": state.weights} != self._record:
            raise InputError(
                f"{self.config.output} holds an unfinished search of another configuration or pipeline. Choose "
                "another --output, or delete that folder."
            )
        self.comparable = state.comparable
        for entry in state.trials:
            try:
                settings = SolverConfig.model_validate(entry.settings)
            except ValidationError as error:
                reason = error.errors()[0]["msg"]
                raise InputError(f"{self._path} holds invalid settings ({reason:.200}). {remedy}") from error
            distance = math.inf if entry.distance is None else entry.distance
            self._done[settings.model_dump_json()] = Trial(settings, distance, entry.nfe, entry.seconds)


def front(trials: Sequence[Trial]) -> list[Trial]:
    """The trials that no other beats at the same or a lower cost, the cheapest first."""
    kept: list[Trial] = []
    for trial in sorted(trials, key=lambda trial: (trial.nfe, trial.distance)):
        if not kept or trial.distance < kept[-1].distance:
            kept.append(trial)
    return kept
