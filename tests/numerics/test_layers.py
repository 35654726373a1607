"""The transformer's parts against closed forms and plain second implementations in float64.

float32 results of order 1 are compared to 2e-6, some tens of roundings of 6e-8; bfloat16 ones to 2 %, a few roundings
of 0.4 %.
"""

import math

import pytest
import torch
from torch import nn

from alight.models.embeddings import patchify, sinusoidal_embedding, unpatchify
from alight.models.layers import AdaptiveNorm, Attention, RMSNorm, SwiGLU, attention, make_feed_forward
from alight.models.lightning_dit import LightningDiTBlock
from alight.models.position import (
    Grid,
    grid_coordinates,
    resample_position_embedding,
    rotary_table,
    rotate,
    sincos_position_embedding,
)

ROUNDING = 2e-6
BFLOAT16 = 2e-2


@pytest.fixture
def draw():
    generator = torch.Generator().manual_seed(0)
    return lambda *shape: torch.randn(shape, generator=generator)


def relative_error(actual, expected):
    return ((actual.double() - expected).norm() / expected.norm()).item()


def plain_attention(query, key, value):
    """The definition, head by head, in float64."""
    query, key, value = (x.double() for x in (query, key, value))
    scores = torch.einsum("bnhk,bmhk->bhnm", query, key) / math.sqrt(query.shape[-1])
    weights = scores.exp() / scores.exp().sum(-1, keepdim=True)
    return torch.einsum("bhnm,bmhk->bnhk", weights, value).flatten(2)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, ROUNDING), (torch.bfloat16, BFLOAT16)])
def test_attention_is_softmax_of_scaled_products(draw, dtype, tolerance):
    query, key, value = (draw(2, 10, 3, 8).to(dtype).requires_grad_() for _ in range(3))
    result = attention(query, key, value)
    expected = plain_attention(query, key, value)
    assert result.dtype == dtype
    assert relative_error(result, expected) < tolerance
    direction = draw(*result.shape)
    gradients = torch.autograd.grad((result * direction.to(dtype)).sum(), (query, key, value))
    exact = torch.autograd.grad((expected * direction.to(dtype).double()).sum(), (query, key, value))
    for gradient, expected_gradient in zip(gradients, exact, strict=True):
        assert relative_error(gradient, expected_gradient.double()) < tolerance


def test_rotation_turns_each_pair_by_its_angle(draw):
    x, grid = draw(2, 6, 3, 8), Grid(2, 3)
    turned = rotate(x, rotary_table(8, grid))
    for token in range(6):
        row, column = divmod(token, 3)
        for pair, (position, exponent) in enumerate([(row, 0), (row, 0.5), (column, 0), (column, 0.5)]):
            angle = position / 10_000**exponent
            matrix = torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
            expected = x[:, token, :, 2 * pair : 2 * pair + 2] @ matrix.T
            actual = turned[:, token, :, 2 * pair : 2 * pair + 2]
            assert (actual - expected).abs().max() < ROUNDING


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, ROUNDING), (torch.bfloat16, BFLOAT16)])
def test_rotation_for_compilers_is_the_same(draw, dtype, tolerance):
    x, table = draw(2, 12, 3, 8).to(dtype), rotary_table(8, Grid(3, 4))
    torch.compiler.reset()  # a test before may have run this function where nothing can be compiled
    compiled = torch.compile(rotate, backend="eager", fullgraph=True)  # traced as for a compiler, run without one
    assert compiled(x, table).dtype == rotate(x, table).dtype == dtype
    assert relative_error(compiled(x, table), rotate(x, table).double()) < tolerance


def test_rotated_products_depend_on_the_distance_alone(draw):
    query, key, grid = draw(8), draw(8), Grid(5, 5)
    table = rotary_table(8, grid)
    queries, keys = (rotate(x.expand(1, 25, 1, 8), table)[0, :, 0].view(5, 5, 8) for x in (query, key))
    for row, column in [(0, 0), (1, 2), (2, 1)]:
        product = queries[row, column] @ keys[row + 1, column + 2]
        assert product == pytest.approx((queries[0, 0] @ keys[1, 2]).item(), abs=1e-5)
    assert (queries[0, 0] @ keys[1, 2] - queries[0, 0] @ keys[2, 1]).abs() > 1e-3  # rows and columns differ


