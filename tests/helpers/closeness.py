"""Comparison with recordings, whose tolerances are stated absolutely or relative to the largest magnitude."""

import torch
from torch import Tensor


def assert_close(actual: Tensor, expected: Tensor, name: str, atol: float = 0.0, rel_max: float = 0.0) -> None:
    """Check shape, finiteness, and |actual - expected| <= atol + rel_max * max |expected| in every element."""
    assert actual.shape == expected.shape, name
    assert torch.isfinite(actual).all(), name
    error, bound = (actual - expected).abs().max(), atol + rel_max * expected.abs().max()
    assert error <= bound, f"{name}: {error:.1e} > {bound:.1e}"
