"""Trials of sampling settings: the same labels from the same noise, generated and measured, each once."""

import math
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from alight.config import DrawConfig, SolverConfig, TuneConfig
from alight.evaluation.batches import contiguous_share
from alight.evaluation.features import SPACES
from alight.evaluation.generation_report import comparable, short_count
from alight.pipelines import LightningDiTPipeline
from alight.pipelines.live_images import LiveImages
from alight.pipelines.selection import Selection
from alight.runtime.console import log
from alight.runtime.distributed import Processes
from alight.tune.averages import PipelineAverages, average_of, without_average
from alight.tune.measure import Measure
from alight.tune.progress import SearchProgress, standing
from alight.tune.record import Trial, TrialRecord
from alight.tune.strategy import planned, search


class SettingsSearch:
    """Tries settings and keeps their results, also beyond an interruption.

    Attributes:
        comparable: the figures that those of the trials may be compared with; empty before the first trial.
        count: number of images of each trial.
        measure_name: name of the distance, with that number.

    Raises:
        InputError: the output holds trials that were measured otherwise, or a damaged record of them.
    """

    def __init__(
        self, config: TuneConfig, pipeline: LightningDiTPipeline, measure: Measure, processes: Processes
    ) -> None:
        self.config, self.pipeline, self.measure, self.processes = config, pipeline, measure, processes
        self._averages = PipelineAverages(config, pipeline)
        images = self.images(config.draw.sampling)
        self.count = images.count
        self.measure_name = f"{SPACES[measure.key].distance}-{short_count(images.count)}"
        identity = measure.identity | images.hashes | self._averages.identity
        self._record = TrialRecord(config.output, identity)
        kept, self.comparable = self._record.read()
        self._trials = {trial.settings: trial for trial in kept}

    def run(self) -> list[Trial]:
        """All trials of this search, in the order in which they are asked for.

        Raises:
            InputError: no listed settings go together, or the disk refuses.
        """
        made: dict[SolverConfig, Trial] = {}
        if kept := sum(settings in self._trials for settings in self._planned()):
            log.info("tune: %d finished trials of an interrupted search are kept.", kept)
        self._progress = SearchProgress()

        def distance_of(settings: SolverConfig) -> float:
            made[settings] = self.trial(settings)
            return made[settings].distance

        try:
            search(self.config, distance_of)
        except KeyboardInterrupt:
            log.warning("tune: The finished trials are kept. Give the same command again to go on with the others.")
            raise
        finally:
            self._progress.close()
        return list(made.values())

    def trial(self, settings: SolverConfig) -> Trial:
        """Generate and measure; settings that were tried before give their earlier result."""
        if settings not in self._trials:
            self._progress.begin(settings, self._planned(), self._trials)
            self._trials[settings] = trial = self._measured(settings)
            if self.processes.is_main:
                self._record.write(self._trials.values(), self.comparable)
            name = SPACES[self.measure.key].distance
            where = standing(self._planned(), self._trials)
            log.info("tune: %s: %s %.4g, NFE %g; %s.", settings, name, trial.distance, trial.nfe, where)
        return self._trials[settings]

    def images(self, settings: SolverConfig) -> LiveImages:
        """The images of these settings, generated when they are read, which must be before those of others."""
        draw: DrawConfig = self.config.draw.model_copy(update={"sampling": without_average(settings)})
        width = average_of(settings)
        self._averages.use(width)
        images = LiveImages(self.pipeline, self.config.pipeline, draw, self.config.seed)
        images.hashes |= self._averages.hashes(width)
        return images

    def _measured(self, settings: SolverConfig) -> Trial:
        started, size = time.perf_counter(), self.config.batch_size
        images = self.images(settings)
        first, stop = share = contiguous_share(images.count, size, self.processes)
        batches = self._progress.batches(settings, images.read(first, stop, size), -(-(stop - first) // size))
        found = self.measure.distance(share, batches, self.processes)
        self.comparable = comparable(found, images.count)
        nfe = float(np.mean([value for part in self.processes.gather(images.evaluations) for value in part]))
        distance = found.value if math.isfinite(found.value) else math.inf  # never the best
        return Trial(settings, distance, nfe, time.perf_counter() - started)

    def _planned(self) -> list[SolverConfig]:
        return planned(self.config, {settings: trial.distance for settings, trial in self._trials.items()})


def selection(config: TuneConfig, search: SettingsSearch, trials: Sequence[Trial], best: Trial) -> Selection:
    """The record of a search, for the pipeline and the report."""
    values: dict[str, list[Any]] = {}
    for trial in trials:
        for name, value in trial.settings.model_dump(mode="json").items():
            seen = values.setdefault(name, [])
            seen += [value] if value not in seen else []
    lowest, *others = sorted(trial.distance for trial in trials)
    return {
        "tried": len(trials),
        "varied": {name: seen for name, seen in sorted(values.items()) if len(seen) > 1},
        "measure": SPACES[search.measure.key].distance,
        "images": search.count,
        "seed": config.seed,
        "distance": best.distance,
        "ahead": 1 - lowest / others[0] if others and 0 < others[0] < math.inf else None,
        "within": config.within,
    }


def preferred(trials: Sequence[Trial], within: float) -> Trial:
    """The cheapest trial whose distance is at most a share `within` above the lowest; of equal cost, the best."""
    lowest = min(trial.distance for trial in trials)
    good = [trial for trial in trials if trial.distance <= lowest * (1 + within)]
    return min(good, key=lambda trial: (trial.nfe, trial.distance))


def front(trials: Sequence[Trial]) -> list[Trial]:
    """The trials that no other beats at the same or a lower cost, the cheapest first."""
    kept: list[Trial] = []
    for trial in sorted(trials, key=lambda trial: (trial.nfe, trial.distance)):
        if not kept or trial.distance < kept[-1].distance:
            kept.append(trial)
    return kept
