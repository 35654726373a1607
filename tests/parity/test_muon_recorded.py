"""Muon against recordings of Internal Guidance, torch.optim.Muon and PRX, from the same weights and gradients."""

import pytest
import torch
from torch import nn

from alight.training.muon import Muon, orthogonalise
from helpers.closeness import assert_close

ILL_CONDITIONED = ("low_rank", "ill")  # singular values near zero, where rounding decides
FLOAT32, RUNS = 2e-6, ("published", "large")


def take_steps(inputs, run, step_size, precision, muon, others):
    """The weights after every recorded step, and the optimizer's memory after the last."""
    weights = {name: nn.Parameter(inputs[f"in.w0.{name}"].clone()) for name in (*muon, *others)}
    groups = [{"params": [weights[name] for name in muon], "muon": True, "weight_decay": run["weight_decay"]}]
    groups += [{"params": [weights[name] for name in others]}] if others else []
    adam = run.get("adam", {"betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.0})
    optimizer = Muon(groups, run["lr"], **adam, momentum=run["momentum"], step_size=step_size, precision=precision)
    trajectory = {name: [] for name in weights}
    steps = len(inputs[f"in.grad.{muon[0]}"])
    for step in range(steps):
        for name, weight in weights.items():
            gradients = inputs.get(f"in.grad.{name}")  # none is recorded of a frozen tensor, which only decays
            weight.grad = torch.zeros_like(weight) if gradients is None else gradients[step].clone()
        optimizer.step()
        for name, weight in weights.items():
            trajectory[name].append(weight.detach().clone())
    memory = {name: optimizer.state[weight] for name, weight in weights.items()}
    return {name: torch.stack(states) for name, states in trajectory.items()}, memory


def assert_moved_alike(found, expected, start, name):
    """Bound the difference by what rounding in bfloat16 does to the whole movement, at worst and on average."""
    difference, movement = found[-1] - expected[-1], expected[-1] - start
    assert difference.abs().max() <= 0.12 * movement.abs().max(), name
    assert difference.norm() <= 0.06 * movement.norm(), name


@pytest.fixture(scope="module")
def inputs(read_case):
    return read_case("muon/ig")[0]


@pytest.fixture(scope="module")
def matrices(read_case):
    """The names of the two-dimensional tensors."""
    return [name for name, shape in read_case("muon/ig")[1]["shapes"].items() if len(shape) == 2]


@pytest.mark.parametrize("variant", ["float32", "torch_float32"])
def test_orthogonalised_in_float32(read_case, variant):
    tensors, description = read_case("muon/orthogonalise")
    for name in description["matrices"]:
        if (name, variant) == ("tiny", "torch_float32"):
            continue  # torch divides by max(norm, 1e-7) and others by norm + 1e-7, which tiny gradients show
        found = orthogonalise(tensors[f"in.{name}"])
        atol = 5e-5 if name in ILL_CONDITIONED else 1e-5
        torch.testing.assert_close(found, tensors[f"out.{name}.{variant}"], rtol=0, atol=atol, msg=name)


def test_orthogonalised_in_bfloat16(read_case):
    tensors, description = read_case("muon/orthogonalise")
    for name in description["matrices"]:
        found = orthogonalise(tensors[f"in.{name}"], torch.bfloat16)
        assert found.dtype == torch.bfloat16
        atol = {"ill": 0.2, "low_rank": 0.4}.get(name, 0.08)  # a third above what another order of operations does
        torch.testing.assert_close(found.float(), tensors[f"out.{name}.bf16"], rtol=0, atol=atol, msg=name)


@pytest.mark.parametrize("name", RUNS)
def test_internal_guidance_in_float32(read_case, inputs, name):
    tensors, description = read_case("muon/ig")
    others = [tensor for tensor, shape in description["shapes"].items() if len(shape) < 2]
    muon = [tensor for tensor in description["shapes"] if tensor not in others]
    found, memory = take_steps(inputs, description["runs"][name], "product", "fp32", muon, others)
    for tensor, states in found.items():
        assert_close(states, tensors[f"{name}.float32.w.{tensor}"], name=tensor, atol=FLOAT32)
    for tensor in muon:
        buffer, expected = memory[tensor]["momentum_buffer"], tensors[f"{name}.momentum.{tensor}"]
        assert_close(buffer.reshape(expected.shape), expected, name=tensor, atol=FLOAT32)
    for tensor in others:
        for moment in ("exp_avg", "exp_avg_sq"):
            assert_close(
                memory[tensor][moment], tensors[f"{name}.momentum.{tensor}.{moment}"], name=moment, atol=FLOAT32
            )


@pytest.mark.parametrize("name", RUNS)
def test_internal_guidance_in_bfloat16(read_case, inputs, name):
    tensors, description = read_case("muon/ig")
    muon = [tensor for tensor, shape in description["shapes"].items() if len(shape) >= 2]
    found, _ = take_steps(inputs, description["runs"][name], "product", "bf16", muon, [])
    for tensor in muon:
        assert_moved_alike(found[tensor], tensors[f"{name}.bf16.w.{tensor}"], inputs[f"in.w0.{tensor}"], tensor)


@pytest.mark.parametrize("name", RUNS)
@pytest.mark.parametrize("rule", ["match_rms", "original"])
def test_torch(read_case, inputs, matrices, name, rule):
    tensors, description = read_case("muon/torch_muon")
    prefix = f"{name}.{ {'match_rms': 'match_rms_adamw'}.get(rule, rule) }"
    for precision, key in (("fp32", "float32"), ("bf16", "bf16")):
        found, _ = take_steps(inputs, description["runs"][name], rule, precision, matrices, [])
        for tensor in matrices:
            expected = tensors[f"{prefix}.{key}.w.{tensor}"]
            if precision == "fp32":
                assert_close(found[tensor], expected, name=tensor, atol=FLOAT32)
            else:
                assert_moved_alike(found[tensor], expected, inputs[f"in.w0.{tensor}"], tensor)


@pytest.mark.parametrize("name", RUNS)
def test_prx(read_case, inputs, matrices, name):
    tensors, description = read_case("muon/prx")
    for precision, key in (("fp32", "float32"), ("bf16", "bf16")):
        found, memory = take_steps(inputs, description["runs"][name], "match_rms", precision, matrices, ["bias"])
        assert_close(found["bias"], tensors[f"{name}.{key}.w.bias"], name="bias", atol=FLOAT32)
        for tensor in matrices:
            expected = tensors[f"{name}.{key}.w.{tensor}"]
            if precision == "fp32":
                assert_close(found[tensor], expected, name=tensor, atol=FLOAT32)
                buffer = memory[tensor]["momentum_buffer"]
                assert_close(buffer, tensors[f"{name}.momentum.{tensor}"], name=tensor, atol=FLOAT32)
            else:
                assert_moved_alike(found[tensor], expected, inputs[f"in.w0.{tensor}"], tensor)
