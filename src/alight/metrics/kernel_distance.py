"""Kernel distance between two sets of features, without the bias that a Frechet distance has for small sets.

It is called KID when, and only when, the features are those of the Inception network of 2015.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from alight.metrics.features import comparable_features
from alight.runtime.errors import InputError

DEGREE = 3


@dataclass(frozen=True)
class KernelDistance:
    """A kernel distance (Binkowski et al. 2018, section 4) with its conditions.

    Attributes:
        value: mean over the pairs of subsets. Unbiased, so that it may be negative.
        std: over the pairs of subsets, with the divisor `subsets`.
        subsets: number of pairs of subsets, drawn at random without repetition within a subset.
        subset_size: images per subset.
        n_real, n_generated: numbers of images.
    """

    value: float
    std: float
    subsets: int
    subset_size: int
    n_real: int
    n_generated: int


def kernel_distance(
    real: Tensor | npt.NDArray[np.floating],
    generated: Tensor | npt.NDArray[np.floating],
    generator: torch.Generator,
    subsets: int = 100,
    subset_size: int = 1000,
) -> KernelDistance:
    """Squared maximum mean discrepancy with the kernel (x . y / D + 1)^3, mean over random subsets.

    Args:
        real: (N, D).
        generated: (M, D).
        generator: a CPU generator, which draws the subsets.
        subsets: number of pairs of subsets.
        subset_size: images per subset.

    Raises:
        InputError: the features are not (N, D) and (M, D), not finite, or fewer than a subset takes.
    """
    if subsets < 1 or subset_size < 2:
        raise InputError(
            "A kernel distance is a mean over subsets of two or more images, but got "
            f"{subsets} subsets of {subset_size}."
        )
    real, generated = (_widened(features) for features in comparable_features(real, generated, subset_size))
    values = []
    for _ in range(subsets):
        x, y = (
            features[torch.randperm(len(features), generator=generator)[:subset_size]]
            for features in (real, generated)
        )
        values.append(_squared_discrepancy(x, y))
    return KernelDistance(
        float(np.mean(values)), float(np.std(values)), subsets, subset_size, len(real), len(generated)
    )


def _widened(features: Tensor) -> Tensor:
    """Features in float64, on the CPU where their device has none."""
    return features.double() if features.is_cuda else features.cpu().double()


def _squared_discrepancy(x: Tensor, y: Tensor) -> float:
    """Unbiased estimate of the squared maximum mean discrepancy of two sets of m samples: no sample meets itself."""
    m = len(x)
    within = _kernel(x, x) + _kernel(y, y)
    return (((within.sum() - within.trace()) / (m * (m - 1))) - 2 * _kernel(x, y).mean()).item()


def _kernel(x: Tensor, y: Tensor) -> Tensor:
    return (x @ y.T / x.shape[1] + 1) ** DEGREE  # (m, m)