def test_position_embedding_has_columns_first_and_sines_first():
    embedding = sincos_position_embedding(8, Grid(2, 3))[0].view(2, 3, 8)
    for row in range(2):
        for column in range(3):
            expected = [
                function(position / 10_000**exponent)
                for position in (column, row)
                for function in (math.sin, math.cos)
                for exponent in (0, 0.5)
            ]
            assert embedding[row, column].tolist() == pytest.approx(expected, abs=1e-7)


def test_stretched_coordinates_put_cell_centres_where_they_were():
    rows, columns = grid_coordinates(Grid(4, 2), trained_grid=Grid(2, 2))
    assert rows.view(4, 2)[:, 0].tolist() == [-0.25, 0.25, 0.75, 1.25]  # each old cell is two new ones
    assert columns.view(4, 2)[0].tolist() == [0, 1]


def test_resampling_a_smooth_embedding_agrees_with_its_formula():
    """Bicubic resampling is exact for polynomials of low degree away from the edge; here the slow waves are."""
    coarse, fine = Grid(8, 8), Grid(16, 16)
    resampled = resample_position_embedding(sincos_position_embedding(32, coarse), coarse, fine)
    formula = sincos_position_embedding(32, fine, trained_grid=coarse)
    inner = (slice(None), slice(4, 12), slice(4, 12))
    error = (resampled - formula).view(1, 16, 16, 32)[inner].abs().amax((0, 1, 2)).view(2, 2, 8)
    assert error[..., 3:].max() < 1e-3  # channels whose wavelength is above 100 cells
    same = resample_position_embedding(sincos_position_embedding(32, coarse), coarse, coarse)
    assert torch.allclose(same, sincos_position_embedding(32, coarse), atol=ROUNDING)


def test_time_embedding_has_cosines_first_and_unscaled_times():
    embedding = sinusoidal_embedding(torch.tensor([0.0, 0.7]), width=6)
    frequencies = [10_000 ** (-k / 3) for k in range(3)]
    for t, row in zip((0.0, 0.7), embedding.tolist(), strict=True):
        expected = [math.cos(t * f) for f in frequencies] + [math.sin(t * f) for f in frequencies]
        assert row == pytest.approx(expected, abs=1e-6)


def test_patches_have_the_channel_slowest_going_in_and_fastest_coming_out():
    x = torch.arange(2 * 3 * 4 * 6).view(2, 3, 4, 6)
    tokens = patchify(x, 2)  # (2, 6, 12)
    back = unpatchify(tokens.view(2, 6, 3, 2, 2).permute(0, 1, 3, 4, 2).flatten(2), 2, Grid(2, 3))
    assert torch.equal(back, x)
    for token in range(6):
        row, column = divmod(token, 3)
        patch = x[:, :, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
        assert torch.equal(tokens[:, token], patch.reshape(2, -1))


def test_patch_projection_is_a_strided_convolution(draw):
    x, convolution = draw(2, 3, 4, 6), nn.Conv2d(3, 5, 2, stride=2)
    expected = convolution(x).flatten(2).transpose(1, 2)
    actual = nn.functional.linear(patchify(x, 2), convolution.weight.flatten(1), convolution.bias)
    assert (actual - expected).abs().max() < ROUNDING


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, ROUNDING), (torch.bfloat16, BFLOAT16)])
def test_rms_norm_divides_by_the_root_mean_square(draw, dtype, tolerance):
    norm, x = RMSNorm(16, eps=1e-6), (3 * draw(4, 16)).to(dtype)
    norm.weight.data = draw(16)
    expected = x.double() / (x.double().square().mean(-1, keepdim=True) + 1e-6).sqrt() * norm.weight.double()
    assert norm(x).dtype == dtype
    assert relative_error(norm(x), expected) < tolerance


def test_rms_norm_of_tiny_numbers_in_bfloat16_does_not_lose_its_mean():
    """Squares of 1e-3 added up in bfloat16 would stop growing after 256 of them."""
    x = torch.full((1, 4096), 1e-3, dtype=torch.bfloat16)
    expected = x.double() / (x.double().square().mean(-1, keepdim=True) + 1e-6).sqrt()
    assert relative_error(RMSNorm(4096, eps=1e-6)(x), expected) < BFLOAT16


