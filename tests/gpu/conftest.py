"""Tests that need a CUDA device. `pytest -m gpu` runs them all; elsewhere they are skipped."""

from pathlib import Path

import pytest
import torch

from alight.runtime.device import full_float32


def pytest_collection_modifyitems(items):
    """Mark everything in this folder."""
    absent = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
    for item in items:
        if Path(__file__).parent in Path(item.path).parents:
            item.add_marker(pytest.mark.gpu)
            item.add_marker(absent)


@pytest.fixture
def exact():
    """Products and convolutions without TF32, so that devices can be compared."""
    with full_float32():
        yield


@pytest.fixture
def no_waiting():
    """Make every operation that waits for the device an error, from the call of what it gives to the end."""
    yield lambda: torch.cuda.set_sync_debug_mode("error")
    torch.cuda.set_sync_debug_mode("default")
