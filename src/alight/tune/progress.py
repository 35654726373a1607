"""The progress of a whole search: one bar over all trials, and the time that is left."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from typing import TypeVar

import torch
from torch import Tensor

from alight.config import SolverConfig
from alight.flow.guidance import GuidedVelocity
from alight.flow.path import LinearPath
from alight.flow.sampling import sample
from alight.options import ADAPTIVE_SOLVERS
from alight.runtime.console import progress_bar
from alight.runtime.units import duration
from alight.tune.record import Trial

Item = TypeVar("Item")
BESIDE_SAMPLING = 2.0  # evaluations that take about as long as decoding and measuring an image
ADAPTIVE_STEPS = 100  # evaluations of an adaptive solver, about
FEW_STEPS = 50  # more steps are not counted one by one


@cache
def expected_work(settings: SolverConfig) -> float:
    """The cost of an image in evaluations of the network, counted on a field of zeros."""
    adaptive = settings.solver in ADAPTIVE_SOLVERS
    steps = ADAPTIVE_STEPS if adaptive else settings.num_inference_steps
    counted = min(steps, FEW_STEPS)

    def zeros(x: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        return torch.zeros_like(x)

    label = torch.zeros(1, dtype=torch.long)
    made = sample(
        GuidedVelocity(zeros, label, label, settings.guidance_scale, settings.guidance_interval),
        torch.zeros(1, 1, 1, 1),
        counted,
        "euler" if adaptive else settings.solver,
        path=LinearPath(),
        timestep_shift=settings.timestep_shift,
        diffusion_form=settings.diffusion_form,
        last_step=settings.last_step,
        generator=torch.Generator().manual_seed(0),
    )
    return made.nfe * steps / counted + BESIDE_SAMPLING


class SearchProgress:
    """A bar over the work of all planned trials, so that a costly one takes up more of it than a cheap one."""

    def __init__(self) -> None:
        self._begun = False
        self._bar = progress_bar(
            total=1.0,
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
