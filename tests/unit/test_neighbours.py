import numpy as np
import pytest
import torch

from alight.metrics.neighbours import NearestNeighbours
from alight.runtime.errors import InputError


def brute_force(queries, vectors, k):
    return torch.cdist(queries, vectors).topk(k, largest=False)


def test_neighbours_are_those_of_all_vectors_at_once_however_they_come():
    generator = torch.Generator().manual_seed(0)
    queries, vectors = torch.randn(5, 7, generator=generator), torch.randn(60, 7, generator=generator)
    expected = brute_force(queries, vectors, 3)
    one, two = NearestNeighbours(queries), NearestNeighbours(queries)
    for first in range(0, 60, 8):
        nearest = one if first < 24 else two  # two processes
        part = vectors[first : first + 8]
        nearest.update(np.arange(first, first + len(part)), part)
    one.merge(two)
    assert torch.equal(one.indices, expected.indices)
    assert torch.allclose(one.distances, expected.values, atol=1e-4)


def test_a_copy_is_found_at_distance_zero():
    vectors = torch.randn(20, 4, generator=torch.Generator().manual_seed(1))
    nearest = NearestNeighbours(vectors[[11]], k=1)
    nearest.update(list(range(20)), vectors)
    assert nearest.indices.tolist() == [[11]]
    assert nearest.distances.item() == 0


def test_fewer_vectors_than_neighbours_are_told():
    nearest = NearestNeighbours(torch.zeros(2, 3), k=3)
    nearest.update([4], torch.ones(1, 3))
    assert nearest.indices.tolist() == [[4, -1, -1]] * 2
    assert nearest.distances[0, 1] == torch.inf


def test_queries_must_be_vectors():
    with pytest.raises(InputError, match=r"\(M, D\)"):
        NearestNeighbours(torch.zeros(3))
