"""Paths and conversions against derivatives taken by autograd and against the closed form of a Gaussian flow."""

import pytest
import torch

from alight.flow import (
    GVPPath,
    LinearPath,
    VelocityField,
    VPPath,
    diffusion_coefficient,
    to_data,
    to_noise,
    to_score,
    to_velocity,
)
from alight.runtime.errors import InputError
from helpers.gaussian_flow import GaussianFlow

PATHS = [LinearPath(), GVPPath(), VPPath()]
# Away from the ends, where every coefficient is finite and float64 keeps twelve digits.
INNER = torch.linspace(0.02, 0.98, 25, dtype=torch.float64)


def named(path):
    return type(path).__name__


def pair(shape=(25, 3, 2, 2), seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2)]


@pytest.mark.parametrize("path", PATHS, ids=named)
def test_a_path_leads_from_noise_to_data(path):
    x_1, x_0 = pair()
    t = torch.zeros(len(x_1), dtype=torch.float64)
    at_noise, at_data = path.sample(x_1, x_0, t), path.sample(x_1, x_0, t + 1)
    # The VP path keeps alpha(0) = exp(-5.025) = 0.0066 of the data.
    leftover = 0.0066 * x_1.abs().max() if isinstance(path, VPPath) else 1e-12
    assert (at_noise.x_t - x_0).abs().max() <= leftover
    torch.testing.assert_close(at_data.x_t, x_1, rtol=0, atol=1e-12)


@pytest.mark.parametrize("path", PATHS, ids=named)
def test_velocity_is_the_time_derivative(path):
    x_1, x_0 = pair()
    _, derivative = torch.func.jvp(lambda t: path.sample(x_1, x_0, t).x_t, (INNER,), (torch.ones_like(INNER),))
    torch.testing.assert_close(path.sample(x_1, x_0, INNER).velocity, derivative, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("path", PATHS, ids=named)
def test_coefficients_are_derivatives_of_each_other(path):
    ones = torch.ones_like(INNER)
    _, d_alpha = torch.func.jvp(path.alpha, (INNER,), (ones,))
    _, d_sigma = torch.func.jvp(path.sigma, (INNER,), (ones,))
    _, d_log_alpha = torch.func.jvp(lambda t: path.alpha(t).log(), (INNER,), (ones,))
    _, d_log_ratio = torch.func.jvp(lambda t: (path.alpha(t) / path.sigma(t)).log(), (INNER,), (ones,))
    torch.testing.assert_close(path.d_alpha(INNER), d_alpha, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(path.d_sigma(INNER), d_sigma, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(path.d_log_alpha(INNER), d_log_alpha, rtol=1e-10, atol=1e-12)
    # (alpha'/alpha) sigma^2 - sigma sigma' = sigma^2 d/dt log(alpha / sigma)
    expected = path.sigma(INNER).square() * d_log_ratio
    torch.testing.assert_close(path.score_coefficient(INNER), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("path", [GVPPath(), VPPath()], ids=named)
def test_variance_is_preserved(path):
    total = path.alpha(INNER).square() + path.sigma(INNER).square()
    torch.testing.assert_close(total, torch.ones_like(total), rtol=0, atol=1e-14)


def test_vp_keeps_its_digits_near_the_data():
    t = torch.tensor([1 - 1e-5])
    # sigma^2 = 1 - exp(-2e), e = tau^2 19.9 / 4 + tau 0.1 / 2; 1 - alpha^2 would lose five of seven digits.
    tau = 1 - t.double()
    exact = (-torch.expm1(-(tau.square() * 19.9 / 2 + tau * 0.1))).sqrt()
    torch.testing.assert_close(VPPath().sigma(t).double(), exact, rtol=1e-6, atol=0)


@pytest.mark.parametrize("path", PATHS, ids=named)
@pytest.mark.parametrize("prediction", ["velocity", "noise", "score"])
def test_every_prediction_implies_all_others(path, prediction):
    flow = GaussianFlow(path)
    _, x = pair()
    output = getattr(flow, prediction)(x, INNER)
    for convert, truth in [
        (to_velocity, flow.velocity),
        (to_score, flow.score),
        (to_noise, flow.noise),
        (to_data, flow.data),
    ]:
        actual = convert(output, x, INNER, path, prediction)
        torch.testing.assert_close(actual, truth(x, INNER), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("path", PATHS, ids=named)
def test_a_velocity_gives_a_score_even_at_pure_noise(path):
    flow = GaussianFlow(path)
    _, x = pair()
    score = to_score(flow.velocity(x, 0.0), x, 0.0, path, "velocity")
    torch.testing.assert_close(score, flow.score(x, 0.0), rtol=1e-9, atol=1e-9)


def test_velocity_field_converts_and_counts():
    path = VPPath()
    flow = GaussianFlow(path)
    _, x = pair()
    field = VelocityField(flow.noise, path, "noise")
    torch.testing.assert_close(field(x, 0.3), flow.velocity(x, 0.3), rtol=1e-9, atol=1e-9)
    field(x, 0.4)
    assert field.nfe == 2


@pytest.mark.parametrize("path", PATHS, ids=named)
@pytest.mark.parametrize("form", ["constant", "sbdm", "sigma", "linear", "decreasing", "increasing-decreasing"])
def test_diffusion_is_never_negative_and_grows_with_its_norm(path, form):
    weak, strong = (diffusion_coefficient(path, INNER, form, norm) for norm in (0.5, 1.0))
    assert (weak >= 0).all()
    middle = len(INNER) // 4  # t = 0.26: before the cosine of "decreasing" turns negative
    assert strong[middle] > weak[middle]


def test_mistakes_are_explained():
    x = torch.zeros(2, 3)
    with pytest.raises(InputError, match="one time per sample"):
        LinearPath().sample(x, x, torch.zeros(3))
    with pytest.raises(InputError, match="shape of the data"):
        LinearPath().sample(x, x[:1], torch.zeros(2))
    with pytest.raises(InputError, match="Did you mean 'noise'"):
        VelocityField(lambda x, t: x, LinearPath(), "noize")
    with pytest.raises(InputError, match="Did you mean 'increasing-decreasing'"):
        diffusion_coefficient(LinearPath(), x, "inccreasing-decreasing")
