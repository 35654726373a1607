"""The progress of a whole search: one bar over all trials, and the time that is left."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from typing import TypeVar

from alight.config import SolverConfig
from alight.flow.evaluations import SAME_EVALUATIONS, expected_evaluations
from alight.runtime.console import progress_bar
from alight.runtime.units import duration
from alight.tune.record import Trial

Item = TypeVar("Item")
BESIDE_SAMPLING = 2.0  # evaluations that take about as long as decoding and measuring an image


@cache
def expected_work(settings: SolverConfig) -> float:
    """The cost of an image in evaluations of the network."""
    return expected_evaluations(**settings.model_dump(exclude=SAME_EVALUATIONS | {"average"})) + BESIDE_SAMPLING


class SearchProgress:
    """A bar over the work of all planned trials, so that a costly one takes up more of it than a cheap one."""

    def __init__(self) -> None:
        self._begun = False
        self._bar = progress_bar(
            total=1.0,
            desc="tune",
            smoothing=0,  # the mean rate: batches of one trial are alike, and those of different ones are weighted
            bar_format="{desc}: {percentage:3.0f}%|{bar}| {elapsed} passed, {remaining} left",
        )

    def begin(
        self, settings: SolverConfig, planned: Sequence[SolverConfig], trials: Mapping[SolverConfig, Trial]
    ) -> None:
        """Show the trial that begins, among all planned ones, of which those in `trials` are finished."""
        finished = [each for each in planned if each in trials]
        self._bar.total = sum(map(expected_work, planned))
        self._bar.n = sum(map(expected_work, finished))
        if not self._begun:
            self._bar.initial, self._begun = self._bar.n, True  # the rate is that of this run alone
        name = f"tune: trial {len(finished) + 1} of {len(planned)} ({settings})"
        self._bar.set_description_str(name, refresh=False)
        self._bar.update(0)

    def batches(self, settings: SolverConfig, batches: Iterable[Item], count: int) -> Iterator[Item]:
        """The `count` batches of a trial; each of them moves the bar."""
        for batch in batches:
            yield batch
            self._bar.update(expected_work(settings) / count)

    def close(self) -> None:
        """Remove the bar."""
        self._bar.close()


def time_left(planned: Sequence[SolverConfig], trials: Mapping[SolverConfig, Trial]) -> float:
    """Seconds that the unfinished planned trials are going to take, by the speed of the finished ones."""
    speed = sum(map(expected_work, trials)) / max(sum(trial.seconds for trial in trials.values()), 1e-9)
    return sum(expected_work(each) for each in planned if each not in trials) / speed


def standing(planned: Sequence[SolverConfig], trials: Mapping[SolverConfig, Trial]) -> str:
    """The state of a search in words: "trial 3 of 14, 2 min 05 s left"."""
    finished = sum(each in trials for each in planned)
    left = f", {duration(time_left(planned, trials))} left" if finished < len(planned) else ""
    return f"trial {finished} of {len(planned)}{left}"
