"""The fixed target of the latent's own width: the best linear compression of features without bias."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from alight.models.latent_space import on_sphere
from alight.training.feature_components import principal_directions


def features(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_directions_are_the_singular_vectors_of_all_positions():
    batches = [features(3, 6, 2, 4) + 0.5, features(1, 6, 2, 4, seed=1)]
    found = principal_directions(iter(batches), 3)
    rows = np.concatenate([on_sphere(batch).movedim(1, -1).reshape(-1, 6).numpy() for batch in batches])
    _, values, vectors = np.linalg.svd(rows, full_matrices=False)
    np.testing.assert_allclose(np.abs(found.weight.numpy() @ vectors[:3].T), np.eye(3), atol=1e-10)
    assert found.share == pytest.approx((values[:3] ** 2).sum() / (values**2).sum(), rel=1e-12)
    torch.testing.assert_close(found.weight @ found.weight.T, torch.eye(3).double(), rtol=0, atol=1e-12)
    assert (found.weight.abs().max(1).values == found.weight.max(1).values).all()


def test_features_of_few_dimensions_are_kept_whole_whatever_their_length():
    hidden = torch.einsum("dc,bchw->bdhw", features(7, 3), features(4, 3, 3, 3, seed=1))
    found = principal_directions([hidden], 3)
    assert found.share == pytest.approx(1.0, abs=1e-12)
    compressed = F.conv2d(hidden, found.weight[:, :, None, None])
    torch.testing.assert_close(torch.einsum("cd,bchw->bdhw", found.weight, compressed), hidden)
    stretched = principal_directions([hidden * features(4, 1, 3, 3, seed=2).exp()], 3)
    torch.testing.assert_close(stretched.weight, found.weight)
    assert principal_directions([hidden], 2).share < 0.999
