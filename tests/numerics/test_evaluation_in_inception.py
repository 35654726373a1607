"""FID and its relatives through the stage's own parts: references of published layouts, shares, conditions."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from alight.data.image_npz import write_images_npz
from alight.evaluation import features as feature_module
from alight.evaluation.features import FeatureNetworks, ImageFeatures, gather_features
from alight.evaluation.generated import NpzImages
from alight.evaluation.generation_report import generation_figures
from alight.evaluation.reference_set import ReferenceSet, open_reference_set, statistics_of
from alight.metrics import GreyPixels, InceptionSet, density_coverage, frechet_distance, precision_recall
from alight.metrics.inception_score import ClassProbabilities
from alight.runtime.distributed import Processes
from alight.runtime.errors import InputError
from helpers.random_inception import random_inception

DEVICE = torch.device("cpu")
ALONE = Processes(0, 1, DEVICE)
COUNT, SIDE = 8, 16


@pytest.fixture(scope="module")
def networks():
    return FeatureNetworks(DEVICE, random_inception(), {"grey_pixels": GreyPixels(8)})


def draw(seed, count=COUNT):
    return np.random.default_rng(seed).integers(0, 256, (count, SIDE, SIDE, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def real(networks):
    return InceptionSet(networks.inception).gather([draw(0)])


@pytest.fixture(scope="module")
def adm_reference(real, tmp_path_factory):
    """Statistics of all real images, and some images, in the layout of the ADM evaluator's files."""
    path = tmp_path_factory.mktemp("adm") / "VIRTUAL_tiny.npz"
    moments = {"mu": real.pool.mu, "sigma": real.pool.sigma, "mu_s": real.spatial.mu, "sigma_s": real.spatial.sigma}
    np.savez(path, draw(0), **moments)
    return path


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    path = tmp_path_factory.mktemp("samples") / "samples.npz"
    write_images_npz(path, iter(draw(1)), COUNT)
    return NpzImages(path)


@pytest.fixture(scope="module")
def generated(networks, samples):
    return gather_features(networks, (0, COUNT), samples.read(0, COUNT, 3), ALONE)


@pytest.mark.slow
def test_every_score_against_an_adm_reference(networks, real, adm_reference, samples, generated):
    reference = open_reference_set(adm_reference, networks, ALONE, batch_size=4)
    assert reference.size == (SIDE, SIDE)
    figures = {figure.name: figure for figure in generation_figures(samples, generated, reference, seed=0)}
    made = InceptionSet(networks.inception).gather([draw(1)])
    # of 2,048 features of eight images: rank-deficient, so rounding in the network moves the last digits
    assert figures["fid"].value == pytest.approx(frechet_distance(made.pool, real.pool).value, rel=1e-4)
    assert figures["sfid"].value == pytest.approx(frechet_distance(made.spatial, real.spatial).value, rel=1e-4)
    assert figures["inception_score"].value == pytest.approx(made.classes.compute().mean, rel=1e-6)
    expected = precision_recall(real.features, made.features, half_precision=True)
    assert (figures["precision"].value, figures["recall"].value) == (expected.precision, expected.recall)
    cover = density_coverage(real.features, made.features)
    assert (figures["density"].value, figures["coverage"].value) == (cover.density, cover.coverage)
    assert {"kid", "frechet_distance_grey_pixels"} <= figures.keys()
    conditions = figures["fid"].conditions
    assert figures["fid"].label == "FID-8"
    assert conditions["comparable"].startswith("no: 8 images for 2,048 features")
    assert conditions["rank of the covariance"] == "7 of 2,048"
    assert conditions["reference"] == "VIRTUAL_tiny.npz, with 8 images"


def test_statistics_of_pytorch_fid_allow_the_distance_alone(networks, real, samples, generated, tmp_path):
    np.savez(tmp_path / "fid.npz", mu=real.pool.mu, sigma=real.pool.sigma)
    reference = open_reference_set(tmp_path / "fid.npz", networks, ALONE, batch_size=4)
    figures = {figure.name for figure in generation_figures(samples, generated, reference, seed=0)}
    assert figures == {"fid", "inception_score"}


