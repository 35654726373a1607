"""Probability paths: how noise turns into data, as a straight or curved line between each pair of points.

Time runs from t = 0 (noise) to t = 1 (data). A path is a pair of functions alpha and sigma of time with

    x_t      = alpha(t) x_1 + sigma(t) x_0           x_1 data, x_0 ~ N(0, I)
    velocity = alpha'(t) x_1 + sigma'(t) x_0         d x_t / dt for this pair

(Lipman et al., arXiv 2210.02747; Ma et al., SiT, arXiv 2401.08740, section 2). LightningDiT uses the straight one,
`LinearPath`; the other two are the classical diffusion schedules written in the same time.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from alight.runtime.errors import InputError

Time = float | Tensor  # a number, or one number per row of the batch


@dataclass(frozen=True)
class PathSample:
    """One point on the path of each pair (x_0, x_1), and the velocity a model should have there.

    Attributes:
        x_t: the points, shape of the data.
        t: (B,) their times in [0, 1].
        velocity: d x_t / dt, shape of the data: the regression target.
        x_0: the noise.
        x_1: the data.
    """

    x_t: Tensor
    t: Tensor
    velocity: Tensor
    x_0: Tensor
    x_1: Tensor


def time_like(t: Time, x: Tensor) -> Tensor:
    """Gives time the shape that broadcasts against `x`: (B,) becomes (B, 1, 1, 1), a number stays a scalar.

    A number becomes a 0-d tensor on the CPU whatever the device of `x`: it then multiplies `x` without a transfer.
    """
    if not isinstance(t, Tensor):
        return torch.tensor(t, dtype=torch.promote_types(x.dtype, torch.float32))
    return t.reshape(-1, *[1] * (x.dim() - 1)) if t.dim() else t


class Path(ABC):
    """The two coefficient functions of a path, their derivatives and what follows from them.

    All methods take a tensor of times of any shape and answer in that shape.

    Example:
        >>> path = LinearPath()
        >>> point = path.sample(x_1=latents, x_0=torch.randn_like(latents), t=sample_timesteps(len(latents)))
        >>> loss = (model(point.x_t, point.t, class_labels) - point.velocity).square().mean()
    """

    alpha_vanishes_at_noise: bool = True
    """alpha(0) = 0, so that dividing by alpha fails at t = 0."""
    velocity_diverges_at_data: bool = False
    """sigma'(t) is unbounded near t = 1."""

    @abstractmethod
    def alpha(self, t: Tensor) -> Tensor:
        """The coefficient of the data."""

    @abstractmethod
    def sigma(self, t: Tensor) -> Tensor:
        """The coefficient of the noise."""

    @abstractmethod
    def d_alpha(self, t: Tensor) -> Tensor:
        """The time derivative of alpha."""

    @abstractmethod
    def d_sigma(self, t: Tensor) -> Tensor:
        """The time derivative of sigma."""

    @abstractmethod
    def d_log_alpha(self, t: Tensor) -> Tensor:
        """The derivative of log alpha, alpha'/alpha: the factor of x_t in a velocity written with the score."""

    def score_coefficient(self, t: Tensor) -> Tensor:
        """The factor of the score in the velocity: (alpha'/alpha) sigma^2 - sigma sigma'.

        With it, velocity = (alpha'/alpha) x_t + score_coefficient * score, where score = grad log p_t(x_t).
        """
        sigma = self.sigma(t)
        return self.d_log_alpha(t) * sigma.square() - sigma * self.d_sigma(t)

    def sample(self, x_1: Tensor, x_0: Tensor, t: Tensor) -> PathSample:
        """The point at time t on the path from x_0 to x_1, and the velocity there.

        Args:
            x_1: (B, ...) data.
            x_0: noise, shape of `x_1`.
            t: (B,) times in [0, 1].

        Raises:
            InputError: the shapes do not belong together.
        """
        if x_0.shape != x_1.shape or t.shape != x_1.shape[:1]:
            raise InputError(
                f"Data {tuple(x_1.shape)}, noise {tuple(x_0.shape)} and times {tuple(t.shape)} do not belong "
                "together. Give noise in the shape of the data and one time per sample."
            )
        time = time_like(t, x_1)
        x_t = self.alpha(time) * x_1 + self.sigma(time) * x_0
        velocity = self.d_alpha(time) * x_1 + self.d_sigma(time) * x_0
        return PathSample(x_t=x_t, t=t, velocity=velocity, x_0=x_0, x_1=x_1)


