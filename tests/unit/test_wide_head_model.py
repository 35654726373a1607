"""The wide head of a transformer: off it changes nothing, on it has its own weights, gradients and files."""

import math

import pytest
import torch

from alight import LightningDiT
from alight.artifacts import differences
from alight.config import SampleConfig, TrainTransformerConfig, TransformerModelConfig
from alight.config.recipes import validate
from alight.interop.reference import (
    export_transformer,
    load_transformer,
    published_state_dict,
    transformer_from_published,
    warm_start_transformer,
)
from alight.interop.transformer_sources import adopt_weights, architecture_of, open_transformer
from alight.plan.untrained import LatentShape, shallower
from alight.runtime.device import narrow_weights
from alight.runtime.errors import InputError
from alight.runtime.seeding import seeded_initialisation
from alight.training.optimizer import muon_matrices
from alight.training.transformer_networks import build_model, image_flops
from helpers.models import HEAD, TRANSFORMER, tiny_transformer

DEEP = {"num_layers": 3}
SIZES = {"preset": None, "hidden_size": 16, "num_layers": 3, "num_heads": 2, "patch_size": 1}


def inputs(batch=3, size=4):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(batch, 4, size, size, generator=generator)
    return x, torch.rand(batch, generator=generator), torch.arange(batch)


@pytest.fixture
def model():
    return tiny_transformer(**DEEP, head=HEAD)


# --- the model ----------------------------------------------------------------------------------------------------


def test_off_the_model_is_what_it_was():
    with seeded_initialisation(0):
        plain = LightningDiT(**TRANSFORMER)
        after = torch.rand(1)
    with seeded_initialisation(0):
        named = LightningDiT(**TRANSFORMER, head=None)
        assert torch.equal(torch.rand(1), after)
    assert plain.arguments == named.arguments
    assert not any("head" in name or "frequencies" in name for name in plain.state_dict())
    assert plain.all_blocks == list(plain.blocks)


def test_a_fresh_model_predicts_exactly_zero():
    with seeded_initialisation(0):
        fresh = LightningDiT(**TRANSFORMER, head=HEAD)
        assert (fresh(*inputs()) == 0).all()
    assert all((block.modulation.weight == 0).all() for block in fresh.all_blocks)
    assert (fresh.wide_head.condition_proj.weight != 0).any()
    assert 0.8 < fresh.time_embed.frequencies.std() < 1.2
    assert not fresh.time_embed.frequencies.requires_grad


def test_the_head_of_an_equal_width_has_no_projection():
    model = tiny_transformer(head={"num_layers": 1, "hidden_size": 16, "num_heads": 2})
    assert model.wide_head.condition_proj is None
    assert model(*inputs()).shape == inputs()[0].shape


def test_every_weight_has_a_gradient_and_tokens_are_modulated_each_for_itself(model):
    x, t, labels = inputs()
    model(x, t, labels).square().sum().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in model.parameters())
    patches, condition = torch.randn(1, 16, 4), torch.randn(1, 16, 16)
    with torch.no_grad():
        tokens, modulation = model.wide_head(patches, condition)
        other = condition.clone()
        other[:, 5] += 1
        assert (model.wide_head(patches, other)[1] != modulation).any(-1).nonzero().tolist() == [[0, 5]]
    assert tokens.shape == modulation.shape == (1, 16, HEAD["hidden_size"])


def test_activation_checkpointing_changes_no_gradient(model):
    def gradients():
        model.zero_grad()
        model(*inputs()).square().sum().backward()
        return [parameter.grad.clone() for parameter in model.parameters()]

    plain, passes = gradients(), []
    model.enable_gradient_checkpointing()
    model.wide_head.blocks[0].attn.register_forward_hook(lambda *_: passes.append(1))
    assert all(map(torch.equal, plain, gradients()))
    assert len(passes) == 2  # once more in the backward pass


