"""History extrapolation: a step by the estimates of data and noise, each extrapolated from the step before (UCGM).

No network is trained for it, and no evaluation is added.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise

from torch import Tensor

from alight.options import PUBLISHED_KAPPA


def history_extrapolation(
    velocity: Callable[[Tensor, float], Tensor],
    x: Tensor,
    times: Sequence[float],
    breakpoints: Sequence[float] = (),
    *,
    kappa: float = PUBLISHED_KAPPA,
    renoise: float = 0.0,
    noise: Iterator[Tensor] | None = None,
    corrected: bool = False,
) -> Iterator[Tensor]:
    """Moves along the line between estimated data and estimated noise (UCGM-S, arXiv 2505.07447).

    On the linear path the velocity gives both: data x + (1 - t) v and noise x - t v. From the third step on, each is
    moved on by kappa times its change since the step before. kappa = 0 is Euler's method, and 1/3 is of second order
    on even grids; the published 0.5 overshoots as far as Euler's method falls behind, which sharpens. A step to t = 1
    goes to the data as estimated. Breakpoints count for nothing, as published.

    Args:
        velocity: the field of the linear path.
        x: (B, ...) state at the first time.
        times: of the steps, the end included.
        breakpoints: unused.
        kappa: in [0, 1].
        renoise: share of the noise's variance that is drawn again at every step, in [0, 1].
        noise: a standard normal draw per step in the shape of x, for `renoise`.
        corrected: evaluate again at the end of every step but the last, and repeat the step with the mean of both
            noise estimates, which is of second order. Times must be positive, and small ones magnify rounding.
    """
    before: tuple[Tensor, Tensor] | None = None
    for step, (t, t_next) in enumerate(pairwise(times)):
        v = velocity(x, t)
        estimates = data, rest = x + (1 - t) * v, x - t * v
        if before is not None and step >= 2 and t_next < 1:
            data, rest = (now + kappa * (now - earlier) for now, earlier in zip(estimates, before, strict=True))
        if renoise > 0 and noise is not None:
            rest = math.sqrt(1 - renoise) * rest + math.sqrt(renoise) * next(noise)
        start, x = x, t_next * data + (1 - t_next) * rest
        if corrected and t_next < 1:
            mean = (estimates[1] + x - t_next * velocity(x, t_next)) / 2
            x = t_next / t * start + (1 - t_next - t_next * (1 - t) / t) * mean
        before = estimates
        yield x
