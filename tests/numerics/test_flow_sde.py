"""The SDE against the closed form of a Gaussian flow: the right distribution, and the right order without noise."""

import math

import pytest
import torch

from alight.flow import GVPPath, LinearPath, VPPath, diffusion_coefficient, solve_ode, solve_sde, time_grid
from alight.runtime.errors import InputError
from helpers.draws import seeded
from helpers.gaussian_flow import GaussianFlow

PATHS = [LinearPath(), GVPPath(), VPPath()]
FORMS = ["constant", "sbdm", "sigma", "linear", "decreasing", "increasing-decreasing"]
N = 20_000


def named(path):
    return type(path).__name__


def noise(shape=(1, N), dtype=torch.float64):
    return torch.randn(shape, generator=seeded(), dtype=dtype)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("path", PATHS, ids=named)
def test_every_diffusion_ends_in_the_data_distribution(path, form):
    """The strength of the noise is free: each choice has the marginals of the ODE."""
    flow = GaussianFlow(path)
    solution = solve_sde(
        flow.velocity,
        noise(),
        100,
        "heun",
        path=path,
        diffusion_form=form,
        last_step="tweedie",
        last_step_size=0.02,
        eps=0.02,
        generator=seeded(1),
    )
    # The last step jumps to E[x_1 | x_t], whose variance is smaller than that of the data by a known factor.
    t = torch.tensor(0.98, dtype=torch.float64)
    expected = path.alpha(t) * flow.scale**2 / flow.variance(t).sqrt()
    # 20,000 samples know a standard deviation to 0.5 %; 100 steps bias it by less than 2 %.
    assert solution.x.std().item() == pytest.approx(expected.item(), rel=0.035)
    assert abs(solution.x.mean().item()) < 5 * expected / math.sqrt(N)


@pytest.mark.parametrize("shift", [None, 0.4, 2.0])
def test_the_variance_is_right_at_every_point_of_the_grid(shift):
    flow = GaussianFlow(LinearPath())
    settings = {"path": LinearPath(), "last_step_size": 0.004, "generator": seeded(1), "return_trajectory": True}
    solution = solve_sde(flow.velocity, noise(), 250, "heun", shift, **settings)
    times = time_grid(249, shift, *solution.interval).double()
    found = solution.trajectory[:-1].flatten(1).std(dim=1)
    # 20,000 samples know a standard deviation to 0.5 %; the steps bias it by less than 1 %.
    torch.testing.assert_close(found, flow.variance(times).sqrt(), rtol=0.03, atol=0)


@pytest.mark.parametrize("prediction", ["velocity", "noise", "score"])
@pytest.mark.parametrize("last_step", ["mean", "tweedie", "euler", None])
def test_defaults_sample_the_data(prediction, last_step):
    flow = GaussianFlow(LinearPath())
    solution = solve_sde(
        getattr(flow, prediction),
        noise(),
        150,
        path=LinearPath(),
        prediction=prediction,
        last_step=last_step,
        generator=seeded(1),
    )
    # The sampling error is 0.5 %; steps of 0.006 and the last one of 0.04 cost one or two percent each.
    assert solution.x.std().item() == pytest.approx(flow.scale, rel=0.04)


@pytest.mark.parametrize(("method", "order"), [("euler", 1), ("heun", 2)])
@pytest.mark.parametrize("path", PATHS, ids=named)
def test_order_of_the_drift(path, method, order):
    """With zeros for noise only the drift is left: dx/dt = velocity + D score, here linear in x and so known."""
    flow = GaussianFlow(path)
    x = torch.tensor([[1.0], [-0.7]], dtype=torch.float64)

    def end(steps):
        zeros = torch.zeros(steps, *x.shape, dtype=torch.float64)
        settings = {"diffusion_form": "sigma", "last_step": None, "eps": 0.1}
        return solve_sde(flow.velocity, x, steps, method, path=path, noise=zeros, **settings)

    def drift(x, t):
        time = torch.tensor(t, dtype=torch.float64)
        return flow.velocity(x, t) + diffusion_coefficient(path, time, "sigma") * flow.score(x, t)

    interval = end(2).interval
    truth = solve_ode(drift, x, 320, "rk4", t_0=interval.start, t_1=interval.end).x  # order 4: exact in comparison
    coarse, fine = ((end(steps).x - truth).abs().max().item() for steps in (80, 160))
    assert math.log2(coarse / fine) == pytest.approx(order, abs=0.25)


