"""The auxiliary output of a transformer: off it changes nothing, on it has its own weights, gradients and files."""

import pytest
import torch

from alight import LightningDiT
from alight.artifacts import differences
from alight.config import FlowConfig, SampleConfig, TrainTransformerConfig, TransformerModelConfig, TuneConfig
from alight.interop.reference import (
    export_transformer,
    load_transformer,
    published_state_dict,
    transformer_from_published,
    warm_start_transformer,
)
from alight.interop.transformer_sources import OpenTransformer, adopt_weights, architecture_of, open_transformer
from alight.plan.untrained import shallower
from alight.runtime.errors import InputError
from alight.runtime.seeding import seeded_initialisation
from alight.training.transformer_step import TransformerBatch, transformer_backward
from helpers.models import TRANSFORMER, tiny_transformer

DEEP = {"num_layers": 4}


def inputs(batch=3):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(batch, 4, 4, 4, generator=generator)
    return x, torch.rand(batch, generator=generator), torch.arange(batch)


@pytest.fixture
def model():
    return tiny_transformer(**DEEP, auxiliary_block=2)


# --- the model ----------------------------------------------------------------------------------------------------


def test_off_the_model_is_what_it_was():
    """The same names, random numbers and outputs: the common weights of a model with the output give its velocity."""
    with seeded_initialisation(0):
        plain = LightningDiT(**TRANSFORMER | DEEP)
        after = torch.rand(1)
    with seeded_initialisation(0):
        named = LightningDiT(**TRANSFORMER | DEEP, auxiliary_block=None)
        assert torch.equal(torch.rand(1), after)
    assert plain.arguments == named.arguments
    assert not plain.has_auxiliary_output
    assert not any("auxiliary" in name for name in plain.state_dict())
    with seeded_initialisation(0):
        twin = LightningDiT(**TRANSFORMER | DEEP, auxiliary_block=1)
    extra = set(twin.state_dict()) - set(plain.state_dict())
    assert extra
    assert all(name.startswith("auxiliary_layer.") for name in extra)


def test_both_outputs_come_from_one_evaluation(model):
    passes = []
    model.blocks[0].register_forward_hook(lambda *_: passes.append(1))
    with torch.no_grad():
        velocity, auxiliary = model(*inputs(), auxiliary=True)
        assert passes == [1]
        assert torch.equal(model(*inputs()), velocity)
        tapped_velocity, tapped_auxiliary, tokens = model(*inputs(), at=(0, 2), auxiliary=True)
        assert torch.equal(tapped_velocity, velocity)
        assert torch.equal(tapped_auxiliary, auxiliary)
        assert list(tokens) == [0, 2]
        assert list(model(*inputs(), at=(1,), auxiliary=True)[2]) == [1]
    assert velocity.shape == auxiliary.shape == inputs()[0].shape
    assert not torch.allclose(velocity, auxiliary, atol=1e-2)


def test_the_output_sees_the_blocks_before_it_and_none_after(model):
    velocity, auxiliary = model(*inputs(), auxiliary=True)
    blocks = [block.attn.qkv.weight for block in model.blocks]
    of_auxiliary = torch.autograd.grad(auxiliary.square().sum(), blocks, allow_unused=True, retain_graph=True)
    assert [gradient is not None for gradient in of_auxiliary] == [True, True, False, False]
    assert all(gradient is not None for gradient in torch.autograd.grad(velocity.square().sum(), blocks))


def test_only_the_final_output_is_zero_at_first():
    with seeded_initialisation(0):
        fresh = LightningDiT(**TRANSFORMER | DEEP, auxiliary_block=2)
        velocity, auxiliary = fresh(*inputs(), auxiliary=True)
    assert (velocity == 0).all()
    assert (auxiliary != 0).any()
    layer, width = fresh.auxiliary_layer, TRANSFORMER["hidden_size"]
    for linear, fan_out in ((layer.proj, TRANSFORMER["in_channels"]), (layer.modulation, 2 * width)):
        bound = (6 / (width + fan_out)) ** 0.5  # Xavier
        assert (linear.bias == 0).all()
        assert 0.8 * bound < linear.weight.abs().max() <= bound
    assert (layer.norm.weight == 1).all()


def test_activation_checkpointing_changes_no_gradient(model):
    def gradients():
        model.zero_grad()
        sum(output.square().sum() for output in model(*inputs(), auxiliary=True)).backward()
        return [parameter.grad.clone() for parameter in model.parameters()]

    plain = gradients()
    model.enable_gradient_checkpointing()
    assert all(map(torch.equal, plain, gradients()))


