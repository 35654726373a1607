"""Projectors of latents: the linear one as published, and a transformer block before it."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from alight.models.latent_projector import BlockProjector, make_latent_projector
from alight.runtime.seeding import seeded_initialisation


def latents(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture
def projector():
    with seeded_initialisation(0):
        return BlockProjector(6, 10, width=64).double()


def test_the_linear_projector_is_the_published_convolution():
    with seeded_initialisation(0):
        expected = nn.Conv2d(6, 10, 1, bias=False)
    with seeded_initialisation(0):
        found = make_latent_projector("linear", 6, 10)
    assert found.state_dict().keys() == {"weight"}
    assert torch.equal(found.weight, expected.weight)


def test_a_block_that_adds_nothing_is_the_linear_projector(projector):
    for layer in (projector.block.proj, projector.block.feed_forward.linear_2):
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
    z = latents(2, 6, 3, 4)
    assert torch.equal(projector(z), F.conv2d(z, projector.linear.weight))


def test_the_block_by_torchs_own_attention(projector):
    """On a single position, where rotations cancel, attention is the value itself."""
    block, z = projector.block, latents(2, 6, 1, 1)
    x = z[:, :, 0, 0]
    value = F.linear(block.norm_1(x), block.qkv.weight[128:], block.qkv.bias[128:])
    x = x + block.proj(value)
    x = x + block.feed_forward(block.norm_2(x))
    torch.testing.assert_close(block(z)[:, :, 0, 0], x)


def test_the_block_knows_positions_and_mixes_them(projector):
    z = latents(1, 6, 4, 4)
    order = torch.randperm(16, generator=torch.Generator().manual_seed(1))
    moved = z.flatten(2)[:, :, order].unflatten(2, (4, 4))
    expected = projector(z).flatten(2)[:, :, order].unflatten(2, (4, 4))
    assert (projector(moved) - expected).abs().max() > 1e-3  # it is no function of each position and the set
    changed = z.clone()
    changed[:, 0, 0, 0] += 1
    assert (projector(changed) - projector(z))[:, :, 3, 3].abs().max() > 1e-6
    assert projector(latents(2, 6, 2, 5)).shape == (2, 10, 2, 5)


def test_the_projector_with_a_block_by_finite_differences():
    with seeded_initialisation(0):
        small = BlockProjector(4, 3, width=32).double()
    assert torch.autograd.gradcheck(small, (latents(1, 4, 2, 2).requires_grad_(),))
