"""History extrapolation and its time grid against closed forms: orders, the identity at kappa = 0, and the grid."""

import math

import pytest
import torch

from alight.flow import LinearPath, history_extrapolation, kumaraswamy_grid, solve_ode, time_grid
from alight.options import PUBLISHED_WARP
from alight.runtime.errors import InputError
from helpers.gaussian_flow import GaussianFlow

START = torch.tensor([[0.7], [-1.3]], dtype=torch.float64)


def error(kappa, steps):
    """The signed error for Gaussian data, whose flow multiplies the noise by the standard deviation of the data."""
    flow = GaussianFlow(LinearPath())
    found = solve_ode(flow.velocity, START, steps, "ucgm", kappa=kappa).x
    return (found / START - flow.scale).mean().item()


@pytest.mark.parametrize(("kappa", "order"), [(0.0, 1), (1 / 3, 2), (0.5, 1)])
def test_order_of_convergence(kappa, order):
    coarse, fine = (abs(error(kappa, steps)) for steps in (160, 320))
    assert math.log2(coarse / fine) == pytest.approx(order, abs=0.2)


def test_the_published_kappa_overshoots_as_far_as_euler_falls_behind():
    assert error(0.5, 320) / error(0.0, 320) == pytest.approx(-1, abs=0.1)


def test_the_corrected_step_is_of_second_order():
    flow = GaussianFlow(LinearPath())

    def gap(steps):
        times = torch.linspace(0.2, 0.95, steps + 1, dtype=torch.float64).tolist()
        *_, found = history_extrapolation(flow.velocity, START, times, kappa=0, corrected=True)
        return (found - flow.transport(START, 0.2, 0.95)).abs().max().item()

    assert math.log2(gap(80) / gap(160)) == pytest.approx(2, abs=0.1)


@pytest.mark.parametrize("grid", [{}, {"timestep_shift": 0.3}, {"time_warp": PUBLISHED_WARP}])
def test_without_kappa_it_is_the_method_of_euler(grid):
    flow = GaussianFlow(LinearPath())
    found, expected = (solve_ode(flow.velocity, START, 9, solver, kappa=0, **grid).x for solver in ("ucgm", "euler"))
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("solver", ["euler", "heun", "ab2", "rk4"])
def test_every_solver_arrives_on_a_warped_grid(solver):
    flow = GaussianFlow(LinearPath())
    found = solve_ode(flow.velocity, START, 800, solver, time_warp=PUBLISHED_WARP).x
    torch.testing.assert_close(found, START * flow.scale, rtol=5e-3, atol=0)


def test_a_warp_by_ones_is_even_and_by_one_exponent_a_power():
    torch.testing.assert_close(kumaraswamy_grid(5, 1, 1, 1), torch.linspace(0.001, 0.999, 5))
    torch.testing.assert_close(kumaraswamy_grid(5, 2, 1, 1), torch.linspace(0.001, 0.999, 5) ** 2)


def test_the_grid_ends_at_the_data():
    times = time_grid(50, warp=PUBLISHED_WARP)
    assert len(times) == 51
    assert times[-1] == 1
    assert (times.diff() > 0).all()


@pytest.mark.parametrize(
    "arguments",
    [
        (0, 1, 1, 1),
        (5, 0, 1, 1),
        (5, 1, -1, 1),
        (5, 1, 1, float("nan")),
        (5, 1, 1, 1, (0.5, 0.5)),
        (5, 1, 1, 1, (-0.1, 0)),
    ],
)
def test_a_grid_that_makes_no_sense_is_refused(arguments):
    with pytest.raises(InputError, match="time warp"):
        kumaraswamy_grid(*arguments)


@pytest.mark.parametrize("beside", [{"timestep_shift": 0.3}, {"t_0": 0.1}, {"t_0": 1.0, "t_1": 0.0}])
def test_a_warp_beside_a_shift_or_another_range_is_refused(beside):
    with pytest.raises(InputError, match="time warp"):
        solve_ode(lambda x, t: x, START, 5, "euler", time_warp=PUBLISHED_WARP, **beside)
