"""The one way from noise to latents: a predicted field, a path, a solver by its name.

Pipelines, previews during training, interpolation and tuning all come through here, so that they cannot differ.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypedDict, cast

import torch
from torch import Tensor

from alight.flow.average_velocity import solve_mean
from alight.flow.interval import time_interval
from alight.flow.path import LinearPath, Path
from alight.flow.predictions import VelocityField
from alight.flow.randomness import Generators
from alight.flow.sde import LAST_STEP_SIZE, SDESolution, solve_sde
from alight.flow.solvers import Field, ODESolution, solve_ode
from alight.flow.timesteps import shift_timesteps
from alight.options import (
    MEAN_SOLVER,
    PUBLISHED_KAPPA,
    SDE_SOLVERS,
    DiffusionForm,
    LastStep,
    Prediction,
    SDEMethod,
    require_solver,
)
from alight.runtime.errors import InputError


class SolverSettings(TypedDict, total=False):
    """Keyword arguments for the settings of a solver that few calls give, see `SolverOptions`."""

    time_warp: tuple[float, float, float] | None
    kappa: float
    diffusion_form: DiffusionForm
    last_step: LastStep
    last_step_size: float
    last_time: float


@dataclass(frozen=True)
class SolverOptions:
    """The settings of a solver beside its name and its number of steps.

    Attributes:
        timestep_shift: warp of the time grid (`shift_timesteps`); None and 1 are even steps.
        time_warp: (a, b, c) of `kumaraswamy_grid`, in place of the shift; not of the SDE.
        kappa: of the solver `ucgm`, see `history_extrapolation`.
        diffusion_form: of the SDE, see `diffusion_coefficient`.
        last_step: of the SDE, see `solve_sde`.
        last_step_size: of the SDE.
        last_time: where an ODE ends on the even grid, before the shift; the state there is the answer. 0.999 as
            published for RAE (arXiv 2510.11690), 1 = data.
    """

    timestep_shift: float | None = None
    time_warp: tuple[float, float, float] | None = None
    kappa: float = PUBLISHED_KAPPA
    diffusion_form: DiffusionForm = "sigma"
    last_step: LastStep = "mean"
    last_step_size: float = LAST_STEP_SIZE
    last_time: float = 1.0


def sample(
    field: Field,
    noise: Tensor,
    num_inference_steps: int,
    solver: str = "euler",
    options: SolverOptions = SolverOptions(),  # noqa: B008 (frozen)
    *,
    path: Path,
    prediction: Prediction = "velocity",
    generator: Generators = None,
    on_step: Callable[[int, Tensor], None] | None = None,
) -> ODESolution | SDESolution:
    """Follow a field from noise to latents, by the ODE, the SDE (`sde_...`) or average velocities (`mean`).

    Args:
        field: `field(x, t) -> output`, for example a `GuidedVelocity`; `field(x, t, until)` for the solver `mean`.
        noise: (B, C, h, w) in float32, the state at t = 0.
        num_inference_steps: steps really taken.
        solver: a name that `solve_ode` knows, `sde_euler`, `sde_heun` or `mean`.
        options: the other settings of the solver.
        path: the path that the network was trained on.
        prediction: of the field: velocity, noise or score.
        generator: of the SDE's noise: one for the batch, or one per sample.
        on_step: called after each step with (steps done, latents).

    Raises:
        InputError: an unknown solver, or settings that do not go together.
    """
    _require_fitting(solver, path, prediction)
    _require_last_time(solver, options)
    shift, warp = None if options.timestep_shift == 1 else options.timestep_shift, options.time_warp
    if solver in SDE_SOLVERS:
        if warp is not None:
            raise InputError(f"{solver} takes no time warp. Give a timestep shift, or choose an ODE solver.")
        method = cast(SDEMethod, solver.removeprefix("sde_"))
        return solve_sde(
            *(field, noise, num_inference_steps, method, shift),
            path=path,
            prediction=prediction,
            diffusion_form=options.diffusion_form,
            last_step=options.last_step,
            last_step_size=options.last_step_size,
            generator=generator,
            on_step=on_step,
        )
    start, end = time_interval(path, prediction)
    if options.last_time != 1:
        end = min(end, shift_timesteps(torch.tensor(options.last_time, dtype=torch.float64), shift).item())
    if solver == MEAN_SOLVER:
        steps = field, noise, num_inference_steps, shift
        return solve_mean(*steps, time_warp=warp, t_0=start, t_1=end, on_step=on_step)
    return solve_ode(
        *(VelocityField(field, path, prediction), noise, num_inference_steps, solver, shift),
        time_warp=warp,
        kappa=options.kappa,
        t_0=start,
        t_1=end,
        on_step=on_step,
    )


def _require_last_time(solver: str, options: SolverOptions) -> None:
    if not 0 < options.last_time <= 1:
        raise InputError(f"last_time is {options.last_time}, but must be in (0, 1], where 1 is data.")
    if options.last_time != 1 and (solver in (*SDE_SOLVERS, MEAN_SOLVER) or options.time_warp is not None):
        raise InputError(
            f"A last_time of {options.last_time} is for ODE solvers without a time warp. Leave it out, or choose "
            "another solver."
        )


def _require_fitting(solver: str, path: Path, prediction: Prediction) -> None:
    require_solver(solver)
    if solver == "ucgm" and not isinstance(path, LinearPath):
        raise InputError(
            f"The solver ucgm follows the linear path, and not the {type(path).__name__}. Choose another."
        )
    if solver == MEAN_SOLVER and prediction != "velocity":
        raise InputError(f"The solver mean needs average velocities, not a {prediction}. Choose another solver.")
