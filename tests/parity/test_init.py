"""The distribution of freshly drawn weights, and the fixed positions, against recordings of the published model."""

import math
import re

import pytest
import torch

from alight.interop.reference import published_state_dict
from alight.models import PRESETS, LightningDiT
from helpers.published_config import our_config

# Two samples of n values differ by less than so many standard errors (the draws here are seeded: no flaky tests).
STANDARD_ERRORS = 6


@pytest.fixture(scope="module")
def recorded(read_case):
    return read_case("init/init")


@pytest.fixture(scope="module")
def models(recorded):
    return {name: build(name, case["config"]) for name, case in recorded[1].items()}


def build(name, config):
    torch.manual_seed(0)
    arguments = our_config(config)
    return LightningDiT.from_preset(name, **arguments) if name in PRESETS else LightningDiT(**arguments)


def test_distribution_of_every_parameter(recorded, models):
    for name, case in recorded[1].items():
        state = published_state_dict(models[name])
        of_every_kind = {key for key in state if not re.match(r"feat_rope|blocks\.[1-9]", key)}
        assert of_every_kind <= set(case["stats"]), name
        for key, expected in case["stats"].items():
            check_distribution(state[key].double(), expected, f"{name}: {key}")


def check_distribution(values, expected, name):
    assert list(values.shape) == expected["shape"], name
    assert (values == 0).all() == expected["zero"], name
    assert (values == 1).all() == expected["one"], name
    count, std = values.numel(), expected["std"]
    tolerance = STANDARD_ERRORS * std / math.sqrt(count)
    assert values.mean().item() == pytest.approx(expected["mean"], abs=math.sqrt(2) * tolerance + 1e-7), name
    assert values.std(correction=0).item() == pytest.approx(std, abs=tolerance + 1e-7), name
    # The largest of n uniform draws misses the end by about range / n; that of n normal draws lies in 2 to 6 std.
    uniform = max(expected["max"], -expected["min"]) < 1.8 * std
    span = expected["max"] - expected["min"]
    slack = span * 20 / count if uniform else 3 * std
    assert values.max().item() == pytest.approx(expected["max"], abs=slack + 1e-7), name
    assert values.min().item() == pytest.approx(expected["min"], abs=slack + 1e-7), name


def test_fixed_positions(recorded, models):
    tensors, _ = recorded
    states = {name: published_state_dict(model) for name, model in models.items()}
    (registered,) = (name for name in models if name in PRESETS)
    published_names = {
        "pos_embed": "pos_embed",
        "freqs_cos": "feat_rope.freqs_cos",
        "freqs_sin": "feat_rope.freqs_sin",
    }
    for key, expected in tensors.items():
        rows = re.fullmatch(r"big\.(\w+)_every_(\d+)(?:st|nd|rd|th)_row", key)
        if rows:
            value = states[registered][published_names[rows[1]]].flatten(0, -2)[:: int(rows[2])]
        else:
            kind, variant = key.split(".")
            value = states[f"tiny_{variant}"][published_names[kind]]
        assert value.shape == expected.shape, key
        assert (value - expected).abs().max() <= 1e-6, key


def test_first_velocity_is_exactly_zero(models):
    for name, model in models.items():
        x = torch.randn(2, model.config.in_channels, model.config.sample_size, model.config.sample_size)
        with torch.no_grad():
            velocity = model(x, torch.rand(2), torch.tensor([0, model.null_label]))
        assert torch.equal(velocity, torch.zeros_like(x)), name
