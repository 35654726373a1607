"""Inception score, kernel distance, precision and recall, density and coverage.

The oracles are double loops, closed forms, scipy and torchmetrics.
"""

import os
from dataclasses import replace

import numpy as np
import pytest
import scipy.linalg
import torch
from torch.nn.functional import one_hot

from alight.metrics import (
    ClassProbabilities,
    FeatureStatistics,
    InceptionSet,
    authenticity,
    density_coverage,
    frechet_distance,
    inception_scores,
    kernel_distance,
    precision_recall,
    read_images,
    read_reference,
)
from alight.metrics.manifold import squared_distances
from alight.metrics.reference import Reference
from alight.models.inception import InceptionV3
from alight.runtime.device import resolve_device
from alight.runtime.errors import InputError
from helpers.random_inception import random_inception

SUMS = 1e-12  # relative: float64 sums of the same numbers in another order


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(5)


def draw_features(generator, n, dimension=8, shift=0.0, scale=1.0):
    return shift + scale * torch.randn(n, dimension, generator=generator)


# --- Inception score


def inception_score(logits, chunk_size=5000, batch_size=64):
    classes = ClassProbabilities(chunk_size)
    for batch in logits.split(batch_size):
        classes.update(batch)
    return classes.compute()


def score_by_definition(logits):
    """exp of the mean divergence, class by class, in float64."""
    p = np.exp(logits.double().numpy())
    p /= p.sum(axis=1, keepdims=True)
    divergences = (p * (np.log(p) - np.log(p.mean(axis=0)))).sum(axis=1)
    return np.exp(divergences.mean())


@pytest.mark.parametrize("batch_size", [1, 7, 10, 64])
def test_inception_score_is_taken_on_chunks_in_order_whatever_the_batches(generator, batch_size):
    logits = 3 * torch.randn(47, 11, generator=generator)
    scores = [score_by_definition(logits[start : start + 10]) for start in range(0, 47, 10)]
    result = inception_score(logits, chunk_size=10, batch_size=batch_size)
    assert result.mean == pytest.approx(np.mean(scores), rel=SUMS)
    assert result.std == pytest.approx(np.std(scores), rel=1e-10)
    assert (result.n, result.chunk_size, result.n_chunks) == (47, 10, 5)
    shuffled = inception_score(logits[torch.randperm(47, generator=generator)], chunk_size=10)
    assert shuffled.mean != pytest.approx(result.mean, rel=1e-4)  # the chunks follow the order


def test_inception_score_of_torchmetrics(generator):
    from torchmetrics.image.inception import InceptionScore

    class Logits(torch.nn.Module):
        def forward(self, images):
            return images.flatten(1)

    logits = 2 * torch.randn(40, 12, generator=generator)
    oracle = InceptionScore(feature=Logits(), splits=1, normalize=True)
    oracle.inception.forward = lambda images: images.flatten(1)
    oracle.features = [logits]
    assert inception_score(logits).mean == pytest.approx(oracle.compute()[0].item(), rel=1e-5)  # float32


