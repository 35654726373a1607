"""Intervals against scipy's own and closed forms; learning curves of known shape."""

import math

import numpy as np
import pytest
from scipy import stats

from alight.metrics.intervals import Interval, paired_difference, speedup, steps_to_reach


def test_an_interval_is_students():
    values = [3.1, 2.9, 3.4, 3.0, 2.7]
    low, high = stats.t.interval(0.95, len(values) - 1, loc=np.mean(values), scale=stats.sem(values))
    assert Interval.of(values) == pytest.approx((np.mean(values), low, high, 5))


def test_two_values_have_the_textbook_interval():
    interval = Interval.of([0.0, 2.0])
    assert interval.half_width == pytest.approx(12.706, abs=1e-3)  # t of one degree of freedom, times 1


def test_intervals_hold_the_true_mean_in_95_of_100_cases():
    rng = np.random.default_rng(0)
    held = [Interval.of(rng.normal(1.0, 2.0, 5).tolist()) for _ in range(2000)]
    assert np.mean([each.low < 1 < each.high for each in held]) == pytest.approx(0.95, abs=0.015)


def test_one_value_has_no_interval_and_none_no_mean():
    alone = Interval.of([4.0])
    assert alone.mean == 4
    assert math.isnan(alone.half_width)
    assert not alone.excludes_zero
    with pytest.raises(ValueError, match="needs values"):
        Interval.of([])


def test_pairs_cancel_what_their_seeds_share():
    rng = np.random.default_rng(0)
    shared = rng.normal(0, 10, 5)
    plain = dict(enumerate(shared))
    better = {seed: value + 1 + rng.normal(0, 0.1) for seed, value in plain.items()}
    difference = paired_difference(better, plain)
    assert difference.excludes_zero
    assert difference.mean == pytest.approx(1, abs=0.2)
    assert not Interval.of(list(better.values())).apart_from(Interval.of(list(plain.values())))


def test_only_shared_seeds_are_compared():
    assert paired_difference({0: 2.0, 1: 3.0, 9: 100.0}, {0: 1.0, 1: 2.0, 5: -100.0}).mean == 1
    assert paired_difference({0: 1.0}, {1: 1.0}) is None


@pytest.mark.parametrize(
    ("target", "higher", "steps"), [(0.5, True, 150), (0.25, True, 100), (0.2, True, 100), (0.9, True, None)]
)
def test_a_target_is_reached_on_the_line_between_measurements(target, higher, steps):
    assert steps_to_reach([100, 200, 300], [0.25, 0.75, 0.8], target, higher) == steps
    falling = steps_to_reach([100, 200, 300], [-0.25, -0.75, -0.8], -target, not higher)
    assert falling == steps


def test_a_curve_that_is_stretched_by_three_is_three_times_as_slow():
    fast = {seed: {steps: 1 - math.exp(-steps / 100) for steps in range(10, 301, 10)} for seed in range(4)}
    slow = {seed: {steps: 1 - math.exp(-steps / 300) for steps in range(10, 901, 10)} for seed in range(4)}
    found = speedup(fast, slow, after=100, higher_is_better=True)
    assert found.unreached == 0
    assert found.factor.mean == pytest.approx(3, rel=1e-3)


def test_a_baseline_that_ends_before_gives_a_lower_bound():
    fast, slow = {0: {100: 0.9}, 1: {100: 0.9}}, {0: {100: 0.1, 200: 0.2}, 1: {100: 0.1, 200: 0.9}}
    found = speedup(fast, slow, after=100, higher_is_better=True)
    assert (found.unreached, found.factor.mean) == (1, pytest.approx(2))
    assert speedup(fast, {7: {100: 1.0}}, after=100, higher_is_better=True) is None
