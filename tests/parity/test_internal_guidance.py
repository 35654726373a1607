"""Internal Guidance against recordings of its published implementation: outputs, guidance, loss, sampler, files.

Tolerances are those of the recordings. The training steps, whose optimizer is another subject, are not replayed here.
"""

import hashlib
import json
import math

import pytest
import torch

from alight.flow import GuidedVelocity, InternalGuidance, LinearPath, flow_matching_loss, solve_ode, time_grid
from alight.interop.reference import (
    convert_transformer_state_dict,
    export_transformer,
    load_transformer,
    published_state_dict,
    transformer_from_published,
)
from alight.models import PRESETS, LightningDiT
from alight.runtime.errors import InputError
from helpers.closeness import assert_close
from helpers.published_config import our_config

HEADS, GUIDED, LOSS, GRADIENT = 1e-5, 5e-6, 1e-5, 1e-4  # absolute; the others relative to the largest magnitude


def prefixed(tensors, prefix):
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def arguments_of(published, **common):
    """Our arguments of a recorded constructor call."""
    return our_config({name: value for name, value in published.items() if name != "encoder_depth"}, **common) | {
        "auxiliary_block": published["encoder_depth"]
    }


@pytest.fixture(scope="module")
def model(read_case):
    tensors, case = read_case("internal_guidance/model")
    options = {"class_dropout_prob": case["class_dropout_prob"], "mlp_ratio": case["mlp_ratio"]}
    return transformer_from_published(prefixed(tensors, "sd."), **arguments_of(case["config"], **options)).eval()


def test_both_outputs(read_case, model):
    tensors, _ = read_case("internal_guidance/model")
    inputs = tensors["in.x"], tensors["in.t"], tensors["in.y"]
    with torch.no_grad():
        final, auxiliary = model(*inputs, auxiliary=True)
        assert torch.equal(model(*inputs), final)
    assert_close(final, tensors["out.final"], "final", atol=HEADS)
    assert_close(auxiliary, tensors["out.aux"], "auxiliary", atol=HEADS)


def test_the_positions_are_those_of_the_checkpoint(read_case, model):
    """They decay in the published training, so the formula would give another model."""
    tensors, _ = read_case("internal_guidance/model")
    assert torch.equal(model.pos_embed, tensors["sd.pos_embed"])
    fresh = LightningDiT(**model.arguments)
    assert (fresh.pos_embed - model.pos_embed).abs().max() > 1e-3


# --- guidance -----------------------------------------------------------------------------------------------------


def internal_interval(run):
    """The published upper bound as an interval; 1, the default, is no bound here."""
    return (0.0, run["ig_interval"]) if "ig_interval" in run else None


def off_as_published(run, t):
    """Tell if the published code has no internal guidance by rules of its own.

    Its default upper bound is 1, which rounding may exceed; and a bound of 0 excludes t = 0 as well.
    """
    rounded = torch.as_tensor(t, dtype=torch.float32).item()
    return rounded > 1 if "ig_interval" not in run else run["ig_interval"] == 0


def guided(model, labels, run, scale, num_classes):
    within = run["call"] == "forward_with_cfg"
    return GuidedVelocity(
        InternalGuidance(model, scale, internal_interval(run)),
        labels,
        torch.full_like(labels, num_classes) if within else None,
        run["cfg_scale"] if within else 1.0,
        guidance_interval=(run["cfg_interval_start"], 1.0) if within and run["cfg_interval"] else None,
    )


def test_guidance(read_case, model):
    tensors, case = read_case("internal_guidance/model")
    assert case["guide_runs"]
    for name, run in case["guide_runs"].items():
        times, expected = tensors[f"guide.{name}.t"], tensors[f"guide.{name}.out"]
        rows = len(tensors["guide.x"]) // 2  # one half; both get the same result
        assert torch.equal(expected[:rows], expected[-rows:])

        def recorded_rows(x, _, labels, times=times, **options):
            return model(x, times[: len(x)], labels, **options)

        scale = 1.0 if off_as_published(run, times[0]) else run["ig_scale"]
        x, labels = tensors["guide.x"][:rows], tensors["guide.y"][:rows]
        velocity = guided(recorded_rows, labels, run, scale, case["config"]["num_classes"])
        with torch.no_grad():
            assert_close(velocity(x, times[0]), expected[:rows], name, rel_max=GUIDED)