def test_inception_score_of_certain_and_of_undecided_images():
    certain = 1000.0 * one_hot(torch.arange(30) % 6)  # exp(1000) is beyond float64
    assert inception_score(certain).mean == pytest.approx(6, rel=SUMS)
    assert inception_score(certain.sort(dim=0, descending=True).values).n == 30
    assert inception_score(torch.zeros(30, 6)).mean == pytest.approx(1, rel=SUMS)
    by_class = 1000.0 * one_hot(torch.arange(30) // 5)
    assert inception_score(by_class, chunk_size=5).mean == pytest.approx(1, rel=SUMS)  # sorted: a class per chunk


def test_logits_that_cannot_be_scored_are_refused():
    classes = ClassProbabilities()
    with pytest.raises(InputError, match="at least two images"):
        classes.compute()
    classes.update(torch.zeros(3, 5))
    for logits in (torch.zeros(2, 4), torch.zeros(5)):
        with pytest.raises(InputError, match=r"logits \(B, 5\)"):
            classes.update(logits)
    with pytest.raises(InputError, match="NaN or infinity"):
        classes.update(torch.full((2, 5), torch.nan))
    assert classes.compute().n == 3  # what was refused left no trace
    with pytest.raises(InputError, match="at least one image"):
        ClassProbabilities(0)


# --- kernel distance


def test_kernel_distance_is_the_unbiased_double_sum(generator):
    x, y = draw_features(generator, 9, 3), draw_features(generator, 9, 3, shift=0.5)

    def kernel(a, b):
        return (float(a.double() @ b.double()) / 3 + 1) ** 3

    within = sum(kernel(s[i], s[j]) for s in (x, y) for i in range(9) for j in range(9) if i != j) / (9 * 8)
    across = sum(kernel(a, b) for a in x for b in y) / 81
    result = kernel_distance(x, y, generator, subsets=3, subset_size=9)  # each subset is the whole set
    assert result.value == pytest.approx(within - 2 * across, rel=1e-10)
    assert result.std < 1e-10
    assert (result.subsets, result.subset_size, result.n_real, result.n_generated) == (3, 9, 9, 9)


def test_kernel_distance_of_torchmetrics(generator):
    from torchmetrics.image.kid import KernelInceptionDistance

    class Nothing(torch.nn.Module):
        num_features = 16

        def forward(self, images):
            return images

    real, generated = draw_features(generator, 60, 16), draw_features(generator, 60, 16, shift=0.3)
    oracle = KernelInceptionDistance(feature=Nothing(), subsets=2, subset_size=60)
    oracle.real_features, oracle.fake_features = [real.double()], [generated.double()]
    result = kernel_distance(real, generated, generator, subsets=2, subset_size=60)
    assert result.value == pytest.approx(oracle.compute()[0].item(), rel=1e-9)


def test_kernel_distance_draws_its_subsets_from_the_generator_and_is_unbiased(generator):
    real, generated = draw_features(generator, 300), draw_features(generator, 200)
    first, again, other = (
        kernel_distance(real, generated, torch.Generator().manual_seed(seed), subsets=20, subset_size=50)
        for seed in (1, 1, 2)
    )
    assert first == again
    assert first.value != other.value
    assert abs(first.value) < 3 * first.std  # of equal distributions
    shifted = kernel_distance(real, generated + 1, generator, subsets=20, subset_size=50)
    assert shifted.value > 3 * shifted.std > 0


def test_sets_smaller_than_a_subset_have_no_kernel_distance(generator):
    with pytest.raises(InputError, match="at least 1000 feature vectors of each set, but got 1000 real and 999"):
        kernel_distance(torch.zeros(1000, 2), torch.zeros(999, 2), generator)
    for counts in ({"subsets": 0}, {"subset_size": 1}):
        with pytest.raises(InputError, match="subsets of two or more"):
            kernel_distance(torch.zeros(9, 2), torch.zeros(9, 2), generator, **counts)


# --- precision and recall, density and coverage


def balls(points, k):
    """Radius to the k-th other point, by sorting, in float64."""
    distances = np.linalg.norm(points[:, None] - points[None], axis=-1)
    return np.sort(distances, axis=1)[:, k]


def scores_by_definition(real, generated, k_pr=3, k_dc=5):
    real, generated = real.double().numpy(), generated.double().numpy()
    distances = np.linalg.norm(generated[:, None] - real[None], axis=-1)  # (M, N)
    precision = (distances <= balls(real, k_pr)).any(axis=1).mean()
    recall = (distances <= balls(generated, k_pr)[:, None]).any(axis=0).mean()
    inside = distances < balls(real, k_dc)
    return precision, recall, inside.sum() / (k_dc * len(generated)), inside.any(axis=0).mean()


@pytest.mark.parametrize(("n_real", "n_generated", "block_size"), [(40, 70, 1000), (70, 40, 16), (41, 41, 1)])
def test_all_four_shares_equal_their_definitions(generator, n_real, n_generated, block_size):
    real = draw_features(generator, n_real)
    generated = draw_features(generator, n_generated, shift=0.3, scale=0.9)
    pr = precision_recall(real, generated, block_size=block_size)
    dc = density_coverage(real, generated, block_size=block_size)
    expected = scores_by_definition(real, generated)
    assert (pr.precision, pr.recall, dc.density, dc.coverage) == pytest.approx(expected, rel=SUMS)
    assert 0 < pr.precision < 1
    assert 0 < pr.recall < 1
    assert 0 < dc.coverage < 1
    assert (pr.k, pr.n_real, pr.n_generated) == (3, n_real, n_generated)
    assert (pr.collapsed_real, pr.collapsed_generated, dc.collapsed_real) == (0, 0, 0)
    assert (dc.k, dc.n_real, dc.n_generated) == (5, n_real, n_generated)

    order = torch.randperm(n_generated, generator=generator)
    assert precision_recall(real, generated[order]) == pr
    assert density_coverage(real.numpy(), generated[order].double()) == dc


def test_features_far_from_the_origin_keep_their_neighbours(generator):
    real, generated = draw_features(generator, 50), draw_features(generator, 50, shift=0.3)
    near = precision_recall(real, generated)
    offset = torch.full((8,), 4096.0, dtype=torch.float64)  # 8,192 times the rounding of float32 at 1
    far = precision_recall((real + offset).float(), (generated + offset).float())
    # The sum |a|^2 - 2ab + |b|^2 about the origin would be off by 16, more than any distance here.
    assert (far.precision, far.recall) == pytest.approx((near.precision, near.recall), abs=0.05)
    assert far.collapsed_real == 0


def test_a_point_on_the_border_counts_for_precision_and_not_for_density():
    line = torch.arange(10.0)[:, None]  # radius 2 at the ends with k = 2, else 1
    outside = torch.tensor([[-2.0], [-2.0], [-2.0], [11.0]])
    assert precision_recall(line, outside, k=2).precision == 1
    dc = density_coverage(line, outside, k=2)
    assert (dc.density, dc.coverage) == (0, 0)
    nearer = density_coverage(line, outside * 0.999, k=2)
    assert nearer.density == (3 + 1) / (2 * 4)
    assert nearer.coverage == 2 / 10


def test_a_memorised_set_has_density_one(generator):
    real = draw_features(generator, 200, 64, shift=2)
    copied = density_coverage(real, real[torch.randperm(200, generator=generator)])
    assert (copied.density, copied.coverage) == (1, 1)  # in each ball its centre and k - 1 others, not the k-th


@pytest.mark.parametrize("block_size", [7, 1000])
def test_authenticity_by_its_definition(generator, block_size):
    real, generated = draw_features(generator, 40), draw_features(generator, 60, scale=0.9)
    between = torch.cdist(generated.double(), real.double())
    among = torch.cdist(real.double(), real.double()).fill_diagonal_(torch.inf).min(1).values
    expected = sum(row.min() > among[row.argmin()] for row in between).item() / 60
    assert authenticity(real, generated, block_size) == expected
    assert 0 < expected < 1


def test_authenticity_of_copies_of_new_images_and_of_others(generator):
    real = draw_features(generator, 500)
    assert authenticity(real, real[:50]) == 0
    assert authenticity(real, real[:50] + 1e-3) == 0
    assert 0.5 < authenticity(real, draw_features(generator, 500)) < 0.75  # the nearest of all has near neighbours
    assert authenticity(real, draw_features(generator, 50, shift=100)) == 1
    with pytest.raises(InputError):
        authenticity(real[:1], real)


def test_repeated_images_are_reported_as_collapsed(generator):
    real = draw_features(generator, 30, 2048)
    generated = real[:1].repeat(30, 1)
    pr = precision_recall(real, generated)
    assert (pr.collapsed_real, pr.collapsed_generated) == (0, 30)
    assert (pr.precision, pr.recall) == (1, 1 / 30)  # the one real image on which all lie
    assert density_coverage(generated, real).collapsed_real == 30
    assert density_coverage(generated, generated).coverage == 0  # a ball of no size has no inside


def test_distances_are_those_of_differences_and_zero_for_equal_vectors(generator):
    a, b = draw_features(generator, 5, 2048, shift=3), draw_features(generator, 7, 2048, shift=3)
    b[2] = a[4]
    distances = squared_distances(a, b)
    expected = (a[:, None].double() - b[None].double()).square().sum(dim=-1)
    # Squared lengths are five times the distances, and so is their rounding; exactly 0 where that is 0.
    np.testing.assert_allclose(distances, expected, rtol=1e-5)
    assert distances[4, 2] == 0


def test_half_precision_rounds_distances_and_falls_back_where_one_is_too_large(generator):
    real, generated = draw_features(generator, 60, 64), draw_features(generator, 60, 64, shift=0.1)
    exact, half = precision_recall(real, generated), precision_recall(real, generated, half_precision=True)
    assert half.half_precision
    assert not exact.half_precision
    assert (half.precision, half.recall) == pytest.approx((exact.precision, exact.recall), abs=0.06)  # 3 of 60

    fine = torch.tensor([[1.0], [1.0001], [1.0002], [1.0003]])  # one and the same number in float16
    assert precision_recall(fine, fine, half_precision=True).collapsed_real == 4
    assert precision_recall(fine, fine).collapsed_real == 0
    large = 100 * torch.cat([real, torch.full((1, 64), 10.0)])  # a squared length beyond 65,504
    fallback = precision_recall(large, 100 * generated, half_precision=True)
    assert fallback.precision == precision_recall(large, 100 * generated).precision


def test_sets_that_cannot_be_compared_are_refused(generator):
    good = draw_features(generator, 20)
    for metric in (
        precision_recall,
        density_coverage,
        lambda a, b: kernel_distance(a, b, generator, subsets=1, subset_size=4),
    ):
        for bad in (torch.zeros(20, 7), torch.zeros(20), torch.zeros(20, 8, 1)):
            with pytest.raises(InputError, match=r"compared as \(N, D\) and \(M, D\)"):
                metric(good, bad)
        for value in (torch.nan, torch.inf):
            with pytest.raises(InputError, match="NaN or infinity"):
                metric(torch.full((20, 8), value), good)
        with pytest.raises(InputError, match="feature vectors of each set, but got 20 real and 3"):
            metric(good, good[:3])


# --- Frechet distance


def test_frechet_distance_by_the_matrix_root_of_scipy(generator):
    mixing = torch.randn(48, 48, generator=generator)
    a = (draw_features(generator, 400, 48) @ mixing).numpy()
    b = (draw_features(generator, 300, 48, shift=0.2) @ mixing.T).numpy()
    covariances = [np.cov(features.astype(np.float64), rowvar=False) for features in (a, b)]
    root = scipy.linalg.sqrtm(covariances[0] @ covariances[1])
    difference = a.astype(np.float64).mean(axis=0) - b.astype(np.float64).mean(axis=0)
    expected = difference @ difference + sum(map(np.trace, covariances)) - 2 * np.trace(root).real
    distance = frechet_distance(*(FeatureStatistics.from_features(features) for features in (a, b)))
    assert distance.value == pytest.approx(expected, rel=1e-9)


# --- everything at once


@pytest.fixture(scope="module")
def network() -> InceptionV3:
    return random_inception()


def draw_images(n, seed):
    return np.random.default_rng(seed).integers(0, 256, (n, 24, 24, 3), dtype=np.uint8)


def test_one_pass_gathers_what_every_score_needs(network):
    images = draw_images(4, seed=0)
    one, two = (InceptionSet(network).gather(np.split(images, cuts)) for cuts in ([4], [1, 2]))
    activations = network(torch.from_numpy(images).permute(0, 3, 1, 2) / 127.5 - 1)
    for gathered in (one, two):
        # Batches of other sizes run through other convolution kernels: float32 rounding.
        torch.testing.assert_close(gathered.features, activations.pool, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(gathered.pool.mu, activations.pool.double().mean(dim=0), rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(gathered.spatial.mu, activations.spatial.double().mean(dim=0), atol=1e-4)
        assert gathered.classes.compute().mean == pytest.approx(score_by_definition(activations.logits), rel=1e-4)
        assert gathered.reference().pool.n == 4
    lean = InceptionSet(network, keep_features=False).gather([images[:1]])
    assert lean.features is None
    with pytest.raises(InputError, match="grey images"):
        lean.update(images[..., :1])


def frechet_distance_of_few(a, b):
    """For n samples in many dimensions: tr((A B)^(1/2)) is the sum of singular values of an n x n matrix."""
    mean_term = (a.mean(dim=0) - b.mean(dim=0)).square().sum()
    a, b = ((x - x.mean(dim=0)) / (len(x) - 1) ** 0.5 for x in (a, b))
    return (mean_term + a.square().sum() + b.square().sum() - 2 * torch.linalg.svdvals(a @ b.T).sum()).item()


@pytest.mark.slow
def test_all_scores_of_random_images_against_their_parts(network, generator):
    real, generated = (InceptionSet(network).gather([draw_images(8, seed)]) for seed in (1, 2))
    scores = inception_scores(generated, real.reference(), generator)
    assert scores.n == 8
    expected = frechet_distance_of_few(generated.features.double(), real.features.double())
    assert scores.fid.value == pytest.approx(expected, rel=1e-6)
    assert scores.fid.rank_deficient  # 8 images in 2,048 dimensions: said, not hidden
    assert (scores.sfid.dimension, scores.sfid.n_a, scores.sfid.n_b) == (2023, 8, 8)
    assert scores.precision_recall == precision_recall(real.features, generated.features)
    assert scores.density_coverage == density_coverage(real.features, generated.features)
    assert (scores.kid.subset_size, scores.kid.subsets) == (8, 100)

    statistics_only = inception_scores(generated, Reference(real.pool))
    assert statistics_only.fid == scores.fid
    assert statistics_only.sfid is statistics_only.kid is statistics_only.precision_recall is None


@pytest.mark.exhaustive
def test_the_self_check_of_the_adm_evaluator():
    """The upsampled, guided ADM samples for ImageNet 256, whose figures the evaluator's own documentation states."""
    names = ("ALIGHT_INCEPTION_WEIGHTS", "ALIGHT_ADM_REFERENCE", "ALIGHT_ADM_SAMPLES")
    paths = [os.environ.get(name) for name in names]
    if not all(paths):
        pytest.skip(
            f"set {', '.join(names)} to pt_inception-2015-12-05-6726825d.pth, VIRTUAL_imagenet256_labeled.npz and "
            "admnet_guided_upsampled_imagenet256.npz"
        )
    weights, reference_file, samples = paths
    device = resolve_device("auto")
    network = InceptionV3.from_file(weights).to(device)
    real = InceptionSet(network, device).gather(read_images(reference_file))
    generated = InceptionSet(network, device).gather(read_images(samples))
    reference = replace(read_reference(reference_file), features=real.features)
    scores = inception_scores(generated, reference, half_precision=True)
    # As near as another port with converted weights came: FID 3.9433, precision .82588, recall .5282.
    assert scores.inception_score.mean == pytest.approx(215.8370, rel=1e-3)
    assert scores.fid.value == pytest.approx(3.94256, abs=0.005)
    assert scores.sfid.value == pytest.approx(6.14043, abs=0.02)
    assert scores.precision_recall.precision == pytest.approx(0.8265, abs=0.002)
    assert scores.precision_recall.recall == pytest.approx(0.5309, abs=0.005)
