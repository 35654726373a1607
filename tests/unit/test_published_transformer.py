"""Published checkpoint files: damaged, unsafe and foreign ones are refused with a reason, sound ones come back."""

import pytest
import torch
from safetensors.torch import save_file

from alight.interop.reference import (
    _mlp_ratio,
    export_transformer,
    infer_transformer_config,
    load_transformer,
    published_state_dict,
    transformer_from_published,
    warm_start_transformer,
)
from alight.interop.torch_file import read_torch_file, select_weights
from alight.runtime.errors import InputError
from helpers.models import tiny_transformer
from helpers.pickles import Harmful

TINY = {"sample_size": 4, "in_channels": 3, "hidden_size": 16, "num_layers": 2, "num_heads": 2, "num_classes": 5}


def make_model(**options):
    return tiny_transformer(**TINY | options)


@pytest.fixture
def checkpoint(tmp_path):
    path = tmp_path / "model.pt"
    export_transformer(make_model(), path)
    return path


@pytest.mark.parametrize(
    ("options", "hints"),
    [
        ({}, {}),
        ({"patch_size": 2, "learn_sigma": True}, {}),
        ({"sample_size": (2, 6)}, {"sample_size": (2, 6)}),
        ({"rope": False, "feed_forward": "gelu", "norm": "layer_norm"}, {"num_heads": 2}),
        ({"rope": False, "qk_norm": True}, {}),
        ({"class_dropout_prob": 0.0}, {"class_dropout_prob": 0.0}),
        ({"mlp_ratio": 2.5, "adaln_shift": False}, {"mlp_ratio": 2.5}),
        ({"mlp_ratio": 2.4375, "feed_forward": "gelu"}, {}),
        ({"mlp_ratio": 3.0}, {}),
    ],
)
def test_round_trip_through_the_published_layout(options, hints, tmp_path):
    model = make_model(**options)
    export_transformer(model, tmp_path / "model.pt")
    loaded = load_transformer(tmp_path / "model.pt", **hints)
    assert loaded.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(loaded.state_dict()[name], value) for name, value in model.state_dict().items())
    again = published_state_dict(loaded)
    assert all(torch.equal(again[name], value) for name, value in published_state_dict(model).items())
    assert not list(tmp_path.glob("*.partial"))
    expected = model.arguments
    if "mlp_ratio" not in hints:  # several ratios lead to one width
        expected["mlp_ratio"] = loaded.config.mlp_ratio
    assert loaded.arguments == expected


@pytest.mark.parametrize("hidden_size", [16, 48, 1152])
def test_the_inferred_ratio_leads_back_to_every_width(hidden_size):
    for inner_size in range(1, 5 * hidden_size, 7):
        gated = int(2 / 3 * int(hidden_size * _mlp_ratio(hidden_size, inner_size, gated=True)))
        plain = int(hidden_size * _mlp_ratio(hidden_size, inner_size, gated=False))
        assert gated == plain == inner_size