def test_an_auxiliary_output_follows_a_narrow_block():
    model = tiny_transformer(**DEEP, head=HEAD, auxiliary_block=1)
    velocity, auxiliary = model(*inputs(), auxiliary=True)
    assert velocity.shape == auxiliary.shape
    blocks = [model.blocks[1].attn.qkv.weight, model.wide_head.blocks[0].attn.qkv.weight]
    assert torch.autograd.grad(auxiliary.sum(), blocks, allow_unused=True) == (None, None)


@pytest.mark.parametrize(
    "narrow", [lambda model: narrow_weights(model, "bf16"), lambda model: model.to(torch.bfloat16)]
)
def test_frequencies_of_time_stay_float32_in_narrow_weights(model, narrow):
    embedding, t = model.time_embed, torch.rand(64, generator=torch.Generator().manual_seed(2))
    torch.nn.init.normal_(embedding.frequencies, generator=torch.Generator().manual_seed(3))
    seen: list[torch.Tensor] = []
    embedding.linear_1.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    wide = embedding(t)
    narrow(model)
    close = embedding(t)
    assert embedding.linear_1.weight.dtype == torch.bfloat16
    assert embedding.frequencies.dtype == torch.float32
    assert torch.equal(seen[1], seen[0].to(torch.bfloat16))  # of the same angles
    assert (close.float() - wide).abs().max() < 2**-6 * wide.abs().max()


def test_frequencies_of_time_are_float32_in_a_narrow_folder(model, tmp_path):
    model.save_pretrained(tmp_path)
    narrow = LightningDiT.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert torch.equal(narrow.time_embed.frequencies, model.time_embed.frequencies)
    assert model.double().time_embed.frequencies.dtype == torch.float64


def test_patches_of_several_cells_and_larger_latents():
    model = tiny_transformer(patch_size=2, head=HEAD)
    larger = model.resized(8)
    assert larger(*inputs(size=8)).shape == (3, 4, 8, 8)
    assert larger.wide_head.rope_table.shape[0] == 16
    assert torch.equal(larger.wide_head.patch_embed.weight, model.wide_head.patch_embed.weight)


@pytest.mark.parametrize(
    ("head", "complaint"),
    [
        (HEAD | {"num_layers": 0}, r"head.num_layers is 0, but must be a whole number from 1 to 1,000"),
        (HEAD | {"num_layers": 10**9}, "from 1 to 1,000"),
        (HEAD | {"num_layers": True}, "num_layers is True"),
        (HEAD | {"hidden_size": 24.0}, r"hidden_size is 24.0"),
        (HEAD | {"num_heads": 5}, r"must be a multiple of 4 \* head.num_heads = 20"),
        ({"num_layers": 2}, "give num_layers, hidden_size, num_heads"),
        (HEAD | {"num_layer": 2}, "Did you mean 'num_layers'"),
        (2, "head is 2"),
    ],
)
def test_sizes_that_are_none_are_refused(head, complaint):
    with pytest.raises(InputError, match=complaint):
        LightningDiT(**TRANSFORMER, head=head)


def test_an_interval_embedding_beside_it_is_refused():
    with pytest.raises(InputError, match="no interval embedding"):
        LightningDiT(**TRANSFORMER, head=HEAD, interval_embedding=True)


def test_folders_open_strictly(model, tmp_path):
    model.save_pretrained(tmp_path / "model")
    again = LightningDiT.from_pretrained(tmp_path / "model")
    assert again.arguments == model.arguments
    assert torch.equal(again(*inputs()), model(*inputs()))
    tiny_transformer(**DEEP).save_pretrained(tmp_path / "plain")
    (tmp_path / "model" / "config.json").write_text((tmp_path / "plain" / "config.json").read_text())
    with pytest.raises(InputError, match="unexpected"):
        LightningDiT.from_pretrained(tmp_path / "model")


