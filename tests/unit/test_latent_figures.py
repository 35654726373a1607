"""Figures of a latent space: known answers on arrays that can be worked out, and the published vectors."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from alight.metrics import latent_figures
from alight.metrics.latent_figures import (
    covariance_spectrum,
    density_evenness,
    effective_dimension,
    gini,
    latent_vectors,
    normalised_entropy,
    power_spectrum,
)
from alight.runtime.errors import InputError

PUBLISHED = Path(os.environ.get("ALIGHT_LATENT_SAMPLES", "absent"))  # latents of the published tokenizers


def test_vectors_are_taken_from_every_image_and_every_position():
    latents = np.arange(500 * 2 * 3 * 4).reshape(500, 2, 3, 4)
    vectors = latent_vectors(latents, np.random.default_rng(0))
    image, position = vectors[:, 0].astype(int) // 24, vectors[:, 0].astype(int) % 24
    assert np.array_equal(image, np.arange(500))
    assert set(position) == set(range(12))
    assert np.array_equal(vectors[:, 1], vectors[:, 0] + 12)
    assert np.array_equal(latent_vectors(vectors, np.random.default_rng(0)), vectors)


def test_spectrum_and_effective_dimension():
    rng = np.random.default_rng(0)
    rotation, _ = np.linalg.qr(rng.standard_normal((4, 4)))
    vectors = rng.standard_normal((200_000, 4)) * np.sqrt([4, 2, 1, 0]) @ rotation
    np.testing.assert_allclose(covariance_spectrum(vectors), [4, 2, 1, 0], rtol=0.02, atol=1e-9)
    assert effective_dimension([4, 2, 1, 0]) == pytest.approx(49 / 21)
    assert effective_dimension([3, 3, 3]) == pytest.approx(3)
    assert effective_dimension([0, 0]) == 0
    assert covariance_spectrum([[1.0], [3.0]]).tolist() == [2.0]


def test_power_spectrum():
    noise = np.random.default_rng(0).standard_normal((500, 4, 8, 8))
    np.testing.assert_allclose(power_spectrum(noise), 1, rtol=0.1)  # zero is one frequency of 2,000 grids: 3 %
    wave = np.cos(2 * np.pi * 3 * np.arange(8) / 8)[None, None, None].repeat(8, axis=2)
    power = power_spectrum(wave)
    assert power.shape == (5,)
    assert power.argmax() == 3
    assert power[3] > 1e6 * np.delete(power, 3).max()


def test_gini_and_entropy():
    assert gini([2, 2, 2]) == pytest.approx(0)
    assert gini([0, 0, 0, 1]) == pytest.approx(3 / 4)
    assert gini([3, 1, 2]) == pytest.approx(2 / 9)
    assert normalised_entropy([2, 2, 2]) == pytest.approx(1)
    assert normalised_entropy([0, 1, 0]) == pytest.approx(0)
    assert normalised_entropy([1, 1, 0, 0]) == pytest.approx(1 / 2)


def test_figures_are_computed_from_the_map(monkeypatch):
    """On a map that is known: 100 points far apart, and as many pairs of points that coincide."""

    class KnownMap:
        def __init__(self, dimensions, perplexity, random_state):
            assert (dimensions, perplexity) == (2, 30)

        def fit_transform(self, vectors):
            return vectors[:, :2]

    monkeypatch.setattr(latent_figures, "TSNE", KnownMap)
    monkeypatch.setattr(latent_figures, "gaussian_kde", lambda plane: lambda points: (points == 0).sum(0) + 1.0)
    vectors = np.ones((300, 5))
    vectors[:100, 0] = 0  # density 2 at a third of the points, 1 at the others
    evenness, _ = density_evenness(vectors, np.random.default_rng(0), runs=3)
    assert evenness.density_cv == pytest.approx(np.sqrt(2 / 9) / (4 / 3))
    assert evenness.gini == pytest.approx(1 / 6)  # half the mean difference, 2 * 1/3 * 2/3 / 2, over 4/3
    shares = np.array([2] * 100 + [1] * 200) / 400
    assert evenness.entropy == pytest.approx(-(shares * np.log(shares)).sum() / np.log(300))
    assert (evenness.vectors, evenness.runs) == (300, 3)


def test_the_aligned_space_is_filled_more_evenly(monkeypatch):
    """The paper's CV is .263 plain and .178 aligned; of fewer vectors both come out larger."""
    folder = PUBLISHED
    if not folder.is_dir():
        pytest.skip(f"no published latent vectors at {folder} (set ALIGHT_LATENT_SAMPLES)")
    monkeypatch.setattr(latent_figures, "DENSITY_VECTORS", 600)
    plain, aligned = (
        density_evenness(torch.load(folder / name, weights_only=True).numpy(), np.random.default_rng(0), runs=1)[0]
        for name in ("latents_cache_f16d32.pt", "latents_cache_f16d32_vfdinov2.pt")
    )
    assert plain.density_cv == pytest.approx(0.28, abs=0.04)
    assert aligned.density_cv == pytest.approx(0.20, abs=0.03)
    assert aligned.density_cv < 0.85 * plain.density_cv
    assert aligned.gini < 0.85 * plain.gini
    assert 1 - aligned.entropy < 0.7 * (1 - plain.entropy)


@pytest.mark.parametrize(
    "call",
    [
        lambda: latent_vectors(np.zeros((2, 3, 4)), np.random.default_rng(0)),
        lambda: latent_vectors(np.full((2, 3), np.nan), np.random.default_rng(0)),
        lambda: covariance_spectrum(np.zeros((1, 3))),
        lambda: power_spectrum(np.zeros((5, 3))),
        lambda: density_evenness(np.zeros((90, 3)), np.random.default_rng(0)),
    ],
)
def test_what_cannot_be_measured_is_refused(call):
    with pytest.raises(InputError):
        call()
