"""Random times against the quantiles of their distributions, and the warp of time against its algebra."""

import pytest
import torch
from scipy import stats

from alight.flow import (
    GVPPath,
    LinearPath,
    VPPath,
    default_eps,
    dimension_aware_shift,
    sample_timesteps,
    shift_timesteps,
    time_grid,
    time_interval,
)
from alight.runtime.errors import InputError
from helpers.draws import seeded

N = 20_000


def logit_normal(mean, std):
    return lambda t: stats.norm.cdf(torch.logit(torch.as_tensor(t).double()).numpy(), mean, std)


def assert_distributed(t, cdf):
    """Kolmogorov-Smirnov: with a fixed seed this either always or never passes; 0.02 is p = 2e-7 at 20,000 draws."""
    assert t.dtype == torch.float32
    assert stats.kstest(t.numpy(), cdf).statistic < 0.02


@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (0.75, 1.0), (-0.4, 0.5)])
def test_logit_normal(mean, std):
    assert_distributed(sample_timesteps(N, mean=mean, std=std, generator=seeded()), logit_normal(mean, std))


def test_uniform_on_a_part():
    t = sample_timesteps(N, "uniform", low=0.2, high=0.6, generator=seeded())
    assert_distributed(t, stats.uniform(0.2, 0.4).cdf)


def test_logit_normal_mapped_to_an_interval():
    t = sample_timesteps(N, low=0.1, high=0.9, generator=seeded())
    assert_distributed((t - 0.1) / 0.8, logit_normal(0, 1))


def test_truncation_keeps_the_shape_inside():
    t = sample_timesteps(N, truncate=(0.3, 0.8), generator=seeded())
    assert t.shape == (N,)
    whole = logit_normal(0, 1)
    below, above = whole([0.3, 0.8])
    assert_distributed(t, lambda x: (whole(x) - below) / (above - below))


def test_shifted_times_are_distributed_as_the_warp_says():
    t = sample_timesteps(N, "uniform", shift=0.3, generator=seeded())
    # t = s u / (1 + (s - 1) u) has u = t / (s + (1 - s) t).
    assert_distributed(t, lambda x: x / (0.3 + 0.7 * x))


def test_the_generator_decides():
    assert torch.equal(sample_timesteps(8, generator=seeded(3)), sample_timesteps(8, generator=seeded(3)))
    assert not torch.equal(sample_timesteps(8, generator=seeded(3)), sample_timesteps(8, generator=seeded(4)))


def test_row_i_depends_on_generator_i_alone():
    of_four = sample_timesteps(4, generator=[seeded(s) for s in range(4)])
    of_two = sample_timesteps(2, generator=[seeded(s) for s in (2, 3)])
    assert torch.equal(of_four[2:], of_two)


@pytest.mark.parametrize("s", [0.3, 1.0, 3.0])
def test_the_warp(s):
    t = torch.linspace(0, 1, 11, dtype=torch.float64)
    warped = shift_timesteps(t, s)
    assert warped[0] == 0
    assert warped[-1] == pytest.approx(1, abs=1e-15)
    assert (warped.diff() > 0).all()
    torch.testing.assert_close(shift_timesteps(warped, 1 / s), t, rtol=0, atol=1e-15)
    # In noise time 1 - t it is the warp by 1/s: the statement that ties it to diffusers and SD3.
    torch.testing.assert_close(1 - shift_timesteps(1 - t, 1 / s), warped, rtol=0, atol=1e-15)


def test_no_warp_is_the_identity():
    t = torch.rand(5)
    assert shift_timesteps(t, None) is t


def test_dimension_aware_shift_keeps_the_noise_per_dimension():
    s = dimension_aware_shift(32 * 16 * 16)
    assert s == pytest.approx(2**-0.5)
    # SD3's criterion: warped, the ratio of noise to signal (1 - t) / t grows by sqrt(D / base).
    t = torch.linspace(0.1, 0.9, 5, dtype=torch.float64)
    warped = shift_timesteps(t, s)
    torch.testing.assert_close((1 - warped) / warped, (1 - t) / t * 2**0.5)


def test_grid():
    assert torch.equal(time_grid(4), torch.tensor([0, 0.25, 0.5, 0.75, 1]))
    grid = time_grid(10, 0.3)
    assert len(grid) == 11
    assert torch.equal(grid[[0, -1]], torch.tensor([0.0, 1.0]))
    assert grid[5] == pytest.approx(0.3 * 0.5 / (1 - 0.7 * 0.5), abs=1e-7)


@pytest.mark.parametrize("shift", [None, 0.3, 2.0])
@pytest.mark.parametrize(("t_0", "t_1"), [(0.2, 0.9), (1.0, 0.0), (0.001, 0.999)])
def test_grid_starts_and_ends_where_told(shift, t_0, t_1):
    grid = time_grid(7, shift, t_0, t_1)
    assert [grid[0].item(), grid[-1].item()] == pytest.approx([t_0, t_1], abs=1e-6)  # a few float32 roundings
    assert (grid.diff().sign() == (1 if t_1 > t_0 else -1)).all()


def test_intervals_avoid_only_what_is_singular():
    assert time_interval(LinearPath()) == (0, 1)
    assert time_interval(GVPPath(), "noise") == (1e-3, 1 - 1e-3)
    assert time_interval(VPPath()) == (0, 1 - 1e-5)
    assert time_interval(LinearPath(), eps=0.1) == (0, 1)  # nothing is singular, nothing is cut
    assert time_interval(LinearPath(), diffusion_form="sigma", last_step_size=0.04) == (0, 0.96)
    assert time_interval(LinearPath(), diffusion_form="sbdm").start == 1e-3
    assert default_eps(LinearPath()) == 0
    assert time_interval(VPPath()).in_noise_time == pytest.approx((1, 1e-5))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: sample_timesteps(2, "lognormal"), "Did you mean 'logit_normal'"),
        (lambda: sample_timesteps(2, low=0.6, high=0.4), "low, high"),
        (lambda: sample_timesteps(2, truncate=(0.6, 0.4)), "truncate"),
        (lambda: sample_timesteps(2, truncate=(0.0, 1e-9), generator=seeded()), "Widen the range"),
        (lambda: sample_timesteps(2, std=0.0), "standard deviation"),
        (lambda: sample_timesteps(2, noise=torch.zeros(3)), "shape"),
        (lambda: sample_timesteps(2, generator=[seeded()]), "one per sample"),
        (lambda: shift_timesteps(torch.zeros(1), 0.0), "positive"),
        (lambda: time_grid(5, -1.0), "positive"),
        (lambda: time_grid(0), "at least one step"),
        (lambda: time_grid(5, t_0=0.5, t_1=0.5), "two different times"),
        (lambda: time_grid(5, t_1=1.5), "two different times"),
        (lambda: dimension_aware_shift(0), "positive"),
        (lambda: time_interval(LinearPath(), "noise", 0.6), "leave no time"),
    ],
)
def test_mistakes_are_explained(call, message):
    with pytest.raises(InputError, match=message):
        call()
