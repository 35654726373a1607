"""The interval embedding of a transformer: off it changes nothing, fresh it changes no output, and it is kept."""

import pytest
import torch

from alight import LightningDiT
from alight.artifacts import differences
from alight.config import FlowConfig, TrainTransformerConfig, TransformerModelConfig
from alight.interop.reference import export_transformer
from alight.interop.transformer_sources import adopt_weights, architecture_of, open_transformer
from alight.runtime.errors import InputError
from alight.runtime.seeding import seeded_initialisation
from alight.training.transformer_networks import require_average_velocities
from alight.training.transformer_step import TransformerBatch, draw_steps, draw_times, transformer_backward
from helpers.models import TRANSFORMER, tiny_transformer

AVERAGES = FlowConfig(objective="average_velocity")


def inputs(batch=4):
    generator = torch.Generator().manual_seed(1)
    return (
        torch.randn(batch, 4, 4, 4, generator=generator),
        torch.rand(batch, generator=generator),
        torch.arange(batch),
    )


def drawn(batch=8, null=()):
    x_1, t, labels = inputs(batch)
    generator = torch.Generator().manual_seed(2)
    t, until = draw_steps(FlowConfig(average_velocity={"equal_times": 0.5}), 0, t, generator)
    labels[list(null)] = 10
    x_0, long = torch.randn(x_1.shape, generator=generator), tuple((until != t).tolist())
    return TransformerBatch(x_1, labels, t, x_0, labels, until=until, long=long)


# --- the model ----------------------------------------------------------------------------------------------------


def test_off_the_model_is_what_it_was():
    with seeded_initialisation(0):
        plain = LightningDiT(**TRANSFORMER)
        after = torch.rand(1)
    with seeded_initialisation(0):
        named = LightningDiT(**TRANSFORMER, interval_embedding=False)
        assert torch.equal(torch.rand(1), after)
    assert plain.arguments == named.arguments
    assert not plain.has_interval_embedding
    extra = set(LightningDiT(**TRANSFORMER, interval_embedding=True).state_dict()) - set(plain.state_dict())
    assert extra
    assert all(name.startswith("interval_embed.") for name in extra)


def test_a_fresh_embedding_is_zero_for_steps_of_any_length(tmp_path):
    """A transformer that is given one starts as it was, to the bit."""
    tiny_transformer().save_pretrained(tmp_path / "origin")
    origin = open_transformer(tmp_path / "origin")
    wanted = architecture_of(origin.model, TransformerModelConfig(interval_embedding=True), "here")
    sizes = ("hidden_size", "num_layers", "num_heads", "patch_size")
    assert [getattr(wanted, name) for name in sizes] == [origin.model.config[name] for name in sizes]
    assert wanted.interval_embedding
    model = LightningDiT(**TRANSFORMER, interval_embedding=True).eval()
    adopt_weights(model, origin)
    x, t, labels = inputs()
    with torch.no_grad():
        expected = origin.model(x, t, labels)
        assert torch.equal(model(x, t, labels), expected)
        assert torch.equal(model(x, t, labels, until=t), expected)
        assert torch.equal(model(x, t, labels, until=torch.ones(4)), expected)


def test_the_length_of_a_step_counts_once_it_has_weights():
    model, (x, t, labels) = tiny_transformer(interval_embedding=True), inputs()
    with torch.no_grad():
        assert torch.equal(model(x, t, labels), model(x, t, labels, until=t))
        assert not torch.allclose(model(x, t, labels), model(x, t, labels, until=torch.ones(4)), atol=1e-3)


def test_the_embedding_is_stored_and_taken_on(tmp_path):
    model = tiny_transformer(interval_embedding=True)
    model.save_pretrained(tmp_path / "origin")
    origin = open_transformer(tmp_path / "origin")
    assert architecture_of(origin.model, TransformerModelConfig(), "here").interval_embedding
    again = tiny_transformer(seed=5, interval_embedding=True)
    adopt_weights(again, origin)
    x, t, labels = inputs()
    until = torch.ones(4)
    assert torch.equal(again(x, t, labels, until=until), model(x, t, labels, until=until))
    larger = model.resized(8)
    assert larger.has_interval_embedding
    own = {"preset": None, **{name: model.config[name] for name in ("hidden_size", "num_layers", "num_heads")}}
    with pytest.raises(InputError, match="interval_embedding True -> False"):
        architecture_of(model, TransformerModelConfig(**own, patch_size=1), "here")