def test_nothing_else_goes_by_the_name_of_fid(networks, samples, real, tmp_path):
    np.savez(tmp_path / "fid.npz", mu=real.pool.mu, sigma=real.pool.sigma)
    without = FeatureNetworks(DEVICE, None, networks.extractors)
    with pytest.raises(InputError, match="need --inception-weights"):
        open_reference_set(tmp_path / "fid.npz", without, ALONE, batch_size=4)
    np.savez(tmp_path / "real.npz", draw(0, 70))
    reference = open_reference_set(tmp_path / "real.npz", without, ALONE, batch_size=32)
    seen = gather_features(without, (0, COUNT), samples.read(0, COUNT, 4), ALONE)
    names = [figure.name for figure in generation_figures(samples, seen, reference, seed=0)]
    assert names == ["frechet_distance_grey_pixels"]


def test_parts_of_several_processes_make_the_whole(networks, generated):
    images = draw(1)
    parts = []
    for first, last in ((0, 3), (3, COUNT)):
        part = ImageFeatures(networks, first=first)
        part.update(images[first:last])
        parts.append(part)
    whole = parts[0]
    whole.merge(parts[1])
    assert whole.inception.pool.n == COUNT
    np.testing.assert_allclose(whole.inception.pool.sigma, generated.inception.pool.sigma, rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(
        whole.features_of("inception"), generated.features_of("inception"), rtol=1e-4, atol=1e-5
    )
    assert torch.equal(whole.features_of("grey_pixels"), generated.features_of("grey_pixels"))
    scores = whole.inception.classes.compute(), generated.inception.classes.compute()
    assert scores[0].mean == pytest.approx(scores[1].mean, rel=1e-6)


def test_chunks_of_the_inception_score_may_lie_in_two_processes():
    logits = torch.randn(25, 6, generator=torch.Generator().manual_seed(0)) * 3
    whole = ClassProbabilities(chunk_size=10)
    whole.update(logits)
    merged = ClassProbabilities(chunk_size=10)
    for first, last in ((0, 7), (7, 16), (16, 25)):
        part = ClassProbabilities(chunk_size=10, first=first)
        for row in logits[first:last].split(4):
            part.update(row)
        merged.merge(part)
    one, two = whole.compute(), merged.compute()
    assert (one.n_chunks, two.n_chunks) == (3, 3)
    assert two.mean == pytest.approx(one.mean, rel=1e-12)
    assert two.std == pytest.approx(one.std, rel=1e-9)


def test_fd_dinov2_has_its_own_name_and_conventions(samples, monkeypatch):
    """Random projections of the pixels stand for the network, whose features are tested by themselves."""
    projection = torch.randn(SIDE * SIDE * 3, 4, generator=torch.Generator().manual_seed(0))
    network = SimpleNamespace(dimension=4)
    extractor = feature_module.DINOv2Features(network)
    monkeypatch.setattr(extractor, "network", lambda images: images.flatten(1).float() @ projection / 100)
    networks = FeatureNetworks(DEVICE, None, {"dinov2": extractor})
    made = gather_features(networks, (0, COUNT), samples.read(0, COUNT, 4), ALONE)
    real = ImageFeatures(networks)
    real.update(draw(0, 40))
    reference = ReferenceSet("forty images", statistics_of(real), {"dinov2": real.features_of("dinov2")})
    figures = {figure.name: figure for figure in generation_figures(samples, made, reference, seed=0)}
    assert figures["fd_dinov2"].label == "FD-DINOv2-8"
    expected = precision_recall(real.features_of("dinov2"), made.features_of("dinov2"), k=5, border_inside=False)
    assert figures["dinov2_precision"].value == expected.precision
    assert figures["dinov2_recall"].value == expected.recall
    assert {"dinov2_density", "dinov2_coverage"} <= figures.keys()
    assert "fid" not in figures
