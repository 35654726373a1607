"""Properties of a latent space against independent computations."""

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier
from torch.nn import functional as F

from alight.metrics.latent_geometry import decoder_drift, gram_agreement, midpoints, neighbour_hits, perturbed
from alight.runtime.errors import InputError


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_gram_agreement_is_one_for_rotated_and_scaled_features():
    latents = normal(3, 6, 3, 3)
    rotation, _ = torch.linalg.qr(normal(6, 6, seed=1))
    features = 7 * torch.einsum("dc,bchw->bdhw", rotation, latents)
    assert gram_agreement(latents, features) == pytest.approx(torch.ones(3), abs=1e-5)


def test_gram_agreement_is_the_correlation_of_cosines():
    latents, features = normal(2, 4, 2, 3), normal(2, 9, 2, 3, seed=1)
    expected = []
    for one, other in zip(latents, features, strict=True):
        similarities = []
        for values in (one.flatten(1).T.double(), other.flatten(1).T.double()):
            pairs = [(i, j) for i in range(6) for j in range(i)]
            similarities.append([F.cosine_similarity(values[i], values[j], dim=0).item() for i, j in pairs])
        expected.append(np.corrcoef(similarities)[0, 1])
    assert gram_agreement(latents, features).numpy() == pytest.approx(expected, abs=1e-5)


def test_gram_agreement_of_equal_positions_is_nothing():
    flat = normal(1, 4, 1, 1).expand(1, 4, 2, 2)
    assert gram_agreement(flat, normal(1, 4, 2, 2)) == pytest.approx(0, abs=1e-6)


def test_neighbours_agree_with_another_implementation():
    latents, labels = normal(120, 5, 2, 2), torch.arange(120) % 3
    latents[:, 0] += labels[:, None, None]
    pooled = latents.mean((2, 3)).numpy()
    expected = []
    for number in range(120):
        rest = np.arange(120) != number
        model = KNeighborsClassifier(1).fit(pooled[rest], labels.numpy()[rest])
        expected.append(model.predict(pooled[number : number + 1])[0] == labels[number].item())
    assert neighbour_hits(latents, labels).tolist() == expected
    assert 0.4 < np.mean(expected) < 1


def test_an_isometric_decoder_drifts_by_the_size_of_the_step():
    """An orthonormal map of white latents; the tolerance is the noise of 400 images of 32 numbers."""
    latents = normal(400, 8, 2, 2)
    matrix, _ = torch.linalg.qr(normal(60, 32, seed=1))  # 60 pixels

    def decode(values):
        return values.flatten(1) @ matrix.T * 5

    before, after = decode(latents), decode(perturbed(latents, 0.3, normal(400, 8, 2, 2, seed=2)))
    changes, spreads = (after - before).square().sum(1), (before - before.mean(0)).square().sum(1)
    assert decoder_drift(changes, spreads) == pytest.approx(0.3, rel=0.03)


def test_steps_are_relative_to_each_image():
    latents = normal(2, 4, 4, 4) * torch.tensor([1.0, 10.0]).view(2, 1, 1, 1)
    noise = normal(2, 4, 4, 4, seed=1)
    step = perturbed(latents, 0.5, noise) - latents
    sizes = step.square().mean((1, 2, 3)) / noise.square().mean((1, 2, 3))
    assert sizes.sqrt() == pytest.approx(0.5 * latents.square().mean((1, 2, 3)).sqrt(), rel=1e-5)


def test_spherical_midpoints_halve_the_angle_and_keep_the_length():
    first, second = normal(3, 4, 2, 2), 3 * normal(3, 4, 2, 2, seed=1)
    between = midpoints(first, second).flatten(1)
    one, other = first.flatten(1), second.flatten(1)
    assert between.norm(dim=1) == pytest.approx((one.norm(dim=1) + other.norm(dim=1)) / 2, rel=1e-5)
    angles = [torch.arccos(F.cosine_similarity(a, b)) for a, b in ((one, between), (between, other), (one, other))]
    assert angles[0] == pytest.approx(angles[1], abs=1e-4)
    assert 2 * angles[0] == pytest.approx(angles[2], abs=1e-4)
    assert torch.equal(midpoints(first, second, "linear"), (first + second) / 2)
    assert midpoints(first, first) == pytest.approx(first, abs=1e-5)


@pytest.mark.parametrize(
    "call",
    [
        lambda: gram_agreement(normal(1, 4, 2, 2), normal(1, 4, 3, 3)),
        lambda: gram_agreement(normal(1, 4, 1, 2), normal(1, 4, 1, 2)),
        lambda: neighbour_hits(normal(1, 4, 2, 2), torch.zeros(1)),
        lambda: neighbour_hits(normal(3, 4, 2, 2), torch.zeros(2)),
    ],
)
def test_what_has_no_relations_is_refused(call):
    with pytest.raises(InputError):
        call()