def test_a_time_that_rounding_puts_above_one_is_still_guided(read_case, model):
    """The published code drops guidance there, at the last stage of Heun's method on some shifted grids."""
    tensors, case = read_case("internal_guidance/model")
    x, labels, scale = tensors["in.x"], tensors["in.y"], case["guide_runs"]["ig"]["ig_scale"]
    above = torch.nextafter(torch.tensor(1.0), torch.tensor(2.0)).expand(len(x))
    with torch.no_grad():
        final, auxiliary = model(x, above, labels, auxiliary=True)
        for interval in (None, (0.0, 1.0), (0.5, 1.0)):
            velocity = InternalGuidance(model, scale, interval)(x, above, labels)
            assert torch.equal(velocity, final + (scale - 1) * (final - auxiliary))


# --- loss ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_loss_and_gradients(read_case, model, mode):
    tensors, case = read_case("internal_guidance/loss")
    values, labels = case["values"][mode], tensors["in.y"]
    if mode == "train":
        dropped = torch.where(tensors["rand.dropout_u"] < case["label_dropout"], case["null_label"], labels)
        labels = model.drop_labels(labels, u=tensors["rand.dropout_u"])
        assert torch.equal(labels, dropped)
    model.zero_grad()
    loss = flow_matching_loss(
        lambda *inputs: model(*inputs, auxiliary=True),
        tensors["in.x1"],
        labels,
        path=LinearPath(),
        auxiliary_weight=case["aux_coefficient"],
        t=tensors["in.t"],
        x_0=tensors["in.x0"],
    )
    recorded = prefixed(tensors, f"out.{mode}.")
    assert_close(loss.prediction, recorded["final"], "final", atol=HEADS)
    assert_close(loss.auxiliary_prediction, recorded["aux"], "auxiliary", atol=HEADS)
    both = loss.mse_per_sample + case["aux_coefficient"] * loss.auxiliary_per_sample
    for actual, name in (
        (loss.mse_per_sample, "final_mse"),
        (loss.auxiliary_per_sample, "aux_mse"),
        (both, "loss"),
        (loss.cosine_per_sample, "cos_loss"),
    ):
        assert_close(actual, recorded[name], name, rel_max=LOSS)
    assert loss.total.item() == pytest.approx(values["total"], rel=LOSS)
    assert loss.cosine.item() == pytest.approx(values["cos"], rel=LOSS)
    assert both.mean().item() == pytest.approx(values["logged_mse"], rel=LOSS)

    loss.total.backward()
    parameters = dict(model.named_parameters())
    gradients = convert_transformer_state_dict(prefixed(tensors, f"grad.{mode}."))
    assert any(name.startswith("auxiliary_layer.") for name in gradients)
    for name, expected in gradients.items():
        assert_close(parameters[name].grad, expected, name, rel_max=GRADIENT)
    norm = math.sqrt(sum(each.grad.double().square().sum().item() for each in parameters.values()))
    assert norm == pytest.approx(values["grad_norm"], rel=GRADIENT)


# --- sampler ------------------------------------------------------------------------------------------------------


