"""Precision, recall, density, coverage and authenticity: the overlap of generated and real images in a feature space.

All of them describe a set of features by balls: around each feature vector, as large as the distance to its k-th
neighbour in its own set.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from alight.metrics.features import comparable_features
from alight.runtime.device import full_float32

Features = Tensor | npt.NDArray[np.floating]


@dataclass(frozen=True)
class PrecisionRecall:
    """Improved precision and recall (Kynkäänniemi et al. 2019) with their conditions.

    Attributes:
        precision: share of generated images inside a ball of a real one: fidelity.
        recall: share of real images inside a ball of a generated one: variety.
        k: neighbour that sets the radius of a ball.
        n_real, n_generated: numbers of images. Both shares depend on them.
        collapsed_real, collapsed_generated: balls of no size, around images that occur more than k times.
        half_precision: True if distances were rounded to 16 bits.
        border_inside: True if a point on the border of a ball counts as inside.
    """

    precision: float
    recall: float
    k: int
    n_real: int
    n_generated: int
    collapsed_real: int
    collapsed_generated: int
    half_precision: bool
    border_inside: bool = True


@dataclass(frozen=True)
class DensityCoverage:
    """Density and coverage (Naeem et al. 2020) with their conditions.

    Attributes:
        density: number of real balls that a generated image lies in, on average, over k: fidelity. May exceed 1.
        coverage: share of real images whose ball holds a generated one: variety.
        k: neighbour that sets the radius of a ball.
        n_real, n_generated: numbers of images.
        collapsed_real: balls of no size, around images that occur more than k times.
    """

    density: float
    coverage: float
    k: int
    n_real: int
    n_generated: int
    collapsed_real: int


def precision_recall(
    real: Features,
    generated: Features,
    k: int = 3,
    half_precision: bool = False,
    block_size: int = 1000,
    border_inside: bool = True,
) -> PrecisionRecall:
    """Precision and recall, by default as the ADM evaluator takes them: a point on the border of a ball is inside.

    Args:
        real: (N, D).
        generated: (M, D).
        k: neighbour that sets the radius of a ball, the point itself not counted.
        half_precision: compute distances in float16, and a block of them in float32 where one is too large. The
            published numbers are made so; it moves the third or fourth digit.
        block_size: rows of the distance matrix that are in memory at once, a few times 4 N or 4 M bytes each.
        border_inside: dgm-eval, whose k is 5, takes such a point as outside.

    Raises:
        InputError: the features are not (N, D) and (M, D), not finite, or no more than k.
    """
    real, generated = comparable_features(real, generated, at_least=k + 1)
    distances = half_squared_distances if half_precision else squared_distances
    if not half_precision:
        real, generated = _centred(real, generated)
    real_radii, generated_radii = (_squared_radii(points, k, distances, block_size) for points in (real, generated))

    inside = torch.le if border_inside else torch.lt
    precise = torch.zeros(len(generated), dtype=torch.bool, device=real.device)
    recalled = torch.zeros(len(real), dtype=torch.bool, device=real.device)
    for rows in _blocks(len(generated), block_size):
        block = distances(generated[rows], real)  # (rows, N)
        precise[rows] = inside(block, real_radii).any(dim=1)
        recalled |= inside(block, generated_radii[rows, None]).any(dim=0)
    return PrecisionRecall(
        precision=precise.sum().item() / len(generated),
        recall=recalled.sum().item() / len(real),
        k=k,
        n_real=len(real),
        n_generated=len(generated),
        collapsed_real=int((real_radii == 0).sum()),
        collapsed_generated=int((generated_radii == 0).sum()),
        half_precision=half_precision,
        border_inside=border_inside,
    )


def density_coverage(real: Features, generated: Features, k: int = 5, block_size: int = 1000) -> DensityCoverage:
    """Density and coverage as dgm-eval takes them (Stein et al. 2023): a point on the border of a ball is outside.

    Args:
        real: (N, D).
        generated: (M, D).
        k: neighbour that sets the radius of a ball, the point itself not counted.
        block_size: rows of the distance matrix that are in memory at once, a few times 4 N bytes each.

    Raises:
        InputError: the features are not (N, D) and (M, D), not finite, or the real ones no more than k.
    """
    real, generated = _centred(*comparable_features(real, generated, at_least=k + 1))
    radii = _squared_radii(real, k, squared_distances, block_size)

    total, covered = 0, torch.zeros(len(real), dtype=torch.bool, device=real.device)
    for rows in _blocks(len(generated), block_size):
        inside = squared_distances(generated[rows], real) < radii  # (rows, N)
        total += int(inside.sum())
        covered |= inside.any(dim=0)
    return DensityCoverage(
        density=total / (k * len(generated)),
        coverage=covered.sum().item() / len(real),
        k=k,
        n_real=len(real),
        n_generated=len(generated),
        collapsed_real=int((radii == 0).sum()),
    )


def authenticity(real: Features, generated: Features, block_size: int = 1000) -> float:
    """Share of generated images that are no copies: further from their nearest real image than its own neighbour is.

    A generator that repeats its training images scores 0, new real images of the same kind more than one half
    (Alaa et al. 2022; the AuthPct of Stein et al. 2023, as a share).

    Args:
        real: (N, D), the training images.
        generated: (M, D).
        block_size: rows of the distance matrix that are in memory at once, a few times 4 N bytes each.

    Raises:
        InputError: the features are not (N, D) and (M, D), not finite, or there are fewer than two real ones.
    """
    real, generated = _centred(*comparable_features(real, generated, at_least=2))
    to_neighbour = _squared_radii(real, 1, squared_distances, block_size)
    authentic = 0
    for rows in _blocks(len(generated), block_size):
        nearest = squared_distances(generated[rows], real).min(dim=1)
        authentic += int((nearest.values > to_neighbour[nearest.indices]).sum())
    return authentic / len(generated)


def squared_distances(a: Tensor, b: Tensor) -> Tensor:
    """Squared Euclidean distances in float32, (len(a), len(b)) from (., D) each; rounding errors of zero are zero."""
    a, b = a.float(), b.float()
    squares = a.square().sum(dim=1)[:, None] + b.square().sum(dim=1)
    rounding = torch.finfo(torch.float32).eps * a.shape[1] ** 0.5
    with full_float32():
        distances = torch.addmm(squares, a, b.T, alpha=-2)
    return distances.where(distances > rounding * squares, 0)


def half_squared_distances(a: Tensor, b: Tensor) -> Tensor:
    """Squared Euclidean distances rounded to float16 at each step; in float32 if one of them is not finite then."""
    small_a, small_b = a.half(), b.half()
    squares = small_a.square().sum(dim=1)[:, None] + small_b.square().sum(dim=1)
    distances = (squares - 2 * (small_a @ small_b.T)).clamp(min=0)
    return distances.float() if distances.isfinite().all() else squared_distances(a, b)


def _centred(real: Tensor, generated: Tensor) -> tuple[Tensor, Tensor]:
    """Both sets in float32 about the mean of the real one, where squares are small and keep the digits."""
    centre = real.float().mean(dim=0)
    return real.float() - centre, generated.float() - centre


def _squared_radii(points: Tensor, k: int, distances: Callable[[Tensor, Tensor], Tensor], block_size: int) -> Tensor:
    """Squared distance from each point to its k-th neighbour, (N,); a point is its own neighbour number 0."""
    blocks = (distances(points[rows], points) for rows in _blocks(len(points), block_size))
    return torch.cat([block.topk(k + 1, largest=False).values[:, k] for block in blocks])


def _blocks(n: int, size: int) -> Iterator[slice]:
    return (slice(start, start + size) for start in range(0, n, size))