def test_the_variance_of_one_step():
    """Euler-Maruyama by hand: x + drift dt + sqrt(2 D dt) w at t = 0, where D = sigma(0) = 1 and the score is -x."""
    flow = GaussianFlow(LinearPath())
    x, w = noise((3, 2)), noise((1, 3, 2))
    solution = solve_sde(
        flow.velocity, x, 1, path=LinearPath(), last_step=None, eps=0.5, noise=w, return_trajectory=True
    )
    by_hand = x + 0.5 * (flow.velocity(x, 0.0) - x) + math.sqrt(2 * 0.5) * w[0]
    torch.testing.assert_close(solution.x, by_hand)
    assert torch.equal(solution.trajectory, torch.stack([x, solution.x]))


@pytest.mark.parametrize("method", ["euler", "heun"])
@pytest.mark.parametrize("last_step", ["mean", "tweedie", "euler", None])
def test_cost_is_reported(method, last_step):
    flow, calls, steps = GaussianFlow(LinearPath()), [], []
    solution = solve_sde(
        lambda x, t: calls.append(t) or flow.velocity(x, t),
        noise((2, 3)),
        8,
        method,
        path=LinearPath(),
        last_step=last_step,
        generator=seeded(),
        return_trajectory=True,
        on_step=lambda index, x: steps.append(index),
    )
    noisy = 8 - (last_step is not None)
    assert solution.steps == 8
    assert steps == list(range(1, 9))
    assert solution.nfe == len(calls) == noisy * {"euler": 1, "heun": 2}[method] + (last_step is not None)
    assert solution.trajectory.shape == (9, 2, 3)
    assert solution.interval.end == (1 - 1e-3 if last_step is None else 1 - 0.04)


def test_no_diffusion_is_the_ode():
    flow, x = GaussianFlow(LinearPath()), noise((4, 3))
    solution = solve_sde(
        flow.velocity, x, 20, path=LinearPath(), diffusion_norm=0.0, last_step=None, generator=seeded()
    )
    ode = solve_ode(flow.velocity, x, 20, t_0=solution.interval.start, t_1=solution.interval.end)
    torch.testing.assert_close(solution.x, ode.x, rtol=1e-9, atol=1e-12)


def test_sample_i_depends_on_generator_i_alone():
    flow, x = GaussianFlow(LinearPath()), noise((3, 2, 2))

    def sample(rows):
        generators = [seeded(row) for row in rows]
        return solve_sde(flow.velocity, x[rows], 10, path=LinearPath(), generator=generators).x

    assert torch.equal(sample([0, 1, 2])[1:], sample([1, 2]))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "huen"}, "Did you mean 'heun'"),
        ({"last_step": "tweedy"}, "Did you mean 'tweedie'"),
        ({"diffusion_form": "SBDM"}, "Unknown diffusion form"),
        ({"diffusion_form": "sbdm", "eps": 0.0}, "Leave eps at None"),
        ({"last_step": None, "eps": 0.0}, "Leave eps at None"),
        ({"num_inference_steps": 1}, "at least 2"),
        ({"noise": torch.zeros(3, 2, 2)}, "one draw per noisy step"),
        ({"last_step_size": 1.5}, "leave no time"),
    ],
)
def test_mistakes_are_explained(settings, message):
    settings = {"num_inference_steps": 10, "path": LinearPath()} | settings
    with pytest.raises(InputError, match=message):
        solve_sde(lambda x, t: x, torch.zeros(2, 2), **settings)
