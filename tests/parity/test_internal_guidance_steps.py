"""Training steps of Internal Guidance with Muon, replayed: weights, losses, gradient norms and averages."""

from copy import deepcopy
from functools import partial

import pytest
import torch

from alight.config import OptimizerConfig
from alight.flow import LinearPath, flow_matching_loss
from alight.interop.reference import convert_transformer_state_dict, transformer_from_published
from alight.training.optimizer import make_optimizer, optimizer_step
from helpers.closeness import assert_close
from helpers.published_config import our_config

WEIGHTS, VECTORS = 5e-6, 5e-5  # absolute
MOVEMENT, OF_ATTENTION = 0.15, 0.5  # of the movement, for bfloat16, whose rounding decides the rest


@pytest.fixture(scope="module")
def start(read_case):
    tensors, case = read_case("internal_guidance/model")
    weights = {name.removeprefix("sd."): value for name, value in tensors.items() if name.startswith("sd.")}
    config = {name: value for name, value in case["config"].items() if name != "encoder_depth"}
    options = {"class_dropout_prob": case["class_dropout_prob"], "mlp_ratio": case["mlp_ratio"]}
    arguments = our_config(config, **options) | {"auxiliary_block": case["config"]["encoder_depth"]}
    return transformer_from_published(weights, **arguments).eval()


@pytest.fixture(scope="module")
def replayed(read_case, start):
    """A function of the precision: the model after the steps, its average, and what the log holds."""

    def replay(precision):
        tensors, case = read_case("internal_guidance/train_steps")
        model, average = deepcopy(start), deepcopy(start)
        muon = {"matrices": "all", "step_size": "product", "weight_decay": case["weight_decay_muon"]}
        config = OptimizerConfig(
            name="muon",
            lr=case["lr"],
            betas=case["betas"],
            weight_decay=case["weight_decay_adam"],
            muon=muon | {"momentum": case["momentum"], "precision": precision},
        )
        optimizer = make_optimizer(model.named_parameters(), config)
        log = []
        for step in range(len(case["steps"]["float32"])):
            x_1, x_0, t, labels = (tensors[f"step{step}.in.{name}"] for name in ("x1", "x0", "t", "y"))
            dropped = tensors[f"step{step}.rand.dropout_u"] < model.config.class_dropout_prob
            labels = torch.where(dropped, model.null_label, labels)
            both = partial(model, auxiliary=True)
            loss = flow_matching_loss(both, x_1, labels, path=LinearPath(), auxiliary_weight=0.5, t=t, x_0=x_0)
            loss.total.backward()
            norm = optimizer_step(optimizer, case["lr"], case["clip"])
            log.append({"total": loss.total.item(), "grad_norm": norm.item()})
            for mean, now in zip(average.parameters(), model.parameters(), strict=True):
                mean.data.lerp_(now.data, 1 - case["ema_decay_recorded"])
        return model, average, log, case, tensors

    return replay


def recorded(tensors, kind):
    """The recorded tensors of a kind under our names; `pos_embed` is no parameter here, so it does not decay."""
    found = {name.removeprefix(f"{kind}."): value for name, value in tensors.items() if name.startswith(f"{kind}.")}
    return convert_transformer_state_dict({name: value for name, value in found.items() if name != "pos_embed"})


def test_in_float32(replayed):
    model, average, log, case, tensors = replayed("fp32")
    for weights, kind in ((model, "float32.after"), (average, "float32.ema9_after")):
        parameters = dict(weights.named_parameters())
        expected = recorded(tensors, kind)
        assert expected
        for name, value in expected.items():
            assert_close(parameters[name].detach(), value, f"{kind}.{name}", atol=WEIGHTS)
    for found, expected in zip(log, case["steps"]["float32"], strict=True):
        assert found["total"] == pytest.approx(expected["total"], rel=1e-5)
        assert found["grad_norm"] == pytest.approx(expected["grad_norm"], rel=1e-4)


def test_in_bfloat16(replayed, start):
    model, _, log, case, tensors = replayed("bf16")
    parameters, before = dict(model.named_parameters()), dict(start.named_parameters())
    for name, value in recorded(tensors, "bf16.after").items():
        if name.startswith("time_embed"):
            continue  # its gradient has a low rank, so that noise of the rounding fills the rest
        difference, movement = parameters[name].detach() - value, value - before[name].detach()
        if value.ndim == 1:
            assert difference.abs().max() <= VECTORS, name
        else:
            assert difference.norm() <= (OF_ATTENTION if "qkv" in name else MOVEMENT) * movement.norm(), name
    for step, (found, expected) in enumerate(zip(log, case["steps"]["bf16"], strict=True)):
        assert found["total"] == pytest.approx(expected["total"], rel=2e-4 if step else 1e-5)
