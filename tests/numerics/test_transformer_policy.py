"""Policies that the runtime lays over the transformer change its numbers only as far as stated."""

import shutil

import pytest
import torch

from alight.runtime.device import autocast, compile_blocks
from helpers.models import tiny_transformer


@pytest.fixture
def model():
    """A small model in which no weight is zero, so that every path counts."""
    return tiny_transformer(std=0.05, in_channels=8, hidden_size=64, num_layers=2, num_heads=4)


@pytest.fixture
def inputs():
    generator = torch.Generator().manual_seed(1)
    x, t = torch.randn(6, 8, 4, 4, generator=generator), torch.rand(6, generator=generator)
    return x, t, torch.arange(6)


def forward_and_gradient(model, inputs):
    model.zero_grad()
    output = model(*inputs)
    output.square().mean().backward()
    gradient = torch.cat([parameter.grad.flatten() for parameter in model.parameters()])
    return output.detach().float(), gradient.float()


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="compiling for the CPU needs a C++ compiler")
def test_compiled_equals_eager(model, inputs):
    expected = forward_and_gradient(model, inputs)
    compile_blocks(model.blocks)
    got = forward_and_gradient(model, inputs)
    for ours, theirs in zip(got, expected, strict=True):  # fused float32 operations round differently
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6 + 1e-5 * float(theirs.abs().max()))


def test_bf16_stays_close_to_fp32(model, inputs):
    expected = forward_and_gradient(model, inputs)
    with autocast(torch.device("cpu"), "bf16"):
        got = forward_and_gradient(model, inputs)
    # bf16 keeps 8 bits: each product is off by 2^-9 of itself, and a few dozen of them add up like a random walk
    for ours, theirs in zip(got, expected, strict=True):
        error = (ours - theirs).norm() / theirs.norm()
        assert 0 < error < 0.03


@torch.no_grad()
def test_bf16_weights_keep_the_state_in_fp32(model, inputs):
    expected = model(*inputs)
    got = model.to(torch.bfloat16)(*inputs)
    assert got.dtype == torch.float32
    assert (got - expected).norm() / expected.norm() < 0.03
