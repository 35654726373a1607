"""Alignment of tokens: closed forms of the loss, and a step that is plain training where there are no features."""

import pytest
import torch

from alight.config import FlowConfig, RepresentationConfig, TrainTransformerConfig
from alight.losses import spatial_norm, token_alignment_loss
from alight.models.position import Grid
from alight.models.token_projector import make_token_projector
from alight.runtime.errors import InputError
from alight.training.token_alignment import TokenAlignment, build_token_alignment
from alight.training.transformer_step import TransformerBatch, transformer_backward
from helpers.models import tiny_transformer

WIDTH = 6  # of the features
DEEP = {"num_layers": 3}
CONFIG = RepresentationConfig(weight=0.5, block=2, hidden_size=12)


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def batch(count=3, features=None):
    labels = torch.arange(count)
    t = torch.rand(count, generator=torch.Generator().manual_seed(1))
    x_1, x_0 = normal(count, 4, 4, 4, seed=2), normal(count, 4, 4, 4, seed=3)
    return TransformerBatch(x_1, labels, t, x_0, labels, features=features)


def gradients(model):
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


def alignment_of(model, **options):
    return build_token_alignment(CONFIG.model_copy(update=options), model, WIDTH, seed=0)


# --- the loss -----------------------------------------------------------------------------------------------------


def test_the_loss_of_equal_opposite_and_orthogonal_tokens():
    features = normal(2, 5, WIDTH)
    across = torch.zeros(2, 5, WIDTH)
    across[..., 0], across[..., 1] = -features[..., 1], features[..., 0]
    assert token_alignment_loss(3 * features, features).item() == pytest.approx(-1, abs=1e-6)
    assert token_alignment_loss(-0.1 * features, features).item() == pytest.approx(1, abs=1e-6)
    assert token_alignment_loss(across, features).item() == pytest.approx(0, abs=1e-6)


def test_a_zero_target_counts_as_nothing():
    tokens, features = normal(1, 4, WIDTH).requires_grad_(), normal(1, 4, WIDTH, seed=1)
    features[0, 2] = 0
    token_alignment_loss(tokens, features).backward()
    assert (tokens.grad[0, 2] == 0).all()
    assert (tokens.grad[0, [0, 1, 3]] != 0).any(-1).all()


@pytest.mark.parametrize("gamma", [0.0, 0.6, 1.0])
def test_spatial_norm_keeps_the_share_of_the_mean_that_it_says(gamma):
    features = normal(2, 16, WIDTH) + 2
    found = spatial_norm(features, gamma)
    torch.testing.assert_close(found.std(1), torch.ones(2, WIDTH), rtol=0, atol=1e-5)
    torch.testing.assert_close(found.mean(1), (1 - gamma) * features.mean(1) / features.std(1))


