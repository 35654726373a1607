"""Average velocities: a model learns the mean of its velocity over a step, so that a step of any length is exact.

    u(x_t, t, r) = 1 / (r - t) * integral from t to r of v(x_s, s) ds,    u(x, t, t) = v(x, t)

with x_s the path that leads through x_t (MeanFlow, arXiv 2505.13447). Then x_r = x_t + (r - t) u(x_t, t, r). The
derivative of (r - t) u along that path, with r held, is -v, so that

    u = v + (r - t) du/dt,    du/dt = (d u / d x) v + d u / d t.

The derivative on the right is taken of the model itself, and the sum held fixed as the target of its regression. The
velocity of a single pair of noise and data, x_1 - x_0, stands for v: the target is linear in it, and so has the
expectation that v gives, whatever the model is so far. Its own velocity u(x, t, t) (as in iMF, arXiv 2512.02012) would
scatter less, but only points in the right direction once the model is good.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from alight.flow.path import Path, time_like
from alight.flow.solvers import CountedField, Field, ODESolution, follow
from alight.flow.timesteps import time_grid
from alight.runtime.errors import InputError

ADAPTIVE_OFFSET = 0.01  # c of the weight 1 / (error + c)^p, as published


@dataclass(frozen=True)
class AverageVelocityLoss:
    """The objective for one batch.

    Attributes:
        total: scalar to differentiate: the mean of the weighted squared errors.
        mse: scalar, the mean squared error per number; it falls while `total` hardly can.
        mse_per_sample: (B,).
        prediction: the model's u, shape of the data.
        target: what it is compared with, shape of the data, without gradient.
    """

    total: Tensor
    mse: Tensor
    mse_per_sample: Tensor
    prediction: Tensor
    target: Tensor


@torch.no_grad()
def average_velocity_target(
    model: Callable[..., Any], x_t: Tensor, t: Tensor, until: Tensor, class_labels: Tensor, velocity: Tensor
) -> Tensor:
    """The right side of the identity, v + (r - t) du/dt, by one pass in forward mode.

    Args:
        model: `model(x, t, class_labels, until=r) -> u`. Its attention must be differentiable in forward mode, which
            fused kernels are not.
        x_t: (B, C, ...) points of the path.
        t: (B,) their times.
        until: (B,) r, the ends of the steps.
        class_labels: (B,).
        velocity: v, shape of `x_t`.
    """

    def along(x: Tensor, time: Tensor) -> Tensor:
        average: Tensor = model(x, time, class_labels, until=until)
        return average

    rate: Tensor = torch.func.jvp(along, (x_t, t), (velocity, torch.ones_like(t)))[1]
    return velocity + time_like(until - t, x_t) * rate


def average_velocity_loss(
    model: Callable[..., Any],
    x_1: Tensor,
    class_labels: Tensor,
    *,
    path: Path,
    t: Tensor,
    until: Tensor,
    x_0: Tensor,
    guidance_scale: float = 1.0,
    null_label: int | None = None,
    adaptive_power: float = 1.0,
    teacher: Callable[..., Any] | None = None,
    num_long: int | None = None,
) -> AverageVelocityLoss:
    """One Monte Carlo estimate of the objective over a batch.

    With a guidance scale w the velocity is that of the guided flow, w (x_1 - x_0) + (1 - w) u(x, t, t, no class), so
    that sampling needs no second evaluation. Rows without a class keep their own velocity.

    Each squared error e, summed over a sample, is divided by (e + 0.01)^p with the divisor held fixed. The derivative
    is only computed for rows whose step has a length.

    Args:
        model: `model(x, t, class_labels, until=r) -> u`; the gradient goes through it.
        x_1: (B, C, ...) data, normalised latents.
        class_labels: (B,).
        path: from noise to data.
        t: (B,) start of each step.
        until: (B,) its end; where it equals `t`, this is flow matching.
        x_0: noise, shape of `x_1`.
        guidance_scale: w >= 0; 1 = none.
        null_label: label of no class; needed unless the scale is 1.
        adaptive_power: p in [0, 1]; 0 = no weight.
        teacher: evaluates the model for targets, if not `model` itself: without gradient, and differentiable in
            forward mode where `until` is given. Without it, it gives u(x, t, t).
        num_long: number of rows whose step has a length, where the host knows it; else it waits for the device.

    Raises:
        InputError: a negative scale, guidance without a null label, a power outside [0, 1], or shapes that differ.
    """
    _check(x_1, t, until, guidance_scale, null_label, adaptive_power)
    teacher = teacher or model
    point = path.sample(x_1, x_0, t)
    with torch.no_grad():
        velocity = point.velocity
        if guidance_scale != 1:
            null_labels = torch.full_like(class_labels, null_label)  # type: ignore[arg-type]
            without_class = teacher(point.x_t, t, null_labels).to(velocity.dtype)
            guided = guidance_scale * velocity + (1 - guidance_scale) * without_class
            velocity = torch.where(time_like(class_labels == null_label, velocity), velocity, guided)
        target = velocity.clone()
        if len(long := long_rows(t, until, num_long)):
            rows = (each[long] for each in (point.x_t, t, until, class_labels, velocity))
            target[long] = average_velocity_target(teacher, *rows)
    prediction = model(point.x_t, t, class_labels, until=until)
    error = (prediction - target).square().flatten(1)
    summed = error.sum(1)
    weighted = summed / (summed.detach() + ADAPTIVE_OFFSET) ** adaptive_power
    return AverageVelocityLoss(weighted.mean(), error.mean(), error.mean(1), prediction, target)


def long_rows(t: Tensor, until: Tensor, count: int | None = None) -> Tensor:
    """The rows, rising, whose step has a length; a known count spares the host from waiting for the device.

    Args:
        t: (B,) start of each step.
        until: (B,) its end.
        count: of such rows; None = not known.
    """
    is_long = until != t
    if count is None:
        return torch.nonzero(is_long).squeeze(1)
    return torch.argsort((~is_long).int(), stable=True)[:count]


def solve_mean(
    average: Field,
    x: Tensor,
    num_inference_steps: int,
    timestep_shift: float | None = None,
    *,
    time_warp: tuple[float, float, float] | None = None,
    t_0: float = 0.0,
    t_1: float = 1.0,
    return_trajectory: bool = False,
    on_step: Callable[[int, Tensor], None] | None = None,
) -> ODESolution:
    """Moves by the average velocity of each step, x <- x + (r - t) u(x, t, r): one evaluation, exact where u is.

    Args:
        average: `average(x, t, until) -> u`, shape of x, with Python floats as times: a `GuidedVelocity` of a model
            with an interval embedding.
        x: (B, ...) the state at `t_0`.
        num_inference_steps: at least 1.
        timestep_shift: as in `solve_ode`, like everything below.
        time_warp: in place of the shift.
        t_0: start time.
        t_1: end time.
        return_trajectory: keep the state at every grid point.
        on_step: called after every step with (steps done, state).

    Raises:
        InputError: fewer than one step, a bad time range or warp.
    """
    grid = time_grid(num_inference_steps, timestep_shift, t_0, t_1, time_warp).tolist()
    field = CountedField(average)

    def states(x: Tensor) -> Iterator[Tensor]:
        for t, until in pairwise(grid):
            x = x + (until - t) * field(x, t, until)
            yield x

    x, trajectory = follow(states(x), x, return_trajectory, on_step)
    return ODESolution(x, field.nfe, num_inference_steps, trajectory)


def _check(
    x_1: Tensor, t: Tensor, until: Tensor, guidance_scale: float, null_label: int | None, adaptive_power: float
) -> None:
    if not guidance_scale >= 0:
        raise InputError(f"The guidance scale is {guidance_scale}, but must not be negative. 1 is no guidance.")
    if guidance_scale != 1 and null_label is None:
        raise InputError(
            f"A guidance scale of {guidance_scale} needs a model with a null class. Train with a scale of 1, or start "
            "from a transformer whose class_dropout_prob is not 0."
        )
    if not 0 <= adaptive_power <= 1:
        raise InputError(f"The power of the adaptive weight is {adaptive_power}, but must be between 0 and 1.")
    if t.shape != x_1.shape[:1] or until.shape != t.shape:
        raise InputError(
            f"{len(x_1)} samples need as many starts and ends of steps, not {tuple(t.shape)} and {tuple(until.shape)}."
        )
