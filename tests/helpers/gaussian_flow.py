"""The flow whose every quantity has a closed form: data x_1 ~ N(0, s^2), so x_t ~ N(0, alpha^2 s^2 + sigma^2)."""

from dataclasses import dataclass

import torch

from alight.flow import Path


@dataclass(frozen=True)
class GaussianFlow:
    """Exact marginal fields of a path when each dimension of the data is N(0, scale^2), independently."""

    path: Path
    scale: float = 0.5

    def _time(self, t, x):
        t = torch.as_tensor(t, dtype=x.dtype)
        return t.reshape(-1, *[1] * (x.dim() - 1)) if t.dim() else t

    def variance(self, t):
        t = torch.as_tensor(t, dtype=torch.float64)
        return (self.path.alpha(t) * self.scale).square() + self.path.sigma(t).square()

    def score(self, x, t):
        t = self._time(t, x)
        return -x / ((self.path.alpha(t) * self.scale).square() + self.path.sigma(t).square())

    def noise(self, x, t):
        """E[x_0 | x_t]."""
        return -self.path.sigma(self._time(t, x)) * self.score(x, t)

    def data(self, x, t):
        """E[x_1 | x_t]."""
        return -self.path.alpha(self._time(t, x)) * self.scale**2 * self.score(x, t)

    def velocity(self, x, t):
        """E[alpha' x_1 + sigma' x_0 | x_t]."""
        time = self._time(t, x)
        return self.path.d_alpha(time) * self.data(x, t) + self.path.d_sigma(time) * self.noise(x, t)

    def transport(self, x, t_0, t_1):
        """Where the ODE carries x from t_0 to t_1: it scales with the standard deviation."""
        return x * (self.variance(t_1) / self.variance(t_0)).sqrt().to(x.dtype)
