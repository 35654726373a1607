"""Average velocities: the identity, the target and the solver against the closed form of a Gaussian flow."""

import math

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from alight.flow import (
    GuidedVelocity,
    GVPPath,
    LinearPath,
    SolverOptions,
    average_velocity_loss,
    average_velocity_target,
    sample,
    solve_mean,
)
from alight.flow.average_velocity import long_rows
from alight.runtime.errors import InputError
from helpers.gaussian_flow import GaussianFlow
from helpers.models import tiny_transformer

LABELS = torch.zeros(6, dtype=torch.long)


def column(t, x):
    return t.reshape(-1, *[1] * (x.dim() - 1))


class ExactAverage:
    """The closed form, x (sqrt(var(r) / var(t)) - 1) / (r - t), and the velocity where r = t."""

    def __init__(self, path=LinearPath(), scale=0.5):  # noqa: B008
        self.flow = GaussianFlow(path, scale)

    def variance(self, t):
        return (self.flow.path.alpha(t) * self.flow.scale).square() + self.flow.path.sigma(t).square()

    def __call__(self, x, t, class_labels=None, until=None):
        if until is None:
            return self.flow.velocity(x, t)
        length = until - t
        moved = (self.variance(until) / self.variance(t)).sqrt() - 1
        return torch.where(column(length == 0, x), self.flow.velocity(x, t), x * column(moved / length, x))


def draws(seed=0, count=6, shape=(3, 2, 2), dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, *shape, generator=generator, dtype=dtype)
    times = torch.rand(2, count, generator=generator, dtype=dtype).sort(dim=0).values
    return x, times[0], times[1]


# --- the identity -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [LinearPath(), GVPPath()])
@pytest.mark.parametrize("scale", [0.3, 1.0, 2.5])
def test_the_exact_average_obeys_the_identity(path, scale):
    exact = ExactAverage(path, scale)
    x, t, until = draws()
    target = average_velocity_target(exact, x, t, until, LABELS, exact(x, t))
    torch.testing.assert_close(target, exact(x, t, until=until), rtol=1e-11, atol=1e-11)


def test_the_average_of_no_time_is_the_velocity():
    exact = ExactAverage()
    x, t, _ = draws()
    near = exact(x, t, until=t + 1e-6)
    torch.testing.assert_close(near, exact(x, t), rtol=1e-5, atol=1e-5)
    assert torch.equal(exact(x, t, until=t), exact(x, t))


def test_the_target_with_single_pairs_has_the_exact_average_as_its_mean():
    """At one point x_t, the pairs that lead through it are Gaussian; their velocities scatter, the mean does not."""
    exact, path = ExactAverage(scale=0.7), LinearPath()
    count, t, until = 200_000, 0.4, 0.9
    generator = torch.Generator().manual_seed(1)
    spread = math.sqrt((t * 0.7) ** 2 + (1 - t) ** 2)
    x_t = torch.tensor(0.8, dtype=torch.float64)
    gain, deviation = t * 0.7**2 / spread**2, 0.7 * (1 - t) / spread
    x_1 = gain * x_t + deviation * torch.randn(count, 1, generator=generator, dtype=torch.float64)
    x_0 = (x_t - t * x_1) / (1 - t)
    times = torch.full((count,), t, dtype=torch.float64)
    ends, labels = torch.full_like(times, until), torch.zeros(count, dtype=torch.long)
    loss = average_velocity_loss(exact, x_1, labels, path=path, t=times, until=ends, x_0=x_0)
    expected = exact(x_t.reshape(1, 1), times[:1], until=ends[:1])
    error = loss.target.mean() - expected.squeeze()
    assert abs(error) < 4 * loss.target.std() / math.sqrt(count)
    assert loss.target.std() > 0.1


# --- the loss -----------------------------------------------------------------------------------------------------


def network(x, t, class_labels, until=None):
    """A smooth function of everything, without weights."""
    step = torch.zeros_like(t) if until is None else until - t
    return torch.sin(x) * column(1 + t**2 + class_labels, x) + column(torch.cos(step), x) * x.flip(1)


def batch(seed=3):
    x_1, t, until = draws(seed)
    x_0, *_ = draws(seed + 1)
    return x_1, x_0, t, torch.where(torch.arange(6) % 2 == 0, t, until)


