"""Power-function profiles of averages, and the combination of stored averages that gives another one.

An average of the weights theta over T steps with the exponent gamma is

    integral over t from 0 to T of p(t) theta(t),    p(t) = (gamma + 1) t^gamma / T^(gamma + 1),

so it forgets the beginning of a run at a rate that grows with the run. Its width sigma is the standard deviation of p
as a share of T: an average of width 0.1 looks back over about a tenth of the training, however long that is.

Profiles of different exponents and ends are not orthogonal. Snapshots of a few of them therefore span a space that
holds others nearly, and least squares over the profiles finds the combination without a look at the weights.

Source: Karras et al. 2024, arXiv 2312.02696, section 3 and appendix C.
"""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from alight.config.training import LARGEST_WIDTH, SMALLEST_WIDTH

TOLERANCE = 0.02  # of a combined profile: the norm of its error as a share of the norm of the wanted profile
_GRID = 0.005  # between the widths that are tried to find those within reach

Array = NDArray[np.float64]


class Profile(NamedTuple):
    """An average, by its exponent gamma and the number of steps T at its end."""

    exponent: float
    steps: int

    @property
    def width(self) -> float:
        """The standard deviation of the profile as a share of T."""
        return width_of(self.exponent)


def width_of(exponent: float) -> float:
    """The width sigma = sqrt(gamma + 1) / ((gamma + 2) sqrt(gamma + 3)) of an exponent gamma, 0 or larger."""
    return math.sqrt(exponent + 1) / ((exponent + 2) * math.sqrt(exponent + 3))


def exponent_of(width: float) -> float:
    """The exponent gamma of a width: the largest root of a cubic.

    With x = gamma + 2 the definition of the width reads x^3 + x^2 - x / sigma^2 + 1 / sigma^2 = 0, which has three
    real roots for every width below 0.3; the largest is the one of a profile that rises.

    Args:
        width: between `SMALLEST_WIDTH` and `LARGEST_WIDTH`.
    """
    inverse = 1 / width**2
    linear, constant = -inverse - 1 / 3, 2 / 27 + inverse / 3 + inverse  # of the cubic without its square term
    cosine = 3 * constant / (2 * linear) * math.sqrt(-3 / linear)
    angle = math.acos(max(-1.0, min(1.0, cosine))) / 3
    return 2 * math.sqrt(-linear / 3) * math.cos(angle) - 1 / 3 - 2


def profile_of(width: float, steps: int) -> Profile:
    """The profile of a width that ends after so many steps."""
    return Profile(exponent_of(width), steps)


def share_of_step(exponent: float, number: int) -> float:
    """The share of the weights after step `number`, counted from 1, in a tracked average: 1 - (1 - 1/n)^(gamma + 1).

    After T steps the weights of step n then make up (n^(gamma+1) - (n-1)^(gamma+1)) / T^(gamma+1) of the average,
    which is the integral of the profile over that step. The first share is 1: initial weights leave no trace.
    """
    return 1.0 if number == 1 else -math.expm1((exponent + 1) * math.log1p(-1 / number))


def inner_products(ones: Sequence[Profile], others: Sequence[Profile]) -> Array:
    """The integrals of the products of profiles, (len(ones), len(others)) in float64.

    For exponents g, h and ends S, T with m = min(S, T) it is
    (g + 1)(h + 1) m^(g + h + 1) / ((g + h + 1) S^(g + 1) T^(h + 1)), computed from ratios, so that no power overflows.
    """
    g, first = (np.array(column, dtype=np.float64)[:, None] for column in zip(*ones, strict=True))
    h, second = (np.array(column, dtype=np.float64)[None, :] for column in zip(*others, strict=True))
    least = np.minimum(first, second)
    powers = (least / first) ** (g + 1) * (least / second) ** (h + 1)
    product: Array = (g + 1) * (h + 1) / (g + h + 1) * powers / least
    return product


def combination(stored: Sequence[Profile], wanted: Profile) -> Array:
    """The weights w of stored averages in the combination that comes nearest to a wanted one.

    They solve A w = b with the inner products A of the stored profiles and b of these with the wanted one, and are
    then divided by their sum, which is 1 up to the error of the fit, so that weights that training does not change
    stay as they are.

    Args:
        stored: profiles, all different, that end at or before the wanted one.
        wanted: the profile to reproduce.

    Returns:
        One weight per stored profile, in float64; some are negative.
    """
    gram, right = inner_products(stored, stored), inner_products(stored, [wanted])[:, 0]
    scale = 1 / np.sqrt(np.diag(gram))  # equal diagonals, for accuracy
    weights: Array = scale * np.linalg.solve(gram * scale[:, None] * scale, scale * right)
    return weights / weights.sum()


def combination_error(stored: Sequence[Profile], weights: Array, wanted: Profile) -> float:
    """The norm of the difference of a combined profile and the wanted one, as a share of the norm of the latter."""
    square = weights @ inner_products(stored, stored) @ weights
    mixed = weights @ inner_products(stored, [wanted])[:, 0]
    norm = float(inner_products([wanted], [wanted])[0, 0])
    return math.sqrt(max(float(square - 2 * mixed) + norm, 0.0) / norm)


def widths_within_reach(stored: Sequence[Profile], steps: int, tolerance: float = TOLERANCE) -> list[list[float]]:
    """The ranges [low, high] of widths that stored averages can give at a step, on a grid of 0.005."""
    count = round((LARGEST_WIDTH - SMALLEST_WIDTH) / _GRID)
    grid = {round(SMALLEST_WIDTH + _GRID * number, 4) for number in range(count + 1)}
    grid |= {round(profile.width, 4) for profile in stored}
    ranges: list[list[float]] = []
    before = False
    for width in sorted(grid):
        wanted = profile_of(width, steps)
        within = combination_error(stored, combination(stored, wanted), wanted) <= tolerance
        if within and before:
            ranges[-1][1] = width
        elif within:
            ranges.append([width, width])
        before = within
    return ranges


def describe_ranges(ranges: Sequence[Sequence[float]]) -> str:
    """Ranges of widths in words: "0.025 to 0.235"."""

    def texts() -> Iterator[str]:
        for low, high in ranges:
            yield f"{low:g}" if low == high else f"{low:g} to {high:g}"

    return ", and ".join(texts()) or "none"
