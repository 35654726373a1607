"""Spectra over images drawn again, against NumPy's covariance of the copied latents."""

import tracemalloc

import numpy as np
import pytest

from alight.metrics import image_covariance
from alight.metrics.image_covariance import ImageCovariance
from alight.metrics.latent_figures import covariance_spectrum
from alight.runtime.errors import InputError


@pytest.mark.parametrize("shape", [(40, 3, 9), (40, 9, 3), (60, 5, 1)])  # with and without kept moments
@pytest.mark.parametrize("block", [2**22, 50])
def test_the_spectrum_is_that_of_the_copied_latents(monkeypatch, shape, block):
    monkeypatch.setattr(image_covariance, "BLOCK", block)
    generator = np.random.default_rng(0)
    latents = (0.2 + generator.standard_normal(shape) * np.arange(1, shape[1] + 1)[:, None]).astype(np.float32)
    found = ImageCovariance(latents)
    for chosen in (np.arange(shape[0]), generator.integers(shape[0], size=shape[0])):
        copied = latents[chosen].transpose(0, 2, 1).reshape(-1, shape[1])
        assert found.spectrum(chosen) == pytest.approx(covariance_spectrum(copied), rel=1e-9)


def test_many_channels_are_not_copied():
    """A draw of 52 MB of latents would take 105 MB in float64, and the centred copy as much; a block takes 32 MB."""
    latents = np.random.default_rng(0).standard_normal((3_200, 256, 16), dtype=np.float32)
    found = ImageCovariance(latents)
    tracemalloc.start()
    found.spectrum(np.arange(len(latents)))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert latents.nbytes > 50e6
    assert peak < 3 * 8 * image_covariance.BLOCK


@pytest.mark.parametrize("shape", [(5, 3), (1, 3, 1)])
def test_latents_without_a_covariance_are_refused(shape):
    with pytest.raises(InputError, match="at least two vectors"):
        ImageCovariance(np.zeros(shape))
