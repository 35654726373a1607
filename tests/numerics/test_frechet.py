"""Feature statistics against numpy, the Frechet distance against closed forms and torchmetrics."""

import pickle

import numpy as np
import pytest
import torch

from alight.metrics import FeatureStatistics, frechet_distance
from alight.runtime.errors import InputError

RNG_SEED = 7


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(RNG_SEED)


def random_rotation(rng: np.random.Generator, dimension: int) -> np.ndarray:
    return np.linalg.qr(rng.standard_normal((dimension, dimension)))[0]


def test_streaming_in_batches_of_any_size_equals_numpy_on_everything(rng):
    # A mean a million times the spread: a running E[x^2] - E[x]^2 would keep 4 of 16 digits, far outside 1e-9.
    features = 1e6 + rng.standard_normal((203, 6)) @ rng.standard_normal((6, 6))
    statistics = FeatureStatistics(dimension=6)
    for start, stop in [(0, 1), (1, 1), (1, 2), (2, 66), (66, 203)]:
        statistics.update(features[start:stop])
    assert statistics.n == 203
    np.testing.assert_allclose(statistics.mu, features.mean(axis=0), rtol=1e-14)
    np.testing.assert_allclose(statistics.sigma, np.cov(features, rowvar=False), rtol=1e-9, atol=1e-9)


