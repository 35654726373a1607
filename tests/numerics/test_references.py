"""References of three tools and files of images: read as written, refused with what they hold."""

import numpy as np
import pytest

from alight.metrics import (
    FeatureStatistics,
    read_images,
    read_reference,
)
from alight.metrics.reference import POOL_FEATURES, Reference
from alight.runtime.errors import InputError

SUMS = 1e-12  # relative: float64 sums of the same numbers in another order


def make_moments(rng, dimension):
    features = rng.standard_normal((30, dimension))
    return features.mean(axis=0), np.cov(features, rowvar=False)


def test_references_of_three_tools_are_read(tmp_path):
    rng = np.random.default_rng(0)
    (mu, sigma), (mu_s, sigma_s) = make_moments(rng, 6), make_moments(rng, 4)
    images = rng.integers(0, 256, (3, 4, 4, 3), dtype=np.uint8)
    np.savez(tmp_path / "adm.npz", images, mu=mu, sigma=sigma, mu_s=mu_s, sigma_s=sigma_s)
    np.savez(tmp_path / "pytorch_fid.npz", mu=mu, sigma=sigma)

    adm = read_reference(tmp_path / "adm.npz")
    np.testing.assert_array_equal(adm.pool.sigma, sigma)
    np.testing.assert_array_equal(adm.spatial.mu, mu_s)
    np.testing.assert_array_equal(adm.spatial.sigma, sigma_s)
    assert adm.pool.features == POOL_FEATURES  # not to be compared with those of another resizing
    assert (adm.features, adm.pool.n) == (None, None)

    other = read_reference(tmp_path / "pytorch_fid.npz")
    np.testing.assert_array_equal(other.pool.mu, mu)
    assert (other.spatial, other.pool.features) == (None, None)

    pool = FeatureStatistics.from_moments(mu, sigma, n=30, name=POOL_FEATURES)
    spatial = FeatureStatistics.from_moments(mu_s, sigma_s, n=30)
    Reference(pool, spatial).save(tmp_path / "own.npz")
    own = read_reference(tmp_path / "own.npz")
    assert (own.pool.n, own.spatial.n, own.pool.features) == (30, 30, POOL_FEATURES)
    np.testing.assert_allclose(own.spatial.sigma, sigma_s, rtol=SUMS)
    Reference(pool).save(tmp_path / "pool_only.npz")
    assert read_reference(tmp_path / "pool_only.npz").spatial is None


def test_files_that_are_no_references_say_what_they_hold(tmp_path):
    rng = np.random.default_rng(0)
    mu, sigma = make_moments(rng, 4)
    np.savez(tmp_path / "wrong.npz", mean=mu, cov=sigma)
    with pytest.raises(InputError, match="it has no mu and no sigma, only mean, cov"):
        read_reference(tmp_path / "wrong.npz")
    np.savez(tmp_path / "half.npz", mu=mu, sigma=sigma, mu_s=mu)
    with pytest.raises(InputError, match="spatial statistics.*sigma_s"):
        read_reference(tmp_path / "half.npz")
    np.savez(tmp_path / "misfit.npz", mu=mu, sigma=sigma, mu_s=mu, sigma_s=np.eye(3))
    with pytest.raises(InputError, match="spatial statistics"):
        read_reference(tmp_path / "misfit.npz")
    with pytest.raises(InputError, match="no feature statistics at"):
        read_reference(tmp_path / "absent.npz")


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_images_are_read_in_order_and_in_batches(tmp_path, save):
    images = np.random.default_rng(0).integers(0, 256, (7, 4, 5, 3), dtype=np.uint8)
    save(tmp_path / "samples.npz", images)
    batches = list(read_images(tmp_path / "samples.npz", batch_size=3))
    assert [len(batch) for batch in batches] == [3, 3, 1]
    np.testing.assert_array_equal(np.concatenate(batches), images)


def test_files_without_images_are_refused(tmp_path):
    images = np.zeros((3, 4, 4, 3), np.uint8)
    np.savez(tmp_path / "good.npz", images)
    whole = (tmp_path / "good.npz").read_bytes()
    (tmp_path / "cut.npz").write_bytes(whole[:200])
    (tmp_path / "damaged.npz").write_bytes(whole[:190] + b"\x01" + whole[191:])
    np.savez(tmp_path / "float.npz", images.astype(np.float32))
    np.savez(tmp_path / "channels_first.npz", images.transpose(0, 3, 1, 2))
    np.savez(tmp_path / "column_major.npz", np.asfortranarray(images))
    np.savez(tmp_path / "moments.npz", mu=np.zeros(3), sigma=np.eye(3))
    for name in ("cut", "damaged", "float", "channels_first", "column_major", "moments"):
        with pytest.raises(InputError, match="cannot be used as images"):
            list(read_images(tmp_path / f"{name}.npz"))
    with pytest.raises(InputError, match="no images at"):
        next(read_images(tmp_path / "absent.npz"))
