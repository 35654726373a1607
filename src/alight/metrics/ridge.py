"""Ridge regression from a stream: the linear map from one set of vectors to another."""

import torch
from torch import Tensor

from alight.runtime.errors import InputError

PENALTY = 1e-4  # relative to the second moment of each input channel


class RidgeRegression:
    """The linear map without bias that takes x to y with the least squared error.

    W = Y^T X (X^T X + penalty * diag(X^T X))^-1. Only the two sums X^T X and Y^T X are kept, in float64, so any
    number of vectors streams through. The penalty grows with each channel's own size, so the fit does not depend on
    the units of x.

    Args:
        inputs: C, length of x.
        outputs: D, length of y.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        self.gram = torch.zeros(inputs, inputs, dtype=torch.float64)
        self.cross = torch.zeros(outputs, inputs, dtype=torch.float64)
        self.n = 0

    def update(self, x: Tensor, y: Tensor) -> None:
        """Take in pairs of vectors.

        Args:
            x: (N, C), of any floating-point type and on any device.
            y: (N, D).
        """
        x, y = x.cpu().double(), y.cpu().double()
        self.gram += x.T @ x
        self.cross += y.T @ x
        self.n += len(x)

    def merge(self, other: "RidgeRegression") -> None:
        """Take in all that `other` has seen."""
        self.gram += other.gram
        self.cross += other.cross
        self.n += other.n

    def solve(self, penalty: float = PENALTY) -> Tensor:
        """The map, (D, C) in float64. Channels that are always zero get the weight zero.

        Raises:
            InputError: no vectors have been given, or some are not finite.
        """
        if not self.n:
            raise InputError("There are no vectors to fit a linear map to; the image set is empty.")
        if not (self.gram.isfinite().all() and self.cross.isfinite().all()):
            raise InputError("A linear map was to be fitted to vectors with NaN or infinity; look at the networks.")
        size = self.gram.diagonal().sqrt()
        size = torch.where(size > 0, size, 1.0)
        correlation = self.gram / size.outer(size) + penalty * torch.eye(len(size), dtype=torch.float64)
        return torch.linalg.solve(correlation, self.cross / size, left=False) / size
