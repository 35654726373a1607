"""The transformer and its checkpoints against recordings of the published model.

Tolerances are those of the recordings: about ten times the difference between the published model's own float32 and
float64 results.
"""

import hashlib
import json

import pytest
import torch

from alight.flow import GuidedVelocity, LinearPath, flow_matching_loss
from alight.interop.reference import (
    convert_transformer_state_dict,
    export_transformer,
    infer_transformer_config,
    load_transformer,
    published_state_dict,
    transformer_from_published,
    warm_start_transformer,
)
from alight.models import PRESETS, LightningDiT
from alight.models.embeddings import sinusoidal_embedding
from alight.training.ema import EMA
from helpers.closeness import assert_close
from helpers.published_config import our_config

CASES = ["base", "qknorm", "plain", "plain_qknorm_rope", "wo_shift", "patch2", "learn_sigma"]
OTHER_FILES = {"registry", "train_steps", "checkpoint_0000002", "load_with_shape_check"}
FORWARD, GRADIENT = 1e-5, 1e-4  # absolute; relative to the largest magnitude


def prefixed(tensors, prefix):
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def load_case(read_case, name):
    tensors, case = read_case(f"transformer/{name}")
    config = our_config(case["config"], class_dropout_prob=case["class_dropout_prob"], mlp_ratio=case["mlp_ratio"])
    return transformer_from_published(prefixed(tensors, "sd."), **config), tensors, case


def test_every_recorded_file_is_replayed(parity_dir):
    assert {path.stem for path in (parity_dir / "transformer").iterdir()} == {*CASES, *OTHER_FILES}


@pytest.mark.parametrize("name", CASES)
def test_velocity_in_evaluation_and_training(read_case, name):
    model, tensors, _ = load_case(read_case, name)
    x, t, labels = tensors["in.x"], tensors["in.t"], tensors["in.y"]
    with torch.no_grad():
        assert_close(model(x, t, labels), tensors["out.forward"], "forward", atol=FORWARD)
        dropped = model.drop_labels(labels, u=tensors["train.u"])
        assert_close(model(x, t, dropped), tensors["train.out"], "train", atol=FORWARD)


@pytest.mark.parametrize("name", CASES)
def test_gradients_of_the_squared_velocity(read_case, name):
    model, tensors, _ = load_case(read_case, name)
    x = tensors["in.x"].clone().requires_grad_()
    model(x, tensors["in.t"], tensors["in.y"]).square().sum().backward()
    recorded = prefixed(tensors, "grad.")
    assert_close(x.grad, recorded.pop("input_x"), "x", rel_max=GRADIENT)
    parameters = dict(model.named_parameters())
    for parameter, expected in convert_transformer_state_dict(recorded).items():
        assert_close(parameters[parameter].grad, expected, parameter, rel_max=GRADIENT)


@pytest.mark.parametrize("name", ["base", "plain"])
def test_intermediate_values(read_case, name):
    model, tensors, _ = load_case(read_case, name)
    seen = {}
    model.blocks[0].register_forward_hook(lambda _, given, result: seen.update(block0_in=given[0], block0_out=result))
    t, labels = tensors["in.t"], tensors["in.y"]
    with torch.no_grad():
        model(tensors["in.x"], t, labels)
        seen["t_emb_sincos"] = sinusoidal_embedding(t)
        seen["t_embedder"] = model.time_embed(t)
        seen["c"] = seen["t_embedder"] + model.class_embed(labels)
    recorded = prefixed(tensors, "parts.")
    assert recorded.keys() == seen.keys()
    for part, expected in recorded.items():
        assert_close(seen[part], expected, part, atol=FORWARD)


