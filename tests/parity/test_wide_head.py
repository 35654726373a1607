"""The transformer with a wide head against recordings of its published implementation (RAE's DiTwDDTHead).

The recordings are in noise time, where t = 1 is noise and the velocity is noise - data; here time is 1 - t, and the
velocity has the other sign. Tolerances are those of the recordings.
"""

import math

import pytest
import torch

from alight.flow import (
    GuidedVelocity,
    SolverOptions,
    dimension_aware_shift,
    sample,
    sample_timesteps,
    shift_timesteps,
    time_grid,
)
from alight.flow.path import LinearPath
from alight.interop.reference import (
    convert_transformer_state_dict,
    export_transformer,
    infer_transformer_config,
    load_transformer,
    published_state_dict,
    transformer_from_published,
)
from alight.interop.wide_head import renamed
from alight.models.embeddings import patchify
from helpers.closeness import assert_close
from helpers.published_config import our_config

FORWARD, GUIDED, GRADIENT, TIME, SAMPLED = 1e-5, 1e-5, 1e-4, 1e-6, 1e-5


def prefixed(tensors, prefix):
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def arguments_of(case):
    """Our arguments of the recorded constructor call, whose sizes are pairs of those of the blocks and of the head."""
    pairs = {name: case["config"][name] for name in ("hidden_size", "depth", "num_heads")}
    common = {"class_dropout_prob": case["class_dropout_prob"], "mlp_ratio": case["mlp_ratio"]}
    narrow = case["config"] | {name: pair[0] for name, pair in pairs.items()}
    head = {
        "num_layers": pairs["depth"][1],
        "hidden_size": pairs["hidden_size"][1],
        "num_heads": pairs["num_heads"][1],
    }
    return our_config(narrow, **common) | {"head": head}


def needed(case):
    """The head's size, which the weights do not tell where it is as wide as the other blocks."""
    narrow, wide = case["config"]["hidden_size"]
    return {"head": arguments_of(case)["head"]} if narrow == wide else {}


@pytest.fixture(scope="module")
def recorded(read_case):
    return read_case("ddt_head/model")


@pytest.fixture(scope="module")
def model(recorded):
    tensors, case = recorded
    return transformer_from_published(prefixed(tensors, "sd."), **needed(case)).eval()


def inputs(tensors):
    return tensors["in.x"], 1 - tensors["in.t"], tensors["in.y"]


def test_sizes_and_number_of_weights(recorded, model):
    _, case = recorded
    expected = arguments_of(case)
    assert {name: model.config[name] for name in expected} == expected
    fixed = model.pos_embed.numel() + model.time_embed.frequencies.numel()  # frozen parameters there, buffers here
    assert sum(parameter.numel() for parameter in model.parameters()) + fixed == case["params"]


# --- forward and gradients ----------------------------------------------------------------------------------------


def test_forward_and_its_parts(recorded, model):
    tensors, _ = recorded
    x, t, labels = inputs(tensors)
    with torch.no_grad():
        features = model.forward_features(x, t, labels)
        assert_close(features.time, tensors["parts.t_embedder"], "t_embedder", atol=FORWARD)
        assert_close(features.tokens, tensors["parts.encoder_out"], "encoder_out", atol=FORWARD)
        condition = torch.nn.functional.silu(features.time[:, None] + features.tokens)
        projected = condition if model.wide_head.condition_proj is None else model.wide_head.condition_proj(condition)
        assert_close(projected, tensors["parts.s_projected"], "s_projected", atol=FORWARD)
        tokens, _ = model.wide_head(patchify(x, model.config.patch_size), condition)
        assert_close(tokens, tensors["parts.decoder_out"], "decoder_out", atol=FORWARD)
        assert_close(-model(x, t, labels), tensors["out.forward"], "forward", atol=FORWARD)


def test_forward_of_given_tokens(recorded, model):
    tensors, _ = recorded
    x, _, _ = inputs(tensors)
    with torch.no_grad():
        patches = model.output_layer(*model.wide_head(patchify(x, model.config.patch_size), tensors["in.s"]))
        found = -model._velocity(patches, x.dtype)
    assert_close(found, tensors["out.forward_given_s"], "forward_given_s", atol=FORWARD)


def test_gradients(recorded, model):
    tensors, _ = recorded
    x, t, labels = inputs(tensors)
    x = x.clone().requires_grad_()
    model.zero_grad()
    model(x, t, labels).square().sum().backward()
    gradients = prefixed(tensors, "grad.")
    assert_close(x.grad, gradients.pop("input_x"), "input_x", rel_max=GRADIENT)
    parameters = dict(model.named_parameters())
    ours = convert_transformer_state_dict(renamed(gradients, len(model.blocks)))
    assert any(name.startswith("wide_head.blocks.") for name in ours)
    for name, expected in ours.items():
        assert_close(parameters[name].grad, expected, name, rel_max=GRADIENT)


# --- guidance and times -------------------------------------------------------------------------------------------


def in_our_time(interval):
    """An interval of noise time in ours."""
    low, high = interval
    return 1 - high, 1 - low


