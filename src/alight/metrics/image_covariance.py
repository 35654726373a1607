"""The spectrum of latents over images that are drawn again and again, in bounded memory."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from alight.runtime.errors import InputError

Array = NDArray[np.float64]
BLOCK = 2**22  # numbers that are held in float64 at once, besides the moments


class ImageCovariance:
    """The covariance between channels over any draw of images, which copies no latents.

    Where there are no more channels than positions, the sums of products of each image are kept, which are no larger
    than its latents, and a draw is a weighted sum of them. Else products are summed for each draw, block by block.
    Channels should have a mean near 0, as normalised latents do: the square of the mean is taken out at the end.

    Args:
        latents: (N, C, n) of N images with n positions.

    Raises:
        InputError: there are fewer than two vectors, or the latents have another shape.
    """

    def __init__(self, latents: ArrayLike) -> None:
        self.latents = np.asarray(latents)
        if self.latents.ndim != 3 or self.latents.shape[0] * self.latents.shape[2] < 2:
            raise InputError(
                f"A spectrum needs at least two vectors in latents (N, C, n), not an array of shape "
                f"{self.latents.shape}."
            )
        images, channels, positions = self.latents.shape
        self.sums: Array = self.latents.sum(2, dtype=np.float64)  # (N, C)
        self.step = max(BLOCK // (channels * positions), 1)  # images of a block
        self.moments: Array | None = None  # (N, C * C)
        if channels <= positions:
            self.moments = np.empty((images, channels * channels))
            for start in range(0, images, self.step):
                block = self.latents[start : start + self.step].astype(np.float64)
                self.moments[start : start + self.step] = (block @ block.transpose(0, 2, 1)).reshape(len(block), -1)

    def spectrum(self, chosen: NDArray[np.int64]) -> Array:
        """Eigenvalues of the covariance over the images of some numbers, which may come more than once; (C,).

        The largest comes first, and the sum of squares is divided by the number of vectors less one.
        """
        images, channels, positions = self.latents.shape
        weights = np.bincount(chosen, minlength=images).astype(np.float64)
        count = len(chosen) * positions
        mean = weights @ self.sums / count
        if self.moments is not None:
            products = (weights @ self.moments).reshape(channels, channels)
        else:
            products = self._products(weights)
        covariance = (products - count * np.outer(mean, mean)) / (count - 1)
        return np.maximum(np.linalg.eigvalsh(covariance)[::-1], 0)  # rounding may leave -1e-17 where there is nothing

    def _products(self, weights: Array) -> Array:
        """The weighted sum of products of channels, (C, C)."""
        channels, drawn = self.latents.shape[1], np.flatnonzero(weights)
        total = np.zeros((channels, channels))
        for start in range(0, len(drawn), self.step):
            places = drawn[start : start + self.step]
            block = self.latents[places].transpose(1, 0, 2).astype(np.float64, order="C")  # (C, images, n)
            block *= np.sqrt(weights[places])[:, None]
            rows = block.reshape(channels, -1)
            total += rows @ rows.T
        return total