def test_sampler(read_case, model):
    tensors, case = read_case("internal_guidance/sampler")
    labels, rows = tensors["in.y"], len(tensors["in.y"])
    assert case["runs"]
    for name, run in case["runs"].items():
        shift, steps = run["timestep_shift"] or None, run["num_steps"] - 1
        if run["timestep_shift"]:
            assert_close(time_grid(steps, shift), tensors["grid"], "grid", atol=1e-7)
        velocity = guided(model, labels, run, run["ig_scale"], case["null_label"])
        as_published = guided(model, labels, run, 1.0, case["null_label"])
        asked, recorded_times = [], tensors[f"{name}.t_evals"]

        def field(x, t, run=run, asked=asked, times=recorded_times, fields=(velocity, as_published)):
            asked.append(float(t))
            return fields[off_as_published(run, times[len(asked) - 1])](x, t)

        with torch.no_grad():
            solution = solve_ode(field, tensors["in.z"], steps, run["method"], shift, return_trajectory=True)
        middle = solution.trajectory[len(solution.trajectory) // 2]
        assert_close(solution.x, tensors[f"{name}.final"][:rows], name, rel_max=GUIDED)
        assert_close(middle, tensors[f"{name}.mid"][:rows], f"{name}.mid", rel_max=GUIDED)
        assert_close(torch.tensor(asked), recorded_times, f"{name}.t_evals", atol=1e-6)
        assert len(asked) == run["nfev"]

        # alone one evaluation for both outputs; within class guidance two, but outside its interval only one
        within = run["call"] == "forward_with_cfg"
        assert run["rows_per_evaluation"] == rows * (2 if within else 1)
        counted = guided(model, labels, run, run["ig_scale"], case["null_label"])
        with torch.no_grad():
            nfe = solve_ode(counted, tensors["in.z"], steps, run["method"], shift).nfe
        assert nfe == len(asked) + sum(within and velocity.is_guided(t) for t in asked), name


# --- files --------------------------------------------------------------------------------------------------------


def keys_of(state):
    return [[name, list(value.shape)] for name, value in state.items()]


def test_the_layout_of_checkpoints(read_case):
    _, case = read_case("internal_guidance/checkpoint_layout")
    with torch.device("meta"):
        tiny = LightningDiT(**arguments_of(case["tiny_config"]))
    assert keys_of(published_state_dict(tiny)) == case["tiny_keys"]
    flags = arguments_of(case["registry_flags"])
    assert case["registry"]
    for name, expected in case["registry"].items():
        with torch.device("meta"):
            model = LightningDiT.from_preset(name, **flags) if name in PRESETS else None
        assert model is not None, name
        keys = keys_of(published_state_dict(model))
        assert len(keys) == expected["keys"], name
        assert hashlib.sha256(json.dumps(keys).encode()).hexdigest() == expected["sha256"], name
        assert [key for key in keys if key[0].startswith("final_layer")] == expected["aux_keys"], name
        parameters = sum(parameter.numel() for parameter in model.parameters())
        assert parameters + model.pos_embed.numel() == expected["total"], name  # pos_embed is a frozen parameter there


def test_published_files_come_in_and_go_out(read_case, model, tmp_path):
    """In both layouts of the entry `model`, with and without a recorded configuration."""
    tensors, case = read_case("internal_guidance/model")
    weights, block = prefixed(tensors, "sd."), case["config"]["encoder_depth"]
    wrapped = {f"module.{name}": value for name, value in weights.items()}
    layouts = {"one": {"model": weights}, "many": {"model": wrapped, "ema": weights}}
    for name, entries in layouts.items():
        path = tmp_path / f"{name}.pt"
        torch.save(entries | {"config": {"model": {"model_type": "LightningDiT-XL/1"}}}, path)
        with pytest.raises(InputError, match="auxiliary_block"):
            load_transformer(path)
        loaded = load_transformer(path, auxiliary_block=block)
        assert loaded.config.auxiliary_block == block
        assert all(torch.equal(value, model.state_dict()[key]) for key, value in loaded.state_dict().items())
        torch.save(entries | {"config": {"model": {"encoder_depth": block}}}, path)
        assert load_transformer(path).arguments == loaded.arguments
    export_transformer(loaded, tmp_path / "again.pt")
    written = torch.load(tmp_path / "again.pt", weights_only=True)["ema"]
    assert list(written) == list(published_state_dict(model))
    assert all(torch.equal(written[name], value) for name, value in weights.items())
    assert load_transformer(tmp_path / "again.pt").arguments == loaded.arguments
