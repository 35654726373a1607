"""The likelihood of given data under the model: the change-of-variables formula along the flow.

    log p_1(x_1) = log N(x_0; 0, I) - integral from 0 to 1 of div v(x_t, t) dt

The state runs from data back to noise and carries the integral with it. The divergence is estimated with Hutchinson's
formula, div v = E[e^T (dv/dx) e] over random signs e (Grathwohl et al., FFJORD, arXiv 1810.01367; Song et al., arXiv
2011.13456, section 4.3).
"""

import itertools
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from alight.flow.randomness import Generators, rademacher
from alight.flow.solvers import CountedField, Field, solve_ode


@dataclass(frozen=True)
class LogLikelihood:
    """The log-likelihood of each sample and what it is made of.

    Attributes:
        log_prob: (B,) log p(x) in nats, one random estimate.
        x_0: the noise that each sample came from, shape of the data.
        log_prior: (B,) log density of that noise.
        nfe: network evaluations per image; each also costs a backward pass.
        steps: steps of the solver.
    """

    log_prob: Tensor
    x_0: Tensor
    log_prior: Tensor
    nfe: int
    steps: int

    @property
    def bits_per_dimension(self) -> Tensor:
        """(B,) -log2 p(x) divided by the number of dimensions."""
        return -self.log_prob / (math.log(2) * self.x_0[0].numel())


def log_likelihood(
    velocity: Field,
    x: Tensor,
    num_inference_steps: int,
    solver: str = "rk4",
    *,
    interval: tuple[float, float] = (0.0, 1.0),
    atol: float = 1e-6,
    rtol: float = 1e-3,
    probes: Iterable[Tensor] | None = None,
    generator: Generators = None,
) -> LogLikelihood:
    """Integrates data back to noise together with the divergence of the velocity.

    Args:
        velocity: the field, `velocity(x, t) -> shape of x`, differentiable in x.
        x: (B, ...) data, float32.
        num_inference_steps: steps really taken (fixed-step solvers).
        solver: see `solve_ode`. Adaptive solvers see a noisy divergence, unless one probe is repeated.
        interval: (noise end, data end), the part of [0, 1] to integrate over, as `time_interval` gives it for the
            path.
        atol: see `solve_ode`.
        rtol: see `solve_ode`.
        probes: the sign vectors in place of a generator, shape of `x`, one per evaluation of the field.
            `itertools.repeat(e)` uses the same for the whole integral.
        generator: one for the batch, or one per sample; a fresh sign vector is drawn at every evaluation.

    Returns:
        The estimate; average it over several calls to reduce its variance.
    """
    if probes is None:
        probes = (rademacher(x.shape, generator, x.device, x.dtype) for _ in itertools.count())
    noise_end, data_end = interval
    solution = solve_ode(
        _WithDivergence(velocity, x.shape, iter(probes)),
        torch.cat([x.flatten(1), x.new_zeros(len(x), 1)], dim=1),
        num_inference_steps,
        solver,
        t_0=1 - data_end,
        t_1=1 - noise_end,
        atol=atol,
        rtol=rtol,
        error_norm=_larger_rms,
    )
    x_0 = solution.x[:, :-1].reshape(x.shape)
    log_prior = standard_normal_log_density(x_0)
    return LogLikelihood(log_prior + solution.x[:, -1], x_0, log_prior, solution.nfe, solution.steps)


def standard_normal_log_density(x: Tensor) -> Tensor:
    """(B,) log N(x; 0, I) of each row, over all of its dimensions."""
    return -0.5 * (x.square() + math.log(2 * math.pi)).flatten(1).sum(1)


class _WithDivergence:
    """The way back in noise time tau = 1 - t, with the divergence beside it: rows (x, l) move with (-v, -div v).

    l starts at 0 and so ends as minus the integral of the divergence.
    """

    def __init__(self, velocity: Field, shape: torch.Size, probes: Iterator[Tensor]) -> None:
        self._velocity = CountedField(velocity)
        self._shape = shape
        self._probes = probes
        self.breakpoints = tuple(1 - t for t in getattr(velocity, "breakpoints", ()))

    @property
    def nfe(self) -> int:
        return self._velocity.nfe

    def __call__(self, state: Tensor, tau: float) -> Tensor:
        probe = next(self._probes).to(state)
        with torch.enable_grad():
            x = state[:, :-1].reshape(self._shape).detach().requires_grad_()
            velocity = self._velocity(x, 1 - tau)
            (gradient,) = torch.autograd.grad((velocity * probe).sum(), x)
        divergence = (gradient * probe).flatten(1).sum(1, keepdim=True)
        return -torch.cat([velocity.detach().flatten(1), divergence], dim=1)


def _larger_rms(error: Tensor) -> Tensor:
    """The larger of the errors of state and integral: one number per sample must not drown among many."""
    return torch.maximum(error[:, :-1].square().mean().sqrt(), error[:, -1].square().mean().sqrt())
