"""The ambiguity of the velocity: the squared error that no generator can avoid when it learns a set of latents.

With x_t = t x_1 + (1 - t) x_0, latents x_1 and noise x_0, the velocity x_1 - x_0 is (x_1 - x_t) / (1 - t), so that
ambiguity(t) = E Var(x_1 | x_t) / (1 - t)^2 is the lowest mean squared error of a velocity. Everything here is per
number of a latent: normalised latents without any structure have 1 / (t^2 + (1 - t)^2), and pi / 2 over all times.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import softmax

from alight.runtime.errors import InputError

Array = NDArray[np.float64]

FEWEST_NEIGHBOURS = 10.0  # that a posterior over other latents needs, in the median, to say anything
WITHOUT_STRUCTURE = np.pi / 2  # integral over time for independent values of variance 1
BLOCK = 500  # points whose posteriors are held at once


def gaussian_ambiguity(spectrum: ArrayLike, t: float) -> float:
    """The ambiguity of a Gaussian at a time: the mean of l / (t^2 l + (1 - t)^2) over its eigenvalues l.

    It bounds the ambiguity of every distribution with that covariance from above, because the best linear estimate of
    x_1 is as good for all of them.

    Args:
        spectrum: (D,) eigenvalues of the covariance, none negative.
        t: in [0, 1); 1 is data.
    """
    values = _checked(spectrum)
    if not 0 <= t < 1:
        raise InputError(f"The ambiguity is measured at times from 0 up to, not including, 1; not at {t}.")
    return float(np.mean(values / (t**2 * values + (1 - t) ** 2)))


def ambiguity_bound(spectrum: ArrayLike) -> float:
    """The same integrated over all times, pi / 2 times the mean of the roots of the eigenvalues.

    Args:
        spectrum: (D,) eigenvalues of the covariance, none negative.

    Returns:
        At most pi / 2 where the eigenvalues have the mean 1, and that only if all of them are 1.
    """
    return float(WITHOUT_STRUCTURE * np.sqrt(_checked(spectrum)).mean())


def _checked(spectrum: ArrayLike) -> Array:
    values = np.asarray(spectrum, dtype=np.float64)
    if values.ndim != 1 or not values.size or not np.isfinite(values).all() or values.min() < 0:
        raise InputError("A spectrum is a list of finite eigenvalues, none of them negative.")
    return values


@dataclass(frozen=True)
class Posterior:
    """The ambiguity by posteriors over the other latents.

    Attributes:
        errors: (N,) the squared error of each point per number, over (1 - t)^2; their mean is the ambiguity.
        neighbours: median of the effective number of latents in a posterior, 1 / sum of its squared weights.
    """

    errors: Array
    neighbours: float

    @property
    def ambiguity(self) -> float:
        """The mean over all points."""
        return float(self.errors.mean())


def leave_one_out_ambiguity(vectors: ArrayLike, t: float, generator: np.random.Generator) -> Posterior:
    """The error of the posterior mean over the other vectors, from one noisy point of each vector.

    An estimate from above, as that of every estimator that has not seen the vector. Close to the data, or in many
    dimensions, the posterior has a single neighbour, and the figure is then the distance of that, not the ambiguity.

    Args:
        vectors: (N, D), at least two.
        t: in (0, 1).
        generator: of the noise.

    Raises:
        InputError: the posteriors hold fewer than ten effective neighbours, in the median; or the vectors have another
            shape.
    """
    values = np.asarray(vectors, dtype=np.float64)
    if values.ndim != 2 or len(values) < 2 or not 0 < t < 1:
        raise InputError(f"Posteriors need vectors (N, D) and a time within 0 and 1, not {values.shape} and {t}.")
    squares = np.square(values).sum(1)
    errors, effective = [], []
    for start in range(0, len(values), BLOCK):
        own = values[start : start + BLOCK]
        noisy = t * own + (1 - t) * generator.standard_normal(own.shape)
        logits = (t * noisy @ values.T - t**2 * squares / 2) / (1 - t) ** 2
        logits[np.arange(len(own)), start + np.arange(len(own))] = -np.inf  # the vector itself
        weights = softmax(logits, axis=1)
        errors.append(np.square(own - weights @ values).mean(1) / (1 - t) ** 2)
        effective.append(1 / np.square(weights).sum(1))
    neighbours = float(np.median(np.concatenate(effective)))
    if neighbours < FEWEST_NEIGHBOURS:
        raise InputError(
            f"At t = {t:g} the posterior over {len(values):,} vectors of {values.shape[1]} numbers collapses to "
            f"{neighbours:.1f} of them, which measures distances and no ambiguity. Take an earlier time, more "
            "vectors, or vectors of single positions."
        )
    return Posterior(np.concatenate(errors), neighbours)
