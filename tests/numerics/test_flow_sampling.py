"""The one way from noise to latents: the solver's name decides, and the options reach what they are for."""

import pytest
import torch

from alight.flow import SOLVERS, LinearPath, SolverOptions, VPPath, sample, solve_ode, solve_sde, time_interval
from alight.flow.solvers import FIXED_STEP
from alight.options import ADAPTIVE_SOLVERS, ODE_SOLVERS, SDE_SOLVERS
from alight.runtime.errors import InputError


def field(x, t):
    return (0.3 - t) * x + 0.5


def noise():
    return torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))


def test_every_name_has_a_solver_and_every_solver_a_name():
    assert set(ODE_SOLVERS) == set(SOLVERS)
    assert set(FIXED_STEP) == set(ODE_SOLVERS) - set(ADAPTIVE_SOLVERS)


@pytest.mark.parametrize("solver", ODE_SOLVERS)
@pytest.mark.parametrize("shift", [None, 1.0, 0.3])
def test_the_ode_is_that_of_its_solver(solver, shift):
    found = sample(field, noise(), 6, solver, SolverOptions(shift), path=LinearPath())
    expected = solve_ode(field, noise(), 6, solver, None if shift == 1 else shift)
    assert torch.equal(found.x, expected.x)
    assert found.nfe == expected.nfe


def test_a_singular_end_is_left_out():
    path = VPPath()
    start, end = time_interval(path, "velocity")
    assert end < 1
    found = sample(field, noise(), 4, path=path)
    assert torch.equal(found.x, solve_ode(field, noise(), 4, t_0=start, t_1=end).x)


@pytest.mark.parametrize("solver", SDE_SOLVERS)
def test_the_sde_is_that_of_its_method(solver):
    chosen = {"timestep_shift": 0.4, "diffusion_form": "linear", "last_step": "tweedie", "last_step_size": 0.004}
    path = LinearPath()
    generators = [[torch.Generator().manual_seed(seed) for seed in (1, 2)] for _ in range(2)]
    found = sample(field, noise(), 6, solver, SolverOptions(**chosen), path=path, generator=generators[0])
    method = solver.removeprefix("sde_")
    expected = solve_sde(field, noise(), 6, method, path=path, generator=generators[1], **chosen)
    assert torch.equal(found.x, expected.x)
    with pytest.raises(InputError, match="time warp"):
        sample(field, noise(), 6, solver, SolverOptions(time_warp=(1.17, 0.8, 1.1)), path=path)


def test_a_misspelt_solver_is_answered_with_the_nearest():
    with pytest.raises(InputError, match="'midpoint'"):
        sample(field, noise(), 6, "midpont", path=LinearPath())
