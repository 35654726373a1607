"""Optimizers: every rule keeps the contract of a step, and groups have their own share of the learning rate."""

import copy

import pytest
import torch
from torch import nn

from alight import LightningDiT
from alight.config import OptimizerConfig
from alight.models.discriminator import PatchDiscriminator
from alight.runtime.errors import InputError
from alight.training.optimizer import OPTIMIZERS, kind_of, make_optimizer, optimizer_step, parameter_groups, state_size
from helpers.models import tiny_tokenizer


class Words(nn.Module):
    """One parameter of every kind."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(3, 4)
        self.linear = nn.Linear(4, 2)
        self.frozen = nn.Parameter(torch.ones(2), requires_grad=False)

    def forward(self, index):
        return self.linear(self.embedding(index)).square().sum()


def trained(model, optimizer, steps=3):
    for _ in range(steps):
        model(torch.tensor([0, 2])).backward()
        optimizer_step(optimizer, 0.1, 1.0)
    return model


def made(name):
    """A rule of the table, and two of torch's without a fused kernel: one that keeps a memory, one that does not."""
    others = {
        "unfused": lambda model: torch.optim.AdamW(model.parameters(), fused=False),
        "sgd": lambda model: torch.optim.SGD([weight for weight in model.parameters() if weight.requires_grad], 0.1),
    }
    torch.manual_seed(0)
    model = Words()
    config = OptimizerConfig(name=name) if name in OPTIMIZERS else None
    return model, make_optimizer(model.named_parameters(), config) if config else others[name](model)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", [*OPTIMIZERS, "unfused", "sgd"])
def test_a_step_that_is_not_finite_changes_neither_weights_nor_memory(name, bad):
    model, optimizer = made(name)
    trained(model, optimizer)
    weights, memory = copy.deepcopy(model.state_dict()), copy.deepcopy(optimizer.state_dict()["state"])
    model(torch.tensor([1])).backward()
    model.linear.weight.grad[0, 0] = bad
    assert not torch.isfinite(optimizer_step(optimizer, 0.1, 1.0))
    assert all(torch.equal(value, weights[key]) for key, value in model.state_dict().items())
    torch.testing.assert_close(optimizer.state_dict()["state"], memory, rtol=0, atol=0)
    assert all(parameter.grad is None for parameter in model.parameters())
    trained(model, optimizer, steps=1)  # and the next one is an ordinary step
    assert not torch.equal(model.linear.weight, weights["linear.weight"])


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_restored_optimizer_takes_the_same_steps(name):
    model, optimizer = made(name)
    trained(model, optimizer)
    other = copy.deepcopy(model)
    restored = make_optimizer(other.named_parameters(), OptimizerConfig(name=name))
    restored.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    trained(model, optimizer), trained(other, restored)
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in other.state_dict().items())


def test_every_kind_of_parameter_has_its_share_of_the_learning_rate():
    """Adam's first step is lr times the sign of the gradient."""
    torch.manual_seed(0)
    model = Words()
    before = copy.deepcopy(model.state_dict())
    config = OptimizerConfig(lr_factors={"matrices": 0.5})
    optimizer = make_optimizer(model.named_parameters(), config)
    model(torch.tensor([0, 1, 2])).backward()
    optimizer_step(optimizer, 0.01, None)
    moved = {key: (value - before[key]).abs().max().item() for key, value in model.state_dict().items()}
    expected = {"embedding.weight": 0.005, "linear.weight": 0.005, "linear.bias": 0.01, "frozen": 0.0}
    assert moved == pytest.approx(expected, rel=1e-3)


def test_both_kinds_are_found_in_every_network_that_is_trained():
    transformer = LightningDiT(2, in_channels=2, hidden_size=16, num_layers=1, num_heads=2, num_classes=3)
    for network in (transformer, tiny_tokenizer(), PatchDiscriminator()):
        kinds = {name: kind_of(parameter) for name, parameter in network.named_parameters()}
        assert {kind for name, kind in kinds.items() if name.endswith("bias")} == {"vectors"}
        assert "matrices" in kinds.values()
    assert kind_of(transformer.class_embed.weight) == "matrices"


def test_without_factors_all_trained_parameters_are_one_group():
    (group,) = parameter_groups(Words().named_parameters(), OptimizerConfig())
    assert len(group["params"]) == 3
    assert "lr_factor" not in group


def test_factors_of_one_are_the_plain_optimizer():
    runs = []
    for factors in (None, {"matrices": 1.0}):
        torch.manual_seed(0)
        model = Words()
        runs.append(trained(model, make_optimizer(model.named_parameters(), OptimizerConfig(lr_factors=factors))))
    assert all(torch.equal(value, runs[0].state_dict()[key]) for key, value in runs[1].state_dict().items())


def test_the_memory_of_adam_is_two_numbers_for_each_parameter():
    model, optimizer = made("adamw")
    trained(model, optimizer, steps=1)
    assert state_size(optimizer) == 2 * (3 * 4 + 4 * 2 + 2)


@pytest.mark.parametrize(
    "options", [{"name": "adam"}, {"lr_factors": {"matrix": 1.0}}, {"lr_factors": {"vectors": 0}}]
)
def test_unknown_rules_and_kinds_are_refused(options):
    with pytest.raises((InputError, ValueError), match="adamw|matrices|greater than 0"):
        OptimizerConfig(**options)
