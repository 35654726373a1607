"""Sampling with fresh noise on the way: the SDE that has the same marginals as the probability-flow ODE.

Noise repairs errors of early steps and often gives a better FID than the ODE at many steps (SiT, arXiv 2401.08740).
Near the data the score diverges, so the noisy steps stop early and one last step without noise finishes.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from torch import Tensor

from alight.flow.diffusion import diffusion_coefficient
from alight.flow.interval import TimeInterval, singular_ends, time_interval
from alight.flow.path import Path, time_like
from alight.flow.predictions import to_data, to_score, to_velocity
from alight.flow.randomness import Generators, standard_normal
from alight.flow.solvers import CountedField, Field, follow
from alight.flow.timesteps import time_grid
from alight.options import DiffusionForm, LastStep, Prediction, SDEMethod, names_of, require_known
from alight.runtime.errors import InputError

LAST_STEP_SIZE = 0.04


@dataclass(frozen=True)
class SDESolution:
    """The state at which the simulation arrived, and its cost.

    Attributes:
        x: the final state.
        nfe: network evaluations per image, as in `ODESolution`.
        steps: steps taken, the last one included.
        interval: start and end of the noisy steps.
        trajectory: (steps + 1, *x.shape), start included; None unless asked for.
    """

    x: Tensor
    nfe: int
    steps: int
    interval: TimeInterval
    trajectory: Tensor | None = None


@dataclass(frozen=True)
class ReverseSDE:
    """The drift and the noise strength that a field of predictions gives to dx = drift dt + sqrt(2 D) dW.

    Attributes:
        field: `field(x, t) -> output`, one evaluation gives velocity and score together.
        path: the path that the network was trained on.
        prediction: kind of its output.
        diffusion_form: of D.
        diffusion_norm: of D.
    """

    field: Field
    path: Path
    prediction: Prediction
    diffusion_form: DiffusionForm
    diffusion_norm: float

    def diffusion(self, x: Tensor, t: float) -> Tensor:
        """D(t) as a scalar that multiplies `x`."""
        return diffusion_coefficient(self.path, time_like(t, x), self.diffusion_form, self.diffusion_norm)

    def drift(self, x: Tensor, t: float) -> Tensor:
        """Velocity + D score."""
        output = self.field(x, t)
        velocity = to_velocity(output, x, t, self.path, self.prediction)
        return velocity + self.diffusion(x, t) * to_score(output, x, t, self.path, self.prediction)

    def velocity(self, x: Tensor, t: float) -> Tensor:
        """The drift of the ODE with the same marginals."""
        return to_velocity(self.field(x, t), x, t, self.path, self.prediction)

    def data(self, x: Tensor, t: float) -> Tensor:
        """The expected data, E[x_1 | x_t]."""
        return to_data(self.field(x, t), x, t, self.path, self.prediction)


def euler_maruyama(sde: ReverseSDE, x: Tensor, times: Sequence[float], noise: Iterator[Tensor]) -> Iterator[Tensor]:
    """Drift and noise at the step's start: x <- x + drift dt + sqrt(2 D dt) w."""
    for t, t_next in pairwise(times):
        dt = t_next - t
        x = x + dt * sde.drift(x, t) + (2 * dt * sde.diffusion(x, t)).sqrt() * next(noise)
        yield x


def stochastic_heun(sde: ReverseSDE, x: Tensor, times: Sequence[float], noise: Iterator[Tensor]) -> Iterator[Tensor]:
    """Noise first, then a Heun step of the drift from the noisy state: second order where D is small."""
    for t, t_next in pairwise(times):
        dt = t_next - t
        noisy = x + (2 * dt * sde.diffusion(x, t)).sqrt() * next(noise)
        first = sde.drift(noisy, t)
        second = sde.drift(noisy + dt * first, t_next)
        x = noisy + dt / 2 * (first + second)
        yield x


