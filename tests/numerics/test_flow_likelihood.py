"""Log-likelihoods against densities that are known."""

import itertools
import math

import pytest
import torch
from scipy import stats

from alight.flow import GVPPath, LinearPath, VPPath, log_likelihood, standard_normal_log_density, time_interval
from helpers.draws import seeded
from helpers.gaussian_flow import GaussianFlow

PATHS = [LinearPath(), GVPPath(), VPPath()]


def named(path):
    return type(path).__name__


def data(shape=(5, 2, 3)):
    return 0.5 * torch.randn(shape, generator=seeded(), dtype=torch.float64)


def test_prior_density():
    x = data()
    expected = stats.norm.logpdf(x.numpy()).sum((1, 2))
    torch.testing.assert_close(standard_normal_log_density(x), torch.from_numpy(expected))


@pytest.mark.parametrize("path", PATHS, ids=named)
def test_density_of_a_gaussian(path):
    """The Jacobian of this flow is a multiple of the identity, so random signs give its trace exactly."""
    flow, x = GaussianFlow(path), data()
    interval = time_interval(path, eps=1e-5)
    result = log_likelihood(flow.velocity, x, 200, interval=interval, generator=seeded())
    expected = torch.from_numpy(stats.norm.logpdf(x.numpy(), scale=flow.scale).sum((1, 2)))
    # VP does not quite end in a standard normal (alpha(0) = 0.0066, so a variance of 1 - 3e-5) and stops at 1 - 1e-5.
    torch.testing.assert_close(result.log_prob, expected, rtol=0, atol=2e-3 if isinstance(path, VPPath) else 1e-6)
    torch.testing.assert_close(result.x_0, flow.transport(x, 1.0, 0.0), rtol=0, atol=1e-3)
    torch.testing.assert_close(result.log_prior, standard_normal_log_density(result.x_0))
    torch.testing.assert_close(result.bits_per_dimension, -result.log_prob / (6 * math.log(2)))
    assert (result.nfe, result.steps) == (800, 200)


@pytest.mark.parametrize(("solver", "order"), [("euler", 1), ("heun2", 2), ("rk4", 4)])
def test_order_of_convergence(solver, order):
    flow, x = GaussianFlow(GVPPath()), data()
    expected = torch.from_numpy(stats.norm.logpdf(x.numpy(), scale=flow.scale).sum((1, 2)))

    def error(steps):
        return (log_likelihood(flow.velocity, x, steps, solver, generator=seeded()).log_prob - expected).abs().max()

    assert math.log2(error(16) / error(32)) == pytest.approx(order, abs=0.3)


def mixing(x, t):
    """A linear field that mixes dimensions: divergence 0.3 trace(A), which single probes only estimate."""
    return 0.3 * (x.flatten(1) @ MATRIX.T).reshape(x.shape)


MATRIX = torch.randn(6, 6, generator=torch.Generator().manual_seed(7), dtype=torch.float64)


def test_the_estimate_is_unbiased_where_dimensions_mix():
    x = data((1, 2, 3)).expand(4000, 2, 3)
    result = log_likelihood(mixing, x, 4, generator=seeded())
    x_0 = x[0].flatten() @ torch.linalg.matrix_exp(-0.3 * MATRIX).T
    expected = stats.norm.logpdf(x_0.numpy()).sum() - 0.3 * MATRIX.trace().item()
    standard_error = result.log_prob.std().item() / math.sqrt(4000)
    assert standard_error > 1e-3  # it is an estimate
    assert abs(result.log_prob.mean().item() - expected) < 4 * standard_error


def test_probes_replace_the_generator():
    x = data()
    basis = torch.eye(6, dtype=torch.float64).reshape(6, 1, 2, 3)
    # Probing with every unit vector in turn and adding up gives the exact trace.
    runs = [log_likelihood(mixing, x, 10, probes=itertools.repeat(e.expand_as(x))) for e in basis]
    divergence = sum(run.log_prob - run.log_prior for run in runs)
    torch.testing.assert_close(divergence, torch.full((5,), -0.3 * MATRIX.trace().item(), dtype=torch.float64))


def test_an_adaptive_solver_agrees():
    flow, x = GaussianFlow(GVPPath()), data()
    result = log_likelihood(flow.velocity, x, 1, "dopri5", rtol=1e-7, atol=1e-7, generator=seeded())
    expected = torch.from_numpy(stats.norm.logpdf(x.numpy(), scale=flow.scale).sum((1, 2)))
    torch.testing.assert_close(result.log_prob, expected, rtol=0, atol=1e-5)


def test_works_without_gradients_around_it():
    flow, x = GaussianFlow(GVPPath()), data()
    with torch.no_grad():
        inside = log_likelihood(flow.velocity, x, 5, generator=seeded())
    outside = log_likelihood(flow.velocity, x, 5, generator=seeded())
    assert torch.equal(inside.log_prob, outside.log_prob)
    assert not outside.log_prob.requires_grad
