"""Power-function averages: profiles against quadrature, tracked averages and combinations against profiles."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from alight.config.training import LARGEST_WIDTH, SMALLEST_WIDTH
from alight.training.ema import PowerAverage
from alight.training.power_profile import (
    Profile,
    combination,
    combination_error,
    describe_ranges,
    exponent_of,
    inner_products,
    profile_of,
    share_of_step,
    width_of,
    widths_within_reach,
)

WIDTHS = (0.05, 0.10)  # of the tracked averages
STEPS, SNAPSHOTS = 3_200, 32


class Weights(nn.Module):
    """A parameter in double precision, which the tests move."""

    def __init__(self, size):
        super().__init__()
        self.values = nn.Parameter(torch.zeros(size, dtype=torch.float64))


def tracked(trajectory, widths, snapshots=1):
    """Averages of a trajectory (steps, size) of weights: their profiles and values at evenly spaced steps."""
    steps, size = trajectory.shape
    model = Weights(size)
    averages = [PowerAverage(model, width) for width in widths]
    found = []
    for step in range(steps):
        model.values.data.copy_(trajectory[step])
        for average in averages:
            average.update(model, step)
        if (step + 1) % (steps // snapshots) == 0:
            found += [(Profile(each.exponent, step + 1), each.model.values.detach().clone()) for each in averages]
    return found


def snapshot_profiles(steps=STEPS, count=SNAPSHOTS, widths=WIDTHS):
    return [profile_of(width, steps * (number + 1) // count) for width in widths for number in range(count)]


@pytest.mark.parametrize("width", [SMALLEST_WIDTH, 0.01, 0.05, 0.1, 0.2, 0.25, LARGEST_WIDTH])
def test_width_and_exponent_are_each_others_inverse(width):
    exponent = exponent_of(width)
    assert exponent > 0
    assert width_of(exponent) == pytest.approx(width, rel=1e-12)


def test_known_exponents():
    assert width_of(0.0) == pytest.approx(1 / math.sqrt(12))  # of the plain mean
    # the paper names 16.97 and 6.94 for its two averages
    assert [exponent_of(width) for width in WIDTHS] == pytest.approx([16.97, 6.94], abs=5e-3)


@pytest.mark.parametrize("width", [0.02, 0.1, 0.25])
def test_the_width_is_the_standard_deviation_of_the_profile(width):
    profile = profile_of(width, 1_000)
    t = (np.arange(1_000_000) + 0.5) / 1_000_000
    density = (profile.exponent + 1) * t**profile.exponent
    mean = (density * t).mean()
    assert math.sqrt((density * (t - mean) ** 2).mean()) == pytest.approx(width, rel=1e-6)
    assert profile.width == pytest.approx(width)


def test_inner_products_are_integrals():
    profiles = [profile_of(0.05, 700), profile_of(0.1, 1_000), profile_of(0.25, 400), profile_of(0.1, 999)]
    t = (np.arange(2_000_000) + 0.5) / 2_000
    values = np.stack(
        [
            np.where(t <= each.steps, (each.exponent + 1) / each.steps * (t / each.steps) ** each.exponent, 0.0)
            for each in profiles
        ]
    )
    assert inner_products(profiles, profiles) == pytest.approx(values @ values.T / 2_000, rel=1e-5)


@pytest.mark.parametrize("width", [0.03, 0.1, 0.25])
def test_a_tracked_average_weighs_every_step_by_the_profile(width):
    steps = 200
    ((profile, weights),) = tracked(torch.eye(steps, dtype=torch.float64), [width])
    ends = (torch.arange(steps + 1, dtype=torch.float64) / steps) ** (profile.exponent + 1)
    torch.testing.assert_close(weights, ends.diff(), rtol=1e-9, atol=1e-12)
    assert float(weights.sum()) == pytest.approx(1.0, abs=1e-12)


def test_shares_of_early_and_late_steps():
    assert share_of_step(6.94, 1) == 1.0
    assert share_of_step(6.94, 2) == pytest.approx(1 - 0.5**7.94)
    assert share_of_step(6.94, 10**7) == pytest.approx(7.94e-7, rel=1e-6)  # nothing is lost to rounding


def test_a_stored_profile_is_given_back():
    profiles = snapshot_profiles()
    for index in (0, 31, 40, 63):
        weights = combination(profiles, profiles[index])
        assert weights == pytest.approx(np.eye(len(profiles))[index], abs=1e-8)
        assert combination_error(profiles, weights, profiles[index]) < 1e-6


TRAJECTORIES = {  # of the share of the run that has passed -> weights
    "polynomial": lambda t, _: torch.stack([t, t**2 - t, 5 * t**3 - 4 * t, (1 - t) ** 8], dim=1),
    "sinusoidal": lambda t, _: torch.stack([torch.sin(2 * math.pi * rate * t) for rate in (1, 2, 3, 5)], dim=1),
    "random walk": lambda t, noise: torch.cumsum(noise, dim=0) / math.sqrt(len(t)),
}


@pytest.mark.parametrize("kind", TRAJECTORIES)
@pytest.mark.parametrize(("width", "tolerance"), [(0.06, 2e-5), (0.08, 2e-5), (0.12, 2e-5), (0.15, 5e-5), (0.2, 2e-3)])
def test_a_combination_is_the_average_that_was_tracked(kind, width, tolerance):
    """The tolerance is for weights that move by about 1, and grows where the width is far from the stored ones."""
    t = torch.arange(1, STEPS + 1, dtype=torch.float64) / STEPS
    noise = torch.randn(STEPS, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    trajectory = TRAJECTORIES[kind](t, noise)
    stored = tracked(trajectory, WIDTHS, SNAPSHOTS)
    ((_, directly),) = tracked(trajectory, [width])
    weights = combination([profile for profile, _ in stored], profile_of(width, STEPS))
    together = sum(weight * value for weight, (_, value) in zip(weights, stored, strict=True))
    assert float((together - directly).abs().max()) < tolerance
    nearest = min(float((value - directly).abs().max()) for _, value in stored)
    assert nearest > 5 * tolerance  # so that the test could fail


def test_weights_that_do_not_move_stay_as_they_are():
    for width in (0.03, 0.08, 0.2):
        weights = combination(snapshot_profiles(), profile_of(width, STEPS))
        assert np.float32((weights * np.float64(np.float32(0.1))).sum()) == np.float32(0.1)


def test_long_runs_and_narrow_profiles_do_not_overflow():
    profiles = snapshot_profiles(steps=10**9, widths=(SMALLEST_WIDTH, 0.1))
    assert np.isfinite(combination(profiles, profile_of(SMALLEST_WIDTH, 10**9))).all()


def test_widths_within_reach():
    profiles = snapshot_profiles()
    ((low, high),) = widths_within_reach(profiles, STEPS)
    assert low <= 0.03
    assert high > 0.2
    for width in (low - 0.005, high + 0.01):
        wanted = profile_of(width, STEPS)
        assert combination_error(profiles, combination(profiles, wanted), wanted) > 0.02
    few = snapshot_profiles(count=1, widths=(0.0523,))
    assert describe_ranges(widths_within_reach(few, STEPS)) == "0.0523"
    assert describe_ranges(widths_within_reach(snapshot_profiles(count=2, widths=(0.02, 0.2)), STEPS)).count(",") == 1
    assert describe_ranges([]) == "none"
