"""The meanings of a network's output, and conversions between them.

At a point x_t of a path the velocity, the score grad log p_t(x_t) and the noise carry the same information (SiT, arXiv
2401.08740, section 2):

    noise    = -sigma * score
    velocity = (alpha'/alpha) x_t + score_coefficient * score

The inverse is written with alpha/alpha' = 1 / (d log alpha / dt), which stays finite at t = 0 where alpha vanishes.
"""

from collections.abc import Callable

from torch import Tensor

from alight.flow.path import Path, Time, time_like
from alight.options import Prediction, names_of, require_known


def to_velocity(output: Tensor, x_t: Tensor, t: Time, path: Path, prediction: Prediction) -> Tensor:
    """The velocity that an output implies. All shapes are that of `x_t`; `t` is a number or (B,).

    Noise and score say nothing about the velocity where alpha or sigma vanish: keep t inside `time_interval`.
    """
    if prediction == "velocity":
        return output
    time = time_like(t, x_t)
    return path.d_log_alpha(time) * x_t + path.score_coefficient(time) * to_score(output, x_t, t, path, prediction)


def to_score(output: Tensor, x_t: Tensor, t: Time, path: Path, prediction: Prediction) -> Tensor:
    """The score that an output implies; shapes as in `to_velocity`. Needs sigma(t) > 0, so t < 1."""
    if prediction == "score":
        return output
    time = time_like(t, x_t)
    sigma = path.sigma(time)
    if prediction == "noise":
        return -output / sigma
    ratio = path.alpha(time) / path.d_alpha(time)
    return (ratio * output - x_t) / (sigma.square() - ratio * path.d_sigma(time) * sigma)


def to_noise(output: Tensor, x_t: Tensor, t: Time, path: Path, prediction: Prediction) -> Tensor:
    """The noise x_0 that an output implies; shapes as in `to_velocity`."""
    if prediction == "noise":
        return output
    time = time_like(t, x_t)
    sigma = path.sigma(time)
    if prediction == "score":
        return -sigma * output
    ratio = path.alpha(time) / path.d_alpha(time)
    return (ratio * output - x_t) / (ratio * path.d_sigma(time) - sigma)


def to_data(output: Tensor, x_t: Tensor, t: Time, path: Path, prediction: Prediction) -> Tensor:
    """The data x_1 that an output implies (Tweedie's formula); shapes as in `to_velocity`. Needs alpha(t) > 0."""
    time = time_like(t, x_t)
    score = to_score(output, x_t, t, path, prediction)
    return (x_t + path.sigma(time).square() * score) / path.alpha(time)


class VelocityField:
    """A field of noise or score predictions as the velocity field that the solvers follow.

    Guidance comes before: `VelocityField(GuidedVelocity(noise_model, ...), VPPath(), "noise")`. The meanings are
    affine images of each other with the same x_t, so guiding the noise is guiding the velocity.

    Args:
        field: `field(x, t) -> output`, shape of `x`.
        path: the path that the network was trained on.
        prediction: kind of the output of `field`.
    """

    def __init__(self, field: Callable[[Tensor, float], Tensor], path: Path, prediction: Prediction) -> None:
        require_known(prediction, names_of(Prediction), "prediction")
        self.field = field
        self.path = path
        self.prediction = prediction
        self._calls = 0

    @property
    def nfe(self) -> int:
        """Network evaluations per image so far, as the field counts them."""
        return getattr(self.field, "nfe", self._calls)

    @property
    def breakpoints(self) -> tuple[float, ...]:
        """The times at which the field jumps."""
        return getattr(self.field, "breakpoints", ())

    def __call__(self, x: Tensor, t: float) -> Tensor:
        """The velocity at state `x` and time `t`."""
        self._calls += 1
        return to_velocity(self.field(x, t), x, t, self.path, self.prediction)
