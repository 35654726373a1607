"""The transformer as a user meets it: shapes, options, folders, mistakes."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from alight.models import PRESETS, LightningDiT, drop_labels, validate_class_labels
from alight.runtime.errors import InputError
from helpers.models import randomise
from helpers.written import WEIGHTS

TINY = {
    "sample_size": 4,
    "in_channels": 3,
    "hidden_size": 16,
    "num_layers": 2,
    "num_heads": 2,
    "num_classes": 5,
}
VARIANTS = {
    "default": {},
    "patch 2": {"patch_size": 2},
    "not square": {"sample_size": (2, 6)},
    "dit": {"norm": "layer_norm", "feed_forward": "gelu", "rope": False},
    "query norm": {"qk_norm": True},
    "query layer norm": {"qk_norm": True, "norm": "layer_norm"},
    "no shift": {"adaln_shift": False},
    "learned variance": {"learn_sigma": True},
    "stretched positions": {"sample_size": 8, "trained_size": 4},
    "no null class": {"class_dropout_prob": 0.0},
}


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def random_model(**options):
    """A model whose weights are all random, the gates included: a fresh one predicts zero whatever it is given."""
    return randomise(LightningDiT(**TINY | options))


def inputs(model, batch_size=2):
    height, width = (side * model.config.patch_size for side in model.grid)
    labels = torch.arange(batch_size) % model.config.num_classes
    return torch.randn(batch_size, model.config.in_channels, height, width), torch.rand(batch_size), labels


@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)
def test_every_variant_predicts_learns_and_comes_back_from_disk(options, tmp_path):
    model = random_model(**options)
    x, t, labels = inputs(model)
    velocity = model(x, t, labels)
    assert velocity.shape == x.shape
    velocity.square().mean().backward()
    for name, parameter in model.named_parameters():
        assert torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.abs().sum() > 0, name

    model.pos_embed.add_(0.1)  # as in a checkpoint whose positions are not those of our formula
    expected = model(x, t, labels)
    assert not torch.equal(expected, velocity)
    model.save_pretrained(tmp_path)
    for loading in ({}, {"torch_dtype": torch.float32, "low_cpu_mem_usage": False}):
        loaded = LightningDiT.from_pretrained(tmp_path, **loading)
        assert torch.equal(loaded(x, t, labels), expected)


@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)
def test_gradient_checkpointing_changes_memory_and_nothing_else(options, monkeypatch):
    model = random_model(**options)
    x, t, labels = inputs(model)
    expected = model(x, t, labels)
    gradients = torch.autograd.grad(expected.square().mean(), list(model.parameters()))
    model.enable_gradient_checkpointing()
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor.numel()) or tensor, lambda x: x):
        velocity = model(x, t, labels)
    saved_with = sum(kept)
    repeated = torch.autograd.grad(velocity.square().mean(), list(model.parameters()))
    model.disable_gradient_checkpointing()
    kept.clear()
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor.numel()) or tensor, lambda x: x):
        model(x, t, labels)
    assert saved_with < sum(kept) / 2
    assert torch.equal(velocity, expected)
    for once, again in zip(gradients, repeated, strict=True):
        assert torch.allclose(once, again, rtol=1e-5, atol=1e-7)


def test_samples_of_a_batch_do_not_see_each_other():
    model = random_model()
    x, t, labels = inputs(model, batch_size=3)
    together = model(x, t, labels)
    alone = torch.cat([model(*(part[i : i + 1] for part in (x, t, labels))) for i in range(3)])
    assert torch.allclose(together, alone, atol=1e-5)  # other matrix shapes, other order of summation


def test_time_class_and_place_all_matter():
    model = random_model()
    x, t, labels = inputs(model)
    velocity = model(x, t, labels)
    assert not torch.allclose(model(x, t + 0.1, labels), velocity, atol=1e-3)
    assert not torch.allclose(model(x, t, labels + 1), velocity, atol=1e-3)
    assert not torch.allclose(model(x.flip(-1), t, labels).flip(-1), velocity, atol=1e-3)


def test_first_velocity_is_zero_and_seeds_decide_the_weights():
    model = LightningDiT(**TINY)
    x, t, labels = inputs(model)
    assert torch.equal(model(x, t, labels), torch.zeros_like(x))
    model.init_weights(torch.Generator().manual_seed(1))
    first = model.state_dict()["blocks.0.attn.qkv.weight"].clone()
    model.init_weights(torch.Generator().manual_seed(2))
    assert not torch.equal(model.state_dict()["blocks.0.attn.qkv.weight"], first)
    model.init_weights(torch.Generator().manual_seed(1))
    assert torch.equal(model.state_dict()["blocks.0.attn.qkv.weight"], first)


def test_weights_drawn_after_building_without_memory_are_complete():
    with torch.device("meta"):
        model = LightningDiT(**TINY, qk_norm=True)
    model.to_empty(device="cpu")
    for tensor in [*model.parameters(), *model.buffers()]:
        tensor.data.fill_(torch.nan)
    model.init_weights()
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        assert torch.isfinite(tensor).all(), name


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_velocity_has_the_dtype_of_the_latents(dtype):
    model = random_model()
    x, t, labels = inputs(model)
    expected = model(x, t, labels)
    narrow = model.to(torch.bfloat16)(x.to(dtype), t, labels)
    assert narrow.dtype == dtype
    # A few roundings of 0.4 % add up over the layers.
    assert (narrow.float() - expected).norm() < 0.05 * expected.norm()


def test_presets_are_built_by_name():
    assert len(PRESETS) == 12
    for name, preset in PRESETS.items():
        with torch.device("meta"):
            model = LightningDiT.from_preset(name, num_classes=7, in_channels=4)
        assert model.config.patch_size == preset.patch_size == int(name[-1])
        assert len(model.blocks) == preset.num_layers
        assert model.null_label == 7
    with torch.device("meta"):
        model = LightningDiT.from_preset("LightningDiT-XL/1")
    # The paper's 675M model, positions included.
    assert sum(parameter.numel() for parameter in model.parameters()) + model.pos_embed.numel() == 675_256_736
    with pytest.raises(InputError, match="LightningDiT-XL/1"):
        LightningDiT.from_preset("LightningDiT-XXL/1")


def test_another_size_keeps_the_weights():
    model = random_model()
    model.pos_embed.add_(0.1)
    x, t, labels = inputs(model)
    assert torch.allclose(model.resized(4)(x, t, labels), model(x, t, labels), atol=1e-5)  # the same size
    larger = model.resized((4, 8))
    assert larger.config.trained_size == 4
    assert larger(torch.randn(2, 3, 4, 8), t, labels).shape == (2, 3, 4, 8)
    assert torch.equal(larger.blocks[1].attn.qkv.weight, model.blocks[1].attn.qkv.weight)
    assert larger.pos_embed.mean() == pytest.approx(model.pos_embed.mean().item(), abs=0.02)  # the added 0.1 is there
    on = model.resized(8, positions="extrapolate")
    assert torch.equal(on.rope_table.view(8, 8, 4, 2)[:4, :4].flatten(0, 1), model.rope_table)
    assert not torch.equal(model.resized(8).rope_table, on.rope_table)


def test_dropped_labels_become_the_null_class():
    labels = torch.arange(10_000) % 5
    dropped = drop_labels(labels, 0.1, null_label=5, generator=torch.Generator().manual_seed(0))
    rate = (dropped == 5).float().mean().item()
    assert rate == pytest.approx(0.1, abs=4 * (0.09 / 10_000) ** 0.5)  # four standard deviations
    assert torch.equal(dropped[dropped != 5], labels[dropped != 5])
    again = drop_labels(labels, 0.1, null_label=5, generator=torch.Generator().manual_seed(0))
    assert torch.equal(dropped, again)
    u = torch.tensor([0.0, 0.0999, 0.1, 0.9])
    assert LightningDiT(**TINY).drop_labels(torch.tensor([1, 2, 3, 4]), u=u).tolist() == [5, 5, 3, 4]


def test_model_without_null_class():
    model = LightningDiT(**TINY, class_dropout_prob=0.0)
    labels = torch.tensor([1, 2])
    assert model.class_embed.num_embeddings == 5
    assert torch.equal(model.drop_labels(labels, u=torch.zeros(2)), labels)
    with pytest.raises(InputError, match="no null class"):
        _ = model.null_label


def test_labels_out_of_range_are_named():
    validate_class_labels(torch.tensor([0, 5]), num_classes=5)
    validate_class_labels(torch.empty(0, dtype=torch.int64), num_classes=5)
    for labels, options, message in (
        ([0, 6], {}, "6 is out of range"),
        ([-1, 2], {}, "-1 is out of range"),
        ([5], {"null_allowed": False}, "5 is out of range"),
        ([1.0], {}, "must be integers"),
    ):
        with pytest.raises(InputError, match=message):
            validate_class_labels(torch.tensor(labels), num_classes=5, **options)


def test_shapes_that_do_not_fit_are_named():
    model = LightningDiT(**TINY)
    x, t, labels = inputs(model)
    for given in (x[:, :2], x[..., :3], x[0], torch.randn(2, 3, 8, 8)):
        with pytest.raises(InputError, match=r"\(batch, 3, 4, 4\)"):
            model(given, t, labels)
    for times, classes in ((t[:1], labels), (t, labels[:1]), (t[0], labels), (t, labels[:, None])):
        with pytest.raises(InputError, match=r"each of shape \(2,\)"):
            model(x, times, classes)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hidden_size": 12}, "multiple of 4"),
        ({"sample_size": 5, "patch_size": 2}, "5x5 cannot be cut"),
        ({"sample_size": 0}, "0x0 cannot be cut"),
        ({"norm": "batch_norm"}, "rms_norm, layer_norm"),
        ({"feed_forward": "relu"}, "swiglu, gelu"),
        ({"class_dropout_prob": 1.0}, "class_dropout_prob"),
        ({"num_heads": 0}, "num_heads is 0"),
    ],
)
def test_sizes_that_do_not_fit_are_named(options, message):
    with pytest.raises(InputError, match=message):
        LightningDiT(**{**TINY, **options})


@pytest.mark.parametrize(
    "loading", [{}, {"torch_dtype": torch.float32, "low_cpu_mem_usage": False}], ids=["ours", "diffusers"]
)
def test_a_folder_with_a_missing_weight_is_refused(tmp_path, loading):
    random_model().save_pretrained(tmp_path)
    weights_file = tmp_path / WEIGHTS
    weights = load_file(weights_file)
    weights.pop("blocks.1.attn.qkv.bias")
    save_file(weights, weights_file, metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"blocks\.1\.attn\.qkv\.bias"):
        LightningDiT.from_pretrained(tmp_path, **loading)


def test_a_saved_folder_describes_itself(tmp_path):
    random_model(sample_size=(2, 6)).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["_class_name"] == "LightningDiT"
    assert {name: config[name] for name in TINY} == {**TINY, "sample_size": [2, 6]}
    assert "rope_table" not in load_file(tmp_path / WEIGHTS)


# --- hidden tokens ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("checkpointing", [False, True])
def test_hidden_tokens_are_those_between_the_blocks(checkpointing):
    model = random_model(num_layers=3)
    x, t, labels = inputs(model)
    if checkpointing:
        model.enable_gradient_checkpointing()
    seen = {}
    for number, block in enumerate(model.blocks, start=1):
        block.register_forward_hook(lambda _, __, output, number=number: seen.setdefault(number, output))
    features = model.forward_features(x, t, labels, at=(0, 1, 3))
    assert set(features.tapped) == {0, 1, 3}
    for number in (1, 3):
        assert torch.equal(features.tapped[number], seen[number])
    assert torch.equal(features.tokens, seen[3])
    assert features.tapped[0].shape == features.tokens.shape == (2, 16, 16)
    assert features.condition.shape == (2, 16)


def test_the_call_gives_tapped_tokens_beside_the_same_velocity():
    model = random_model(num_layers=3)
    given = inputs(model)
    velocity, tapped = model(*given, at=(1, 3))
    assert torch.equal(velocity, model(*given))
    expected = model.forward_features(*given, at=(1, 3)).tapped
    assert set(tapped) == {1, 3}
    assert all(torch.equal(tapped[number], expected[number]) for number in tapped)


def test_a_loss_on_hidden_tokens_teaches_the_blocks_before_them_alone():
    model = random_model(num_layers=3)
    features = model.forward_features(*inputs(model), at=(2,))
    features.tapped[2].square().mean().backward()
    taught = [block.modulation.weight.grad is not None for block in model.blocks]
    assert taught == [True, True, False]


@pytest.mark.parametrize("number", [-1, 3])
def test_a_block_that_does_not_exist_cannot_be_tapped(number):
    model = random_model()
    with pytest.raises(InputError, match="2 blocks"):
        model.forward_features(*inputs(model), at=(number,))