@pytest.mark.parametrize("block", [0, 4, -1, 28, True, 1.5, "2"])
def test_a_block_that_does_not_exist_is_refused_with_those_that_do(block):
    with pytest.raises(InputError, match="from 1 to 3"):
        LightningDiT(**TRANSFORMER | DEEP, auxiliary_block=block)
    with pytest.raises(InputError, match="at least two blocks"):
        LightningDiT(**TRANSFORMER, auxiliary_block=1)


def test_a_model_without_the_output_says_so():
    with pytest.raises(InputError, match=r"auxiliary_block is null.*internal_scale"):
        tiny_transformer()(*inputs(), auxiliary=True)


def test_files_open_strictly_with_and_without(model, tmp_path):
    plain = tiny_transformer(**DEEP)
    for name, each in (("with", model), ("without", plain)):
        each.save_pretrained(tmp_path / name)
        again = LightningDiT.from_pretrained(tmp_path / name)
        assert again.arguments == each.arguments
        assert all(torch.equal(value, again.state_dict()[key]) for key, value in each.state_dict().items())
    config = {name: (tmp_path / name / "config.json").read_text() for name in ("with", "without")}
    for name, other, complaint in (("with", "without", "5 unexpected"), ("without", "with", "5 missing")):
        (tmp_path / name / "config.json").write_text(config[other])
        with pytest.raises(InputError, match=complaint):
            LightningDiT.from_pretrained(tmp_path / name)


def test_a_resized_model_keeps_it(model):
    larger = model.resized(8)
    assert larger.config.auxiliary_block == 2
    assert torch.equal(larger.auxiliary_layer.proj.weight, model.auxiliary_layer.proj.weight)


# --- training -----------------------------------------------------------------------------------------------------


def test_a_step_trains_both_outputs_and_logs_both_errors(model):
    x, t, labels = inputs(4)
    batch = TransformerBatch(x, labels, t, torch.randn(x.shape, generator=torch.Generator().manual_seed(2)), labels)
    terms = transformer_backward(model, batch, FlowConfig())
    expected = terms["mse"] + terms["cosine"] + 0.5 * terms["auxiliary"]
    torch.testing.assert_close(terms["loss"], expected)
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert model.auxiliary_layer.proj.weight.grad.abs().sum() > 0
    model.zero_grad()
    assert transformer_backward(model, batch, FlowConfig(auxiliary_weight=0.0))["loss"] < terms["loss"]
    assert all((parameter.grad == 0).all() for parameter in model.auxiliary_layer.parameters())
    assert set(transformer_backward(tiny_transformer(**DEEP), batch, FlowConfig())) == {"loss", "mse", "cosine"}


def test_the_configuration_names_the_blocks_where_it_knows_their_number():
    sizes = {"preset": None, "hidden_size": 32, "num_layers": 4, "num_heads": 2, "patch_size": 1}
    assert TransformerModelConfig(**sizes, auxiliary_block=3).auxiliary_block == 3
    for block in (0, 4):
        with pytest.raises(ValueError, match=f"auxiliary_block {block}.*give 1 to 3"):
            TransformerModelConfig(**sizes, auxiliary_block=block)


def test_configurations_of_earlier_versions_are_the_same_run():
    train = TrainTransformerConfig().model_dump(mode="json")
    earlier = TrainTransformerConfig().model_dump(mode="json")
    del earlier["model"]["auxiliary_block"], earlier["flow"]["auxiliary_weight"]
    assert differences(earlier, train) == []
    with_output = train | {"model": train["model"] | {"auxiliary_block": 4}}
    assert differences(earlier, with_output) == ["model.auxiliary_block: None -> 4"]
    for config in (SampleConfig(), TuneConfig()):
        now = config.model_dump(mode="json")
        before = config.model_dump(mode="json", exclude={"guide_checkpoint", "internal_scales", "internal_intervals"})
        for name in ("internal_scale", "internal_interval"):
            del before.get("draw", before)["sampling"][name]
        assert differences(before, now) == []


def test_a_shallower_stand_in_keeps_an_output():
    recipe = TrainTransformerConfig(model={"preset": "LightningDiT-XL/1", "auxiliary_block": 8})
    assert [shallower(recipe, layers).model.auxiliary_block for layers in (2, 4, 28)] == [1, 3, 8]


# --- other beginnings ---------------------------------------------------------------------------------------------


def opened(model, tmp_path):
    model.save_pretrained(tmp_path / "origin")
    return open_transformer(tmp_path / "origin")


