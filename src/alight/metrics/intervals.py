"""Means over repetitions with their intervals, paired differences, and the factor between two learning curves."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple, Self

import numpy as np
from scipy import stats

LEVEL = 0.95  # of every interval


class Interval(NamedTuple):
    """A mean with the interval that holds the true one with a probability of 95 %, if values are normal.

    Attributes:
        mean: of the values.
        low: lower end; not a number where there is only one value.
        high: upper end, likewise.
        n: number of values.
    """

    mean: float
    low: float
    high: float
    n: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Self:
        """The mean of independent values, and Student's interval for it.

        Raises:
            ValueError: there are no values.
        """
        if not len(values):
            raise ValueError("an interval needs values")
        n, mean = len(values), float(np.mean(values))
        if n == 1:
            return cls(mean, math.nan, math.nan, 1)
        half = float(stats.t.ppf((1 + LEVEL) / 2, n - 1) * np.std(values, ddof=1) / math.sqrt(n))
        return cls(mean, mean - half, mean + half, n)

    @property
    def half_width(self) -> float:
        """Half of the interval's length; not a number where there is only one value."""
        return (self.high - self.low) / 2

    @property
    def excludes_zero(self) -> bool:
        """True if the interval lies on one side of zero, so that the sign of the mean is known."""
        return self.low > 0 or self.high < 0

    def apart_from(self, other: "Interval") -> bool:
        """True if two intervals do not overlap."""
        return self.low > other.high or self.high < other.low


def paired_difference(values: Mapping[int, float], baseline: Mapping[int, float]) -> Interval | None:
    """The mean difference of values to a baseline over the seeds that both have, with its interval.

    Pairs that share their seed share initial weights, batches and noise, so most of the scatter cancels.

    Args:
        values: by seed.
        baseline: by seed.

    Returns:
        None where no seed is shared.
    """
    shared = [seed for seed in values if seed in baseline]
    return Interval.of([values[seed] - baseline[seed] for seed in shared]) if shared else None


class Speedup(NamedTuple):
    """A multiple of steps that a baseline needs, as the geometric mean over seeds.

    Attributes:
        factor: the mean with its interval; where `unreached`, of lower bounds.
        unreached: number of seeds whose baseline has not come there by the end of its run.
    """

    factor: Interval
    unreached: int


def steps_to_reach(
    steps: Sequence[float], values: Sequence[float], target: float, higher_is_better: bool
) -> float | None:
    """The first number of steps at which a learning curve reaches a value, on straight lines between measurements.

    Args:
        steps: rising.
        values: measured after these steps.
        target: to be reached.
        higher_is_better: direction of the measure.

    Returns:
        None if the curve ends before. A curve that is there at its first point gives the steps of that point.
    """
    sign = 1 if higher_is_better else -1
    for number, value in enumerate(values):
        if sign * (value - target) >= 0:
            if number == 0:
                return float(steps[0])
            before, there = values[number - 1], value
            share = (target - before) / (there - before)
            return float(steps[number - 1] + share * (steps[number] - steps[number - 1]))
    return None


def speedup(
    curves: Mapping[int, Mapping[int, float]],
    baselines: Mapping[int, Mapping[int, float]],
    after: int,
    higher_is_better: bool,
) -> Speedup | None:
    """The number of steps at which a baseline reaches what a curve has after some steps, as a multiple of these.

    Args:
        curves: seed -> steps -> value.
        baselines: likewise.
        after: steps of the curve.
        higher_is_better: direction of the measure.

    Returns:
        None where no seed is shared.
    """
    factors, unreached = [], 0
    for seed in (seed for seed in curves if seed in baselines and after in curves[seed]):
        steps, values = zip(*sorted(baselines[seed].items()), strict=True)
        reached = steps_to_reach(steps, values, curves[seed][after], higher_is_better)
        unreached += reached is None
        factors.append((steps[-1] if reached is None else reached) / after)
    if not factors:
        return None
    mean, low, high, n = Interval.of(np.log(factors).tolist())
    return Speedup(Interval(math.exp(mean), math.exp(low), math.exp(high), n), unreached)