def test_muon_takes_the_matrices_of_its_blocks(model):
    taken = muon_matrices(model.named_parameters(), "blocks")
    assert "wide_head.blocks.1.attn.qkv.weight" in taken
    assert not {"wide_head.patch_embed.weight", "wide_head.condition_proj.weight"} & taken


# --- configuration ------------------------------------------------------------------------------------------------


def test_the_section_gives_the_arguments_of_the_model():
    section = TransformerModelConfig(**SIZES, head=HEAD)
    config = TrainTransformerConfig(model=section)
    model = build_model(config, LatentShape((4, 4, 4), 10))
    assert model.config.head == HEAD
    assert "head" not in TransformerModelConfig(**SIZES).arguments()
    assert TransformerModelConfig(head={"num_layers": 2}).arguments()["head"] == {
        "num_layers": 2,
        "hidden_size": 2048,
        "num_heads": 16,
    }


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        ({"head": {"num_layers": 0}}, "head.num_layers"),
        ({"head": {"num_layers": 1, "hidden_size": 100}}, "not a multiple of 4"),
        ({"head": {"num_layers": 1}, "interval_embedding": True}, "wide head"),
        ({"head": {"depth": 1}}, "depth"),
    ],
)
def test_wrong_sections_are_refused(values, complaint):
    with pytest.raises(InputError, match=complaint):
        validate(TrainTransformerConfig, {"model": values}, "test")


def test_configurations_of_earlier_versions_are_the_same_run():
    train = TrainTransformerConfig().model_dump(mode="json")
    earlier = TrainTransformerConfig().model_dump(mode="json")
    del earlier["model"]["head"], earlier["flow"]["first_time"]
    assert differences(earlier, train) == []
    with_head = train | {"model": train["model"] | {"head": train["model"]["head"] | {"num_layers": 2}}}
    assert differences(earlier, with_head)
    now, before = SampleConfig().model_dump(mode="json"), SampleConfig().model_dump(mode="json")
    del before["sampling"]["last_time"]
    assert differences(before, now) == []


def test_plans_count_the_head():
    """The published XL: 28 blocks of width 1152, two of 2048, latents of 768 channels."""
    recipe = TrainTransformerConfig(model={"preset": "LightningDiT-XL/1", "head": {"num_layers": 2}})
    latents = LatentShape((768, 16, 16), 1000)

    def count(config):
        with torch.device("meta"):
            return sum(parameter.numel() for parameter in build_model(config, latents).parameters())

    plain = TrainTransformerConfig(model={"preset": "LightningDiT-XL/1"})
    width, narrow, inner = 2048, 1152, int(2 / 3 * 4 * 2048)
    block = 4 * width**2 + 4 * width + 3 * width * inner + 2 * inner + width  # attention, SwiGLU
    block += 2 * width + 6 * (width**2 + width)  # norms, modulation
    head = 2 * block + (768 + 1) * width + (narrow + 1) * width
    output = lambda w: w + (w + 1) * 768 + 2 * (w**2 + w)  # noqa: E731
    frequencies = 256 * narrow  # twice as many sinusoids
    assert count(recipe) - count(plain) == head + output(width) - output(narrow) + frequencies
    shallow = shallower(recipe, 2)
    assert shallow.model.head.num_layers == 2
    assert image_flops(recipe, latents) > image_flops(plain, latents) * 1.1


# --- other beginnings ---------------------------------------------------------------------------------------------


def test_training_starts_from_a_model_with_a_head_and_keeps_it(model, tmp_path):
    model.save_pretrained(tmp_path / "origin")
    origin = open_transformer(tmp_path / "origin")
    section = architecture_of(origin.model, TransformerModelConfig(), "here")
    assert section == TransformerModelConfig(**SIZES, head=HEAD)
    target = build_model(TrainTransformerConfig(model=section), LatentShape((4, 4, 4), 10))
    adopt_weights(target, origin)
    assert torch.equal(target.eval()(*inputs()), model(*inputs()))
    with pytest.raises(InputError, match="head .* -> None"):
        architecture_of(origin.model, TransformerModelConfig(**SIZES), "here")
    with pytest.raises(InputError, match="head None -> "):
        architecture_of(tiny_transformer(**DEEP), section, "here")


