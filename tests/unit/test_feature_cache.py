"""Features on disk: read back as written, tied to the very pixels, and never trusted when damaged."""

import numpy as np
import pytest
import torch

from alight.data import feature_cache
from alight.data.feature_cache import FeatureCache, cached_features
from alight.data.images import ImageSource
from alight.models.foundation import FoundationModel
from alight.runtime.errors import InputError
from alight.runtime.pixels import unit_range
from helpers.models import tiny_vit

GRID = (4, 4)


class Source(ImageSource):
    """Random images with names."""

    def __init__(self, count, prefix="image"):
        generator = np.random.default_rng(0)
        self.pixels = generator.integers(0, 256, (count, 3, 32, 32), dtype=np.uint8)
        self.prefix = prefix
        self.labels = np.zeros(count, dtype=np.int64)

    @property
    def description(self):
        return "random images"

    def name(self, index):
        return f"{self.prefix}-{index}"

    def load(self, index):
        return self.pixels[index].transpose(1, 2, 0)

    def batch(self, indices, mirrored=False):
        images = unit_range(torch.from_numpy(self.pixels[indices]))
        return images.flip(-1) if mirrored else images


class Counting(FoundationModel):
    """Counts the images it is given."""

    images = 0

    def forward(self, images, grid):
        self.images += len(images)
        return super().forward(images, grid)


@pytest.fixture
def source():
    return Source(6)


@pytest.fixture
def foundation():
    return Counting(tiny_vit())


def test_each_image_is_computed_once_and_its_mirror_image_too(foundation, source):
    cache = FeatureCache.open(foundation, source, GRID)
    for mirrored, computed in ((False, 4), (True, 8)):
        images = source.batch([0, 2, 3, 5], mirrored)
        first = cached_features(cache, foundation, images, [0, 2, 3, 5], GRID)
        again = cached_features(cache, foundation, images.flip(0), [5, 3, 2, 0], GRID)
        assert foundation.images == computed
        assert torch.equal(again.flip(0), first)  # rounded in the first epoch as in all later ones
        torch.testing.assert_close(first, FoundationModel.forward(foundation, images, GRID), rtol=1e-3, atol=1e-3)
    assert not torch.equal(first.flip(-1), cached_features(cache, foundation, images.flip(-1), [0, 2, 3, 5], GRID))


def test_only_what_is_missing_is_computed(foundation, source):
    cache = FeatureCache.open(foundation, source, GRID)
    cached_features(cache, foundation, source.batch([1, 4]), [1, 4], GRID)
    features = cached_features(cache, foundation, source.batch([0, 1, 4]), [0, 1, 4], GRID)
    assert foundation.images == 3
    torch.testing.assert_close(
        features, FoundationModel.forward(foundation, source.batch([0, 1, 4]), GRID), rtol=1e-3, atol=1e-3
    )


def test_another_process_finds_them(foundation, source, tmp_path):
    cached_features(
        FeatureCache.open(foundation, source, GRID, folder=tmp_path), foundation, source.batch([1]), [1], GRID
    )
    _, known = FeatureCache.open(foundation, source, GRID, folder=tmp_path).read([0, 1], source.batch([0, 1]))
    assert known.tolist() == [False, True]


def test_changed_pixels_are_unknown(foundation, source):
    cache = FeatureCache.open(foundation, source, GRID)
    cached_features(cache, foundation, source.batch([0, 1]), [0, 1], GRID)
    source.pixels[1, 0, 0, 0] ^= 1
    assert cache.read([0, 1], source.batch([0, 1]))[1].tolist() == [True, False]


def test_each_setting_has_its_own_file(foundation, source):
    other = FoundationModel(foundation.backbone, input_mode="published")
    caches = [
        FeatureCache.open(foundation, source, GRID),
        FeatureCache.open(foundation, source, (2, 2)),
        FeatureCache.open(foundation, source, GRID, precision="bf16"),
        FeatureCache.open(other, source, GRID),
        FeatureCache.open(foundation, Source(6, prefix="other"), GRID),
        FeatureCache.open(FoundationModel(tiny_vit()).with_layers((1,)), source, GRID),
    ]
    assert len({cache.path for cache in caches}) == len(caches)


def test_a_damaged_or_unfinished_row_is_unknown(foundation, source):
    cache = FeatureCache.open(foundation, source, GRID)
    indices, images = [0, 1, 2], source.batch([0, 1, 2])
    cached_features(cache, foundation, images, indices, GRID)
    row = feature_cache._rows_of([1], images[1:2])[0][0]
    with cache.path.open("r+b") as file:  # a bit of the middle row flips
        file.seek(cache._first_row + int(row) * 512 + 100)
        byte = file.read(1)[0]
        file.seek(-1, 1)
        file.write(bytes([byte ^ 1]))
    assert cache.read(indices, images)[1].tolist() == [True, False, True]
    cached_features(cache, foundation, images, indices, GRID)  # mends it
    assert cache.read(indices, images)[1].tolist() == [True, True, True]


@pytest.mark.parametrize("damage", ["cut off", "header", "empty"])
def test_a_damaged_file_is_begun_anew(damage, foundation, source):
    cache = FeatureCache.open(foundation, source, GRID)
    cached_features(cache, foundation, source.batch([0]), [0], GRID)
    size = cache.path.stat().st_size
    content = cache.path.read_bytes()
    cache.path.write_bytes({"cut off": content[:-1], "header": b"x" + content[1:], "empty": b""}[damage])
    cache = FeatureCache.open(foundation, source, GRID)
    assert cache.path.stat().st_size == size
    assert cache.read([0], source.batch([0]))[1].tolist() == [False]


def test_features_that_are_not_finite_are_not_kept(foundation, source):
    cache = FeatureCache.open(foundation, source, GRID)
    features = torch.zeros(2, 16, *GRID, dtype=torch.float16)
    features[0, 3, 1, 2] = torch.nan
    cache.write([0, 1], source.batch([0, 1]), features)
    assert cache.read([0, 1], source.batch([0, 1]))[1].tolist() == [False, True]


def test_a_full_disk_ends_the_keeping_and_not_the_training(foundation, source):
    cache = FeatureCache.open(foundation, source, GRID)
    cache._file.close()
    cache._file = open("/dev/full", "r+b", buffering=0)  # noqa: SIM115 (every write to it fails as on a full disk)
    images = source.batch([0, 1])
    for _ in range(2):
        features = cached_features(cache, foundation, images, [0, 1], GRID)
        torch.testing.assert_close(features, FoundationModel.forward(foundation, images, GRID), rtol=1e-3, atol=1e-3)
    assert foundation.images == 4


def test_a_folder_that_cannot_be_written(foundation, source, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="ALIGHT_CACHE"):
        FeatureCache.open(foundation, source, GRID, folder=tmp_path / "file")
