"""The linear map against closed forms: least squares, independence of units, streams and dead channels."""

import numpy as np
import pytest
import torch

from alight.metrics import RidgeRegression
from alight.runtime.errors import InputError


@pytest.fixture
def pairs():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(500, 6, generator=generator).double() + 1
    y = x @ torch.randn(6, 9, generator=generator).double() + torch.randn(500, 9, generator=generator)
    return x, y


def fit(x, y, penalty, batch=500):
    regression = RidgeRegression(x.shape[1], y.shape[1])
    for a, b in zip(x.split(batch), y.split(batch), strict=True):
        regression.update(a, b)
    return regression.solve(penalty)


def test_without_penalty_it_is_least_squares(pairs):
    x, y = pairs
    oracle = np.linalg.lstsq(x.numpy(), y.numpy(), rcond=None)[0].T
    np.testing.assert_allclose(fit(x, y, 0.0).numpy(), oracle, rtol=1e-10, atol=1e-12)


def test_with_penalty_it_is_least_squares_with_further_rows(pairs):
    """A penalty p on channel k is a further pair: x with sqrt(p sum x_k^2) at k alone, and y = 0."""
    x, y = pairs
    rows = (0.3 * x.square().sum(0)).sqrt().diag()
    oracle = np.linalg.lstsq(torch.cat([x, rows]).numpy(), np.vstack([y.numpy(), np.zeros((6, 9))]), rcond=None)[0].T
    np.testing.assert_allclose(fit(x, y, 0.3).numpy(), oracle, rtol=1e-10, atol=1e-12)


def test_the_units_of_a_channel_do_not_matter(pairs):
    x, y = pairs
    scale = torch.tensor([1e-4, 1.0, 1e3, 7.0, 0.1, 1.0], dtype=torch.float64)
    prediction = x @ fit(x, y, 1e-2).T
    torch.testing.assert_close((x * scale) @ fit(x * scale, y, 1e-2).T, prediction, rtol=1e-9, atol=1e-9)


def test_streams_and_merged_parts(pairs):
    x, y = pairs
    whole = fit(x, y, 1e-4)
    torch.testing.assert_close(fit(x, y, 1e-4, batch=7), whole, rtol=1e-11, atol=1e-12)
    one, two = RidgeRegression(6, 9), RidgeRegression(6, 9)
    one.update(x[:200], y[:200])
    two.update(x[200:], y[200:])
    one.merge(two)
    assert one.n == 500
    torch.testing.assert_close(one.solve(1e-4), whole, rtol=1e-11, atol=1e-12)


def test_a_dead_channel_gets_no_weight(pairs):
    x, y = pairs
    x[:, 2] = 0
    weight = fit(x, y, 1e-4)
    assert weight.isfinite().all()
    assert not weight[:, 2].any()


def test_nothing_to_fit():
    regression = RidgeRegression(2, 3)
    with pytest.raises(InputError, match="empty"):
        regression.solve()
    regression.update(torch.full((1, 2), torch.nan), torch.ones(1, 3))
    with pytest.raises(InputError, match="NaN"):
        regression.solve()