def solve_sde(
    field: Field,
    x: Tensor,
    num_inference_steps: int,
    method: SDEMethod = "euler",
    timestep_shift: float | None = None,
    *,
    path: Path,
    prediction: Prediction = "velocity",
    diffusion_form: DiffusionForm = "sigma",
    diffusion_norm: float = 1.0,
    last_step: LastStep | None = "mean",
    last_step_size: float = LAST_STEP_SIZE,
    eps: float | None = None,
    noise: Sequence[Tensor] | Tensor | None = None,
    generator: Generators = None,
    return_trajectory: bool = False,
    on_step: Callable[[int, Tensor], None] | None = None,
) -> SDESolution:
    """Simulates dx = (velocity + D score) dt + sqrt(2 D) dW from noise to data.

    Args:
        field: `field(x, t) -> output`, for example a `GuidedVelocity`.
        x: (B, ...) noise at t = 0, float32.
        num_inference_steps: steps really taken, the last one included.
        method: "euler" (Euler-Maruyama, one evaluation per step) or "heun" (two).
        timestep_shift: warp of the time grid (`shift_timesteps`); None for even steps.
        path: the path that the network was trained on.
        prediction: kind of the output of `field`: "velocity", "noise" or "score".
        diffusion_form: of D, see `diffusion_coefficient`.
        diffusion_norm: of D.
        last_step: the way from 1 - last_step_size to 1 without noise: "mean" follows the drift of the SDE, "euler"
            the velocity, "tweedie" jumps to the expected data. None stops at 1 - eps instead.
        last_step_size: length of the last step.
        eps: distance from singular ends, see `time_interval`.
        noise: (noisy steps, *x.shape) standard normal draws in place of a generator.
        generator: one for the batch, or one per sample.
        return_trajectory: keep the state after every step.
        on_step: called after every step with (steps done, state).

    Raises:
        InputError: unknown names, too few steps or draws, or an interval that touches a singular end.
    """
    require_known(method, names_of(SDEMethod), "SDE method")
    require_known(prediction, names_of(Prediction), "prediction")
    if last_step is not None:
        require_known(last_step, names_of(LastStep), "last step")
    interval = _finite_interval(path, prediction, diffusion_form, eps, 0.0 if last_step is None else last_step_size)
    noisy_steps = num_inference_steps - (last_step is not None)
    if noisy_steps < 1:
        remedy = "Take at least 2 with a last step, 1 without."
        raise InputError(f"num_inference_steps={num_inference_steps} leaves no noisy step. {remedy}")
    counted = CountedField(field)
    sde = ReverseSDE(counted, path, prediction, diffusion_form, diffusion_norm)
    times = time_grid(noisy_steps, timestep_shift, interval.start, interval.end).tolist()
    solver = euler_maruyama if method == "euler" else stochastic_heun
    noisy_states = solver(sde, x, times, _noise_draws(x, noisy_steps, noise, generator))
    states = _finish(sde, noisy_states, interval.end, last_step, last_step_size)
    x, trajectory = follow(states, x, return_trajectory, on_step)
    return SDESolution(x, counted.nfe, num_inference_steps, interval, trajectory)


def _finite_interval(
    path: Path, prediction: Prediction, diffusion_form: DiffusionForm, eps: float | None, last_step_size: float
) -> TimeInterval:
    """The times of the noisy steps, refused where the SDE is infinite at one of them."""
    interval = time_interval(path, prediction, eps, diffusion_form=diffusion_form, last_step_size=last_step_size)
    singular = singular_ends(path, prediction, diffusion_form)
    if (singular.noise and interval.start == 0) or (singular.data and interval.end == 1):
        raise InputError(
            f"With eps={eps} the SDE from t={interval.start} to {interval.end} touches a time where it is infinite. "
            "Leave eps at None, or give a small positive number such as 1e-3."
        )
    return interval


def _finish(
    sde: ReverseSDE, states: Iterator[Tensor], t: float, last_step: LastStep | None, size: float
) -> Iterator[Tensor]:
    """Passes the noisy states on and adds the one after the last, noise-free step."""
    for x in states:
        yield x
    if last_step == "mean":
        yield x + size * sde.drift(x, t)
    elif last_step == "euler":
        yield x + size * sde.velocity(x, t)
    elif last_step == "tweedie":
        yield sde.data(x, t)


def _noise_draws(
    x: Tensor, steps: int, noise: Sequence[Tensor] | Tensor | None, generator: Generators
) -> Iterator[Tensor]:
    if noise is None:
        return (standard_normal(x.shape, generator, x.device, x.dtype) for _ in range(steps))
    if len(noise) != steps or noise[0].shape != x.shape:
        raise InputError(
            f"Noise for {steps} steps of shape {tuple(x.shape)} is needed, but {len(noise)} draws of shape "
            f"{tuple(noise[0].shape)} were given. Give one draw per noisy step, in the shape of the state."
        )
    return iter(noise)
