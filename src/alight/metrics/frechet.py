"""The Frechet distance between two sets of features, from their means and covariances.

It is called FID when, and only when, the features are those of the Inception network of 2015.  Everything here is
float64, and on the CPU but for the sums over features on a GPU: the distance is a small difference of large traces.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from alight.metrics.moments_on_gpu import MomentsOnGpu, sums_in_place
from alight.runtime.errors import InputError
from alight.runtime.files import replacing
from alight.runtime.npz import array_headers, read_array

Matrix = npt.NDArray[np.float64]

MOMENTS_LIMIT = 2**30  # bytes of a covariance that is read: more than 11,000 dimensions have no features here
_TEXT_LIMIT = 2**16
_REFUSAL = "cannot be used as feature statistics, a .npz with mu (D,) and sigma (D, D)"
MOST_NEGATIVE_EIGENVALUE = -1e-3  # relative to the largest; a covariance stored in float32 stays far above it


class FeatureStatistics:
    """Mean and covariance of features, gathered batch by batch without keeping the features.

    Batches are absorbed by the update of Chan, Golub and LeVeque (1979), which sums squares around the running mean
    and so keeps its digits where `E[x^2] - E[x]^2` would lose them.  Statistics that several processes gathered are
    joined by the same update (`merge`).

        statistics = FeatureStatistics(dimension=64)
        for images in batches:
            statistics.update(extractor(images))
        statistics.save("reference.npz")

    Attributes:
        dimension: D, the length of a feature vector.
        features: the name of the feature set, or None where a file does not say; two names are never compared.
    """

    def __init__(self, dimension: int, features: str | None = None) -> None:
        self.dimension = dimension
        self.features = features
        self._n: int | None = 0
        self._mean: Matrix = np.zeros(dimension)
        self._scatter: Matrix = np.zeros((dimension, dimension))  # sum of (x - mean)(x - mean)^T
        self._on_gpu: MomentsOnGpu | None = None  # of the batches since a figure was last asked for

    @classmethod
    def from_features(
        cls, features: Tensor | npt.NDArray[np.floating], name: str | None = None
    ) -> "FeatureStatistics":
        """Statistics of a tensor or array of features, (n, D)."""
        statistics = cls(dimension=features.shape[-1], features=name)
        statistics.update(features)
        return statistics

    @classmethod
    def from_moments(
        cls,
        mu: npt.NDArray[np.floating],
        sigma: npt.NDArray[np.floating],
        n: int | None = None,
        name: str | None = None,
    ) -> "FeatureStatistics":
        """Statistics that are known already: the mean (D,) and the covariance (D, D) with the divisor n - 1.

        Raises:
            InputError: the shapes do not fit, or a value is not finite.
        """
        if mu.ndim != 1 or sigma.shape != (len(mu), len(mu)):
            raise InputError(
                f"Feature statistics are a mean (D,) and a covariance (D, D), but got {mu.shape} and {sigma.shape}."
            )
        if not (np.isfinite(mu).all() and np.isfinite(sigma).all()):
            raise InputError("The mean or covariance contains NaN or infinity; make the feature statistics again.")
        statistics = cls(dimension=len(mu), features=name)
        statistics._n = n
        statistics._mean = mu.astype(np.float64)
        statistics._scatter = sigma.astype(np.float64) * (1 if n is None else n - 1)
        return statistics

    def update(self, features: Tensor | npt.NDArray[np.floating]) -> None:
        """Take in one batch.

        Args:
            features: (B, D), of any floating-point type and on any device.

        Raises:
            InputError: the shape is not (B, D), a value is not finite, or the statistics come from a file without n.
        """
        if features.ndim != 2 or features.shape[1] != self.dimension:
            raise InputError(
                f"These statistics are of features of dimension {self.dimension}, but the batch has the shape "
                f"{tuple(features.shape)}; give one feature vector per row, from the extractor that gave the others."
            )
        if isinstance(features, Tensor) and sums_in_place(features):
            _require_finite(bool(features.isfinite().all()))
            self._on_gpu = self._on_gpu or MomentsOnGpu(features)
            if len(features):
                self._on_gpu.absorb(features.detach())
            return
        if isinstance(features, Tensor):
            features = features.detach().cpu().double().numpy()
        batch = np.asarray(features, dtype=np.float64)
        _require_finite(bool(np.isfinite(batch).all()))
        if len(batch):
            mean = batch.mean(axis=0)
            centred = batch - mean
            self._absorb(mean, centred.T @ centred, len(batch))

    def merge(self, other: "FeatureStatistics") -> None:
        """Take in all that `other` has seen, as if its batches had been given to this one.

        Raises:
            InputError: the two are of different features, or one comes from a file that does not say its n.
        """
        self.check_comparable(other)
        if other.n is None:
            raise InputError("Statistics from a file that does not say its number of samples cannot be merged.")
        self._settle()
        self._absorb(other._mean, other._scatter, other.n)

    def _settle(self) -> None:
        """Absorb what was summed on a GPU."""
        if self._on_gpu is not None:
            moments, self._on_gpu = self._on_gpu, None
            self._absorb(moments.mean.cpu().numpy(), moments.scatter.cpu().numpy(), moments.n)

    def __getstate__(self) -> dict[str, Any]:
        """The state that travels between processes, on the CPU."""
        self._settle()
        return vars(self)

    def _absorb(self, mean: Matrix, scatter: Matrix, n: int) -> None:
        if self._n is None:
            raise InputError("Statistics from a file that does not say its number of samples cannot be extended.")
        if n == 0:
            return
        total = self._n + n
        delta = mean - self._mean
        self._mean = self._mean + delta * (n / total)
        self._scatter += scatter
        self._scatter += np.outer(delta, delta * (self._n * n / total))
        self._n = total

    @property
    def n(self) -> int | None:
        """Number of feature vectors, or None where a file does not say."""
        self._settle()
        return self._n

    @property
    def mu(self) -> Matrix:
        """Mean, (D,)."""
        self._settle()
        return self._mean

    @property
    def sigma(self) -> Matrix:
        """Covariance with the divisor n - 1, (D, D).

        Raises:
            InputError: there are fewer than two samples.
        """
        if self.n is None:  # known from elsewhere, already divided
            return self._scatter
        if self.n < 2:
            raise InputError(
                f"A covariance needs at least two samples, but these statistics have seen {self.n}; "
                "give more images (and many more than the features have dimensions, for a distance that means much)."
            )
        return self._scatter / (self.n - 1)

    def check_comparable(self, other: "FeatureStatistics") -> None:
        """Raise an `InputError` if the two are statistics of different features."""
        if self.dimension != other.dimension:
            raise InputError(
                f"Features of dimension {self.dimension} cannot be compared with features of dimension "
                f"{other.dimension}; take both statistics with the same extractor."
            )
        if self.features is not None and other.features is not None and self.features != other.features:
            raise InputError(
                f"Statistics of the features '{self.features}' cannot be compared with those of '{other.features}'; "
                "take both with the same extractor."
            )

    def save(self, path: str | os.PathLike[str], **others: Matrix) -> None:
        """Write a `.npz` with `mu` and `sigma`, the layout of pytorch-fid, and with `n`, `features` and `others`."""
        entries: dict[str, Any] = {"mu": self.mu, "sigma": self.sigma, **others}
        if self.n is not None:
            entries["n"] = self.n
        if self.features is not None:
            entries["features"] = self.features
        with replacing(Path(path)) as unfinished, unfinished.open("wb") as file:
            np.savez(file, **entries)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "FeatureStatistics":
        """Read a file of `save`, pytorch-fid or another tool of that layout.

        Raises:
            InputError: the file is missing, is no `.npz`, or its `mu` and `sigma` are absent or do not fit.
        """
        path = Path(path)
        if not path.is_file():
            raise InputError(f"There are no feature statistics at {path}; give the path of a .npz with mu and sigma.")
        held = array_headers(path, _REFUSAL)
        absent = [name for name in ("mu", "sigma") if name not in held]
        if absent:
            raise InputError(
                f"{path} {_REFUSAL}: it has no {' and no '.join(absent)}, only "
                f"{', '.join(list(held)[:5]) or 'nothing'}. Give the file that you meant."
            )
        mu, sigma = read_moments(path, "mu", "sigma")
        n, name = (_entry(path, entry, kinds) if entry in held else None for entry, kinds in _ENTRIES.items())
        if n is not None and int(n) < 2:
            raise InputError(
                f"{path} says that its statistics are of {n} samples; a covariance needs two. Make it again."
            )
        try:
            return cls.from_moments(mu, sigma, None if n is None else int(n), None if name is None else str(name))
        except InputError as error:
            raise InputError(f"{path} {_REFUSAL}: {error}") from error


def _require_finite(finite: bool) -> None:
    if not finite:
        raise InputError(
            "The features contain NaN or infinity, and so would their mean and covariance; look for images that are "
            "not finite, or run the feature network in float32."
        )


_ENTRIES = {"n": "iuf", "features": "U"}  # of a file of statistics -> kinds of dtype that they may have


def read_moments(path: Path, mean: str, covariance: str, refusal: str = _REFUSAL) -> tuple[Matrix, Matrix]:
    """A mean (D,) and a covariance (D, D) by their names in a `.npz`, in float64.

    Raises:
        InputError: the file is damaged, or they are absent, of other shapes or types, or too large.
    """
    mu = read_array(path, mean, MOMENTS_LIMIT, (None,), refusal)
    sigma = read_array(path, covariance, MOMENTS_LIMIT, (len(mu), len(mu)), refusal)
    if not all(np.issubdtype(moment.dtype, np.floating) for moment in (mu, sigma)):
        raise InputError(
            f"{path} {refusal}: {mean} and {covariance} are {mu.dtype} and {sigma.dtype}, "
            "where floating-point numbers are needed. Make the statistics again."
        )
    return mu.astype(np.float64), sigma.astype(np.float64)


def _entry(path: Path, name: str, kinds: str) -> Any:
    """A single value of a `.npz`."""
    value = read_array(path, name, _TEXT_LIMIT, (), _REFUSAL)
    if value.dtype.kind not in kinds or (value.dtype.kind == "f" and not float(value).is_integer()):
        raise InputError(f"{path} {_REFUSAL}: its '{name}' is {value.dtype}. Make it again.")
    return value.item()


@dataclass(frozen=True)
class FrechetDistance:
    """A Frechet distance with the facts needed to interpret it.

    Attributes:
        value: mean_term + trace_term.  Not clipped: two equal sets give zero up to rounding, on either side of it.
        mean_term: |mu_a - mu_b|^2.
        trace_term: tr(A) + tr(B) - 2 tr((A B)^(1/2)) for the covariances A and B.
        dimension: length of a feature vector.
        rank_a, rank_b: numerical ranks of the covariances.
        most_negative_eigenvalue: of either covariance, relative to its largest; 0 if there is none.  Down to about
            -1e-7 it is rounding, that of a file kept in float32 included.
        n_a, n_b: numbers of samples, None where a file does not say.
    """

    value: float
    mean_term: float
    trace_term: float
    dimension: int
    rank_a: int
    rank_b: int
    most_negative_eigenvalue: float
    n_a: int | None
    n_b: int | None

    @property
    def rank_deficient(self) -> bool:
        """True if a covariance misses directions, as with fewer samples than dimensions: the value is then biased."""
        return min(self.rank_a, self.rank_b) < self.dimension


def frechet_distance(a: FeatureStatistics, b: FeatureStatistics, offset: float = 0.0) -> FrechetDistance:
    """Squared Frechet distance between the Gaussians with the statistics `a` and `b` (Dowson and Landau, 1982).

    |mu_a - mu_b|^2 + tr(A) + tr(B) - 2 tr((A B)^(1/2)).  With A = F F^T and B = G G^T, the nonzero eigenvalues of A B
    are the squared singular values of F^T G, so the trace of the root is the sum of those singular values.  F and G
    come from symmetric eigenvalue problems: no general matrix root, whose results have changed between versions of
    SciPy, and no root of a rounding error.

    Args:
        a: statistics of one set of features.
        b: statistics of the other; the distance is symmetric.
        offset: added to the diagonals of A and B inside the root only.  The published evaluation does so, with 1e-6,
            when its matrix root fails.

    Raises:
        InputError: the two are of different features or dimensions, have fewer than two samples, or hold a matrix
            that is not a covariance.
    """
    a.check_comparable(b)
    sigma_a, sigma_b = a.sigma, b.sigma
    factor_a, factor_b = _factor(sigma_a, offset), _factor(sigma_b, offset)
    trace_of_root = np.linalg.svd(factor_a.matrix.T @ factor_b.matrix, compute_uv=False).sum()

    mean_term = float(np.square(a.mu - b.mu).sum())
    trace_term = float(np.trace(sigma_a) + np.trace(sigma_b) - 2 * trace_of_root)
    return FrechetDistance(
        value=mean_term + trace_term,
        mean_term=mean_term,
        trace_term=trace_term,
        dimension=a.dimension,
        rank_a=factor_a.rank,
        rank_b=factor_b.rank,
        most_negative_eigenvalue=min(factor_a.most_negative_eigenvalue, factor_b.most_negative_eigenvalue),
        n_a=a.n,
        n_b=b.n,
    )


@dataclass(frozen=True)
class _Factor:
    """F with F F^T = covariance (+ offset), and the rank of the covariance without the offset."""

    matrix: Matrix  # (D, r)
    rank: int
    most_negative_eigenvalue: float


def _factor(covariance: Matrix, offset: float) -> _Factor:
    if not np.allclose(covariance, covariance.T, rtol=1e-5, atol=1e-6 * np.abs(covariance).max(initial=0)):
        raise InputError("A covariance matrix is symmetric, but the one given is not; make the statistics again.")
    eigenvalues, eigenvectors = np.linalg.eigh((covariance + covariance.T) / 2)
    largest = np.abs(eigenvalues).max(initial=0)
    most_negative = min(eigenvalues.min(initial=0) / largest, 0.0) if largest else 0.0
    if most_negative < MOST_NEGATIVE_EIGENVALUE:
        raise InputError(
            f"A covariance matrix has no negative eigenvalues, but the one given has {eigenvalues.min():.3g} next to "
            f"{largest:.3g}; make the statistics again, with sums in float64."
        )
    # Eigenvalues below this are rounding of zeros; their roots, 1e-8 of the largest, would add up.
    rounding = len(covariance) * np.finfo(np.float64).eps
    kept = eigenvalues + offset > rounding * (largest + offset)
    matrix = eigenvectors[:, kept] * np.sqrt(eigenvalues[kept] + offset)
    return _Factor(matrix, int((eigenvalues > rounding * largest).sum()), float(most_negative))