# --- published files ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "hints"),
    [
        ({}, {}),
        ({"qk_norm": True, "rope": False}, {}),
        ({"patch_size": 2, "adaln_shift": False, "feed_forward": "gelu", "norm": "layer_norm"}, {}),
        ({"head": {"num_layers": 1, "hidden_size": 16, "num_heads": 4}}, {}),  # as wide, recorded by the export
    ],
)
def test_round_trip_through_the_published_layout(options, hints, tmp_path):
    model = tiny_transformer(**DEEP | {"head": HEAD} | options)
    export_transformer(model, tmp_path / "model.pt")
    again = load_transformer(tmp_path / "model.pt", **hints)
    assert again.arguments == model.arguments
    assert all(torch.equal(again.state_dict()[name], value) for name, value in model.state_dict().items())
    published = published_state_dict(model)
    assert torch.equal(published["final_layer.linear.weight"], -model.output_layer.proj.weight)
    assert f"blocks.{2 + model.config.head['num_layers']}.attn.qkv.weight" in published


def test_files_that_lack_something_are_refused(model):
    published = published_state_dict(model)
    without = lambda part: {name: value for name, value in published.items() if part not in name}  # noqa: E731
    for part, complaint in {
        "pos_embed": "no 'pos_embed'",
        "s_projector.bias": "1 missing",
        "dec_feat_rope": "number of attention heads of its wide head",
        "enc_feat_rope": "number of attention heads",
        "blocks.3.": "incomplete checkpoint",
        "t_embedder.W": r"1 missing \(time_embed.frequencies\)",
    }.items():
        with pytest.raises(InputError, match=complaint):
            transformer_from_published(without(part), source="the file")
    with pytest.raises(InputError, match=r"1 unexpected \(x_pos_embed\)"):
        transformer_from_published(published | {"x_pos_embed": torch.zeros(1)}, source="the file")
    with pytest.raises(InputError, match="auxiliary output, a layout that is unknown"):
        transformer_from_published(published | {"final_layer_xr.linear.bias": torch.zeros(4)}, source="the file")
    with pytest.raises(InputError, match="the file has no wide head"):
        transformer_from_published(published_state_dict(tiny_transformer()), source="the file", head=HEAD)


def test_a_head_as_wide_as_the_other_blocks_is_asked_for():
    sizes = {"num_layers": 1, "hidden_size": 16, "num_heads": 2}
    published = published_state_dict(tiny_transformer(**DEEP, head=sizes))
    with pytest.raises(InputError, match="Give its sizes"):
        transformer_from_published(published, source="the file")
    assert len(transformer_from_published(published, head=sizes).blocks) == DEEP["num_layers"]


def test_what_the_published_code_does_not_know_is_not_written(model):
    with pytest.raises(InputError, match="no auxiliary output, which this one has too"):
        published_state_dict(tiny_transformer(**DEEP, head=HEAD, auxiliary_block=1))
    with pytest.raises(InputError, match="init_from"):
        warm_start_transformer(model, {})


def test_the_time_embedding_has_the_published_angles(model):
    """Sines first, of 2 pi W times noise time; at t = 1, data, all angles are zero."""
    seen = []
    model.time_embed.linear_1.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    t = torch.tensor([1.0, 0.25])
    model.time_embed(t)
    sines, cosines = seen[0].chunk(2, dim=-1)
    assert (sines[0] == 0).all()
    assert (cosines[0] == 1).all()
    expected = 2 * math.pi * 0.75 * model.time_embed.frequencies
    torch.testing.assert_close(sines[1], expected.sin())
    torch.testing.assert_close(cosines[1], expected.cos())