def test_steps_without_length_are_flow_matching():
    x_1, x_0, t, _ = batch()
    loss = average_velocity_loss(network, x_1, LABELS, path=LinearPath(), t=t, until=t, x_0=x_0, adaptive_power=0.0)
    assert torch.equal(loss.target, x_1 - x_0)
    squared = (network(LinearPath().sample(x_1, x_0, t).x_t, t, LABELS) - (x_1 - x_0)).square()
    torch.testing.assert_close(loss.total, squared.flatten(1).sum(1).mean())
    torch.testing.assert_close(loss.mse, squared.mean())


@pytest.mark.parametrize("power", [0.5, 1.0])
def test_the_weight_is_held_fixed(power):
    """The gradient is that of the squared error, divided by (error + 0.01)^p of each row."""
    x_1, x_0, t, until = batch()
    factor = torch.ones((), dtype=torch.float64, requires_grad=True)

    def scaled(*inputs, **later):
        return factor * network(*inputs, **later)

    loss = average_velocity_loss(
        scaled, x_1, LABELS, path=LinearPath(), t=t, until=until, x_0=x_0, adaptive_power=power
    )
    (gradient,) = torch.autograd.grad(loss.total, factor)
    error = (loss.prediction - loss.target).detach()
    squared = error.square().flatten(1).sum(1)
    by_hand = (2 * error * loss.prediction.detach()).flatten(1).sum(1) / (squared + 0.01) ** power
    torch.testing.assert_close(gradient, by_hand.mean())
    torch.testing.assert_close(loss.total.detach(), (squared / (squared + 0.01) ** power).mean())
    assert not loss.target.requires_grad


def test_guidance_is_part_of_the_velocity():
    x_1, x_0, t, until = batch()
    labels = torch.tensor([0, 1, 0, 1, 2, 2])
    point = LinearPath().sample(x_1, x_0, t)
    null = torch.full_like(labels, 2)
    guided = 2.5 * point.velocity - 1.5 * network(point.x_t, t, null)
    guided = torch.where(column(labels == 2, x_1), point.velocity, guided)
    expected = average_velocity_target(network, point.x_t, t, until, labels, guided)
    settings = {"path": LinearPath(), "t": t, "until": until, "x_0": x_0}
    loss = average_velocity_loss(network, x_1, labels, **settings, guidance_scale=2.5, null_label=2)
    torch.testing.assert_close(loss.target, expected)
    without = average_velocity_loss(network, x_1, labels, **settings)
    torch.testing.assert_close(
        without.target, average_velocity_target(network, point.x_t, t, until, labels, point.velocity)
    )


