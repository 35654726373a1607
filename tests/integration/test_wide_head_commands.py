"""A wide head on the command line: train, go on, sample, convert; and what is refused."""

import json

import pytest
import torch

from alight import LightningDiT, LightningDiTPipeline
from alight.config import SampleConfig, TrainTransformerConfig
from alight.config.recipes import load_config, validate
from alight.flow import dimension_aware_shift
from alight.interop.reference import export_transformer
from alight.runtime.errors import InputError
from alight.stages import generate_samples, train_transformer
from helpers.models import HEAD, tiny_tokenizer
from helpers.runs import log_of, losses, stopping_after, train_in_processes
from helpers.written import TOKENIZER_HASH, largest_difference, same_weights, write_latents, write_model

MODEL = {"preset": None, "hidden_size": 16, "num_layers": 2, "num_heads": 2, "patch_size": 1, "head": HEAD}


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """Latents, the tokenizer that they name, and a run on them."""
    root = tmp_path_factory.mktemp("parts")
    write_latents(root / "latents", count=40)
    write_model(root / "tokenizer", "tokenizer", tiny_tokenizer(), TOKENIZER_HASH)
    train_transformer.run(train_config(root, root / "run", optimizer={"lr": 0.01}))
    return root


def train_config(parts, output, **options):
    training = {"steps": 4, "global_batch_size": 8, "log_every": 1, "ema_decay": 0.9, "checkpoint_every": 2}
    training |= options.pop("training", {}) | {"keep_checkpoints": 5}
    values = {"latents": parts / "latents", "output": output, "device": "cpu", "model": MODEL, "training": training}
    values["flow"] = {"timestep_shift": "auto", "first_time": 0.001}
    return TrainTransformerConfig.model_validate(values | options)


def test_training_goes_on_exactly_with_its_average(parts, tmp_path, monkeypatch):
    config = {"optimizer": {"lr": 0.01}}
    with stopping_after(monkeypatch, 3):
        train_transformer.run(train_config(parts, tmp_path / "stopped", **config))
    train_transformer.run(train_config(parts, tmp_path / "stopped", **config))
    assert same_weights(parts / "run", tmp_path / "stopped")
    assert losses(parts / "run") == losses(tmp_path / "stopped")
    trained = LightningDiT.from_pretrained(parts / "run")
    assert trained.config.head == HEAD
    assert all((block.modulation.weight != 0).any() for block in trained.all_blocks)
    plain = train_config(parts, tmp_path / "raw", training={"ema_decay": None}, **config)
    train_transformer.run(plain)
    raw = LightningDiT.from_pretrained(tmp_path / "raw")
    assert torch.equal(raw.time_embed.frequencies, trained.time_embed.frequencies)  # fixed
    assert not torch.equal(raw.output_layer.proj.weight, trained.output_layer.proj.weight)  # averaged


def test_two_processes_with_shards_train_as_one_does(parts, tmp_path):
    config = train_config(parts, tmp_path / "two", training={"sharding": "shard"})
    train_in_processes(config)
    train_transformer.run(train_config(parts, tmp_path / "one"))
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-5)
    assert largest_difference(tmp_path / "one", tmp_path / "two") < 1e-5


def test_another_first_time_is_another_run_and_wrong_sizes_are_refused(refused, parts, tmp_path):
    other = train_config(parts, parts / "run", optimizer={"lr": 0.01}, flow={"timestep_shift": "auto"})
    with pytest.raises(InputError, match=r"flow.first_time: 0.001 -> 0.0"):
        train_transformer.run(other)
    words = ["transformer", "train", "--latents", parts / "latents", "--output", tmp_path / "run", "--device", "cpu"]
    message = refused(*words, "--model.head.num-layers", 2, "--model.head.num-heads", 7)
    assert "head.hidden_size 2048 is not a multiple of 4 * head.num_heads = 28" in message
    assert "head.num_layers" in refused(*words, "--model.head.num-layers", 0)
    assert not (tmp_path / "run").exists()


def test_samples_and_a_pipeline(parts, tmp_path):
    sampling = {"num_inference_steps": 3, "timestep_shift": "auto", "last_time": 0.999, "guidance_scale": 1.5}
    values = {"transformer": parts / "run", "tokenizer": parts / "tokenizer", "device": "cpu", "sampling": sampling}
    values |= {"output": tmp_path / "samples", "samples_per_class": 1}
    artifact = generate_samples.run(validate(SampleConfig, values, "test"))
    record = json.loads((artifact.path / "samples.json").read_text())["sampling"]
    assert (record["timestep_shift"], record["last_time"]) == ("auto", 0.999)
    pipeline = LightningDiTPipeline.from_artifacts(parts / "run", parts / "tokenizer")
    pipeline.save_pretrained(tmp_path / "pipeline")
    opened = LightningDiTPipeline.from_pretrained(tmp_path / "pipeline")
    assert opened.transformer.config.head == HEAD
    call = {"class_labels": ["a"], "seeds": [0], "output_type": "latent"}
    found, expected = (each(**call, **sampling).images for each in (opened, pipeline))
    assert torch.equal(found, expected)
    assert opened.shift_of("auto") == dimension_aware_shift(4 * 2 * 2)


def test_published_files_are_converted_in_and_out(alight, refused, parts, tmp_path):
    model = LightningDiT.from_pretrained(parts / "run")
    export_transformer(model, tmp_path / "published.pt")
    content = torch.load(tmp_path / "published.pt", weights_only=True)
    torch.save(content["ema"], tmp_path / "published.pt")  # without its configuration, as released
    torch.save({"mean": torch.zeros(1, 4, 1, 1), "std": torch.ones(1, 4, 1, 1)}, tmp_path / "latents_stats.pt")
    words = ["convert", "--source", tmp_path / "published.pt", "--statistics", tmp_path / "latents_stats.pt"]
    result = alight(*words, "--output", tmp_path / "artifact")
    assert result.returncode == 0, result.stderr
    assert LightningDiT.from_pretrained(tmp_path / "artifact").arguments == model.arguments | {"sample_size": 2}
    assert same_weights(tmp_path / "artifact", parts / "run")
    result = alight(
        "convert", "--to", "published", "--source", tmp_path / "artifact", "--output", tmp_path / "again.pt"
    )
    assert result.returncode == 0, result.stderr
    again = torch.load(tmp_path / "again.pt", weights_only=True)
    assert all(torch.equal(again["ema"][name], value) for name, value in content["ema"].items())
    del content["ema"]["s_embedder.proj.bias"]
    torch.save(content["ema"], tmp_path / "published.pt")
    assert "1 missing (patch_embed.bias)" in refused(*words, "--output", tmp_path / "b")


def test_previews_are_drawn_with_the_shift_of_training(parts, tmp_path):
    config = train_config(parts, tmp_path / "run", samples_tokenizer=parts / "tokenizer", samples_every=4)
    train_transformer.run(config)
    assert list((tmp_path / "run").rglob("*.png"))
    assert len(log_of(tmp_path / "run")) == 4


def test_the_shipped_recipes_have_the_published_settings():
    train, sample = load_config("imagenet/rae_dit_dh"), load_config("imagenet/samples_rae_dit_dh")
    assert sample.transformer == train.output
    assert train.model.preset == "LightningDiT-XL/1"
    assert train.model.head.model_dump() == {"num_layers": 2, "hidden_size": 2048, "num_heads": 16}
    assert (train.flow.timestep_shift, train.flow.first_time) == ("auto", 0.001)
    assert str(sample.sampling) == "euler, 49 steps, no guidance, shift auto, until t = 0.999 before the shift"