def test_a_whole_spatial_norm_removes_constants_and_scales_of_an_image():
    features = normal(2, 16, WIDTH)
    other = features * torch.tensor([0.5, 3.0]).view(2, 1, 1) + 5 * normal(2, 1, WIDTH, seed=1)
    torch.testing.assert_close(spatial_norm(other, 1.0), spatial_norm(features, 1.0), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(spatial_norm(other, 0.6), spatial_norm(features, 0.6), atol=0.1)


def test_other_shapes_are_refused():
    with pytest.raises(InputError, match="same grid"):
        token_alignment_loss(normal(1, 4, WIDTH), normal(1, 9, WIDTH))


# --- projectors and targets ---------------------------------------------------------------------------------------


def test_a_convolution_sees_neighbours_and_an_mlp_does_not():
    grid, tokens = Grid(3, 4), normal(1, 12, 8)
    tokens.requires_grad_()
    for kind, expected in (("mlp", [5]), ("conv", [0, 1, 2, 4, 5, 6, 8, 9, 10])):
        projected = make_token_projector(kind, 8, WIDTH, grid, hidden_size=12)(tokens)
        assert projected.shape == (1, 12, WIDTH)
        (gradient,) = torch.autograd.grad(projected[0, 5].sum(), tokens)
        assert torch.nonzero(gradient[0].abs().sum(-1)).flatten().tolist() == expected


def test_features_of_another_grid_are_resampled():
    alignment = TokenAlignment(CONFIG, torch.nn.Identity(), Grid(2, 2))
    rows = torch.arange(4.0).view(1, 1, 4, 1).expand(1, WIDTH, 4, 4)
    targets = alignment.targets(rows.to(torch.bfloat16))
    assert targets.dtype == torch.float32
    assert targets.shape == (1, 4, WIDTH)
    assert targets[0, 0, 0] == targets[0, 1, 0] < targets[0, 2, 0]  # row by row
    same = TokenAlignment(CONFIG, torch.nn.Identity(), Grid(4, 4)).targets(rows)
    assert torch.equal(same, rows.flatten(2).transpose(1, 2))


# --- the step -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("auxiliary_block", [None, 1, 2])
def test_the_loss_is_added_with_its_weight(auxiliary_block):
    model = tiny_transformer(**DEEP, auxiliary_block=auxiliary_block)
    features = normal(3, WIDTH, 4, 4, seed=4)
    plain = transformer_backward(model, batch(), FlowConfig())
    without = gradients(model)
    model.zero_grad()
    alignment = alignment_of(model)
    terms = transformer_backward(model, batch(features=features), FlowConfig(), alignment=alignment)
    assert -1 <= terms["representation"] <= 1
    assert terms["loss"].item() == pytest.approx((plain["loss"] + 0.5 * terms["representation"]).item(), rel=1e-6)
    assert {**terms, "loss": 0} == {**plain, "loss": 0, "representation": terms["representation"]}
    changed = {name for name, gradient in gradients(model).items() if not torch.equal(gradient, without[name])}
    assert any(name.startswith("blocks.1.") for name in changed)
    assert not any(name.startswith(("blocks.2.", "output_layer.")) for name in changed)  # after the tapped block
    assert all(parameter.grad.abs().sum() > 0 for parameter in alignment.projector.parameters())


def test_without_features_gradients_are_those_of_plain_training_to_the_bit():
    model = tiny_transformer(**DEEP)
    terms = transformer_backward(model, batch(), FlowConfig())
    plain = gradients(model)
    model.zero_grad()
    alignment = alignment_of(model)
    assert transformer_backward(model, batch(), FlowConfig(), alignment=alignment) == terms
    assert all(torch.equal(gradient, plain[name]) for name, gradient in gradients(model).items())
    assert all(parameter.grad is None for parameter in alignment.projector.parameters())


@pytest.mark.parametrize("options", [{}, {"projector": "conv", "spatial_norm": 0.6, "weight": 1.0}])
def test_micro_batches_and_recomputed_activations_change_rounding_alone(options):
    model, whole = tiny_transformer(**DEEP), batch(4, normal(4, WIDTH, 4, 4, seed=4))
    alignment = alignment_of(model, **options)
    transformer_backward(model, whole, FlowConfig(), alignment=alignment)
    expected = gradients(model) | gradients(alignment.projector)
    for module in (model, alignment.projector):
        module.zero_grad()
    model.enable_gradient_checkpointing()
    for part in whole.micro_batches(2):
        transformer_backward(model, part, FlowConfig(), micro_batches=2, alignment=alignment)
    for name, gradient in (gradients(model) | gradients(alignment.projector)).items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-5, msg=name)


def test_batches_keep_features_with_their_images():
    features = normal(4, WIDTH, 2, 2)
    parts = batch(4, features).to(torch.device("cpu")).micro_batches(2)
    assert torch.equal(torch.cat([part.features for part in parts]), features)
    assert all(part.features is None for part in batch(4).micro_batches(2))


# --- settings -----------------------------------------------------------------------------------------------------


def test_when_it_counts():
    assert not RepresentationConfig().enabled
    assert all(RepresentationConfig(weight=0.5).counts_at(step) for step in (0, 10**6))
    stopping = RepresentationConfig(weight=0.5, stop_step=3)
    assert [stopping.counts_at(step) for step in range(5)] == [True, True, True, False, False]
    assert not RepresentationConfig(weight=0, stop_step=3).counts_at(0)


def test_a_block_that_does_not_exist_is_refused():
    with pytest.raises(InputError, match="from 1 to 3"):
        alignment_of(tiny_transformer(**DEEP), block=4)
    sizes = {"preset": None, "hidden_size": 32, "num_layers": 2, "num_heads": 2, "patch_size": 1}
    with pytest.raises(ValueError, match="block 8 does not exist"):
        TrainTransformerConfig.model_validate({"model": sizes, "representation": {"weight": 0.5}})
    TrainTransformerConfig.model_validate({"model": sizes})  # where it is off, the block does not matter


def test_a_single_token_cannot_be_normalised():
    single = tiny_transformer(sample_size=1)
    with pytest.raises(InputError, match="several tokens"):
        alignment_of(single, block=1, spatial_norm=0.6)