@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
def test_a_known_number_of_long_steps_changes_nothing(share):
    x_1, x_0 = torch.randn(2, 50, 3, 2, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    t, until = torch.rand(2, 50, generator=torch.Generator().manual_seed(1)).double().sort(dim=0).values
    until = torch.where(torch.rand(50, generator=torch.Generator().manual_seed(2)) < share, until, t)
    rows = long_rows(t, until)
    assert torch.equal(long_rows(t, until, len(rows)), rows)
    assert len(rows) == int((until != t).sum())
    settings = {"path": LinearPath(), "t": t, "until": until, "x_0": x_0}
    labels = torch.zeros(50, dtype=torch.long)
    asked, known = (
        average_velocity_loss(network, x_1, labels, **settings, num_long=num_long) for num_long in (None, len(rows))
    )
    assert torch.equal(asked.target, known.target)
    assert torch.equal(asked.total, known.total)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"guidance_scale": -1.0, "null_label": 2}, "must not be negative"),
        ({"guidance_scale": float("nan"), "null_label": 2}, "must not be negative"),
        ({"guidance_scale": 2.0}, "null class"),
        ({"adaptive_power": 1.5}, "between 0 and 1"),
        ({"until": torch.ones(2)}, "starts and ends"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    x_1, x_0, t, until = batch()
    with pytest.raises(InputError, match=message):
        average_velocity_loss(
            network, x_1, LABELS, **{"path": LinearPath(), "t": t, "until": until, "x_0": x_0} | settings
        )


# --- the model ----------------------------------------------------------------------------------------------------


def test_the_derivative_of_the_model_equals_finite_differences():
    model = tiny_transformer(interval_embedding=True, num_layers=2, qk_norm=True).double()
    x, t, until = draws(shape=(4, 4, 4))
    velocity, labels, h = torch.randn_like(x), torch.arange(6), 1e-5
    with sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        target = average_velocity_target(model, x, t, until, labels, velocity)
        ahead, behind = (model(x + s * velocity, t + s, labels, until=until) for s in (h, -h))
    rate = (ahead - behind) / (2 * h)
    torch.testing.assert_close(target, velocity + column(until - t, x) * rate, rtol=1e-7, atol=1e-7)
    assert rate.abs().max() > 0.1


# --- the solver ---------------------------------------------------------------------------------------------------


def field(exact):
    def average(x, t, until):
        times = (torch.full((len(x),), value, dtype=torch.float64) for value in (t, until))
        start, end = times
        return exact(x, start, until=end)

    return average


@pytest.mark.parametrize("steps", [1, 2, 4])
@pytest.mark.parametrize("shift", [None, 0.3])
def test_steps_of_any_length_land_exactly(steps, shift):
    exact, (x, *_) = ExactAverage(), draws()
    solution = solve_mean(field(exact), x, steps, shift)
    torch.testing.assert_close(solution.x, exact.flow.transport(x, 0.0, 1.0), rtol=1e-6, atol=1e-6)  # float32 times
    assert (solution.nfe, solution.steps) == (steps, steps)
    kept = solve_mean(field(exact), x, steps, shift, return_trajectory=True).trajectory
    assert kept.shape == (steps + 1, *x.shape)


def test_two_steps_after_one_another_are_the_long_step():
    exact, (x, *_) = ExactAverage(scale=2.0), draws()
    middle = solve_mean(field(exact), x, 1, t_0=0.125, t_1=0.5).x
    torch.testing.assert_close(
        solve_mean(field(exact), middle, 1, t_0=0.5, t_1=0.875).x,
        solve_mean(field(exact), x, 1, t_0=0.125, t_1=0.875).x,
        rtol=1e-13,
        atol=1e-13,
    )
    back = solve_mean(field(exact), middle, 1, t_0=0.5, t_1=0.125).x
    torch.testing.assert_close(back, x, rtol=1e-13, atol=1e-13)


def test_sampling_finds_the_solver_and_its_cost():
    model = tiny_transformer(interval_embedding=True)
    labels, noise = torch.tensor([1, 2]), torch.randn(2, 4, 4, 4)
    seen = []
    with torch.no_grad():
        velocity = GuidedVelocity(model, labels)
        found = sample(
            velocity, noise, 2, "mean", SolverOptions(0.5), path=LinearPath(), on_step=lambda *step: seen.append(step)
        )
        x, middle = noise, 1 / 3  # of an even step, shifted by 0.5
        for t, until in ((0.0, middle), (middle, 1.0)):
            x = x + (until - t) * model(x, torch.full((2,), t), labels, until=torch.full((2,), until))
    torch.testing.assert_close(found.x, x)
    assert found.nfe == velocity.nfe == 2
    assert [number for number, _ in seen] == [1, 2]


def test_few_steps_are_refused_where_they_cannot_be():
    labels, noise = torch.tensor([1, 2]), torch.randn(2, 4, 4, 4)
    plain, able = tiny_transformer(), tiny_transformer(interval_embedding=True)
    with pytest.raises(InputError, match="interval embedding"):
        sample(GuidedVelocity(plain, labels), noise, 1, "mean", path=LinearPath())
    with pytest.raises(InputError, match="at least one step"):
        sample(GuidedVelocity(able, labels), noise, 0, "mean", path=LinearPath())
    with pytest.raises(InputError, match="average velocities, not a noise"):
        sample(GuidedVelocity(able, labels), noise, 1, "mean", path=LinearPath(), prediction="noise")
    guided = GuidedVelocity(able, labels, torch.full_like(labels, 10), 2.0)
    with pytest.raises(InputError, match="takes no guidance"):
        sample(guided, noise, 1, "mean", path=LinearPath())
