"""Mean and scatter of features, summed on the GPU that made them: a CPU takes longer for it than the network does."""

import torch
from torch import Tensor


def sums_in_place(features: Tensor) -> bool:
    """Tell if features are on a device that sums in float64, and faster than the CPU."""
    return features.is_cuda


class MomentsOnGpu:
    """Moments of features (n, D), absorbed batch by batch as `FeatureStatistics` does, in float64.

    Args:
        like: (B, D), features of the same dimension on the device.

    Attributes:
        n: vectors so far.
        mean: (D,).
        scatter: (D, D), the sum of (x - mean)(x - mean)^T.
    """

    def __init__(self, like: Tensor) -> None:
        self.n, self.mean = 0, like.new_zeros(like.shape[1], dtype=torch.float64)
        self.scatter = self.mean.new_zeros(like.shape[1], like.shape[1])

    @torch.no_grad()
    def absorb(self, features: Tensor) -> None:
        """Take in a batch (B, D), which is not empty."""
        batch, n = features.double(), len(features)
        mean, total = batch.mean(dim=0), self.n + n
        centred, delta = batch - mean, mean - self.mean
        self.scatter.addmm_(centred.T, centred)
        self.scatter.addr_(delta, delta, alpha=self.n * n / total)
        self.mean += delta * (n / total)
        self.n = total
