"""Certainty by resampling: of figures over images, of an order of two, and of rank correlations over runs."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from alight.metrics.intervals import LEVEL

EQUAL = 1e-6  # relative difference, up to which two figures are equal but for rounding
FEWEST_SEEDS = 4  # whose resampling gives an interval; with fewer seeds it would be far too narrow
Array = NDArray[np.float64]
Numbers = NDArray[np.int64]


@dataclass(frozen=True)
class Resampled:
    """A figure, and the values that it takes on images drawn again.

    Attributes:
        value: on all images, each once.
        draws: (B,) on images drawn with replacement; those of two figures pair up where they share their images.
    """

    value: float
    draws: Array

    @property
    def finite(self) -> bool:
        """True if neither the value nor a draw is infinite or not a number."""
        return bool(np.isfinite(self.value) and np.isfinite(self.draws).all())

    @property
    def error(self) -> float:
        """The standard error."""
        return float(np.std(self.draws, ddof=1))

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval about the value, normal with the spread of the draws, whose own mean may be biased."""
        half = float(stats.norm.ppf((1 + LEVEL) / 2)) * self.error
        return self.value - half, self.value + half

    def probability_below(self, other: "Resampled") -> float:
        """The probability that another set of images would give this figure below the other, as these do or not.

        Values and draws that are equal up to rounding count half for each side.
        """
        difference = float(beyond_rounding(np.asarray(self.value), np.asarray(other.value)))
        error = float(np.std(beyond_rounding(self.draws, other.draws), ddof=1))
        if error == 0:
            return 0.5 if difference == 0 else float(difference > 0)
        return float(stats.norm.cdf(difference / error))


def beyond_rounding(first: Array, second: Array) -> Array:
    """The second less the first, and 0 where they are equal up to rounding."""
    difference = np.asarray(second - first)
    return np.where(np.abs(difference) <= EQUAL * np.maximum(np.abs(first), np.abs(second)), 0.0, difference)


def resample(
    statistic: Callable[[Numbers], float], count: int, draws: int, generator: np.random.Generator
) -> Resampled:
    """Take a figure on all items, and on as many of them drawn with replacement, again and again.

    Args:
        statistic: (numbers of items, which may come more than once) -> the figure.
        count: of the items.
        draws: at least two.
        generator: of the draws; the same state gives the same items.
    """
    taken = [statistic(generator.integers(count, size=count)) for _ in range(draws)]
    return Resampled(statistic(np.arange(count)), np.asarray(taken, dtype=np.float64))


@dataclass(frozen=True)
class RankCorrelation:
    """A rank correlation over runs.

    Attributes:
        value: in [-1, 1]; not a number where a side has no order.
        low, high: ends of the 95 % interval; not a number where there are fewer than four seeds.
        runs: number of them.
    """

    value: float
    low: float
    high: float
    runs: int

    @property
    def excludes_zero(self) -> bool:
        """True if the sign is known."""
        return self.low > 0 or self.high < 0


Pairs = Mapping[int, Sequence[tuple[float, float]]]  # seed -> the two figures of each of its runs


def spearman(pairs: Sequence[tuple[float, float]]) -> float:
    """Spearman's rank correlation; not a number where there are fewer than three pairs, or a side has no order."""
    return _correlation(pairs, lambda x, y: float(stats.spearmanr(x, y).statistic))


def kendall(pairs: Sequence[tuple[float, float]]) -> float:
    """Kendall's tau-b, likewise."""
    return _correlation(pairs, lambda x, y: float(stats.kendalltau(x, y).statistic))


def _correlation(pairs: Sequence[tuple[float, float]], measure: Callable[[Array, Array], float]) -> float:
    values = np.asarray(pairs, dtype=np.float64).reshape(-1, 2)
    if len(values) < 3 or (np.ptp(values, axis=0) == 0).any():
        return float("nan")
    return measure(values[:, 0], values[:, 1])


def pooled(pairs: Pairs, measure: Callable[[Sequence[tuple[float, float]]], float]) -> float:
    """A correlation over the runs of all seeds together."""
    return measure([pair for found in pairs.values() for pair in found])


def within_seeds(pairs: Pairs, measure: Callable[[Sequence[tuple[float, float]]], float]) -> float:
    """The mean over seeds of the correlation over the runs of each."""
    values = [value for found in pairs.values() if np.isfinite(value := measure(found))]
    return float(np.mean(values)) if values else float("nan")


def over_seeds(
    pairs: Pairs,
    correlation: Callable[[Pairs], float],
    draws: int,
    generator: np.random.Generator,
) -> RankCorrelation:
    """A correlation with the interval that whole seeds, drawn with replacement, give it.

    The runs of a seed share images, weights and noise, so they are drawn together. The interval says how much the
    correlation depends on the seeds, and nothing of tokenizers of other kinds than those of the runs. Of a handful of
    seeds it is somewhat too narrow.

    Args:
        pairs: by seed.
        correlation: of such pairs, as `pooled` or `within_seeds` with a measure.
        draws: of seeds.
        generator: of the draws.
    """
    seeds, runs = list(pairs), sum(map(len, pairs.values()))
    value = correlation(pairs)
    if len(seeds) < FEWEST_SEEDS or not np.isfinite(value):
        return RankCorrelation(value, float("nan"), float("nan"), runs)
    taken = []
    for _ in range(draws):
        chosen = generator.integers(len(seeds), size=len(seeds))
        taken.append(correlation({place: pairs[seeds[number]] for place, number in enumerate(chosen)}))
    found = [each for each in taken if np.isfinite(each)]
    low, high = np.quantile(found, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]).tolist() if found else (float("nan"),) * 2
    return RankCorrelation(value, low, high, runs)