def test_merging_equals_having_seen_everything(rng):
    features = rng.standard_normal((50, 4)) + np.arange(4)
    together, first, second, empty = (FeatureStatistics(4, "x") for _ in range(4))
    together.update(features)
    first.update(features[:20])
    second.update(features[20:])
    first.merge(second)
    first.merge(empty)
    empty.merge(first)
    for merged in (first, empty):
        assert merged.n == 50
        np.testing.assert_allclose(merged.mu, together.mu, rtol=1e-13)
        np.testing.assert_allclose(merged.sigma, together.sigma, rtol=1e-13, atol=1e-14)
    assert second.n == 30  # what is merged in stays as it was
    np.testing.assert_allclose(second.sigma, np.cov(features[20:], rowvar=False), rtol=1e-13)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_features_of_any_type_are_summed_in_float64(rng, dtype):
    features = torch.from_numpy(rng.standard_normal((64, 3)) + 5).to(dtype).requires_grad_()
    statistics = FeatureStatistics.from_features(features)
    exact = features.detach().double().numpy()
    np.testing.assert_allclose(statistics.sigma, np.cov(exact, rowvar=False), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("null_directions", [0, 7])
def test_commuting_covariances_have_the_closed_form_of_their_spreads(rng, null_directions):
    # With common eigenvectors, tr(A) + tr(B) - 2 tr((AB)^(1/2)) = sum (sqrt(a_i) - sqrt(b_i))^2.
    a, b = rng.uniform(0.1, 9, 12), rng.uniform(0.1, 9, 12)
    a[:null_directions] = 0
    rotation = random_rotation(rng, 12)
    mu_a, mu_b = rng.standard_normal((2, 12))
    distance = frechet_distance(
        FeatureStatistics.from_moments(mu_a, rotation * a @ rotation.T, n=100),
        FeatureStatistics.from_moments(mu_b, rotation * b @ rotation.T),
    )
    assert distance.mean_term == pytest.approx(((mu_a - mu_b) ** 2).sum(), rel=1e-13)
    # A null direction whose rounding error were taken for spread would add its root, about 1e-8.
    assert distance.trace_term == pytest.approx(((a**0.5 - b**0.5) ** 2).sum(), rel=1e-12)
    assert distance.value == distance.mean_term + distance.trace_term
    assert (distance.n_a, distance.n_b, distance.dimension) == (100, None, 12)
    assert distance.rank_a == 12 - null_directions
    assert distance.rank_deficient == (null_directions > 0)


def test_two_by_two_covariances_that_do_not_commute():
    # The root of a 2x2 matrix M has the trace sqrt(tr M + 2 sqrt(det M)).
    a, b = np.array([[2.0, 0.5], [0.5, 1.0]]), np.array([[1.0, -0.8], [-0.8, 3.0]])
    product = a @ b
    trace_of_root = np.sqrt(np.trace(product) + 2 * np.sqrt(np.linalg.det(product)))
    distance = frechet_distance(
        FeatureStatistics.from_moments(np.zeros(2), a), FeatureStatistics.from_moments(np.array([3.0, 4.0]), b)
    )
    assert distance.mean_term == pytest.approx(25)
    assert distance.trace_term == pytest.approx(np.trace(a) + np.trace(b) - 2 * trace_of_root, rel=1e-13)


def test_the_distance_of_torchmetrics_on_the_same_features(rng):
    from torchmetrics.image.fid import FrechetInceptionDistance

    class Pixels(torch.nn.Module):
        num_features = 12

        def forward(self, images):
            return images.double().flatten(1)

    a, b = (torch.from_numpy(rng.integers(low, 256, (60, 3, 2, 2), dtype=np.uint8)) for low in (0, 80))
    oracle = FrechetInceptionDistance(feature=Pixels(), normalize=False).set_dtype(torch.float64)
    oracle.update(a, real=True)
    oracle.update(b, real=False)
    distance = frechet_distance(
        FeatureStatistics.from_features(a.double().flatten(1)), FeatureStatistics.from_features(b.double().flatten(1))
    )
    assert distance.value == pytest.approx(oracle.compute().item(), rel=1e-9)  # both are float64 throughout


def test_fewer_samples_than_dimensions_are_handled_and_reported(rng):
    a, b = rng.standard_normal((9, 20)), 1 + 2 * rng.standard_normal((30, 20))
    distance = frechet_distance(FeatureStatistics.from_features(a), FeatureStatistics.from_features(b))
    covariance_a, covariance_b = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    # Independent root: eigenvalues of the unsymmetric product; its 12 zeros come out as 1e-16, their roots as 1e-8.
    eigenvalues = np.linalg.eigvals(covariance_a @ covariance_b)
    roots = np.sqrt(eigenvalues.astype(complex)).real.sum()
    assert distance.trace_term == pytest.approx(np.trace(covariance_a) + np.trace(covariance_b) - 2 * roots, abs=1e-5)
    assert (distance.rank_a, distance.rank_b) == (8, 20)
    assert distance.rank_deficient
    assert -1e-13 < distance.most_negative_eigenvalue <= 0


@pytest.mark.parametrize("n", [10, 500])
def test_a_set_has_no_distance_to_itself_even_when_its_covariance_is_singular(rng, n):
    statistics = FeatureStatistics.from_features(rng.standard_normal((n, 64)))
    distance = frechet_distance(statistics, statistics)
    # Rounding of a trace of about 64, for 64 sums: the roots of rounding errors (1e-8 each) would show.
    assert abs(distance.value) < 64 * 64 * np.finfo(np.float64).eps


def test_the_offset_acts_inside_the_root_only(rng):
    a, b, offset = np.array([4.0, 0.0, 1.0]), np.array([9.0, 2.0, 0.0]), 0.01
    distance = frechet_distance(
        FeatureStatistics.from_moments(np.zeros(3), np.diag(a)),
        FeatureStatistics.from_moments(np.zeros(3), np.diag(b)),
        offset=offset,
    )
    expected = a.sum() + b.sum() - 2 * np.sqrt((a + offset) * (b + offset)).sum()
    assert distance.value == pytest.approx(expected, rel=1e-14)
    assert (distance.rank_a, distance.rank_b) == (2, 2)  # of the covariances themselves


def test_saved_statistics_come_back_with_their_count_and_can_go_on(rng, tmp_path):
    features = rng.standard_normal((40, 5))
    statistics = FeatureStatistics.from_features(features[:25], name="grey pixels")
    statistics.save(tmp_path / "reference.npz")
    assert [path.name for path in tmp_path.iterdir()] == ["reference.npz"]

    loaded = FeatureStatistics.load(tmp_path / "reference.npz")
    assert (loaded.n, loaded.dimension, loaded.features) == (25, 5, "grey pixels")
    np.testing.assert_allclose(loaded.sigma, statistics.sigma, rtol=1e-14)
    loaded.update(features[25:])
    np.testing.assert_allclose(loaded.sigma, np.cov(features, rowvar=False), rtol=1e-13)


def test_a_file_of_pytorch_fid_says_no_count_and_is_only_compared(rng, tmp_path):
    features = rng.standard_normal((40, 5))
    np.savez(tmp_path / "other.npz", mu=features.mean(axis=0), sigma=np.cov(features, rowvar=False))
    loaded = FeatureStatistics.load(tmp_path / "other.npz")
    own = FeatureStatistics.from_features(features)
    assert loaded.n is None
    assert abs(frechet_distance(loaded, own).value) < 1e-12
    for extend in (lambda: loaded.update(features), lambda: own.merge(loaded), lambda: loaded.merge(own)):
        with pytest.raises(InputError, match="number of samples"):
            extend()
    loaded.save(tmp_path / "again.npz")
    np.testing.assert_array_equal(FeatureStatistics.load(tmp_path / "again.npz").sigma, loaded.sigma)


def test_files_that_are_no_statistics_are_refused(rng, tmp_path):
    with pytest.raises(InputError, match="no feature statistics at"):
        FeatureStatistics.load(tmp_path / "absent.npz")
    np.savez(tmp_path / "images.npz", arr_0=np.zeros(3))
    np.savez(tmp_path / "shapes.npz", mu=np.zeros(3), sigma=np.eye(4))
    np.savez(tmp_path / "nan.npz", mu=np.full(2, np.nan), sigma=np.eye(2))
    np.savez(tmp_path / "pickle.npz", mu=np.array([None, {}], dtype=object), sigma=np.eye(2))
    np.save(tmp_path / "array.npy", np.eye(2))
    (tmp_path / "empty.npz").touch()
    (tmp_path / "cut.npz").write_bytes((tmp_path / "shapes.npz").read_bytes()[:100])
    for name in ("images.npz", "shapes.npz", "nan.npz", "pickle.npz", "array.npy", "empty.npz", "cut.npz"):
        with pytest.raises(InputError, match="cannot be used as feature statistics"):
            FeatureStatistics.load(tmp_path / name)


def test_mistakes_are_refused(rng):
    statistics = FeatureStatistics.from_features(rng.standard_normal((9, 4)), name="one")
    for bad in (np.full((2, 4), np.nan), np.full((2, 4), np.inf)):
        with pytest.raises(InputError, match="NaN or infinity"):
            statistics.update(bad)
    for shape in [(2, 5), (4,), (2, 4, 1)]:
        with pytest.raises(InputError, match="dimension 4"):
            statistics.update(np.zeros(shape))
    assert statistics.n == 9  # what was refused left no trace

    with pytest.raises(InputError, match="at least two samples"):
        frechet_distance(statistics, FeatureStatistics.from_features(np.zeros((1, 4))))
    with pytest.raises(InputError, match="dimension 5"):
        frechet_distance(statistics, FeatureStatistics.from_features(np.zeros((9, 5))))
    other = FeatureStatistics.from_features(np.zeros((9, 4)), name="two")
    with pytest.raises(InputError, match="'one' cannot be compared with those of 'two'"):
        frechet_distance(statistics, other)
    with pytest.raises(InputError, match="'one'"):
        statistics.merge(other)


@pytest.mark.parametrize(
    ("matrix", "message"),
    [(np.array([[1.0, 0.5], [0.0, 1.0]]), "symmetric"), (np.array([[1.0, 2.0], [2.0, 1.0]]), "negative eigenvalues")],
)
def test_a_matrix_that_is_no_covariance_is_refused(matrix, message):
    good = FeatureStatistics.from_moments(np.zeros(2), np.eye(2))
    with pytest.raises(InputError, match=message):
        frechet_distance(good, FeatureStatistics.from_moments(np.zeros(2), matrix))


def test_sums_on_a_gpu_are_those_of_the_cpu(monkeypatch):
    """The same sums by torch in place of NumPy, also where they meet others, travel or end; here on the CPU."""
    generator = torch.Generator().manual_seed(0)
    batches = [torch.randn(size, 8, generator=generator) + 100 for size in (16, 1, 0, 40)]
    expected, mixed = FeatureStatistics(8, "some"), FeatureStatistics(8, "some")
    for batch in batches:
        expected.update(batch)
    mixed.update(batches[0])
    monkeypatch.setattr("alight.metrics.frechet.sums_in_place", lambda features: True)
    mixed.update(batches[1])
    mixed.update(batches[2])
    mixed = pickle.loads(pickle.dumps(mixed))
    last = FeatureStatistics(8, "some")
    last.update(batches[3])
    mixed.merge(last)
    assert mixed.n == expected.n == 57
    np.testing.assert_allclose(mixed.mu, expected.mu, rtol=1e-14)
    np.testing.assert_allclose(mixed.sigma, expected.sigma, rtol=1e-11, atol=1e-11)  # float64 about a mean of 100
    with pytest.raises(InputError, match="NaN or infinity"):
        mixed.update(torch.full((2, 8), torch.nan))
    with pytest.raises(InputError, match="dimension 8"):
        mixed.update(torch.ones(2, 7))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_features_on_a_gpu_have_the_statistics_of_the_cpu():
    features = torch.randn(3000, 64, generator=torch.Generator().manual_seed(0)) + 10
    on_cpu, on_gpu = (FeatureStatistics(64), FeatureStatistics(64))
    for batch in features.split(100):
        on_cpu.update(batch)
        on_gpu.update(batch.cuda())
    np.testing.assert_allclose(on_gpu.sigma, on_cpu.sigma, rtol=1e-11, atol=1e-11)
    assert frechet_distance(on_gpu, on_cpu).value == pytest.approx(0, abs=1e-8)