def test_files_of_weights_alone_and_safetensors_are_read(checkpoint, tmp_path):
    weights = torch.load(checkpoint, weights_only=True)["ema"]
    torch.save(weights, tmp_path / "bare.pt")
    torch.save(weights, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    save_file(weights, tmp_path / "weights.safetensors")
    for name in ("bare.pt", "old.pt", "weights.safetensors"):
        model = load_transformer(tmp_path / name)
        assert torch.equal(model.patch_embed.bias, weights["x_embedder.proj.bias"])
        assert not model.training


def test_the_chosen_entry_is_taken(checkpoint, tmp_path):
    entries = torch.load(checkpoint, weights_only=True)
    entries["model"] = {f"module.{name}": value + 1 for name, value in entries["ema"].items() if "freqs" not in name}
    entries["model"] |= {f"module.{name}": value for name, value in entries["ema"].items() if "freqs" in name}
    path = tmp_path / "both.pt"
    torch.save(entries, path)
    bias = entries["ema"]["x_embedder.proj.bias"]
    assert torch.equal(load_transformer(path).patch_embed.bias, bias)
    assert torch.equal(load_transformer(path, weights="ema").patch_embed.bias, bias)
    assert torch.equal(load_transformer(path, weights="model").patch_embed.bias, bias + 1)
    entries.pop("ema")
    torch.save(entries, path)
    assert torch.equal(load_transformer(path).patch_embed.bias, bias + 1)
    with pytest.raises(InputError, match="no entry 'ema'; choose one of model"):
        load_transformer(path, weights="ema")


def test_files_that_are_no_checkpoints_are_refused(checkpoint, tmp_path):
    (tmp_path / "text.pt").write_text("weights: none\n")
    (tmp_path / "empty.pt").write_bytes(b"")
    (tmp_path / "half.pt").write_bytes(checkpoint.read_bytes()[: checkpoint.stat().st_size // 2])
    (tmp_path / "half.safetensors").write_bytes(b"\x00" * 20)
    for name in ("text.pt", "empty.pt", "half.pt", "half.safetensors"):
        with pytest.raises(InputError, match=f"{name} is not a complete"):
            load_transformer(tmp_path / name)
    with pytest.raises(InputError, match="There is no file"):
        load_transformer(tmp_path / "absent.pt")
    with pytest.raises(InputError, match="is a folder"):
        load_transformer(tmp_path)


def test_a_file_that_would_run_code_is_refused_by_the_name_of_the_code(tmp_path):
    path = tmp_path / "harmful.pt"
    for new_format in (True, False):
        torch.save({"ema": {"weight": Harmful()}}, path, _use_new_zipfile_serialization=new_format)
        with pytest.raises(InputError, match=r"would execute '(posix|os|nt)\.system'"):
            read_torch_file(path)


def test_contents_that_are_no_weights_are_refused():
    for contents in ([1, 2], {}, {"ema": {"a": 1}}, {"epoch": 3}):
        with pytest.raises(InputError, match="holds no state dict"):
            select_weights(contents)
    with pytest.raises(InputError, match="not a training checkpoint"):
        select_weights({"weight": torch.zeros(1)}, "ema")


def test_weights_that_do_not_fit_are_listed():
    published = published_state_dict(make_model())
    qkv = "blocks.0.attn.qkv.weight"
    for changes, message in (
        ({qkv: None}, "1 missing"),
        ({"head.weight": torch.zeros(1)}, r"1 unexpected \(head.weight\)"),
        ({qkv: torch.zeros(3, 16)}, r"\(3, 16\) instead of \(48, 16\)"),
        ({qkv: torch.full((48, 16), torch.nan)}, "1 not finite"),
        ({qkv: torch.full((48, 16), torch.inf)}, "1 not finite"),
        ({"feat_rope.freqs_cos": torch.zeros(16, 8)}, "rotary positions"),
        ({"x_embedder.proj.weight": None}, "not a checkpoint of a LightningDiT"),
        ({"pos_embed": torch.zeros(1, 15, 16)}, "not a square"),
    ):
        broken = {name: value for name, value in {**published, **changes}.items() if value is not None}
        with pytest.raises(InputError, match=message):
            transformer_from_published(broken, source="the file")


def test_rotary_angles_rounded_by_another_processor_come_back():
    published = published_state_dict(make_model())
    nudged = {name: published[name] + 1e-6 for name in ("feat_rope.freqs_cos", "feat_rope.freqs_sin")}
    exported = published_state_dict(transformer_from_published({**published, **nudged}))
    assert all(torch.equal(exported[name], value) for name, value in nudged.items())


def test_the_number_of_heads_is_asked_for_where_nothing_tells():
    published = published_state_dict(make_model(rope=False))
    with pytest.raises(InputError, match="give num_heads"):
        infer_transformer_config(published)
    assert infer_transformer_config(published, num_heads=2)["num_heads"] == 2


def test_another_size_is_loaded_on_request_only(checkpoint):
    with pytest.raises(InputError, match="positions='interpolate'"):
        load_transformer(checkpoint, sample_size=8)
    x, t, labels = torch.randn(1, 3, 8, 8), torch.rand(1), torch.tensor([1])
    velocities = [
        load_transformer(checkpoint, sample_size=8, positions=positions)(x, t, labels)
        for positions in ("interpolate", "extrapolate")
    ]
    assert all(velocity.shape == x.shape for velocity in velocities)
    assert not torch.allclose(*velocities, atol=1e-3)


def test_warm_start_from_another_tokenizer_and_label_set():
    model, source = make_model(in_channels=20, num_classes=9), make_model(in_channels=18)
    own = model.patch_embed.weight.shape
    kept = model.class_embed.weight.clone()
    done = warm_start_transformer(model, {**published_state_dict(source), "extra": torch.zeros(1)})
    assert model.patch_embed.weight.shape == own
    assert torch.equal(model.patch_embed.weight[:, :16], source.patch_embed.weight[:, :16])
    assert torch.equal(model.patch_embed.weight[:, 16:], torch.zeros(16, 4))
    assert torch.equal(model.class_embed.weight, kept)
    assert torch.equal(model.blocks[1].attn.qkv.weight, source.blocks[1].attn.qkv.weight)
    assert done.partly_copied == ["x_embedder.proj.weight"]
    assert set(done.kept) == {
        "y_embedder.embedding_table.weight",
        "final_layer.linear.weight",
        "final_layer.linear.bias",
    }
    assert done.unused == ["extra"]
