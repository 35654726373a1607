"""Solvers against differential equations with known answers: the order of each, its cost, and what jumps do to it."""

import math
from itertools import pairwise

import pytest
import torch

from alight.flow import SOLVERS, euler, solve_ode
from alight.flow.solvers import adams_bashforth2
from alight.runtime.errors import InputError

ONCE = {"euler": 1, "ab2": 2, "ucgm": 1}  # order of the solvers with one evaluation per step
RUNGE_KUTTA = {"midpoint": 2, "heun": 2, "heun2": 2, "heun3": 3, "rk4": 4, "rk4_classic": 4}  # as many as the order
ORDERS = ONCE | RUNGE_KUTTA
EVALUATIONS = dict.fromkeys(ONCE, 1) | RUNGE_KUTTA
ADAPTIVE = ("dopri5", "dopri8", "bosh3", "fehlberg2", "adaptive_heun")
ADAMS = ("explicit_adams", "implicit_adams")

START = torch.tensor([[0.2], [0.5], [-0.4]], dtype=torch.float64)


def field(x, t):
    """dx/dt = x^2 cos t: neither linear nor free of t, so that every order condition counts."""
    return x.square() * math.cos(t)


def exact(x, t_0=0.0, t_1=1.0):
    return 1 / (1 / x - math.sin(t_1) + math.sin(t_0))


def error(solver, steps, **settings):
    solution = solve_ode(field, START, steps, solver, **settings)
    return (solution.x - exact(START)).abs().max().item()


def test_every_solver_is_tested_here():
    assert set(SOLVERS) == {*ORDERS, *ADAPTIVE, *ADAMS}


@pytest.mark.parametrize("solver", ORDERS)
@pytest.mark.parametrize("shift", [None, 0.3])
def test_order_of_convergence(solver, shift):
    """Halving the steps divides the error by 2^order, on even and uneven grids."""
    coarse, fine = (error(solver, steps, timestep_shift=shift) for steps in (80, 160))
    # Errors stay above 3e-12, float64 rounds at 1e-16; the next order still changes the exponent a little.
    assert math.log2(coarse / fine) == pytest.approx(ORDERS[solver], abs=0.2)


@pytest.mark.parametrize("solver", ORDERS)
def test_cost_is_reported(solver):
    calls = []
    solution = solve_ode(lambda x, t: calls.append(t) or field(x, t), START, 7, solver)
    assert solution.steps == 7
    assert solution.nfe == len(calls) == 7 * EVALUATIONS[solver]


@pytest.mark.parametrize("solver", ADAPTIVE)
def test_adaptive_solvers_meet_their_tolerance(solver):
    loose, tight = (error(solver, 1, rtol=rtol, atol=rtol) for rtol in (1e-4, 1e-6))
    # The tolerance holds per step; interpolating back to t = 1 from the step that went beyond it costs more.
    assert loose < 1e-2
    assert tight < 1e-4
    assert tight < loose


@pytest.mark.parametrize("solver", ADAPTIVE)
def test_adaptive_solvers_report_what_they_did(solver):
    calls = []
    solution = solve_ode(lambda x, t: calls.append(t) or field(x, t), START, 1, solver)
    assert solution.nfe == len(calls)
    assert 1 <= solution.steps < len(calls)


@pytest.mark.parametrize("solver", ADAMS)
def test_adams_methods_of_torchdiffeq(solver):
    # The explicit one of torchdiffeq gets no better than 1e-4, however small its steps.
    assert error(solver, 80) < {"explicit_adams": 5e-4, "implicit_adams": 1e-8}[solver]
    assert solve_ode(field, START, 80, solver).steps == 80


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_straight_flow_takes_one_step(solver):
    """A constant velocity is integrated exactly by every consistent method."""
    velocity = torch.tensor([[1.0], [-2.0], [0.5]], dtype=torch.float64)
    x = solve_ode(lambda x, t: velocity, START, 1, solver).x
    torch.testing.assert_close(x, START + velocity, rtol=0, atol=1e-9)


@pytest.mark.parametrize("solver", ["heun2", "rk4", "ab2", "dopri5"])
def test_there_and_back_again(solver):
    settings = {"rtol": 1e-8, "atol": 1e-8}
    there = solve_ode(field, START, 200, solver, t_0=0.1, t_1=0.9, **settings).x
    torch.testing.assert_close(there, exact(START, 0.1, 0.9), rtol=0, atol=2e-6)
    back = solve_ode(field, there, 200, solver, t_0=0.9, t_1=0.1, **settings).x
    torch.testing.assert_close(back, START, rtol=0, atol=4e-6)


