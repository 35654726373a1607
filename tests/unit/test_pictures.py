"""Pictures of many images: grids in order, originals above what was made of them."""

from collections.abc import Callable

import numpy as np
import pytest
from sklearn.datasets import load_digits

from alight.reporting.pictures import comparison_strip, image_grid, pair_strip, scatter
from alight.runtime.errors import InputError
from helpers.pictures import digit_images


@pytest.fixture(scope="module")
def digits() -> np.ndarray:
    return digit_images()


def test_grid_places_images_in_order(digits: np.ndarray) -> None:
    grid = image_grid(digits[:5], 3, padding=2)
    assert grid.shape == (2 * 8 + 2, 3 * 8 + 2 * 2, 4)
    for index in range(5):
        row, column = divmod(index, 3)
        cell = grid[10 * row : 10 * row + 8, 10 * column : 10 * column + 8]
        np.testing.assert_array_equal(cell[..., :3], np.repeat(digits[index], 3, axis=-1))
        assert np.all(cell[..., 3] == 255)
    assert np.all(grid[10:, 20:] == 0)  # the sixth cell is empty: fully transparent
    assert np.all(grid[8:10] == 0)
    assert np.all(grid[:, 8:10] == 0)


def test_grid_with_labels_has_one_class_per_row() -> None:
    target = load_digits().target[:60]
    images = np.broadcast_to(target.astype(np.uint8)[:, None, None, None], (60, 4, 4, 3))  # each shows its own label
    images = images.copy()
    images[:, 0, 0, 0] = np.arange(60)  # and, in one pixel, its index
    grid = image_grid(images, 4, padding=0, labels=target)
    assert grid.shape == (40, 16, 4)
    for label in range(10):
        np.testing.assert_array_equal(grid[4 * label + 1, :, 0], label)
        np.testing.assert_array_equal(grid[4 * label, ::4, 0], np.flatnonzero(target == label)[:4])


def test_pair_strip_shows_originals_above_reconstructions_above_differences() -> None:
    originals = np.full((2, 4, 4, 3), 100, dtype=np.uint8)
    reconstructions = originals.copy()
    reconstructions[0, :, :, 0], reconstructions[1] = 110, 0
    strip = pair_strip(originals, reconstructions, padding=0, difference_gain=2.0)
    assert strip.shape == (12, 8, 4)
    np.testing.assert_array_equal(strip[:4, :, :3], 100)
    np.testing.assert_array_equal(strip[4:8, :4], np.broadcast_to([110, 100, 100, 255], (4, 4, 4)))
    np.testing.assert_array_equal(strip[8:, :4], np.broadcast_to([148, 128, 128, 255], (4, 4, 4)))  # 128 + 2 * 10
    np.testing.assert_array_equal(strip[8:, 4:, :3], 0)  # 128 - 2 * 100 is clipped, not wrapped
    assert pair_strip(originals, reconstructions).shape == (10, 10, 4)


@pytest.mark.parametrize(
    ("build", "says"),
    [
        (lambda image: image_grid(image.astype(np.float32), 2), "float32"),
        (lambda image: image_grid(image[:0], 2), "uint8"),
        (lambda image: image_grid(image, 0), "columns"),
        (lambda image: image_grid(image, 2, labels=[1]), "labels"),
        (lambda image: pair_strip(image, image[:1]), "pairs"),
    ],
)
def test_wrong_images_are_refused(digits: np.ndarray, build: Callable[[np.ndarray], object], says: str) -> None:
    with pytest.raises(InputError, match=says):
        build(digits[:2])


def test_a_comparison_strip_has_two_rows_per_candidate(digits: np.ndarray) -> None:
    originals, candidates = digits[:3], [digits[3:6], digits[6:9]]
    strip = comparison_strip(originals, candidates, padding=0, difference_gain=2)
    rows = strip.reshape(5, 8, 3, 8, 4)[..., 0].swapaxes(1, 2)  # (row, image, H, W) of one channel
    assert strip.shape == (5 * 8, 3 * 8, 4)
    np.testing.assert_array_equal(rows[[0, 1, 3]], np.stack([originals, *candidates])[..., 0])
    for row, candidate in ((2, candidates[0]), (4, candidates[1])):
        difference = candidate[..., 0].astype(int) - originals[..., 0]
        np.testing.assert_array_equal(rows[row], np.clip(128 + 2 * difference, 0, 255))
    np.testing.assert_array_equal(
        pair_strip(originals, candidates[0], difference_gain=2),
        comparison_strip(originals, candidates[:1], difference_gain=2),
    )


def test_a_map_is_drawn_with_the_densest_points_on_top():
    points = np.array([[0.0, 0.0], [1.0, 1.0], [1.0, 1.0]])
    picture = scatter(points, np.array([0.5, 0.1, 0.9]), side=40)
    assert picture.shape == (40, 40, 3)
    assert picture[35, 4].tolist() == [33, 145, 140]  # lower left, of middle rank
    assert picture[5, 34].tolist() == [253, 231, 37]  # upper right, the denser of two
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) == 3  # ground and two colours
    with pytest.raises(InputError, match="points"):
        scatter(points, np.zeros(2))
