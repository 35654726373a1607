"""The one way from noise to latents: a predicted field, a path, a solver by its name.

Pipelines, previews during training, interpolation and tuning all come through here, so that they cannot differ.
"""

from collections.abc import Callable
from typing import cast

from torch import Tensor

from alight.flow.interval import time_interval
from alight.flow.path import Path
from alight.flow.predictions import VelocityField
from alight.flow.randomness import Generators
from alight.flow.sde import SDESolution, solve_sde
from alight.flow.solvers import Field, ODESolution, solve_ode
from alight.options import ODE_SOLVERS, SDE_SOLVERS, DiffusionForm, LastStep, Prediction, SDEMethod, require_known
from alight.runtime.errors import InputError


def sample(
    field: Field,
    noise: Tensor,
    num_inference_steps: int,
    solver: str = "euler",
    *,
    path: Path,
    prediction: Prediction = "velocity",
    timestep_shift: float | None = None,
    diffusion_form: DiffusionForm = "sigma",
    last_step: LastStep = "mean",
    generator: Generators = None,
    on_step: Callable[[int, Tensor], None] | None = None,
) -> ODESolution | SDESolution:
    """Follow a field from noise to latents, by the ODE or, for the solvers `sde_...`, by the SDE.

    Args:
        field: `field(x, t) -> output`, for example a `GuidedVelocity`.
        noise: (B, C, h, w) in float32, the state at t = 0.
        num_inference_steps: steps really taken.
        solver: a name that `solve_ode` knows, `sde_euler` or `sde_heun`.
        path: the path that the network was trained on.
        prediction: of the field: velocity, noise or score.
        timestep_shift: warp of the time grid (`shift_timesteps`); None and 1 are even steps.
        diffusion_form: of the SDE, see `diffusion_coefficient`.
        last_step: of the SDE, see `solve_sde`.
        generator: of the SDE's noise: one for the batch, or one per sample.
        on_step: called after each step with (steps done, latents).

    Raises:
        InputError: an unknown solver, or settings that do not go together.
    """
    require_known(solver, (*ODE_SOLVERS, *SDE_SOLVERS), "solver")
    shift = None if timestep_shift == 1 else timestep_shift
    if solver not in SDE_SOLVERS:
        start, end = time_interval(path, prediction)
        velocity = VelocityField(field, path, prediction)
        return solve_ode(velocity, noise, num_inference_steps, solver, shift, t_0=start, t_1=end, on_step=on_step)
    if shift is not None:
        raise InputError(f"{solver} takes even steps, but the timestep shift is {shift}. Set it to 1.")
    return solve_sde(
        field,
        noise,
        num_inference_steps,
        cast(SDEMethod, solver.removeprefix("sde_")),
        path=path,
        prediction=prediction,
        diffusion_form=diffusion_form,
        last_step=last_step,
        generator=generator,
        on_step=on_step,
    )