@pytest.mark.parametrize("name", CASES)
def test_guidance(read_case, name):
    """The published state has two halves; ours has one row per image and equals the first.

    The published rows have times of their own, of which the first row's decides about the interval. `GuidedVelocity`
    has one time for all rows, so the model under it is given the recorded rows.
    """
    model, tensors, case = load_case(read_case, name)
    labels, null_labels = tensors["cfg.y"].chunk(2)
    x = tensors["cfg.x"].chunk(2)[0]
    assert case["cfg_runs"]
    for run, settings in case["cfg_runs"].items():
        times, expected = tensors[f"cfg.{run}.t"], tensors[f"cfg.{run}.out"]
        guided = GuidedVelocity(
            lambda x, _, labels, times=times: model(x, times[: len(x)], labels),
            labels,
            null_labels,
            guidance_scale=settings.get("cfg_scale", case["cfg_scale"]),
            guidance_interval=(case["cfg_interval_start"], 1.0) if settings["cfg_interval"] else None,
            guidance_channels=3,
        )
        with torch.no_grad():
            velocity = guided(x, times[0])
            unconditional = model(x, times[len(x) :], null_labels)
        bound = max(3e-5, 3e-6 * expected.abs().max().item())
        first_half, second_half = expected.chunk(2)
        assert_close(velocity, first_half, run, atol=bound)
        assert_close(velocity[:, :3], second_half[:, :3], f"{run}, guided channels of the second half", atol=bound)
        assert_close(unconditional[:, 3:], second_half[:, 3:], f"{run}, other channels", atol=bound)


@pytest.mark.parametrize("name", CASES)
def test_configuration_is_inferred_from_the_weights(read_case, name):
    tensors, case = read_case(f"transformer/{name}")
    expected = our_config(case["config"], class_dropout_prob=case["class_dropout_prob"], mlp_ratio=case["mlp_ratio"])
    inferred = infer_transformer_config(
        prefixed(tensors, "sd."),
        num_heads=None if expected["rope"] or expected["qk_norm"] else expected["num_heads"],
        class_dropout_prob=expected["class_dropout_prob"],
    )
    assert inferred == expected


@pytest.mark.parametrize("name", CASES)
def test_export_gives_the_published_bytes_back(read_case, name, tmp_path):
    model, tensors, _ = load_case(read_case, name)
    export_transformer(model, tmp_path / "exported.pt")
    entries = torch.load(tmp_path / "exported.pt", weights_only=True)
    published = prefixed(tensors, "sd.")
    for entry in ("model", "ema"):
        assert entries[entry].keys() == published.keys()
        for key, value in published.items():
            assert entries[entry][key].dtype == value.dtype
            assert torch.equal(entries[entry][key], value), key


def test_checkpoint_in_the_trainers_layout(read_case, parity_dir, tmp_path):
    tensors, case = read_case("transformer/checkpoint_0000002")
    path = parity_dir / "transformer" / case["file"]
    entries = torch.load(path, weights_only=True)
    config = our_config(case["config"])
    from_many_gpus = tmp_path / "many_gpus.pt"
    torch.save({"model": {f"module.{name}": value for name, value in entries["model"].items()}}, from_many_gpus)
    for source, weights, expected in (
        (path, None, "ema"),
        (path, "ema", "ema"),
        (path, "model", "model"),
        (from_many_gpus, None, "model"),
    ):
        model = load_transformer(source, weights=weights, **config)
        with torch.no_grad():
            velocity = model(tensors["in.x"], tensors["in.t"], tensors["in.y"])
        assert_close(velocity, tensors[f"out.{expected}"], f"{source.name}, {weights}", atol=FORWARD)
        exported = published_state_dict(model)
        assert list(exported) == list(entries[expected])
        assert all(torch.equal(exported[name], value) for name, value in entries[expected].items())


def test_registered_sizes(read_case):
    _, registry = read_case("transformer/registry")
    for name, expected in registry["models"].items():
        sizes = PRESETS[name]
        assert (sizes.num_layers, sizes.hidden_size, sizes.num_heads, sizes.patch_size) == (
            expected["depth"],
            expected["hidden_size"],
            expected["num_heads"],
            expected["patch_size"],
        )
        with torch.device("meta"):  # shapes only: the largest would need 6.5 GB
            model = LightningDiT.from_preset(name, **our_config(registry["flags"]))
        state = published_state_dict(model)
        shapes = [[key, list(value.shape)] for key, value in state.items()]
        assert len(shapes) == expected["n_state_keys"], name
        assert hashlib.sha256(json.dumps(shapes).encode()).hexdigest() == expected["state_sha256"], name
        trainable = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
        assert trainable == expected["params_trainable"], name
        assert trainable + model.pos_embed.numel() == expected["params_total"], name  # fixed, but counted there
        assert model.pos_embed.shape[1] == expected["num_patches"]
        recorded = [key_shape[:2] for key_shape in expected.get("parameters", []) + expected["buffers"]]
        recorded += [key_shape[:2] for key_shape in expected.get("parameters_outside_blocks_1plus", [])]
        assert all(entry in shapes for entry in recorded), name


