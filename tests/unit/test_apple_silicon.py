"""The limits of Apple's processors: no float64, no gradient of antialiased resizing, no kernels that skip a step."""

import pytest
import torch
import torch.nn.functional as F

from alight.data.latent_statistics import ChannelStatistics
from alight.evaluation.alignment import alignment_scores
from alight.metrics.features import GreyPixels
from alight.metrics.frechet import FeatureStatistics
from alight.metrics.inception_score import ClassProbabilities
from alight.metrics.kernel_distance import kernel_distance
from alight.metrics.manifold import authenticity, density_coverage, precision_recall
from alight.metrics.reconstruction import image_scores
from alight.metrics.ridge import RidgeRegression
from alight.training import optimizer as rules
from alight.training.latent_regularisation import resize_by_products
from alight.web.latent_views import pca_pictures
from helpers.models import tiny_tokenizer
from helpers.narrow import narrow


def noise(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def checked_statistics(raw_latents):
    vae = tiny_tokenizer()
    vae.set_latents_statistics(torch.zeros(4), torch.ones(4))
    vae.check_latents_statistics(raw_latents)
    return vae.normalize(raw_latents)


def statistics_of(latents):
    statistics = ChannelStatistics(latents.shape[1])
    statistics.update(latents, latents.square())
    return statistics.std


def ridge(x):
    regression = RidgeRegression(8, 8)
    regression.update(x, x)
    return regression.solve()


def class_probabilities(x):
    probabilities = ClassProbabilities()
    probabilities.update(x.repeat(1, 126))  # 1,008 classes
    return probabilities.compute().mean


MEASURED = {
    "check of the latents": (checked_statistics, noise(6, 4, 8, 8)),
    "statistics of latents": (statistics_of, noise(6, 4, 8, 8)),
    "statistics of features": (lambda x: FeatureStatistics.from_features(x).sigma.sum(), noise(32, 8)),
    "linear map": (ridge, noise(32, 8)),
    "classes": (class_probabilities, noise(32, 8)),
    "kernel distance": (
        lambda x: kernel_distance(x, x + 1, torch.Generator().manual_seed(0), subset_size=8).value,
        noise(32, 8),
    ),
    "precision": (lambda x: precision_recall(x, x + 1).precision, noise(32, 8)),
    "density": (lambda x: density_coverage(x, x + 1).density, noise(32, 8)),
    "authenticity": (lambda x: authenticity(x, x + 1), noise(32, 8)),
    "images": (lambda x: image_scores(x, -x)["psnr"], noise(2, 3, 32, 32).tanh()),
    "alignment": (lambda x: alignment_scores(x, x)["latent_mdms"], noise(2, 4, 8, 8)),
    "grey pixels": (lambda x: GreyPixels()(x), torch.arange(2 * 8 * 8 * 3).view(2, 8, 8, 3).to(torch.uint8)),
    "principal components": (lambda x: torch.from_numpy(pca_pictures(x)), noise(2, 4, 8, 8)),
}


@pytest.mark.parametrize("name", MEASURED)
def test_figures_need_no_float64_on_the_device(name):
    measure, values = MEASURED[name]
    plain, narrowed = measure(values), measure(narrow(values))
    assert torch.equal(torch.as_tensor(plain), torch.as_tensor(narrowed).as_subclass(torch.Tensor))


@pytest.mark.parametrize("size", [(5, 8), (8, 3), (7, 7), (8, 8), (11, 13)])
def test_resizing_by_products_has_the_numbers_and_the_gradient_of_interpolation(size):
    x, weight = noise(2, 3, 8, 8).requires_grad_(), noise(2, 3, *size)
    expected = F.interpolate(x, size, mode="bilinear", antialias=True)
    found = resize_by_products(x, size)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)  # other orders of summation in float32
    gradients = [torch.autograd.grad((y * weight).sum(), x)[0] for y in (found, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-6)


def test_a_kernel_that_ignores_the_finite_check_is_not_started(monkeypatch):
    """As on MPS, whose fused kernel takes `found_inf` and applies the gradient all the same."""
    monkeypatch.setattr(rules, "SKIPPED_BY_KERNELS", ())  # as if this CPU were such a device
    weight = torch.nn.Parameter(torch.ones(2))
    optimizer = torch.optim.AdamW([weight], fused=True)
    applied = []
    monkeypatch.setattr(optimizer, "step", lambda: applied.append(weight.grad.clone()))
    for bad in (float("nan"), float("inf")):
        weight.grad = torch.tensor([1.0, bad])
        rules.optimizer_step(optimizer, 0.1, 1.0)
    assert not applied
    weight.grad = torch.ones(2)
    rules.optimizer_step(optimizer, 0.1, None)
    assert len(applied) == 1
    assert "mps" not in rules.SKIPPED_BY_KERNELS
