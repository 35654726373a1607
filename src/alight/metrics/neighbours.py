"""The real images that are nearest to generated ones, which show if a generator repeats its training images."""

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from alight.metrics.manifold import squared_distances
from alight.runtime.errors import InputError


class NearestNeighbours:
    """The k nearest of many feature vectors, which come batch by batch and are not kept.

        nearest = NearestNeighbours(features_of_samples, k=3)
        for numbers, features in real_batches:
            nearest.update(numbers, features)
        nearest.indices  # (M, 3), nearest first

    Args:
        queries: (M, D), the features whose neighbours are wanted.
        k: number of neighbours of each.

    Attributes:
        distances: (M, k) Euclidean, ascending; infinite where fewer than k vectors have come.
        indices: (M, k) int64, their numbers; -1 likewise.

    Raises:
        InputError: the queries are not (M, D).
    """

    def __init__(self, queries: Tensor, k: int = 3) -> None:
        if queries.ndim != 2 or k < 1:
            raise InputError(f"Neighbours are sought of features (M, D), but got {tuple(queries.shape)} and k={k}.")
        self._queries, self._k = queries.float().cpu(), k
        self._squared = torch.full((len(queries), k), torch.inf)
        self._indices = torch.full((len(queries), k), -1, dtype=torch.int64)

    def update(self, numbers: npt.NDArray[np.integer] | list[int], features: Tensor) -> None:
        """Take in a batch: features (B, D) and the number of each."""
        found = squared_distances(self._queries, features.float().cpu())  # (M, B)
        self._take(found, torch.as_tensor(numbers).expand(len(self._queries), -1))

    def merge(self, other: "NearestNeighbours") -> None:
        """Take in what another process has found of the same queries among other vectors."""
        self._take(other._squared, other._indices)

    def _take(self, squared: Tensor, indices: Tensor) -> None:
        squared, indices = torch.cat([self._squared, squared], 1), torch.cat([self._indices, indices], 1)
        order = squared.argsort(dim=1, stable=True)[:, : self._k]
        self._squared, self._indices = squared.gather(1, order), indices.gather(1, order)

    @property
    def distances(self) -> Tensor:
        """(M, k) Euclidean distances, ascending."""
        return self._squared.sqrt()

    @property
    def indices(self) -> Tensor:
        """(M, k) int64, the numbers of the neighbours."""
        return self._indices
