"""Crops of images that are thousands of times as long as wide."""

import tracemalloc

import numpy as np
import pytest

from alight.data.crops import center_crop, random_crop


@pytest.mark.parametrize("shape", [(1, 8_000, 3), (8_000, 1, 3)], ids=["wide", "tall"])
def test_a_line_takes_little_memory_and_its_middle_is_shown(shape):
    """Scaled as a whole, it would take 1.6 GB, and one of 65,535 pixels 13 GB."""
    image = np.zeros(shape, dtype=np.uint8)
    image.reshape(-1, 3)[4_000 - 8 : 4_000 + 8] = 200
    tracemalloc.start()
    centre, other = center_crop(image, 256), random_crop(image, 256, np.random.default_rng(0))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert centre.shape == other.shape == (256, 256, 3)
    assert centre.min() > 190
    assert peak < 2**29