def test_a_trained_transformer_can_be_given_an_output(tmp_path, caplog):
    caplog.set_level("INFO", logger="alight")
    origin = opened(tiny_transformer(**DEEP), tmp_path)
    own = {"preset": None, **{name: origin.model.config[name] for name in ("hidden_size", "num_layers", "num_heads")}}
    wanted = TransformerModelConfig(**own, patch_size=1, auxiliary_block=2)
    assert architecture_of(origin.model, wanted, "here") == wanted
    model = tiny_transformer(seed=5, **DEEP, auxiliary_block=2)
    fresh = model.auxiliary_layer.proj.weight.clone()
    adopt_weights(model, origin)
    assert torch.equal(model.auxiliary_layer.proj.weight, fresh)
    assert torch.equal(model(*inputs()), origin.model(*inputs()))
    assert "begins with new weights" in caplog.text


def test_of_outputs_with_a_variance_the_velocities_are_taken(tmp_path):
    origin = opened(tiny_transformer(**DEEP, auxiliary_block=2, learn_sigma=True), tmp_path)
    model = tiny_transformer(seed=5, **DEEP, auxiliary_block=2)
    adopt_weights(model, origin)
    for found, expected in zip(model(*inputs(), auxiliary=True), origin.model(*inputs(), auxiliary=True), strict=True):
        torch.testing.assert_close(found, expected)


def test_the_output_of_the_origin_is_kept_and_not_moved(model, tmp_path):
    origin = opened(model, tmp_path)
    assert architecture_of(origin.model, TransformerModelConfig(), "here").auxiliary_block == 2
    target = tiny_transformer(seed=5, **DEEP, auxiliary_block=2)
    adopt_weights(target, OpenTransformer(origin.model, origin.artifact))
    assert all(map(torch.equal, target(*inputs(), auxiliary=True), model(*inputs(), auxiliary=True)))
    own = {"preset": None, **{name: model.config[name] for name in ("hidden_size", "num_layers", "num_heads")}}
    for other in (None, 3):
        wanted = TransformerModelConfig(**own, patch_size=1, auxiliary_block=other)
        with pytest.raises(InputError, match=f"auxiliary_block 2 -> {other}"):
            architecture_of(model, wanted, "here")


# --- published files ----------------------------------------------------------------------------------------------


def test_published_layout_and_back(model, tmp_path):
    published = published_state_dict(model)
    names = [name for name in published if name.startswith("final_layer")]
    assert len(names) == 10
    assert [name.startswith("final_layer_xr.") for name in names] == [True] * 5 + [False] * 5
    export_transformer(model, tmp_path / "model.pt")
    again = load_transformer(tmp_path / "model.pt")
    assert again.arguments == model.arguments
    assert all(map(torch.equal, again(*inputs(), auxiliary=True), model(*inputs(), auxiliary=True)))


def test_the_positions_are_taken_from_the_weights(model):
    """The published training lets them decay, so they are not what the formula gives."""
    published = published_state_dict(model)
    published["pos_embed"] = 0.5 * published["pos_embed"]
    again = transformer_from_published(published, auxiliary_block=2)
    assert torch.equal(again.pos_embed, 0.5 * model.pos_embed)


def test_the_block_is_asked_for_and_refused_where_there_is_none(model):
    published = published_state_dict(model)
    with pytest.raises(InputError, match=r"the file has an auxiliary output.*--auxiliary-block"):
        transformer_from_published(published, source="the file")
    with pytest.raises(InputError, match="from 1 to 3"):
        transformer_from_published(published, source="the file", auxiliary_block=4)
    without = {name: value for name, value in published.items() if "_xr" not in name}
    with pytest.raises(InputError, match="the file has no auxiliary output"):
        transformer_from_published(without, source="the file", auxiliary_block=2)
    del published["final_layer_xr.linear.bias"]
    with pytest.raises(InputError, match=r"1 missing \(auxiliary_layer.proj.bias\)"):
        transformer_from_published(published, source="the file", auxiliary_block=2)


def test_a_recorded_depth_of_another_method_is_no_block(tmp_path):
    """Forks with other losses record a depth under the same name."""
    weights = published_state_dict(tiny_transformer(**DEEP))
    torch.save({"ema": weights, "config": {"model": {"encoder_depth": 2}}}, tmp_path / "model.pt")
    assert load_transformer(tmp_path / "model.pt").config.auxiliary_block is None


def test_a_warm_start_takes_the_output_too(model):
    target = tiny_transformer(seed=5, **DEEP, auxiliary_block=2)
    done = warm_start_transformer(target, published_state_dict(model))
    assert sum(name.startswith("final_layer_xr.") for name in done.copied) == 5
    assert not done.kept
