"""Figures of a latent space from the generator's side: its spectrum, its size, and how evenly it is filled.

All functions take latents (N, C, h, w), or vectors (N, D) that are taken as they are.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import gaussian_kde
from sklearn.manifold import TSNE

from alight.runtime.errors import InputError

Array = NDArray[np.float64]

PERPLEXITY = 30  # of t-SNE, as in the paper
DENSITY_VECTORS = 5_000  # per map; more vectors lower all three figures of evenness, slowly


def latent_vectors(latents: ArrayLike, generator: np.random.Generator) -> Array:
    """One latent vector of each image, from a random position of its grid: (N, C, h, w) -> (N, C).

    Raises:
        InputError: the latents have another shape, are empty, or not finite.
    """
    values = np.asarray(latents)
    if values.ndim not in (2, 4) or not values.size or not np.isfinite(values).all():
        raise InputError(
            f"Latents need the shape (N, C, h, w), or (N, D) for vectors, and finite values; these have the shape "
            f"{values.shape}. Give those that 'alight latents extract' wrote."
        )
    if values.ndim == 2:
        return values.astype(np.float64)
    images, _, height, width = values.shape
    rows, columns = generator.integers(height, size=images), generator.integers(width, size=images)
    return values[np.arange(images), :, rows, columns].astype(np.float64)


def covariance_spectrum(vectors: ArrayLike) -> Array:
    """Eigenvalues of the covariance between channels, (D,), largest first.

    Raises:
        InputError: there are fewer than two vectors.
    """
    values = np.asarray(vectors, dtype=np.float64)
    if values.ndim != 2 or len(values) < 2:
        raise InputError(f"A spectrum needs at least two vectors (N, D), not an array of shape {values.shape}.")
    eigenvalues: Array = np.linalg.eigvalsh(np.atleast_2d(np.cov(values, rowvar=False)))[::-1]
    return np.maximum(eigenvalues, 0)  # rounding may leave -1e-17 where there is nothing


def effective_dimension(spectrum: ArrayLike) -> float:
    """The participation ratio (sum l)^2 / sum l^2 of eigenvalues: D if all are equal, 1 if one has it all."""
    values = np.asarray(spectrum, dtype=np.float64)
    total = np.square(values).sum()
    return float(np.square(values.sum()) / total) if total > 0 else 0.0


def power_spectrum(latents: ArrayLike) -> Array:
    """Mean power of latents (N, C, h, w) by spatial frequency, averaged over directions and channels.

    Returns:
        (min(h, w) // 2 + 1,): entry k is the mean of |FFT|^2 / (h w) over the frequencies whose distance from zero
        rounds to k cycles per grid. White noise of variance 1 gives 1 everywhere, a smooth latent falls with k.

    Raises:
        InputError: the latents are not (N, C, h, w).
    """
    values = np.asarray(latents, dtype=np.float64)
    if values.ndim != 4 or not values.size:
        raise InputError(f"A power spectrum needs latents (N, C, h, w), not an array of shape {values.shape}.")
    height, width = values.shape[2:]
    power = np.square(np.abs(np.fft.fft2(values))).mean((0, 1)) / (height * width)  # (h, w)
    cycles = np.hypot(np.fft.fftfreq(height, 1 / height)[:, None], np.fft.fftfreq(width, 1 / width))
    ring = np.rint(cycles).astype(np.int64).ravel()
    means: Array = np.bincount(ring, power.ravel()) / np.bincount(ring)
    return means[: min(height, width) // 2 + 1]


@dataclass(frozen=True)
class Evenness:
    """The evenness with which latent vectors fill a two-dimensional map of their space (paper, Table 6).

    Attributes:
        density_cv: standard deviation of the densities over their mean; 0 = the same everywhere.
        gini: coefficient of the densities, in [0, 1]; 0 = the same everywhere.
        entropy: of the densities as shares of their sum, over the logarithm of their number; 1 = the same everywhere.
        vectors: number of vectors per map.
        runs: number of maps that the figures are means of.
    """

    density_cv: float
    gini: float
    entropy: float
    vectors: int
    runs: int


@dataclass(frozen=True)
class LatentMap:
    """A t-SNE map of latent vectors.

    Attributes:
        points: (N, 2).
        densities: (N,) of the points at each of them, by Gaussian kernels.
    """

    points: Array
    densities: Array


def latent_map(vectors: Array, generator: np.random.Generator) -> LatentMap:
    """Map vectors (N, D) to the plane by t-SNE, with the density at each by Gaussian kernels (Scott's rule)."""
    tsne = TSNE(2, perplexity=PERPLEXITY, random_state=int(generator.integers(2**31)))
    points = np.asarray(tsne.fit_transform(vectors), dtype=np.float64)
    return LatentMap(points, np.asarray(gaussian_kde(points.T)(points.T), dtype=np.float64))


def density_evenness(vectors: ArrayLike, generator: np.random.Generator, runs: int = 10) -> tuple[Evenness, LatentMap]:
    """Map vectors to the plane by t-SNE, estimate the density at each by Gaussian kernels, and measure its variation.

    The paper gives the method and the perplexity, not the number of vectors nor the width of the kernels. With those
    taken here (5,000, and Scott's rule) the published vectors of the plain and of the aligned f16d32 give the paper's
    figures to within their spread over the runs, about 0.01.

    Args:
        vectors: (N, D), at least 100; more than `DENSITY_VECTORS` are drawn from at random, for every map again.
        generator: of vectors and maps.
        runs: maps to average over; each takes half a minute on one core.

    Returns:
        The figures, and the last of the maps.

    Raises:
        InputError: there are too few vectors.
    """
    values = np.asarray(vectors, dtype=np.float64)
    if values.ndim != 2 or len(values) <= 3 * PERPLEXITY or runs < 1:
        raise InputError(
            f"Density figures need more than {3 * PERPLEXITY} vectors (N, D) and at least one run, not an array of "
            f"shape {values.shape} and {runs} runs."
        )
    count = min(len(values), DENSITY_VECTORS)
    figures = []
    for _ in range(runs):
        plane = latent_map(values[generator.permutation(len(values))[:count]], generator)
        density = plane.densities
        figures.append((density.std() / density.mean(), gini(density), normalised_entropy(density)))
    cv, inequality, entropy = np.mean(figures, axis=0).tolist()
    return Evenness(cv, inequality, entropy, count, runs), plane


def gini(values: ArrayLike) -> float:
    """Gini coefficient of values that are not negative: half the mean difference of two of them over their mean."""
    ordered = np.sort(np.asarray(values, dtype=np.float64))
    count = len(ordered)
    return float((2 * np.arange(1, count + 1) - count - 1) @ ordered / (count * ordered.sum()))


def normalised_entropy(values: ArrayLike) -> float:
    """Entropy of values as shares of their sum, over the logarithm of their number; values are not negative."""
    weights = np.asarray(values, dtype=np.float64)
    shares = weights[weights > 0] / weights.sum()
    return float(-(shares * np.log(shares)).sum() / np.log(len(weights)))
