"""The ambiguity of velocities against closed forms, quadrature, and a small network that cannot beat it."""

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.stats import norm

from alight.config import ProbeConfig
from alight.evaluation.velocity_probe import HeldOutErrors, VelocityProbe, held_out_errors, train_probe
from alight.metrics.velocity_ambiguity import (
    WITHOUT_STRUCTURE,
    ambiguity_bound,
    gaussian_ambiguity,
    leave_one_out_ambiguity,
)
from alight.runtime.errors import InputError

CPU = torch.device("cpu")


@pytest.mark.parametrize(("eigenvalue", "integral"), [(0.25, 0.785398), (1.0, 1.570796), (4.0, 3.141593)])
def test_the_integral_over_time_is_half_of_pi_times_the_root(eigenvalue, integral):
    assert ambiguity_bound([eigenvalue]) == pytest.approx(integral, abs=1e-6)
    by_quadrature, _ = quad(lambda t: gaussian_ambiguity([eigenvalue], t), 0, 1)
    assert by_quadrature == pytest.approx(integral, abs=1e-6)


def test_the_bound_is_per_number_and_largest_without_structure():
    assert ambiguity_bound([4.0, 0.0]) == pytest.approx(np.pi / 2)
    assert ambiguity_bound([1.9, 0.1]) < ambiguity_bound([1.0, 1.0]) == pytest.approx(WITHOUT_STRUCTURE)


def two_bumps(mean, std, t):
    """The ambiguity of an even mixture of two normal densities at -mean and mean, by quadrature over x_t."""
    noise = 1 - t

    def integrand(x):
        centres = np.array([-mean, mean])
        total = t**2 * std**2 + noise**2
        weights = norm.pdf(x, t * centres, np.sqrt(total)) / 2
        means = centres + t * std**2 / total * (x - t * centres)
        within = std**2 * noise**2 / total
        density = weights.sum()
        shares = weights / density
        variance = within + (shares * means**2).sum() - (shares * means).sum() ** 2
        return density * variance / noise**2

    return quad(integrand, -12, 12, limit=200)[0]


@pytest.mark.parametrize("t", [0.2, 0.5, 0.7])
def test_posteriors_over_other_vectors_agree_with_quadrature(t):
    """4,000 vectors; the noise of the mean error is below 3 %, and the bound of the covariance lies above."""
    generator = np.random.default_rng(0)
    mean, std = 0.95, np.sqrt(1 - 0.95**2)
    vectors = mean * generator.choice([-1, 1], (4_000, 1)) + std * generator.standard_normal((4_000, 1))
    found, exact = leave_one_out_ambiguity(vectors, t, generator), two_bumps(mean, std, t)
    assert found.ambiguity == pytest.approx(exact, rel=0.07)
    assert exact <= gaussian_ambiguity([1.0], t) + 1e-9
    assert found.neighbours > 200
    assert len(found.errors) == 4_000


def test_quadrature_of_one_bump_is_the_gaussian_form():
    assert two_bumps(0.0, 0.7, 0.6) == pytest.approx(gaussian_ambiguity([0.49], 0.6), rel=1e-6)


def test_posteriors_with_one_neighbour_are_refused():
    vectors = np.random.default_rng(0).standard_normal((300, 64))
    with pytest.raises(InputError, match="collapses to 1.0 of them"):
        leave_one_out_ambiguity(vectors, 0.9, np.random.default_rng(1))


@pytest.mark.parametrize(
    "call",
    [
        lambda: ambiguity_bound([-1.0]),
        lambda: ambiguity_bound([]),
        lambda: ambiguity_bound([np.nan]),
        lambda: gaussian_ambiguity([1.0], 1.0),
        lambda: leave_one_out_ambiguity(np.zeros((1, 2)), 0.5, np.random.default_rng(0)),
        lambda: leave_one_out_ambiguity(np.zeros((5, 2)), 1.0, np.random.default_rng(0)),
    ],
)
def test_what_has_no_ambiguity_is_refused(call):
    with pytest.raises(InputError):
        call()


def white(count, shape=(4, 2, 2)):
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(5))


def ratio(errors: HeldOutErrors) -> float:
    return errors.probe.sum() / errors.trivial.sum()


def test_an_untrained_probe_is_the_velocity_without_structure():
    """Of white latents this has the error 1 / (t^2 + (1 - t)^2), to the noise of 64,000 numbers."""
    probe = VelocityProbe((4, 2, 2), 16, 1, 2)
    errors = held_out_errors(probe, white(4_000), 128, 0, CPU)
    assert errors.probe == pytest.approx(errors.trivial)
    times = np.array([0.1, 0.3, 0.5, 0.7, 0.9])
    assert errors.trivial.mean() == pytest.approx((1 / (times**2 + (1 - times) ** 2)).sum(), rel=0.02)


def test_a_probe_finds_structure_and_no_more_than_there_is():
    """All numbers of a latent are the same: eigenvalues 16, 0, ..., 0, of which the closed form is the floor."""
    config = ProbeConfig(hidden_size=32, num_layers=1, num_heads=2, steps=300, batch_size=64, lr=5e-3)
    latents = white(1_500)[:, :1, :1, :1].expand(-1, 4, 2, 2).contiguous()
    probe = train_probe(latents[:1_000], config, 0, CPU)
    errors = held_out_errors(probe, latents[1_000:], 128, 0, CPU)
    times = (0.1, 0.3, 0.5, 0.7, 0.9)
    floor = sum(gaussian_ambiguity([16.0] + [0.0] * 15, t) for t in times) / sum(
        gaussian_ambiguity([1.0], t) for t in times
    )
    assert 0.97 * floor < ratio(errors) < 1.6 * floor < 0.5
    again = held_out_errors(train_probe(latents[:1_000], config, 0, CPU), latents[1_000:], 128, 0, CPU)
    assert (again.probe == errors.probe).all()  # the seed decides on all of it


def test_a_probe_finds_nothing_in_white_latents():
    config = ProbeConfig(hidden_size=32, num_layers=1, num_heads=2, steps=100, batch_size=64)
    latents = white(1_500)
    errors = held_out_errors(train_probe(latents[:1_000], config, 0, CPU), latents[1_000:], 128, 0, CPU)
    assert 0.99 < ratio(errors) < 1.1