@pytest.mark.parametrize("solver", ["euler", "rk4", "ab2", "dopri5"])
def test_trajectory_stands_on_the_time_grid(solver):
    done = []
    solution = solve_ode(
        field, START, 50, solver, rtol=1e-6, return_trajectory=True, on_step=lambda index, x: done.append(index)
    )
    assert solution.trajectory.shape == (51, *START.shape)
    assert torch.equal(solution.trajectory[0], START)
    assert torch.equal(solution.trajectory[-1], solution.x)
    assert done == list(range(1, 51))
    # Euler's error after half the way is below 2e-3 at 50 steps, and a step is 1e-2 long; the others are better.
    torch.testing.assert_close(solution.trajectory[25], exact(START, 0, 0.5), rtol=0, atol=2e-3)
    assert solve_ode(field, START, 50, solver).trajectory is None


def test_euler_is_a_generator_of_states():
    states = list(euler(field, START, [0.0, 0.5, 1.0]))
    first = START + 0.5 * field(START, 0.0)
    torch.testing.assert_close(states[0], first)
    torch.testing.assert_close(states[1], first + 0.5 * field(first, 0.5))


@pytest.mark.parametrize("solver", ["heun2", "ab2"])
def test_gradients_flow_through(solver):
    start = START.clone().requires_grad_()
    solve_ode(field, start, 400, solver).x.sum().backward()
    # d/dx of 1 / (1/x - c) is (end / x)^2; second-order methods at 400 steps are good to 1e-5.
    torch.testing.assert_close(start.grad, (exact(START) / START).square(), rtol=1e-5, atol=0)


@pytest.mark.parametrize("solver", ["dopri5", "explicit_adams"])
def test_solvers_without_gradients_say_so(solver):
    with pytest.raises(InputError, match="fixed-step"):
        solve_ode(field, START.clone().requires_grad_(), 10, solver)


def test_adams_bashforth_is_exact_for_linear_velocities_on_any_grid():
    """The line through the last two velocities is the velocity itself: only the first, Euler step is wrong."""
    times = [0.0, 0.1, 0.15, 0.5, 0.55, 1.0]
    states = list(adams_bashforth2(lambda x, t: torch.tensor(2 * t), torch.tensor(0.0), times))
    moved = [(after - before).item() for before, after in pairwise(states)]
    assert moved == pytest.approx([b**2 - a**2 for a, b in pairwise(times[1:])], abs=1e-6)


class Jump:
    """dx/dt = x before t = 0.5 and -2x from there on, as where guidance starts; tells its breakpoint or hides it."""

    def __init__(self, told):
        self.times = []
        if told:
            self.breakpoints = (0.5,)

    def __call__(self, x, t):
        self.times.append(t)
        return x if t < 0.5 else -2 * x


END_OF_JUMP = START * math.exp(0.5 - 2 * 0.5)


def test_adams_bashforth_starts_afresh_after_a_jump():
    def jump_error(told, steps):
        return (solve_ode(Jump(told), START, steps, "ab2").x - END_OF_JUMP).abs().max().item()

    assert math.log2(jump_error(True, 20) / jump_error(True, 40)) == pytest.approx(2, abs=0.25)
    assert math.log2(jump_error(False, 20) / jump_error(False, 40)) < 1.5  # the jump spoils the order
    assert jump_error(True, 40) < 0.5 * jump_error(False, 40)


@pytest.mark.parametrize("solver", ["dopri5", "bosh3"])
def test_adaptive_solvers_land_on_a_jump(solver):
    told, hidden = Jump(True), Jump(False)
    solution = solve_ode(told, START, 1, solver, rtol=1e-6)
    torch.testing.assert_close(solution.x, END_OF_JUMP, rtol=0, atol=2e-4)  # as without a jump, see above
    assert min(abs(t - 0.5) for t in told.times) < 1e-12
    assert solution.nfe < solve_ode(hidden, START, 1, solver, rtol=1e-6).nfe  # no steps rejected in search of it


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"solver": "huen"}, "Did you mean 'heun'"),
        ({"solver": "dopri"}, "Did you mean 'dopri"),
        ({"num_inference_steps": 0}, "at least one step"),
        ({"timestep_shift": 0.0}, "None to switch it off"),
        ({"timestep_shift": -0.3}, "positive"),
        ({"t_0": 0.4, "t_1": 0.4}, "two different times"),
        ({"t_1": 1.2}, "two different times"),
    ],
)
def test_mistakes_are_explained(settings, message):
    with pytest.raises(InputError, match=message):
        solve_ode(field, START, **{"num_inference_steps": 10} | settings)
