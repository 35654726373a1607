"""Muon: closed forms of the orthogonalisation, the size of its steps, and its agreement with torch's optimizers."""

import copy
import math

import pytest
import torch
from torch import nn

from alight.artifacts import differences
from alight.config import MuonConfig, OptimizerConfig, TrainTransformerConfig
from alight.models.discriminator import PatchDiscriminator
from alight.runtime.errors import InputError
from alight.training.muon import COEFFICIENTS, EPS, Muon, orthogonalise, step_factor
from alight.training.optimizer import make_optimizer, muon_matrices, optimizer_step, state_size
from helpers.models import tiny_tokenizer, tiny_transformer

SHAPES = [(12, 12), (9, 30), (30, 9), (1, 7)]


def drawn(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def rotation(size, seed):
    return torch.linalg.qr(drawn(size, size, seed=seed)).Q


def polynomial(values):
    a, b, c = COEFFICIENTS
    for _ in range(5):
        values = a * values + b * values**3 + c * values**5
    return values


# --- the orthogonalisation ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES)
def test_the_polynomial_acts_on_the_singular_values_alone(shape):
    matrix = drawn(*shape)
    u, values, v = torch.linalg.svd(matrix, full_matrices=False)
    expected = u @ torch.diag(polynomial(values / (values.norm() + EPS))) @ v
    torch.testing.assert_close(orthogonalise(matrix, torch.float64), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_singular_values_end_within_the_band(dtype):
    """All but those below 0.2 % of the norm: the docstring's bounds, and what bfloat16 adds to them."""
    reached = polynomial(torch.logspace(math.log10(0.002), 0, 100_000, dtype=torch.float64))
    assert (reached.min().item(), reached.max().item()) == pytest.approx((0.682, 1.202), abs=1e-3)
    slack = 1e-3 if dtype == torch.float32 else 0.06
    for shape in SHAPES:
        u, values, v = torch.linalg.svd(drawn(*shape), full_matrices=False)
        matrix = u @ torch.diag(torch.linspace(0.01, 1, len(values))).double() @ v
        found = torch.linalg.svdvals(orthogonalise(matrix.float(), dtype).double())
        assert found.min() > reached.min() - slack
        assert found.max() < reached.max() + slack


@pytest.mark.parametrize("shape", SHAPES)
def test_rotations_pass_through(shape):
    """O(Q G R) = Q O(G) R: the basis of inputs and outputs does not matter."""
    matrix, left, right = drawn(*shape), rotation(shape[0], 1), rotation(shape[1], 2)
    found = orthogonalise(left @ matrix @ right, torch.float64)
    torch.testing.assert_close(found, left @ orthogonalise(matrix, torch.float64) @ right, rtol=0, atol=1e-12)


def test_the_scale_of_a_gradient_does_not_matter():
    matrix = drawn(9, 30)
    found, expected = (orthogonalise(scale * matrix, torch.float64) for scale in (1e3, 1.0))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-7)  # of the 1e-7 that is added to the norm


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_zero_stays_zero(dtype):
    assert not orthogonalise(torch.zeros(3, 5), dtype).any()


# --- a step -------------------------------------------------------------------------------------------------------


def stepped(weight, gradients, lr=0.1, **options):
    """A copy of a weight after a step of Muon for each gradient."""
    parameter = nn.Parameter(weight.clone())
    optimizer = Muon([{"params": [parameter], "muon": True}], lr, precision="fp32", **options)
    for gradient in gradients:
        parameter.grad = gradient.clone()
        optimizer.step()
    return parameter.detach()


@pytest.mark.parametrize("shape", SHAPES[:3])
def test_an_update_is_as_large_as_one_of_adamw(shape):
    """Root mean square 0.2 lr, but for the singular values, which end between 0.68 and 1.21."""
    moved = stepped(torch.zeros(shape), [drawn(*shape, dtype=torch.float32)])
    assert 0.68 <= moved.square().mean().sqrt().item() / (0.2 * 0.1) <= 1.21


@pytest.mark.parametrize(
    ("shape", "match_rms", "original", "product"),
    [
        ((4, 25), 1.0, 1.0, 1.0),
        ((100, 25), 2.0, 2.0, 4.0),
        ((16, 25, 2, 2), 2.0, 1.0, 1.0),  # a kernel is the matrix (16, 100), but its product takes 25 for the columns
    ],
)
def test_step_sizes(shape, match_rms, original, product):
    found = [step_factor(rule, shape) for rule in ("match_rms", "original", "product")]
    assert found == pytest.approx([match_rms, original, product])


def test_the_step_is_the_one_of_the_equations():
    weight, gradients = drawn(6, 9), [drawn(6, 9, seed=seed) for seed in (1, 2, 3)]
    expected, momentum = weight.clone(), torch.zeros_like(weight)
    for gradient in gradients:
        momentum = 0.9 * momentum + 0.1 * gradient
        direction = orthogonalise((0.1 * gradient + 0.9 * momentum).float()).double()
        expected = (1 - 0.05 * 0.3) * expected - 0.05 * 0.2 * 3 * direction
    found = stepped(weight, gradients, lr=0.05, momentum=0.9, weight_decay=0.3)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_a_zero_gradient_only_decays():
    weight = drawn(3, 4, dtype=torch.float32)
    torch.testing.assert_close(stepped(weight, [torch.zeros(3, 4)], weight_decay=0.5), 0.95 * weight)


def test_a_kernel_is_the_matrix_of_its_outputs():
    weight, gradient = drawn(6, 2, 3, 3, dtype=torch.float32), drawn(6, 2, 3, 3, seed=1, dtype=torch.float32)
    found = stepped(weight, [gradient])
    assert torch.equal(found.flatten(1), stepped(weight.flatten(1), [gradient.flatten(1)]))
    strided = stepped(weight.to(memory_format=torch.channels_last), [gradient])
    assert torch.equal(strided, found)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(("rule", "name"), [("match_rms", "match_rms_adamw"), ("original", "original")])
def test_torch_takes_the_same_steps(rule, name, precision):
    """torch always computes in bfloat16, where rounding is all of the difference to fp32."""
    weights = [drawn(*shape, dtype=torch.float32) for shape in SHAPES]
    ours, theirs = ([nn.Parameter(weight.clone()) for weight in weights] for _ in range(2))
    optimizers = [
        Muon([{"params": ours, "muon": True}], 0.02, weight_decay=0.1, step_size=rule, precision=precision),
        torch.optim.Muon(theirs, 0.02, weight_decay=0.1, adjust_lr_fn=name),
    ]
    for step in range(5):
        for number, pair in enumerate(zip(ours, theirs, strict=True)):
            for parameter in pair:
                parameter.grad = drawn(*parameter.shape, seed=10 * step + number, dtype=torch.float32)
        for optimizer in optimizers:
            optimizer.step()
    for one, other, weight in zip(ours, theirs, weights, strict=True):
        moved = (other - weight).norm()
        assert (one - other).norm() <= (1e-6 if precision == "bf16" else 0.06) * moved


def test_the_rest_is_exactly_adamw():
    settings = {"lr": 0.01, "betas": (0.8, 0.9), "weight_decay": 0.1}
    ours, theirs = ([nn.Parameter(drawn(*shape, dtype=torch.float32)) for shape in [(3, 4), (5,)]] for _ in range(2))
    optimizers = Muon([{"params": ours}], **settings), torch.optim.AdamW(theirs, fused=True, **settings)
    for step in range(3):
        for parameter in (*ours, *theirs):
            parameter.grad = drawn(*parameter.shape, seed=step, dtype=torch.float32)
        for optimizer in optimizers:
            optimizer.step()
    for one, other in zip(ours, theirs, strict=True):
        assert torch.equal(one, other)
        assert torch.equal(optimizers[0].state[one]["exp_avg_sq"], optimizers[1].state[other]["exp_avg_sq"])


def test_a_closure_is_called_with_gradients():
    parameter = nn.Parameter(torch.ones(2, 2))
    optimizer = Muon([{"params": [parameter], "muon": True}], 0.1)

    def closure():
        loss = parameter.square().sum()
        loss.backward()
        return loss.detach()

    assert optimizer.step(closure) == 4
    assert not torch.equal(parameter, torch.ones(2, 2))


# --- parameters of a model ----------------------------------------------------------------------------------------


def config(**muon):
    return OptimizerConfig(name="muon", muon=MuonConfig(**muon))


def test_blocks_are_the_inner_layers_of_every_network():
    transformer = tiny_transformer()
    inside = muon_matrices(transformer.named_parameters(), "blocks")
    assert {name.split(".")[2] for name in inside} == {"attn", "feed_forward", "modulation"}
    assert all(name.startswith("blocks.") and name.endswith("weight") for name in inside)
    everything = muon_matrices(transformer.named_parameters(), "all")
    assert everything > inside
    assert {"class_embed.weight", "patch_embed.weight", "output_layer.proj.weight"} <= everything
    inside = muon_matrices(tiny_tokenizer().named_parameters(), "blocks")
    assert any(".down_blocks." in name for name in inside)
    assert any(".up_blocks." in name for name in inside)
    assert not any("conv_in" in name or "conv_out" in name or "quant_conv" in name for name in inside)
    assert muon_matrices(PatchDiscriminator().named_parameters(), "blocks")


def test_a_model_without_numbered_blocks_has_all_its_matrices_taken():
    layer = nn.Linear(3, 2)
    assert muon_matrices(layer.named_parameters(), "blocks") == {"weight"}
    assert state_size_after_a_step(layer, config()) == 3 * 2 + 2 * 2


def state_size_after_a_step(model, config):
    optimizer = make_optimizer(model.named_parameters(), config)
    sum(parameter.sum() for parameter in model.parameters()).backward()
    optimizer_step(optimizer, 0.1, None)
    return state_size(optimizer)


@pytest.mark.parametrize("matrices", ["blocks", "all"])
def test_its_memory_is_one_number_for_each_weight_of_a_matrix(matrices):
    model = tiny_transformer()
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    taken = muon_matrices(model.named_parameters(), matrices)
    expected = sum(size if name in taken else 2 * size for name, size in sizes.items())
    assert state_size_after_a_step(model, config(matrices=matrices)) == expected


def test_a_model_without_matrices_is_refused():
    with pytest.raises(InputError, match=r"have none: all are vectors. Set optimizer\.name to adamw") as refusal:
        make_optimizer(nn.LayerNorm(3).named_parameters(), config())
    assert "\n" not in str(refusal.value)
    with pytest.raises(ValueError, match="two or more dimensions"):
        Muon([{"params": [nn.Parameter(torch.ones(3))], "muon": True}], 0.1)


def test_rates_and_decay_of_both_kinds():
    options = {"weight_decay": 0.01, "lr_factors": {"vectors": 0.5, "matrices": 0.25}}
    model = tiny_transformer()
    for own, expected in ((None, 0.01), (0.2, 0.2)):
        muon = MuonConfig(weight_decay=own, lr_factor=8.0)
        optimizer = make_optimizer(model.named_parameters(), OptimizerConfig(name="muon", muon=muon, **options))
        found = {(group["muon"], group["lr_factor"], group["weight_decay"]) for group in optimizer.param_groups}
        assert found == {(True, 2.0, expected), (False, 0.5, 0.01), (False, 0.25, 0.01)}
    sum(parameter.sum() for parameter in model.parameters()).backward()
    optimizer_step(optimizer, 0.01, 1.0)
    assert {group["lr"] for group in optimizer.param_groups} == {0.02, 0.005, 0.0025}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_restored_optimizer_goes_on_to_the_bit(precision):
    model, settings = tiny_transformer(), config(precision=precision, matrices="all")

    def advance(model, optimizer, steps):
        for step in range(steps):
            for number, parameter in enumerate(model.parameters()):
                parameter.grad = drawn(*parameter.shape, seed=1000 * step + number, dtype=torch.float32)
            optimizer_step(optimizer, 0.01, 1.0)

    optimizer = make_optimizer(model.named_parameters(), settings)
    advance(model, optimizer, 3)
    other = copy.deepcopy(model)
    restored = make_optimizer(other.named_parameters(), settings)
    restored.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    advance(model, optimizer, 3)
    advance(other, restored, 3)
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in model.state_dict().items())


def test_a_transformer_learns():
    model, generator = tiny_transformer(hidden_size=32, std=0.1), torch.Generator().manual_seed(0)
    x, target = (torch.randn(8, 4, 4, 4, generator=generator) for _ in range(2))
    optimizer, losses = make_optimizer(model.named_parameters(), config()), []
    for _ in range(60):
        loss = (model(x, torch.full((8,), 0.5), torch.arange(8)) - target).square().mean()
        loss.backward()
        optimizer_step(optimizer, 0.03, 1.0)
        losses.append(loss.item())
    assert losses[-1] < 0.2 * losses[0]


def test_runs_of_earlier_versions_go_on_with_adamw_alone():
    now = TrainTransformerConfig().model_dump(mode="json")
    before = copy.deepcopy(now)
    del before["optimizer"]["muon"], before["optimizer"]["name"]
    assert differences(before, now) == []
    now["optimizer"]["name"] = "muon"
    assert differences(before, now) == ["optimizer.name: None -> muon"]
