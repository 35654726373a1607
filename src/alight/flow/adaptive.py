"""Solvers that torchdiffeq owns: step sizes chosen from an error estimate, and the multi-step Adams family.

torchdiffeq is imported here alone, when such a solver is asked for.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from alight.runtime.errors import InputError

ErrorNorm = Callable[[Tensor], Tensor]

ADAPTIVE_METHODS = ("dopri5", "dopri8", "bosh3", "fehlberg2", "adaptive_heun")
TORCHDIFFEQ_METHODS = (*ADAPTIVE_METHODS, "explicit_adams", "implicit_adams")


class AdaptiveResult(NamedTuple):
    """The states at the grid points after the first, (points, *x.shape), and the steps that the solver accepted."""

    states: Tensor
    steps: int


def integrate_with_torchdiffeq(
    velocity: Callable[[Tensor, float], Tensor],
    x: Tensor,
    grid: Tensor,
    method: str,
    atol: float,
    rtol: float,
    error_norm: ErrorNorm | None = None,
    breakpoints: Sequence[float] = (),
) -> AdaptiveResult:
    """Integrates over the grid with one of torchdiffeq's methods.

    Adaptive methods step beyond the last grid point and interpolate back, so the field is asked at times slightly
    beyond the end.

    Args:
        velocity: the field, called with a Python float t (rounded to the precision of `x`).
        x: the state at the first grid point.
        grid: (points,) times at which the state is wanted.
        method: one of `TORCHDIFFEQ_METHODS`.
        atol: absolute tolerance per step.
        rtol: relative tolerance per step.
        error_norm: size of an error tensor, None for the root mean square over all its elements.
        breakpoints: times at which the field jumps; adaptive methods land on each and start afresh behind it. Without
            them an adaptive method may step over a jump unseen, and end far from the solution.

    Raises:
        InputError: the state requires a gradient.
    """
    if x.requires_grad and torch.is_grad_enabled():
        raise InputError(
            f"No gradient flows through '{method}', because its steps depend on the state. "
            "Use a fixed-step solver such as 'heun2', or detach the state."
        )
    from torchdiffeq import odeint

    # One-element float64 tolerances make the error ratio, and so the step control, float64 for a float32 state.
    # MPS has no float64: there it stays float32.
    precision = torch.float32 if x.device.type == "mps" else torch.float64
    first, last = sorted((float(grid[0]), float(grid[-1])))
    inside = [t for t in breakpoints if first < t < last]
    adaptive = method in ADAPTIVE_METHODS
    options: dict[str, object] = {"dtype": precision} if adaptive else {}
    if adaptive and error_norm is not None:
        options["norm"] = error_norm
    if adaptive and inside:
        options["jump_t"] = torch.tensor(inside, dtype=precision)
    field = _Field(velocity, counts_steps=adaptive)
    with torch.no_grad():
        states = odeint(
            field,
            x,
            grid.to(x.device),
            method=method,
            atol=torch.tensor([atol], dtype=precision),
            rtol=torch.tensor([rtol], dtype=precision),
            options=options,
        )
    return AdaptiveResult(states[1:], field.accepted if adaptive else len(grid) - 1)


class _Field:
    """A velocity as torchdiffeq wants it: arguments swapped, and a method that it calls after every accepted step."""

    def __init__(self, velocity: Callable[[Tensor, float], Tensor], counts_steps: bool) -> None:
        self._velocity = velocity
        self.accepted = 0
        if counts_steps:  # fixed-step methods warn about a callback that they do not know
            self.callback_accept_step = self._count

    def __call__(self, t: Tensor, x: Tensor) -> Tensor:
        return self._velocity(x, float(t))

    def _count(self, t: Tensor, x: Tensor, dt: Tensor) -> None:
        self.accepted += 1
