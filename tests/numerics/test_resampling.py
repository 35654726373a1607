"""Certainty by resampling against normal theory and counted examples."""

import math

import numpy as np
import pytest
from scipy.stats import norm

from alight.metrics.resampling import (
    Resampled,
    kendall,
    over_seeds,
    pooled,
    resample,
    spearman,
    within_seeds,
)


def mean_of(values, seed=0, draws=2_000):
    return resample(lambda chosen: float(values[chosen].mean()), len(values), draws, np.random.default_rng(seed))


def test_the_interval_of_a_mean_is_that_of_normal_theory():
    """To 5 %, the noise of 2,000 draws being 1.6 %."""
    values = np.random.default_rng(0).standard_normal(400)
    found = mean_of(values)
    low, high = found.interval
    assert found.value == pytest.approx(values.mean())
    assert (high - low) / 2 == pytest.approx(1.96 * values.std() / 20, rel=0.05)
    assert (high + low) / 2 == pytest.approx(found.value)


def test_the_probability_of_an_order_uses_the_pairs():
    """Two figures of the same images share most of their noise; unpaired, the order would be open."""
    generator = np.random.default_rng(0)
    common, own = generator.standard_normal(500), 0.1 * generator.standard_normal(500)
    own += 0.006 - own.mean()
    one, other = mean_of(common), mean_of(common + own)
    expected = norm.cdf(0.006 / (own.std() / math.sqrt(500)))
    assert one.probability_below(other) == pytest.approx(expected, abs=0.02)
    assert other.probability_below(one) == pytest.approx(1 - expected, abs=0.02)
    assert one.probability_below(mean_of(common + own, seed=1)) == pytest.approx(0.54, abs=0.02)


def test_figures_without_spread_are_certain_or_equal():
    draws = np.zeros(5)
    assert Resampled(0, draws).probability_below(Resampled(1, draws + 1)) == 1
    assert Resampled(0, draws).probability_below(Resampled(0, draws)) == 0.5


def test_figures_that_are_equal_up_to_rounding_count_half_for_each_side():
    """Without that, a difference of 1e-9 with hardly any spread would be certain."""
    first = mean_of(1 + np.random.default_rng(0).random(300))
    second = Resampled(first.value * (1 + 1e-9), first.draws * (1 + 1e-9))
    assert first.probability_below(second) == 0.5
    assert second.probability_below(first) == 0.5
    third = Resampled(first.value * (1 + 1e-5), first.draws * (1 + 1e-5))
    assert first.probability_below(third) > 0.99


def test_ties_in_some_draws_are_in_the_middle():
    """Three of four draws tie up to rounding, and one favours the first: 3/8 + 1/4, by normal theory Phi(0.5)."""
    first = Resampled(1.0, np.ones(400))
    second = Resampled(1.25, 1 + np.tile([1e-9, -1e-9, 1e-9, 1.0], 100))
    assert first.probability_below(second) == pytest.approx(3 / 8 + 1 / 4, abs=0.1)
    assert first.probability_below(second) + second.probability_below(first) == pytest.approx(1)


def test_rank_correlations_of_a_counted_example():
    """Ranks 1 2 3 4 against 1 3 2 4: Spearman 1 - 6 * 2 / 60, Kendall (5 - 1) / 6."""
    pairs = [(1.0, 10.0), (2.0, 30.0), (3.0, 20.0), (4.0, 40.0)]
    assert spearman(pairs) == pytest.approx(0.8)
    assert kendall(pairs) == pytest.approx(2 / 3)
    assert math.isnan(spearman(pairs[:2]))
    assert math.isnan(kendall([(1.0, 1.0), (1.0, 2.0), (1.0, 3.0)]))


def test_seeds_that_shift_both_sides_hide_the_order_within_them():
    """Within every seed the order is reversed, and between seeds it is right: the two scopes disagree."""
    pairs = {seed: [(10 * seed + k, 10.0 * seed - k) for k in range(3)] for seed in range(4)}
    within = over_seeds(pairs, lambda found: within_seeds(found, spearman), 200, np.random.default_rng(0))
    whole = over_seeds(pairs, lambda found: pooled(found, spearman), 200, np.random.default_rng(0))
    assert (within.value, within.low, within.high) == pytest.approx((-1, -1, -1))
    assert whole.value > 0.8
    assert within.excludes_zero
    assert whole.runs == 12


def test_the_interval_covers_the_seeds_that_disagree():
    order, reverse = [(0.0, 0.0), (1.0, 1.0), (2.0, 2.0)], [(0.0, 2.0), (1.0, 1.0), (2.0, 0.0)]
    pairs = {0: order, 1: reverse, 2: order, 3: reverse}
    found = over_seeds(pairs, lambda each: within_seeds(each, spearman), 500, np.random.default_rng(0))
    assert found.value == 0
    assert (found.low, found.high) == (-1, 1)
    assert not found.excludes_zero
    alone = over_seeds({0: order}, lambda each: within_seeds(each, spearman), 500, np.random.default_rng(0))
    assert alone.value == pytest.approx(1)
    assert math.isnan(alone.low)
    assert not alone.excludes_zero
