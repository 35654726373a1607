"""Solvers: from noise to data along a velocity field, dx / dt = v(x, t).

A solver is a function of a velocity function. It knows no model, labels, guidance or prediction type: those are bound
before (`GuidedVelocity`, `VelocityField`). Each fixed-step solver here is a generator that yields the state after
every step; `solve_ode` picks one by name, runs it over the time grid and counts.

The field is called as `velocity(x, t)` with a Python float t, so no step waits for the accelerator.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor

from alight.flow.adaptive import TORCHDIFFEQ_METHODS, ErrorNorm, integrate_with_torchdiffeq
from alight.flow.extrapolation import history_extrapolation
from alight.flow.timesteps import time_grid
from alight.options import PUBLISHED_KAPPA, require_known

Field = Callable[..., Tensor]
"""field(x, t) -> a tensor in the shape of x, with t a Python float; field(x, t, until) for average velocities."""


@dataclass(frozen=True)
class ODESolution:
    """The state at which a solver arrived, and its cost.

    Attributes:
        x: the final state.
        nfe: network evaluations per image: what the field counted if it counts (`GuidedVelocity.nfe`: 2 where guided),
            else one per call.
        steps: steps taken (for adaptive solvers: steps accepted).
        trajectory: (num_inference_steps + 1, *x.shape), the state at every point of the time grid, start included;
            None unless asked for.
    """

    x: Tensor
    nfe: int
    steps: int
    trajectory: Tensor | None = None


@dataclass(frozen=True)
class ButcherTableau:
    """An explicit Runge-Kutta method: stage i is at t + nodes[i] dt, after moving by dt sum_j matrix[i][j] k_j."""

    nodes: tuple[float, ...]
    matrix: tuple[tuple[float, ...], ...]
    weights: tuple[float, ...]


RUNGE_KUTTA = {
    "midpoint": ButcherTableau((0, 1 / 2), ((), (1 / 2,)), (0, 1)),
    # The explicit trapezoidal rule: what diffusion papers call Heun.
    "heun2": ButcherTableau((0, 1), ((), (1,)), (1 / 2, 1 / 2)),
    "heun3": ButcherTableau((0, 1 / 3, 2 / 3), ((), (1 / 3,), (0, 2 / 3)), (1 / 4, 0, 3 / 4)),
    # Kutta's 3/8 rule, which torchdiffeq calls rk4.
    "rk4": ButcherTableau((0, 1 / 3, 2 / 3, 1), ((), (1 / 3,), (-1 / 3, 1), (1, -1, 1)), (1 / 8, 3 / 8, 3 / 8, 1 / 8)),
    "rk4_classic": ButcherTableau(
        (0, 1 / 2, 1 / 2, 1), ((), (1 / 2,), (0, 1 / 2), (0, 0, 1)), (1 / 6, 1 / 3, 1 / 3, 1 / 6)
    ),
}
"""Explicit Runge-Kutta methods by name (Hairer, Norsett, Wanner: Solving ODEs I, section II.1)."""


def euler(velocity: Field, x: Tensor, times: Sequence[float], breakpoints: Sequence[float] = ()) -> Iterator[Tensor]:
    """Follows the velocity in straight steps: x <- x + (t' - t) v(x, t). Order 1, one evaluation per step."""
    for t, t_next in pairwise(times):
        x = x + (t_next - t) * velocity(x, t)
        yield x


def runge_kutta(
    velocity: Field,
    x: Tensor,
    times: Sequence[float],
    breakpoints: Sequence[float] = (),
    *,
    tableau: ButcherTableau,
) -> Iterator[Tensor]:
    """Looks ahead inside every step, at the stages of a tableau, and moves by their weighted mean."""
    for t, t_next in pairwise(times):
        dt = t_next - t
        stages: list[Tensor] = []
        for node, row in zip(tableau.nodes, tableau.matrix, strict=True):
            stages.append(velocity(_advance(x, dt, row, stages), t + node * dt))
        x = _advance(x, dt, tableau.weights, stages)
        yield x


def adams_bashforth2(
    velocity: Field, x: Tensor, times: Sequence[float], breakpoints: Sequence[float] = ()
) -> Iterator[Tensor]:
    """Extrapolates from the last two velocities: order 2 at the price of Euler, one evaluation per step.

    With step sizes h (now) and h' (before), x <- x + h [(1 + r/2) v - (r/2) v'] where r = h / h'. If the field
    jumps between the two velocities they do not belong to one smooth function: the first step after a breakpoint is an
    Euler step, as the very first one is.
    """
    previous: tuple[Tensor, float] | None = None
    for t, t_next in pairwise(times):
        v, dt = velocity(x, t), t_next - t
        if previous is None or any(_lies_between(point, previous[1], t) for point in breakpoints):
            x = x + dt * v
        else:
            v_before, t_before = previous
            ratio = dt / (t - t_before)
            x = x + dt * ((1 + ratio / 2) * v - ratio / 2 * v_before)
        previous = v, t
        yield x


FIXED_STEP: dict[str, Callable[[Field, Tensor, Sequence[float], Sequence[float]], Iterator[Tensor]]] = {
    "euler": euler,
    **{name: partial(runge_kutta, tableau=tableau) for name, tableau in RUNGE_KUTTA.items()},
    "heun": partial(runge_kutta, tableau=RUNGE_KUTTA["heun2"]),
    "ab2": adams_bashforth2,
    "ucgm": history_extrapolation,
}
"""solver(velocity, x, times, breakpoints) -> the state after every step; breakpoints are where the field jumps."""

SOLVERS = (*FIXED_STEP, *TORCHDIFFEQ_METHODS)


def solve_ode(
    velocity: Field,
    x: Tensor,
    num_inference_steps: int,
    solver: str = "euler",
    timestep_shift: float | None = None,
    *,
    time_warp: tuple[float, float, float] | None = None,
    kappa: float = PUBLISHED_KAPPA,
    t_0: float = 0.0,
    t_1: float = 1.0,
    atol: float = 1e-6,
    rtol: float = 1e-3,
    error_norm: ErrorNorm | None = None,
    return_trajectory: bool = False,
    on_step: Callable[[int, Tensor], None] | None = None,
) -> ODESolution:
    """Integrates dx / dt = velocity(x, t) from `t_0` to `t_1`: noise to data, or back with t_0 = 1 and t_1 = 0.

    Gradients flow through the fixed-step solvers, so sample under `torch.no_grad()`. Solvers of torchdiffeq give none.

    Args:
        velocity: the field, `velocity(x, t) -> shape of x`, with t a Python float.
        x: (B, ...) the state at `t_0`: noise for sampling. Keep it float32 even where the network runs in bfloat16.
        num_inference_steps: steps really taken. Adaptive solvers choose their own; they use it for the points of the
            trajectory only.
        solver: fixed steps: "euler", "midpoint", "heun" (= "heun2", the trapezoidal rule), "heun3", "rk4" (the 3/8
            rule), "rk4_classic", and at one evaluation per step "ab2" (Adams-Bashforth, second order) and "ucgm"
            (`history_extrapolation`, for the linear path). Through torchdiffeq: adaptive "dopri5", "dopri8", "bosh3",
            "fehlberg2", "adaptive_heun", and the fixed-step "explicit_adams", "implicit_adams".
        timestep_shift: warp of the time grid (`shift_timesteps`); 0.3 as published, None for even steps.
        time_warp: (a, b, c) of `kumaraswamy_grid`, in place of the shift.
        kappa: of "ucgm", in [0, 1].
        t_0: start time.
        t_1: end time.
        atol: absolute error allowed per step, adaptive solvers only.
        rtol: relative error allowed per step, adaptive solvers only.
        error_norm: measures the error tensor of adaptive solvers; None is the root mean square over the whole batch.
        return_trajectory: keep the state at every grid point.
        on_step: called after every grid point with (points done, state), for progress bars and previews; with the
            solvers of torchdiffeq only when all is done.

    Raises:
        InputError: an unknown solver, fewer than one step, a bad time range or warp.
    """
    require_known(solver, SOLVERS, "solver")
    grid = time_grid(num_inference_steps, timestep_shift, t_0, t_1, time_warp)
    field, steps = CountedField(velocity), num_inference_steps
    breakpoints: Sequence[float] = getattr(velocity, "breakpoints", ())
    if solver == "ucgm":
        states = history_extrapolation(field, x, grid.tolist(), breakpoints, kappa=kappa)
    elif solver in FIXED_STEP:
        states = FIXED_STEP[solver](field, x, grid.tolist(), breakpoints)
    else:
        result = integrate_with_torchdiffeq(field, x, grid, solver, atol, rtol, error_norm, breakpoints)
        states, steps = iter(result.states), result.steps
    x, trajectory = follow(states, x, return_trajectory, on_step)
    return ODESolution(x, field.nfe, steps, trajectory)


def follow(
    states: Iterable[Tensor], x: Tensor, keep: bool, on_step: Callable[[int, Tensor], None] | None
) -> tuple[Tensor, Tensor | None]:
    """Runs a solver from `x` to its end; gives the last state and, if they are to be kept, all states stacked."""
    kept = [x]
    for index, x in enumerate(states, start=1):
        if keep:
            kept.append(x)
        if on_step is not None:
            on_step(index, x)
    return x, torch.stack(kept) if keep else None


class CountedField:
    """Counts evaluations: by the field's own count where it keeps one, because a guided call costs two."""

    def __init__(self, field: Field) -> None:
        self._field = field
        self._calls = 0
        self._before = getattr(field, "nfe", 0)

    def __call__(self, x: Tensor, t: float, *until: float) -> Tensor:
        """Asks the field, and counts."""
        self._calls += 1
        return self._field(x, t, *until)

    @property
    def nfe(self) -> int:
        """Network evaluations per image since construction."""
        return getattr(self._field, "nfe", self._calls) - self._before


def _advance(x: Tensor, dt: float, weights: Sequence[float], velocities: Sequence[Tensor]) -> Tensor:
    """The state after moving from x by dt * sum_j weights[j] velocities[j]."""
    move = [weight * v for weight, v in zip(weights, velocities, strict=True) if weight != 0]
    return x + dt * sum(move[1:], start=move[0]) if move else x


def _lies_between(point: float, t_before: float, t: float) -> bool:
    return min(t_before, t) <= point <= max(t_before, t)