class LinearPath(Path):
    """The straight line x_t = t x_1 + (1 - t) x_0 (rectified flow), with constant velocity x_1 - x_0."""

    def alpha(self, t: Tensor) -> Tensor:
        """The time itself."""
        return t

    def sigma(self, t: Tensor) -> Tensor:
        """1 - t."""
        return 1 - t

    def d_alpha(self, t: Tensor) -> Tensor:
        """Constant 1."""
        return torch.ones_like(t)

    def d_sigma(self, t: Tensor) -> Tensor:
        """Constant -1."""
        return -torch.ones_like(t)

    def d_log_alpha(self, t: Tensor) -> Tensor:
        """1 / t."""
        return 1 / t


class GVPPath(Path):
    """The variance-preserving arc x_t = sin(pi t / 2) x_1 + cos(pi t / 2) x_0 ("generalised VP" in SiT)."""

    def alpha(self, t: Tensor) -> Tensor:
        """sin(pi t / 2)."""
        return torch.sin(t * math.pi / 2)

    def sigma(self, t: Tensor) -> Tensor:
        """cos(pi t / 2)."""
        return torch.cos(t * math.pi / 2)

    def d_alpha(self, t: Tensor) -> Tensor:
        """(pi / 2) cos(pi t / 2)."""
        return math.pi / 2 * torch.cos(t * math.pi / 2)

    def d_sigma(self, t: Tensor) -> Tensor:
        """-(pi / 2) sin(pi t / 2)."""
        return -math.pi / 2 * torch.sin(t * math.pi / 2)

    def d_log_alpha(self, t: Tensor) -> Tensor:
        """(pi / 2) / tan(pi t / 2)."""
        return math.pi / 2 / torch.tan(t * math.pi / 2)


class VPPath(Path):
    """The variance-preserving diffusion of DDPM in continuous time (Song et al., arXiv 2011.13456, appendix B).

    In noise time tau = 1 - t noise is added at the rate beta(tau) = beta_min + tau (beta_max - beta_min), so

        log alpha = -tau^2 (beta_max - beta_min) / 4 - tau beta_min / 2,     sigma^2 = 1 - alpha^2.

    alpha(0) is small but not zero: t = 0 is almost, not exactly, noise.

    Args:
        beta_min: the rate at the data end.
        beta_max: the rate at the noise end.
    """

    alpha_vanishes_at_noise = False
    velocity_diverges_at_data = True

    def __init__(self, beta_min: float = 0.1, beta_max: float = 20.0) -> None:
        self.beta_min = beta_min
        self.beta_max = beta_max

    def _log_alpha(self, t: Tensor) -> Tensor:
        tau = 1 - t
        return -0.25 * tau.square() * (self.beta_max - self.beta_min) - 0.5 * tau * self.beta_min

    def alpha(self, t: Tensor) -> Tensor:
        """exp(log alpha), 0.0066 at t = 0 with the default rates."""
        return torch.exp(self._log_alpha(t))

    def sigma(self, t: Tensor) -> Tensor:
        """sqrt(1 - alpha^2), by expm1 so that it keeps its digits near t = 1."""
        return torch.sqrt(-torch.expm1(2 * self._log_alpha(t)))

    def d_alpha(self, t: Tensor) -> Tensor:
        """From d log alpha: alpha (log alpha)'."""
        return self.alpha(t) * self.d_log_alpha(t)

    def d_sigma(self, t: Tensor) -> Tensor:
        """-alpha alpha' / sigma, from alpha^2 + sigma^2 = 1."""
        return -self.alpha(t) * self.d_alpha(t) / self.sigma(t)

    def d_log_alpha(self, t: Tensor) -> Tensor:
        """beta(1 - t) / 2."""
        return 0.5 * (self.beta_min + (1 - t) * (self.beta_max - self.beta_min))

    def score_coefficient(self, t: Tensor) -> Tensor:
        """beta(1 - t) / 2: for this path the general formula reduces to it exactly."""
        return self.d_log_alpha(t)


PATHS: dict[str, type[Path]] = {"linear": LinearPath, "gvp": GVPPath, "vp": VPPath}