def test_published_sizes_are_all_there(read_case):
    _, registry = read_case("transformer/registry")
    assert set(PRESETS) >= set(registry["models"])
    assert {"LightningDiT-L/1", "LightningDiT-S/1", "LightningDiT-S/2"} <= set(PRESETS)  # which the registry lacks


def test_warm_start_from_other_shapes(read_case):
    tensors, case = read_case("transformer/load_with_shape_check")
    torch.manual_seed(0)
    model = LightningDiT(**our_config(case["dst"]))
    own = published_state_dict(model)
    for name, value in prefixed(tensors, "dst_before.").items():
        own[name].copy_(value)
    before = {name: value.clone() for name, value in own.items()}
    source, expected = prefixed(tensors, "src."), prefixed(tensors, "dst_after.")
    done = warm_start_transformer(model, source)
    after = published_state_dict(model)
    for name in before:
        assert torch.equal(after[name], expected.get(name, before[name])), name
    assert set(done.copied) == {name for name in source if source[name].shape == before[name].shape}
    assert set(done.copied + done.partly_copied + done.kept) >= set(source)
    assert not done.unused


def test_training_steps(read_case):
    """Three optimizer steps; Adam's first steps are nearly a sign, which amplifies gradients near zero.

    So 99.9 % of the elements must agree to 1e-5, and the rest to twice the learning rate per step.
    """
    start, _ = read_case("transformer/base")
    tensors, case = read_case("transformer/train_steps")
    model = transformer_from_published(prefixed(start, "sd."), **our_config(case["config"])).train()
    averages = {
        "after.": None,
        "ema_after.": EMA(model, case["ema_decay"]),
        "ema_published_after.": EMA(model, case["ema_published_decay"]),
    }
    optimizer = torch.optim.AdamW(
        model.parameters(), case["lr"], tuple(case["betas"]), case["eps"], case["weight_decay"]
    )
    for index, step in enumerate(case["steps"]):
        given = prefixed(tensors, f"step{index}.")
        loss = flow_matching_loss(
            model,
            given["x1"],
            model.drop_labels(given["y"], u=given["dropout_u"]),
            path=LinearPath(),
            t=given["t_normal_f64"].sigmoid().float(),
            x_0=given["x0"],
        )
        optimizer.zero_grad()
        loss.total.backward()
        norm = torch.nn.utils.get_total_norm([parameter.grad for parameter in model.parameters()])
        optimizer.step()
        for average in filter(None, averages.values()):
            average.update(model)
        assert_close(
            loss.prediction.detach(), given["pred"], f"prediction {index}", atol=1e-4
        )  # drifts with the steps
        assert_close(loss.mse_per_sample.detach(), given["loss"], f"mse {index}", rel_max=1e-5)
        assert_close(loss.cosine_per_sample.detach(), given["cos_loss"], f"cosine {index}", rel_max=1e-5)
        figures = {"loss": loss.total, "mse": loss.mse, "cos": loss.cosine}
        for name, value in figures.items():
            assert value.item() == pytest.approx(step[name], rel=1e-5), (index, name)
        assert norm.item() == pytest.approx(step["grad_norm"], rel=1e-4), index

    worst = 2 * case["lr"] * len(case["steps"])
    for prefix, average in averages.items():
        state = published_state_dict(model if average is None else average.model)
        recorded = prefixed(tensors, prefix)
        assert recorded
        errors = torch.cat([(state[name] - value).abs().flatten() for name, value in recorded.items()])
        assert (errors <= 1e-5).float().mean() >= 0.999, prefix
        assert errors.max() <= worst, prefix
