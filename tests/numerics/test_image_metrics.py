"""The 8-bit rule, PSNR, SSIM, grey pixels and the gathering of scores, against definitions and torchmetrics."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from alight.metrics import (
    FeatureStatistics,
    GenerationMetrics,
    GreyPixels,
    ModelFeatures,
    ReconstructionMetrics,
    feature_statistics,
    frechet_distance,
    image_scores,
    psnr,
    ssim,
)
from alight.runtime.errors import InputError
from alight.runtime.pixels import from_uint8, to_uint8


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(3)


def smooth_images(shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    """Images in [-1, 1] with structure at the scale of the window of SSIM."""
    coarse = torch.rand(*shape[:2], 5, 5, generator=generator) * 2 - 1
    return F.interpolate(coarse, shape[2:], mode="bilinear")


# --- 8-bit pixels


def test_every_grey_level_survives_the_way_there_and_back():
    levels = torch.arange(256, dtype=torch.uint8).reshape(1, 16, 16, 1)
    images = from_uint8(levels)
    assert images.shape == (1, 1, 16, 16)
    assert (images.min(), images.max()) == (-1, 1)
    assert torch.equal(to_uint8(images), levels)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_quantisation_is_the_published_formula(dtype, generator):
    images = (3 * torch.rand(2, 3, 40, 4, generator=generator) - 1.5).to(dtype)
    exact = np.moveaxis(np.clip(127.5 * images.double().numpy() + 128, 0, 255), 1, -1)
    pixels = to_uint8(images).numpy().astype(float)
    assert pixels.shape == (2, 40, 4, 3)
    # Truncation: at most `exact`, and less than one below it, but for the rounding of float32 next to an integer.
    assert (pixels <= exact + 1e-4).all()
    assert (pixels > exact - 1 - 1e-4).all()


def test_layouts_of_single_images_and_of_channels():
    image = torch.stack([torch.full((4, 5), value) for value in (-1.0, 0.0, 1.0)])
    assert to_uint8(image).shape == (4, 5, 3)
    assert to_uint8(image)[2, 3].tolist() == [0, 128, 255]
    assert from_uint8(to_uint8(image), torch.float16).dtype == torch.float16
    assert from_uint8(to_uint8(image)).is_contiguous()


def test_pixels_of_the_wrong_kind_are_refused():
    with pytest.raises(InputError, match="floating-point"):
        to_uint8(torch.zeros(1, 3, 4, 4, dtype=torch.uint8))
    with pytest.raises(InputError, match="NaN"):
        to_uint8(torch.full((1, 3, 4, 4), torch.nan))
    with pytest.raises(InputError, match="8-bit"):
        from_uint8(torch.zeros(1, 4, 4, 3))


# --- PSNR and SSIM


def test_psnr_of_a_known_error_and_of_none():
    image = torch.full((3, 6, 6, 3), 100, dtype=torch.uint8)
    other = image.clone()
    other[0] += 5  # mean squared error 25
    other[1, 0, 0, 0] = 0  # 100^2 in one of 108 values
    ratios = psnr(other, image)
    assert ratios[0].item() == pytest.approx(10 * np.log10(255**2 / 25), abs=1e-6)  # the sum is exact in float32
    assert ratios[1].item() == pytest.approx(10 * np.log10(255**2 / (1e4 / 108)), abs=1e-5)
    assert ratios[2].item() == np.inf


def test_psnr_does_not_wrap_around_at_8_bits():
    black, white = torch.zeros(1, 4, 4, 1, dtype=torch.uint8), torch.full((1, 4, 4, 1), 255, dtype=torch.uint8)
    assert psnr(black, white).item() == psnr(white, black).item() == 0


def test_psnr_of_torchmetrics(generator):
    from torchmetrics.functional.image import peak_signal_noise_ratio

    a, b = torch.randint(0, 256, (2, 4, 9, 13, 3), dtype=torch.uint8, generator=generator)
    oracle = [
        peak_signal_noise_ratio(x.double(), y.double(), data_range=255.0).item() for x, y in zip(a, b, strict=True)
    ]
    assert psnr(a, b).tolist() == pytest.approx(oracle, abs=1e-5)


@pytest.mark.parametrize("shape", [(3, 3, 24, 40), (2, 1, 11, 11), (1, 4, 13, 12)])
def test_ssim_of_torchmetrics(shape, generator):
    from torchmetrics.functional.image import structural_similarity_index_measure

    images = smooth_images(shape, generator)
    noisy = images + 0.3 * torch.randn(shape, generator=generator)  # leaves [-1, 1]
    oracle = structural_similarity_index_measure(
        noisy.double(), images.double(), data_range=(-1.0, 1.0), reduction="none"
    )
    assert 0.05 < oracle.mean() < 0.95
    # Variances are differences of numbers up to 1, next to a constant of 3.6e-3: float32 leaves 1e-5.
    torch.testing.assert_close(ssim(noisy, images).double(), oracle, rtol=0, atol=1e-5)
    torch.testing.assert_close(ssim(noisy.double(), images.double()), oracle, rtol=0, atol=1e-6)


def test_ssim_of_an_image_with_itself_is_one(generator):
    images = smooth_images((2, 3, 16, 16), generator)
    torch.testing.assert_close(ssim(images, images), torch.ones(2), rtol=0, atol=1e-6)


def test_reconstruction_scores_are_means_over_images_whatever_the_batches(generator):
    images = smooth_images((7, 3, 16, 16), generator)
    reconstructions = images + torch.linspace(0.02, 0.5, 7).view(7, 1, 1, 1) * torch.randn(
        images.shape, generator=generator
    )
    first, second = ReconstructionMetrics(), ReconstructionMetrics()
    first.update(reconstructions[:5], images[:5])
    second.update(reconstructions[5:], images[5:])
    first.merge(second)
    scores = first.compute()
    assert (scores.n, scores.n_identical) == (7, 0)
    assert scores.psnr == pytest.approx(psnr(to_uint8(reconstructions), to_uint8(images)).mean().item())
    assert scores.ssim == pytest.approx(ssim(reconstructions, images).mean().item(), abs=1e-6)


def test_scores_of_each_image_by_itself(generator):
    images = smooth_images((3, 3, 16, 16), generator)
    reconstructions = images + 0.8 * torch.randn(images.shape, generator=generator)  # leaves [-1, 1]

    def asymmetric(a, b):
        """In place of LPIPS: sees which is which, and what lies outside [-1, 1]."""
        return (a.clamp(min=1) - 1 + 0 * b).mean(dim=(1, 2, 3), keepdim=True)

    scores = image_scores(reconstructions, images, asymmetric)
    assert list(scores) == ["psnr", "ssim", "lpips"]
    assert all((values.shape, values.dtype) == ((3,), torch.float64) for values in scores.values())
    assert scores["lpips"].min() > 0
    for index in range(3):
        single = image_scores(reconstructions[index : index + 1], images[index : index + 1], asymmetric)
        for name, value in single.items():  # PSNR is a sum of integers; SSIM a mean in float32
            torch.testing.assert_close(scores[name][index : index + 1], value, rtol=0, atol=1e-6)
    assert torch.equal(scores["psnr"], psnr(to_uint8(reconstructions), to_uint8(images)))
    metrics = ReconstructionMetrics(asymmetric)
    metrics.update(reconstructions, images)
    assert metrics.compute().lpips == pytest.approx(scores["lpips"].mean().item())


def test_psnr_is_exact_for_large_images(generator):
    """A sum of a million squares has more digits than float32; in integers none is lost."""
    a, b = torch.randint(0, 256, (2, 2, 600, 600, 3), dtype=torch.uint8, generator=generator)
    mse = np.square(a.numpy().astype(np.float64) - b.numpy()).mean(axis=(1, 2, 3))
    assert psnr(a, b).tolist() == pytest.approx((10 * np.log10(255**2 / mse)).tolist(), rel=1e-14)


def test_identical_images_make_the_mean_infinite_and_are_counted(generator):
    images = smooth_images((3, 3, 16, 16), generator)
    metrics = ReconstructionMetrics()
    metrics.update(torch.cat([images[:1], -images[1:]]), images)
    scores = metrics.compute()
    assert (scores.psnr, scores.n_identical, scores.n) == (np.inf, 1, 3)


def test_reconstructions_that_cannot_be_scored_are_refused(generator):
    images = smooth_images((2, 3, 16, 16), generator)
    metrics = ReconstructionMetrics()
    with pytest.raises(InputError, match="empty"):
        metrics.compute()
    with pytest.raises(InputError, match="reach 255"):
        metrics.update(images, torch.full_like(images, 255))
    with pytest.raises(InputError, match="window of 11x11"):
        metrics.update(images[..., :10], images[..., :10])
    with pytest.raises(InputError, match="pairs"):
        metrics.update(images[:1], images)
    with pytest.raises(InputError, match="NaN"):
        metrics.update(images * torch.nan, images)
    with pytest.raises(InputError, match="8-bit"):
        psnr(images, images)
    with pytest.raises(InputError, match="empty"):
        metrics.compute()  # what was refused left no trace


# --- features and generation


def test_grey_pixels_are_means_of_boxes_of_luma():
    pixels = np.random.default_rng(0).integers(0, 256, (3, 32, 16, 3), dtype=np.uint8)
    luma = pixels / 255 @ np.array([0.299, 0.587, 0.114])
    boxes = luma.reshape(3, 8, 4, 8, 2).mean(axis=(2, 4))
    extractor = GreyPixels(size=8)
    assert (extractor.name, extractor.dimension) == ("grey pixels 8x8", 64)
    np.testing.assert_allclose(extractor(pixels).numpy(), boxes.reshape(3, 64), atol=1e-6)  # float32
    assert torch.equal(extractor(pixels), extractor(torch.from_numpy(pixels)))
    grey = pixels[..., :1]
    np.testing.assert_allclose(extractor(grey).numpy(), extractor(grey.repeat(3, axis=-1)).numpy(), atol=1e-6)


def test_images_that_are_no_8_bit_pixels_are_refused():
    extractor = GreyPixels()
    for images in (torch.zeros(2, 16, 16, 3), torch.zeros(2, 3, 16, 16).byte(), torch.zeros(16, 16, 3).byte()):
        with pytest.raises(InputError, match="uint8 with one or three channels"):
            extractor(images)
    with pytest.raises(InputError, match="too small for grey pixels 8x8"):
        extractor(torch.zeros(1, 7, 16, 3).byte())


def test_model_features_feed_the_range_of_the_networks_and_no_gradients():
    seen = []

    def function(images):
        seen.append(images)
        return images.flatten(1) * torch.ones(12, requires_grad=True)

    pixels = torch.tensor([0, 255, 51], dtype=torch.uint8).expand(5, 2, 2, 3)
    features = ModelFeatures("pixels of a test", 12, function)(pixels)
    assert seen[0].shape == (5, 3, 2, 2)
    torch.testing.assert_close(seen[0][0, :, 0, 0], torch.tensor([-1.0, 1.0, -0.6]))
    assert features.shape == (5, 12)
    assert not features.requires_grad
    with pytest.raises(InputError, match=r"\(5, 13\) was announced"):
        ModelFeatures("pixels of a test", 13, function)(pixels)


def test_generation_scores_stream_over_batches_for_every_feature_set():
    rng = np.random.default_rng(1)
    real, generated = (rng.integers(low, 256, (90, 8, 8, 3), dtype=np.uint8) for low in (0, 60))
    grey = GreyPixels(size=4)
    colour = ModelFeatures("mean colour", 3, lambda images: images.mean(dim=(2, 3)))
    references = {
        extractor.name: feature_statistics(extractor, [real[:50], real[50:]]) for extractor in (grey, colour)
    }

    metrics = GenerationMetrics([grey, colour], references)
    scores = metrics.measure(generated[start : start + 32] for start in range(0, 90, 32))
    assert scores.n == 90
    assert set(scores.frechet) == {"grey pixels 4x4", "mean colour"}
    for extractor in (grey, colour):
        both = [FeatureStatistics.from_features(extractor(images)) for images in (generated, real)]
        expected = frechet_distance(*both)
        assert scores.frechet[extractor.name].value == pytest.approx(expected.value, rel=1e-9)
        assert (scores.frechet[extractor.name].n_a, scores.frechet[extractor.name].n_b) == (90, 90)

    halves = [GenerationMetrics([grey, colour], references) for _ in range(2)]
    halves[0].update(generated[:40])
    halves[1].update(torch.from_numpy(generated[40:]))
    halves[0].merge(halves[1])
    merged = halves[0].compute()
    assert merged.n == 90
    assert merged.frechet[grey.name].value == pytest.approx(scores.frechet[grey.name].value, rel=1e-9)


def test_references_that_do_not_fit_the_features_are_refused():
    grey = GreyPixels(size=4)
    reference = FeatureStatistics.from_features(np.random.default_rng(0).random((20, 16)), name=grey.name)
    with pytest.raises(InputError, match="different names"):
        GenerationMetrics([], {})
    with pytest.raises(InputError, match="different names"):
        GenerationMetrics([grey, GreyPixels(size=4)], {grey.name: reference})
    with pytest.raises(InputError, match="no reference statistics"):
        GenerationMetrics([grey], {"something else": reference})
    with pytest.raises(InputError, match="dimension 64"):
        GenerationMetrics([GreyPixels(size=8)], {"grey pixels 8x8": reference})
    with pytest.raises(InputError, match="at least two samples"):
        GenerationMetrics([grey], {grey.name: reference}).compute()