@pytest.mark.parametrize("kind", ["rms_norm", "layer_norm"])
@pytest.mark.parametrize("shifted", [True, False])
def test_adaptive_norm_is_norm_then_scale_then_shift(draw, kind, shifted):
    norm, x, scale = AdaptiveNorm(kind, 16), draw(2, 5, 16), draw(2, 16)
    shift = draw(2, 16) if shifted else None
    if kind == "rms_norm":
        norm.weight.data = draw(16)
        normed = x.double() / (x.double().square().mean(-1, keepdim=True) + 1e-6).sqrt() * norm.weight.double()
    else:
        centred = x.double() - x.double().mean(-1, keepdim=True)
        normed = centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt()
    expected = normed * (1 + scale.double()[:, None]) + (shift.double()[:, None] if shifted else 0)
    assert relative_error(norm(x, shift, scale), expected) < ROUNDING


@pytest.mark.parametrize(("width", "inner"), [(1152, 3072), (1024, 2730), (1792, 4778)])
def test_swiglu_width_is_two_thirds_rounded_down(width, inner):
    with torch.device("meta"):
        assert make_feed_forward("swiglu", width, 4.0).down.in_features == inner
        assert make_feed_forward("gelu", width, 4.0).linear_2.in_features == 4 * width


def test_feed_forward_networks(draw):
    x, gated, plain = draw(2, 3, 8).double(), SwiGLU(8, 5).double(), make_feed_forward("gelu", 8, 2.0).double()
    gate, up = gated.gate_up(x)[..., :5], gated.gate_up(x)[..., 5:]
    expected = gated.down(gate / (1 + (-gate).exp()) * up)
    assert (gated(x) - expected).abs().max() < 1e-12
    h = plain.linear_1(x)
    expected = plain.linear_2(0.5 * h * (1 + torch.tanh(math.sqrt(2 / math.pi) * (h + 0.044715 * h**3))))
    assert (plain(x) - expected).abs().max() < 1e-12


def test_attention_normalises_queries_and_keys_before_it_turns_them(draw):
    layer, x, table = (
        Attention(16, 2, "rms_norm", qk_norm=True).double(),
        draw(2, 4, 16).double(),
        rotary_table(8, Grid(2, 2)),
    )
    with torch.no_grad():
        layer.q_norm.weight.copy_(draw(8))
        layer.k_norm.weight.copy_(draw(8))
        query, key, value = layer.qkv(x).view(2, 4, 3, 2, 8).unbind(2)
        query = rotate(layer.q_norm(query), table)
        key = rotate(layer.k_norm(key), table)
        assert (layer(x, table) - layer.proj(plain_attention(query, key, value))).abs().max() < 1e-12


@pytest.mark.parametrize("adaln_shift", [True, False])
def test_block_is_two_gated_residuals(draw, adaln_shift):
    """The order of the modulation's parts is that of published weights: shift, scale, gate, twice."""
    block = LightningDiTBlock(8, 2, 2.0, "rms_norm", "swiglu", qk_norm=False, adaln_shift=adaln_shift).double()
    x, condition, table = draw(2, 4, 8).double(), draw(2, 8).double(), rotary_table(4, Grid(2, 2))
    parts = block.modulation(condition)[:, None].split(8, dim=-1)
    shift_1, scale_1, gate_1, shift_2, scale_2, gate_2 = (
        parts if adaln_shift else (0, parts[0], parts[1], 0, parts[2], parts[3])
    )

    def rms(x):
        return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt()

    expected = x + gate_1 * block.attn(rms(x) * (1 + scale_1) + shift_1, table)
    expected = expected + gate_2 * block.feed_forward(rms(expected) * (1 + scale_2) + shift_2)
    assert (block(x, condition, table) - expected).abs().max() < 1e-12


@pytest.mark.parametrize("norm", ["rms_norm", "layer_norm"])
@pytest.mark.parametrize("adaln_shift", [True, False])
def test_gradient_of_a_block_equals_finite_differences(draw, norm, adaln_shift):
    torch.manual_seed(0)
    block = LightningDiTBlock(8, 2, 2.0, norm, "swiglu", qk_norm=True, adaln_shift=adaln_shift).double()
    x, condition = draw(1, 4, 8).double().requires_grad_(), draw(1, 8).double().requires_grad_()
    table = rotary_table(4, Grid(2, 2))
    assert torch.autograd.gradcheck(lambda *inputs: block(*inputs, table), (x, condition), fast_mode=True)
