"""Checkpoints as people have them: things beside the weights, wrappers' prefixes, half precision, relatives."""

import argparse
import datetime
import os
import pathlib
import types
from collections import OrderedDict

import numpy as np
import pytest
import torch
from test_published_transformer import Harmful, make_model

from alight.config import ConvertConfig
from alight.interop.latents import export_latents_statistics, load_latents_statistics
from alight.interop.reference import (
    export_transformer,
    infer_transformer_config,
    load_transformer,
    published_state_dict,
    transformer_from_published,
)
from alight.interop.torch_file import read_torch_file, select_weights
from alight.runtime.errors import InputError
from alight.stages import convert


def explode(*_):
    raise AssertionError("executed")


class Call:
    """A pickle of this calls a function with arguments while it is read."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


HARMLESS = {
    "float64": np.float64(0.5),
    "float32": np.float32(0.25),
    "int64": np.int64(7),
    "bool": np.bool_(True),
    "text": np.str_("a b"),
    "big endian": np.array(3, ">i4")[()],
    "array": np.arange(6.0).reshape(2, 3),
    "namespace": argparse.Namespace(lr=1e-4, out=pathlib.Path("runs/a"), betas=(0.9, 0.95)),
    "simple namespace": types.SimpleNamespace(a=1),
    "ordered": OrderedDict(a=np.float32(1.0)),
    "path": pathlib.PurePosixPath("/a/b"),
    "own path": pathlib.Path("a/b"),
    "windows path": pathlib.PureWindowsPath("C:/a"),
    "moment": datetime.datetime(2024, 5, 6, 7, 8, 9, tzinfo=datetime.UTC),
    "day": datetime.date(2024, 5, 6),
    "span": datetime.timedelta(hours=3),
    "zone": datetime.timezone(datetime.timedelta(hours=2)),
}


@pytest.mark.parametrize("new_format", [True, False])
@pytest.mark.parametrize("kind", HARMLESS)
def test_harmless_values_beside_the_weights_refuse_nothing(kind, new_format, tmp_path):
    model = make_model()
    path = tmp_path / "model.pt"
    contents = {"ema": published_state_dict(model), "args": HARMLESS[kind], "step": 3}
    torch.save(contents, path, _use_new_zipfile_serialization=new_format)
    assert torch.equal(load_transformer(path).patch_embed.weight, model.patch_embed.weight)


def test_harmless_values_keep_their_value(tmp_path):
    torch.save(HARMLESS, tmp_path / "values.pt")
    read = read_torch_file(tmp_path / "values.pt")
    for name in ("float64", "float32", "int64", "bool", "text", "big endian", "path", "moment", "day", "span", "zone"):
        assert read[name] == HARMLESS[name], name
    assert np.array_equal(read["array"].array, HARMLESS["array"])
    assert (read["namespace"].lr, read["namespace"].betas) == (1e-4, (0.9, 0.95))
    assert str(read["own path"]) == str(pathlib.Path("a/b"))


@pytest.mark.parametrize("new_format", [True, False])
@pytest.mark.parametrize(
    "value",
    [
        Harmful(),
        Call(explode),
        Call(eval, "1 + 1"),
        Call(getattr, np.ndarray, "tofile"),
        Call(argparse.FileType, "w"),
        Call(argparse.ArgumentParser),
        Call(pathlib.Path.touch, pathlib.Path("touched")),
        Call(np.load, "file"),
        Call(np.fromfile, "file"),
        Call(datetime.datetime.now),
        np.array([Harmful()], dtype=object),
        argparse.Namespace(inner=Harmful()),
    ],
)
def test_whatever_would_be_executed_stays_refused(value, new_format, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "model.pt"
    torch.save({"ema": {}, "args": value}, path, _use_new_zipfile_serialization=new_format)
    with pytest.raises(InputError):
        read_torch_file(path)
    assert os.listdir(tmp_path) == ["model.pt"]


def test_the_allowance_ends_with_the_reading(tmp_path):
    torch.save(argparse.Namespace(a=1), tmp_path / "values.pt")
    read_torch_file(tmp_path / "values.pt")
    with pytest.raises(Exception, match="Unsupported global"):
        torch.load(tmp_path / "values.pt", weights_only=True)


# --- prefixes and entries -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
def test_names_of_wrapped_models_are_those_of_the_model(prefix):
    published = published_state_dict(make_model())
    wrapped = {f"{prefix}{name}": value for name, value in published.items()}
    assert list(select_weights({"model": wrapped})) == list(published)


def test_names_of_compiled_blocks_are_those_of_the_model():
    published = published_state_dict(make_model())
    wrapped = {name.replace("blocks.0.", "blocks.0._orig_mod."): value for name, value in published.items()}
    assert list(select_weights(wrapped)) == list(published)


@pytest.mark.parametrize("empty", [None, {}, OrderedDict()])
def test_an_entry_without_weights_is_passed_over(empty):
    weights = {"a": torch.zeros(1)}
    assert select_weights({"ema": empty, "model": weights}) == weights
    with pytest.raises(InputError, match="an empty entry 'ema'; choose one of model"):
        select_weights({"ema": empty, "model": weights}, "ema")
    with pytest.raises(InputError, match="its entries ema and model are empty"):
        select_weights({"ema": empty, "model": None})


def test_a_refusal_says_what_is_there_instead_of_weights():
    for contents, message in (
        ({"model": {"a": torch.zeros(1), "epoch": 3}}, "its 'epoch' is of type int"),
        ({"model": {"a": {"b": torch.zeros(1)}}}, "its 'a' is a mapping of b"),
        ([torch.zeros(1)], "but of type list"),
        ({"model": {3: torch.zeros(1)}}, "its 3 is"),
        ({"model": {"a": torch.zeros(1).expand(2**40)}}, "does not store its numbers"),
        ({"model": {"a": torch.zeros(2, 2).to_sparse()}}, "does not store its numbers"),
    ):
        with pytest.raises(InputError, match=message):
            select_weights(contents)


# --- precision and positions --------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_checkpoints_in_half_precision_have_the_same_grid(dtype):
    model = make_model(sample_size=16)
    published = {name: value.to(dtype) for name, value in published_state_dict(model).items()}
    loaded = transformer_from_published(published)
    assert torch.equal(loaded.rope_table, model.rope_table)  # not the rounded one
    with pytest.raises(InputError, match="rotary positions for another grid"):
        transformer_from_published({**published, "feat_rope.freqs_cos": published["feat_rope.freqs_cos"].flip(0)})


def test_positions_that_are_missing_are_computed(tmp_path):
    model = make_model()
    published = published_state_dict(model)
    published.pop("pos_embed")
    assert torch.equal(transformer_from_published(published).pos_embed, model.pos_embed)
    assert torch.equal(transformer_from_published(published, sample_size=4).pos_embed, model.pos_embed)
    plain = published_state_dict(make_model(rope=False))
    plain.pop("pos_embed")
    with pytest.raises(InputError, match="incomplete checkpoint of a LightningDiT: its 'pos_embed' is missing"):
        transformer_from_published(plain, num_heads=2)
    assert transformer_from_published(plain, num_heads=2, sample_size=4).config.sample_size == 4


def test_incomplete_checkpoints_are_not_called_something_else():
    published = published_state_dict(make_model())
    for name in ("y_embedder.embedding_table.weight", "final_layer.linear.weight", "blocks.0.mlp.w3.weight"):
        broken = {key: value for key, value in published.items() if key != name}
        with pytest.raises(InputError, match=f"incomplete checkpoint of a LightningDiT: its '{name}' is missing"):
            transformer_from_published(broken)
    for changes, message in (
        ({"blocks.99999999999.mlp.w3.weight": torch.zeros(1)}, "of its blocks up to 99999999999"),
        ({"blocks.0.attn.q_norm.weight": torch.zeros(0)}, "is empty"),
        ({"x_embedder.proj.weight": torch.zeros(16, 3, 0, 0)}, "is empty"),
        ({"blocks.one.weight": torch.zeros(1)}, "unexpected"),
    ):
        with pytest.raises(InputError, match=message):
            transformer_from_published({**published, **changes})


# --- relatives of LightningDiT ------------------------------------------------------------------------------------

DIT = {"rope": False, "feed_forward": "gelu", "norm": "layer_norm", "learn_sigma": True, "patch_size": 2}


def dit():
    """The published DiT and SiT have these names and shapes."""
    return published_state_dict(make_model(**DIT, sample_size=8, in_channels=4))


@pytest.mark.parametrize("wrap", [lambda state: state, lambda state: {"ema": state, "model": state, "args": None}])
def test_weights_of_dit_and_sit_are_recognised(wrap, tmp_path):
    torch.save(wrap(dit()), tmp_path / "DiT-XL-2-256x256.pt")
    export_latents_statistics(torch.zeros(4), torch.ones(4), tmp_path / "latents_stats.pt")
    message = "has the layout of DiT and SiT, not of LightningDiT.*predicts noise"
    with pytest.raises(InputError, match=message):
        load_transformer(tmp_path / "DiT-XL-2-256x256.pt", num_heads=2)
    config = ConvertConfig(
        kind="transformer",
        source=tmp_path / "DiT-XL-2-256x256.pt",
        output=tmp_path / "out",
        statistics=tmp_path / "latents_stats.pt",
        num_heads=2,
    )
    with pytest.raises(InputError, match=message):
        convert.run(config)
    assert not (tmp_path / "out").exists()


def test_an_own_model_of_that_layout_comes_back(tmp_path):
    model = make_model(**DIT)
    export_transformer(model, tmp_path / "own.pt")
    assert load_transformer(tmp_path / "own.pt", num_heads=2).arguments == model.arguments
    assert transformer_from_published(published_state_dict(model), num_heads=2, learn_sigma=True).config.learn_sigma


def test_lightningdit_with_a_variance_is_no_dit(tmp_path):
    torch.save(published_state_dict(make_model(learn_sigma=True)), tmp_path / "model.pt")
    assert load_transformer(tmp_path / "model.pt").config.learn_sigma


def test_a_sit_without_a_variance_is_asked_about():
    published = published_state_dict(make_model(**DIT | {"learn_sigma": False}))
    with pytest.raises(InputError, match="unless these are weights of a SiT or DiT"):
        infer_transformer_config(published)


def test_a_dit_of_diffusers_is_named():
    weights = {"transformer_blocks.0.attn1.to_q.weight": torch.zeros(4, 4), "pos_embed.proj.weight": torch.zeros(1)}
    with pytest.raises(InputError, match="a transformer of diffusers such as DiT, which predicts noise"):
        transformer_from_published(weights)


# --- statistics ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "contents",
    [
        {"mean": torch.zeros(1).expand(2**40), "std": torch.ones(1).expand(2**40)},
        {"mean": torch.zeros(2).to_sparse(), "std": torch.ones(2).to_sparse()},
        {"mean": torch.zeros(0), "std": torch.ones(0)},
        {"mean": torch.zeros(2, dtype=torch.complex64), "std": torch.ones(2)},
        {"mean": [0.0], "std": [1.0]},
        None,
    ],
)
def test_statistics_of_another_kind_are_refused(contents, tmp_path):
    torch.save(contents, tmp_path / "latents_stats.pt")
    with pytest.raises(InputError, match="holds no statistics of latents"):
        load_latents_statistics(tmp_path)


def test_a_pipe_is_no_checkpoint(tmp_path):
    os.mkfifo(tmp_path / "model.pt")
    with pytest.raises(InputError, match="not a regular file"):
        read_torch_file(tmp_path / "model.pt")
