"""Names of rows in a picture: in their places, readable on any ground, and the grid itself unchanged."""

import numpy as np
import pytest

from alight.reporting.pictures import image_grid
from alight.reporting.row_names import drawable, with_row_names


def grid_of(rows: int, side: int) -> np.ndarray:
    images = np.random.default_rng(0).integers(0, 256, (3 * rows, side, side, 3), dtype=np.uint8)
    return image_grid(images, 3)


def test_the_grid_stays_on_the_right_of_the_names():
    grid = grid_of(2, 32)
    named = with_row_names(grid, ["cats", "a longer name"])
    assert named.shape[0] == grid.shape[0]
    np.testing.assert_array_equal(named[:, -grid.shape[1] :], grid)
    margin = named[:, : -grid.shape[1]]
    assert margin.shape[1] < 110
    assert set(np.unique(margin[margin[..., 3] > 0][:, :3])) == {128}  # grey letters, and nothing else


def test_every_name_stands_in_its_own_row():
    grid = grid_of(3, 64)
    named = with_row_names(grid, ["cats", " ", "mice"])
    letters = named[:, : -grid.shape[1], 3].any(axis=1)
    assert letters[20:44].any()
    assert letters[152:176].any()
    assert not letters[66:130].any()  # the second name is empty
    assert not letters[:10].any()


@pytest.mark.parametrize("rows", [1, 2, 7])
def test_rows_that_are_too_low_for_letters_have_no_names(rows):
    grid = grid_of(rows, 8)
    assert with_row_names(grid, [f"class {number}" for number in range(rows)]) is grid


def test_names_are_written_in_the_letters_of_the_font():
    assert drawable("élève", 0) == "eleve"
    assert drawable("中", 4) == "row 5"
    assert drawable("two\nlines", 1) == "row 2"
    assert drawable("a" * 30, 0) == "a" * 17 + "..."