@pytest.mark.parametrize("strategy", ["cfg", "ag"])
def test_guidance_of_rows_with_times_of_their_own(recorded, model, strategy):
    tensors, case = recorded
    rows = len(tensors["cfg.x"]) // 2
    x, t = tensors["cfg.x"], 1 - tensors["cfg.t"]
    labels, null = tensors["cfg.y"][:rows], tensors["cfg.y"][rows:]
    runs = {f"cfg.{name}.out": (case["cfg"]["cfg_scale"], interval) for name, interval in case["cfg"]["runs"].items()}
    options = {"null_labels": null}
    if strategy == "ag":
        rows, labels = len(x), tensors["cfg.y"]
        runs = {"ag.out": (case["ag"]["scale"], case["ag"]["interval"])}
        options = {"guide": lambda x, t, labels: -tensors["ag.bad_out"]}
    for name, (scale, interval) in runs.items():
        velocity = GuidedVelocity(
            model, labels, **options, guidance_scale=scale, guidance_interval=in_our_time(interval)
        )
        with torch.no_grad():
            found = -velocity(x[:rows], t[:rows])
        # extrapolation adds up the errors of two outputs, of which the recorded rounding tells the size
        assert_close(found, tensors[name][:rows], name, atol=max(GUIDED, 10 * case["noise_floor_forward"]))


@pytest.fixture(scope="module")
def times(read_case):
    tensors, case = read_case("ddt_head/time_shift")
    return tensors, case, {name: run for name, run in case["runs"].items() if f"{name}.ode_grid" in tensors}


def test_training_times(times):
    """Uniform draws u are mapped to noise times up to the last; a truncated normal is drawn by its inverse there."""
    tensors, case, runs = times
    assert runs
    last = last_time(tensors, case)
    normal = torch.distributions.Normal(0.0, 1.0)
    for name, run in runs.items():
        shift = dimension_aware_shift(run["dim"], run["base"])
        assert shift == pytest.approx(run["shift_data_time"])
        assert 1 / shift == pytest.approx(run["shift"])
        u = tensors[f"{name}.rand.u"]
        found = sample_timesteps(len(u), "uniform", low=1 - last, shift=shift, noise=1 - u)
        assert_close(1 - found, tensors[f"{name}.train_t"], name, atol=TIME)
        u = tensors[f"{name}.rand.u_logit_normal"].double()
        within = normal.cdf(torch.tensor(math.log(last / (1 - last)), dtype=torch.float64))
        draws = -normal.icdf(within * u)
        found = sample_timesteps(len(u), "logit_normal", truncate=(1 - last, 1.0), shift=shift, noise=draws)
        assert_close(1 - found, tensors[f"{name}.train_t_logit_normal"], name, atol=TIME)


def last_time(tensors, case):
    """The last of our times before the shift: where the recorded grid of the smallest shift ends."""
    shift = case["runs"]["none"]["shift_data_time"]
    return shift_timesteps(1 - tensors["none.ode_grid"][-1].double(), 1 / shift).item()


def test_time_grids(times):
    tensors, case, runs = times
    last = last_time(tensors, case)
    for name, run in runs.items():
        grid = tensors[f"{name}.ode_grid"]
        assert len(grid) == run["steps"]
        shift = dimension_aware_shift(run["dim"], run["base"])
        end = shift_timesteps(torch.tensor(last, dtype=torch.float64), shift).item()
        assert_close(1 - time_grid(run["steps"] - 1, shift, t_1=end), grid, name, atol=TIME)


def test_sampler(times, model):
    tensors, case, _ = times
    run, asked, states = case["runs"]["euler8"], [], []
    velocity = GuidedVelocity(model, tensors["euler8.in.y"])

    def field(x, t):
        asked.append(t)
        return velocity(x, t)

    options = SolverOptions(1 / run["shift"], last_time=last_time(tensors, case))
    noise = tensors["euler8.in.z"]
    with torch.no_grad():
        found = sample(
            field,
            noise,
            run["num_steps"] - 1,
            "euler",
            options,
            path=LinearPath(),
            on_step=lambda _, x: states.append(x),
        )
    states = [noise, *states]
    assert len(asked) == run["nfev"]
    assert_close(1 - torch.tensor(asked), tensors["euler8.t_evals"], "t_evals", atol=TIME)
    assert_close(found.x, tensors["euler8.final"], "final", rel_max=SAMPLED)
    assert_close(states[len(states) // 2], tensors["euler8.mid"], "mid", rel_max=SAMPLED)


# --- files --------------------------------------------------------------------------------------------------------


def test_published_files_come_in_and_go_out(recorded, model, tmp_path):
    tensors, case = recorded
    weights = prefixed(tensors, "sd.")
    again = published_state_dict(model)
    assert set(again) == set(weights)
    assert all(torch.equal(again[name], value) for name, value in weights.items())
    layouts = {"bare": weights, "trainer": {"model": {f"module.{name}": each for name, each in weights.items()}}}
    for name, contents in layouts.items():
        torch.save(contents, tmp_path / f"{name}.pt")
        loaded = load_transformer(tmp_path / f"{name}.pt", **needed(case))
        assert loaded.arguments == model.arguments
        assert all(torch.equal(value, loaded.state_dict()[key]) for key, value in model.state_dict().items())
    export_transformer(model, tmp_path / "again.pt")
    written = torch.load(tmp_path / "again.pt", weights_only=True)["ema"]
    assert all(torch.equal(written[name], value) for name, value in weights.items())
    assert load_transformer(tmp_path / "again.pt").arguments == model.arguments
    assert infer_transformer_config(weights, **needed(case))["head"] == arguments_of(case)["head"]