def test_models_without_it_say_so(tmp_path):
    x, t, labels = inputs()
    with pytest.raises(InputError, match=r"interval embedding.*another solver than mean"):
        tiny_transformer()(x, t, labels, until=t)
    with pytest.raises(InputError, match=r"--model\.interval-embedding True"):
        require_average_velocities(tiny_transformer())
    with pytest.raises(InputError, match="auxiliary output"):
        require_average_velocities(tiny_transformer(num_layers=2, auxiliary_block=1, interval_embedding=True))
    with pytest.raises(InputError, match="published layout"):
        export_transformer(tiny_transformer(interval_embedding=True), tmp_path / "model.pt")


# --- training -----------------------------------------------------------------------------------------------------


def test_steps_are_drawn_forwards_and_as_often_without_length_as_told():
    generator, count = torch.Generator().manual_seed(0), 20_000
    times = draw_times(AVERAGES, 0, count, generator)
    t, until = draw_steps(AVERAGES, 0, times, generator)
    assert (t <= until).all()
    equal = t == until
    assert equal.float().mean().item() == pytest.approx(0.75, abs=0.015)
    assert torch.equal(t[equal], times[equal])
    for share, expected in ((0.0, 0), (1.0, count)):
        flow = FlowConfig(average_velocity={"equal_times": share})
        t, until = draw_steps(flow, 0, times, generator)
        assert int((t == until).sum()) == expected


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_a_step_reaches_every_weight(precision, scale):
    """Passes without gradient come first; what autocast keeps of them must not stand in for the weights."""
    model, batch = tiny_transformer(interval_embedding=True, num_layers=2), drawn(null=(3,))
    flow = FlowConfig(objective="average_velocity", average_velocity={"guidance_scale": scale})
    terms = transformer_backward(model, batch, flow, precision)
    assert set(terms) == {"loss", "mse"}
    assert 0 < terms["loss"] < 1
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in model.parameters())


def test_micro_batches_add_up():
    gradients = []
    for count in (1, 4):
        model = tiny_transformer(interval_embedding=True)
        for part in drawn().micro_batches(count):
            assert sum(part.long) == int((part.until != part.t).sum())
            transformer_backward(model, part.to(torch.device("cpu")), AVERAGES, micro_batches=count)
        gradients.append([parameter.grad for parameter in model.parameters()])
    for one, parts in zip(*gradients, strict=True):
        torch.testing.assert_close(one, parts, rtol=1e-4, atol=1e-6)


def test_activation_checkpoints_change_nothing():
    gradients = []
    for on in (False, True):
        model = tiny_transformer(interval_embedding=True).train()
        if on:
            model.enable_gradient_checkpointing()
        transformer_backward(model, drawn(), AVERAGES)
        gradients.append([parameter.grad for parameter in model.parameters()])
    assert all(map(torch.equal, *gradients))


# --- the configuration --------------------------------------------------------------------------------------------


def test_configurations_of_earlier_versions_are_the_same_run():
    now = TrainTransformerConfig().model_dump(mode="json")
    earlier = TrainTransformerConfig().model_dump(mode="json")
    del earlier["model"]["interval_embedding"], earlier["flow"]["objective"], earlier["flow"]["average_velocity"]
    assert differences(earlier, now) == []


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"init_from": None}, "--init-from FOLDER"),
        ({"training": {"compile": True}}, "training.compile"),
        ({"training": {"sharding": "shard"}}, "training.sharding shard"),
        ({"flow": {"objective": "average_velocity", "path": "vp"}}, "linear path"),
        ({"flow": {"objective": "average_velocity", "prediction": "noise"}}, "prediction velocity"),
        ({"flow": {"average_velocity": {"guidance_scale": -1}}}, "greater than or equal to 0"),
        ({"flow": {"average_velocity": {"equal_times": 1.5}}}, "less than or equal to 1"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(values, message):
    given = {"init_from": "runs/transformer", "flow": {"objective": "average_velocity"}}
    assert TrainTransformerConfig.model_validate(given).flow.objective == "average_velocity"
    with pytest.raises(ValueError, match=message):
        TrainTransformerConfig.model_validate(given | values)
