"""Mean and standard deviation of latents per channel, in float64, in parts that can be merged."""

from typing import Any, Self

import numpy as np
import torch
from torch import Tensor


class ChannelStatistics:
    """Mean and standard deviation per channel, accumulated in float64 over batches of any size.

    NumPy sums them, on one thread: torch would add in another order with another number of threads.
    """

    def __init__(self, channels: int) -> None:
        self.count = 0
        self._mean = np.zeros(channels)
        self._squares = np.zeros(channels)  # sum of squared deviations from the mean

    def update(self, latents: Tensor, variance: Tensor | None = None) -> None:
        """Add a batch.

        Args:
            latents: (B, C, h, w).
            variance: of the same shape, if `latents` are the means of Gaussians; the statistics are then those
                expected of samples, by the law of total variance.
        """
        values = _by_channel(latents)
        batch = ChannelStatistics(len(values))
        batch.count = values.shape[1]
        batch._mean = values.mean(1)
        batch._squares = np.square(values - batch._mean[:, None]).sum(1)
        if variance is not None:
            batch._squares += _by_channel(variance).sum(1)
        self.merge(batch)

    def merge(self, other: "ChannelStatistics") -> None:
        """Add the statistics of another part, by the pairwise rule of Chan et al. (1979), without cancellation."""
        total = self.count + other.count
        if total:
            delta = other._mean - self._mean
            self._squares += other._squares + np.square(delta) * (self.count * other.count / total)
            self._mean += delta * (other.count / total)
            self.count = total

    @property
    def mean(self) -> Tensor:
        """Per channel, float64, shape (C,)."""
        return torch.from_numpy(self._mean.copy())

    @property
    def std(self) -> Tensor:
        """Per channel with n - 1 in the denominator, float64, shape (C,)."""
        return torch.from_numpy(np.sqrt(self._squares / max(self.count - 1, 1)))

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain numbers, which JSON keeps to the last bit."""
        return {"count": self.count, "mean": self._mean.tolist(), "squares": self._squares.tolist()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Restore statistics from the result of `to_dict`."""
        statistics = cls(len(values["mean"]))
        statistics.count = values["count"]
        statistics._mean, statistics._squares = np.array(values["mean"]), np.array(values["squares"])
        return statistics


def _by_channel(latents: Tensor) -> np.ndarray:
    """(B, C, h, w) to (C, B h w) in float64."""
    values: np.ndarray = latents.detach().cpu().double().transpose(0, 1).flatten(1).numpy()
    return values
