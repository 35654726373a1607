"""Internal Guidance on the command line: train, go on, sample, convert, tune; and what is refused."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from alight import LightningDiT, LightningDiTPipeline
from alight.config import SampleConfig, TrainTransformerConfig, TuneConfig
from alight.config.recipes import load_config, validate
from alight.interop.reference import export_transformer
from alight.runtime.errors import InputError
from alight.stages import generate_samples, train_transformer
from alight.tune import search
from helpers.models import tiny_tokenizer, tiny_transformer
from helpers.runs import log_of, losses, stopping_after, train_in_processes
from helpers.written import TOKENIZER_HASH, largest_difference, same_weights, write_latents, write_model

MODEL = {"preset": None, "hidden_size": 32, "num_layers": 3, "num_heads": 2, "patch_size": 1, "auxiliary_block": 1}
SIZES = {"sample_size": 4, "in_channels": 4, "hidden_size": 32, "num_heads": 2, "num_classes": 3}
FACTS = {"latents_mean": [0.0] * 4, "latents_std": [1.0] * 4, "class_names": ["cats", "dogs", "mice"]}


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """Latents, the tokenizer that they name, and transformers of random weights with and without the output."""
    root = tmp_path_factory.mktemp("parts")
    write_latents(root / "latents", count=40)
    write_model(root / "tokenizer", "tokenizer", tiny_tokenizer(), TOKENIZER_HASH)
    inputs = {"tokenizer": TOKENIZER_HASH}
    for name, options in {"guided": {"auxiliary_block": 1}, "plain": {}}.items():
        model = tiny_transformer(std=0.1, **SIZES, num_layers=3, **options)
        write_model(root / name, "transformer", model, inputs=inputs, facts=FACTS)
    return root


def train_config(parts, output, **options):
    training = {"steps": 4, "global_batch_size": 8, "log_every": 1, "ema_decay": 0.9, "checkpoint_every": 2}
    training |= options.pop("training", {}) | {"keep_checkpoints": 5}
    values = {"latents": parts / "latents", "output": output, "device": "cpu", "model": MODEL, "training": training}
    return TrainTransformerConfig.model_validate(values | options)


def sample_config(parts, output, transformer="guided", **options):
    values = {"transformer": parts / transformer, "tokenizer": parts / "tokenizer", "device": "cpu"}
    values |= {"samples_per_class": 1, "output": output, "trajectory_images": 0}
    sampling = {"num_inference_steps": 3} | options.pop("sampling", {})
    return validate(SampleConfig, values | {"sampling": sampling} | options, "test")


def pixels(folder):
    return np.stack([np.asarray(Image.open(path)) for path in sorted((folder / "images").iterdir())])


# --- training -----------------------------------------------------------------------------------------------------


def test_training_logs_the_auxiliary_error_and_goes_on_exactly(parts, tmp_path, monkeypatch):
    train_transformer.run(train_config(parts, tmp_path / "whole"))
    for line in log_of(tmp_path / "whole"):
        assert line["loss"] == pytest.approx(line["mse"] + line["cosine"] + 0.5 * line["auxiliary"], rel=1e-5)
    with stopping_after(monkeypatch, 3):
        train_transformer.run(train_config(parts, tmp_path / "stopped"))
    train_transformer.run(train_config(parts, tmp_path / "stopped"))
    assert same_weights(tmp_path / "whole", tmp_path / "stopped")
    assert LightningDiT.from_pretrained(tmp_path / "whole").config.auxiliary_block == 1


def test_the_output_changes_neither_batches_nor_noise(parts, tmp_path):
    """The first loss without the auxiliary term is that of a model without the output: it predicts zero velocity."""
    for name, model in (("with", MODEL), ("without", MODEL | {"auxiliary_block": None})):
        train_transformer.run(train_config(parts, tmp_path / name, model=model))
    first, other = (log_of(tmp_path / name)[0] for name in ("with", "without"))
    assert (first["mse"], first["cosine"]) == (other["mse"], other["cosine"])
    assert "auxiliary" not in other


@pytest.mark.parametrize("sharding", [pytest.param("replicate", marks=pytest.mark.exhaustive), "shard"])
def test_two_processes_train_both_outputs_as_one_does(parts, tmp_path, sharding):
    config = train_config(parts, tmp_path / "two", training={"sharding": sharding})
    train_in_processes(config)
    train_transformer.run(train_config(parts, tmp_path / "one"))
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-5)
    assert largest_difference(tmp_path / "one", tmp_path / "two") < 1e-5


def test_a_block_that_does_not_exist_ends_training_before_it_begins(refused, parts, tmp_path):
    folders = ["--latents", parts / "latents", "--output", tmp_path / "run", "--device", "cpu"]
    message = refused("transformer", "train", *folders, "--model.auxiliary-block", 12)  # the preset has 12
    assert "auxiliary_block is 12, but must be a whole number from 1 to 11" in message
    sizes = [f"--model.{name}" for name in ("hidden-size", "num-layers", "num-heads", "patch-size")]
    given = [word for pair in zip(sizes, (32, 3, 2, 1), strict=True) for word in pair]
    message = refused("transformer", "train", *folders, "--model.preset", None, *given, "--model.auxiliary-block", 0)
    assert "give 1 to 2" in message
    assert not list(tmp_path.glob("run/*.json"))


# --- sampling -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sampling", "nfe"),
    [
        ({"internal_scale": 1.7}, 3),
        ({"internal_scale": 1.4, "guidance_scale": 1.45}, 6),
        ({"internal_scale": 1.4, "guidance_scale": 1.45, "guidance_interval": [0.5, 1.0]}, 4),
        ({"internal_scale": 1.7, "internal_interval": [0.0, 0.5], "solver": "heun2"}, 6),
    ],
)
def test_samples_state_guidance_and_its_cost(parts, tmp_path, sampling, nfe):
    guided = generate_samples.run(sample_config(parts, tmp_path / "guided", sampling=sampling))
    record = json.loads((guided.path / "samples.json").read_text())
    assert record["nfe"] == nfe
    assert record["sampling"] | sampling == record["sampling"]
    without = sampling | {"internal_scale": 1.0, "internal_interval": None}
    plain = generate_samples.run(sample_config(parts, tmp_path / "plain", sampling=without))
    assert "internal_scale" not in json.loads((plain.path / "samples.json").read_text())["sampling"]
    assert not np.array_equal(pixels(guided.path), pixels(plain.path))


def test_a_pipeline_call_equals_the_formula(parts):
    pipeline = LightningDiTPipeline.from_artifacts(parts / "guided", parts / "tokenizer")
    noise, labels = torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 2])
    call = {"class_labels": [0, 2], "num_inference_steps": 1, "latents": noise, "output_type": "latent"}
    with torch.no_grad():
        strong, weak = pipeline.transformer(noise, torch.zeros(2), labels, auxiliary=True)
    found = pipeline(**call, internal_scale=1.7)
    torch.testing.assert_close(found.images, noise + weak + 1.7 * (strong - weak))
    assert found.nfe == 1
    assert torch.equal(pipeline(**call, internal_scale=1.0).images, pipeline(**call).images)
    assert torch.equal(pipeline(**call, internal_scale=1.7, internal_interval=(0.5, 1.0)).images, noise + strong)
    for interval in ((0.9, 0.1), 0.5):
        with pytest.raises(InputError, match="interval"):
            pipeline(**call, internal_scale=1.7, internal_interval=interval)
    with pytest.raises(InputError, match="internal_scale is nan"):
        pipeline(**call, internal_scale=float("nan"))


def test_guidance_that_the_transformer_has_no_output_for_is_refused(refused, parts, tmp_path):
    folders = ["--transformer", parts / "plain", "--tokenizer", parts / "tokenizer", "--output", tmp_path / "run"]
    message = refused("sample", *folders, "--sampling.internal-scale", 1.4)
    assert "needs a transformer with an auxiliary output" in message
    assert "Set internal_scale to 1" in message
    assert "low < high" in refused("sample", *folders, "--sampling.internal-interval", 0.8, 0.2)
    assert not (tmp_path / "run").exists()
    pipeline = LightningDiTPipeline.from_artifacts(parts / "plain", parts / "tokenizer")
    with pytest.raises(InputError, match="auxiliary output"):
        pipeline(["cats"], seeds=[0], internal_scale=1.4)


def test_an_earlier_checkpoint_of_a_run_guides_it(refused, parts, tmp_path):
    train_transformer.run(train_config(parts, tmp_path / "run", optimizer={"lr": 0.01}))
    (tmp_path / "tokenizer").symlink_to(parts / "tokenizer")
    guided = {"sampling": {"guidance_scale": 2.0}, "guide": tmp_path / "run"}
    artifact = generate_samples.run(sample_config(tmp_path, tmp_path / "guided", "run", guide_checkpoint=2, **guided))
    record = json.loads((artifact.path / "samples.json").read_text())
    assert record["nfe"] == 6
    assert record["guide"] != record["transformer"]
    assert artifact.inputs["guide"] == record["guide"]
    of_checkpoint = sample_config(tmp_path, tmp_path / "both", "run", checkpoint=4, guide_checkpoint=2, **guided)
    assert np.array_equal(pixels(generate_samples.run(of_checkpoint).path), pixels(artifact.path))
    with pytest.raises(InputError, match="is the transformer itself"):
        generate_samples.run(sample_config(tmp_path, tmp_path / "x", "run", **guided))
    with pytest.raises(InputError, match="no whole checkpoint of step 3"):
        generate_samples.run(sample_config(tmp_path, tmp_path / "x", "run", guide_checkpoint=3, **guided))
    with pytest.raises(InputError, match="belongs to a guide"):
        sample_config(tmp_path, tmp_path / "x", "run", guide_checkpoint=2)


# --- files --------------------------------------------------------------------------------------------------------


def test_published_files_are_converted_in_and_out(alight, refused, parts, tmp_path):
    model = LightningDiT.from_pretrained(parts / "guided")
    export_transformer(model, tmp_path / "published.pt")
    content = torch.load(tmp_path / "published.pt", weights_only=True)
    torch.save(content | {"config": {"model": {"model_type": "LightningDiT-XL/1"}}}, tmp_path / "published.pt")
    statistics = {"mean": torch.zeros(1, 4, 1, 1), "std": torch.ones(1, 4, 1, 1)}
    torch.save(statistics, tmp_path / "latents_stats.pt")
    words = ["convert", "--source", tmp_path / "published.pt", "--statistics", tmp_path / "latents_stats.pt"]
    assert "--auxiliary-block" in refused(*words, "--output", tmp_path / "a")
    message = refused(*words, "--output", tmp_path / "a", "--auxiliary-block", 3)
    assert "from 1 to 2" in message
    result = alight(*words, "--output", tmp_path / "artifact", "--auxiliary-block", 1)
    assert result.returncode == 0, result.stderr
    assert LightningDiT.from_pretrained(tmp_path / "artifact").config.auxiliary_block == 1
    back = ["convert", "--to", "published", "--source", tmp_path / "artifact", "--output", tmp_path / "again.pt"]
    assert "has no meaning" in refused(*back, "--auxiliary-block", 1)
    result = alight(*back)
    assert result.returncode == 0, result.stderr
    again = torch.load(tmp_path / "again.pt", weights_only=True)
    assert all(torch.equal(again["ema"][name], value) for name, value in content["ema"].items())


# --- tuning -------------------------------------------------------------------------------------------------------


def tune_config(pipeline, output, **options):
    values = {"output": output, "pipeline": pipeline, "device": "cpu", "images": {"source": "digits", "size": 8}}
    values |= {"draw": {"samples_per_class": 25, "sampling": {"num_inference_steps": 1}}, "solvers": ["euler"]}
    values |= {"guidance_scales": [1.0, 2.0], "guidance_intervals": [[0.0, 1.0]], "timestep_shifts": [1.0]}
    return TuneConfig.model_validate(values | {"steps": [1], "internal_scales": [1.0, 1.4, 1.7]} | options)


def test_a_search_tries_internal_guidance_alone_and_nested(parts, tmp_path):
    LightningDiTPipeline.from_artifacts(parts / "guided", parts / "tokenizer").save_pretrained(tmp_path / "pipeline")
    config = tune_config(
        tmp_path / "pipeline", tmp_path / "report", search="grid", internal_intervals=[[0.0, 1.0], [0.0, 0.5]]
    )
    report = search.run(config)
    table = (report.path / "settings.csv").read_text().splitlines()
    assert {"internal_scale", "internal_interval"} <= set(table[0].split(","))
    assert len(table) - 1 == 2 * (1 + 2 * 2)
    found = LightningDiTPipeline.from_pretrained(tmp_path / "pipeline")
    if "internal_scale" in found.recommended_sampling:  # stored, where the measure allows it
        assert found(["cats"], seeds=[0], **found.recommended_sampling).images
    assert "Internal guidance" in (report.path / "report.json").read_text()


def test_a_search_for_guidance_without_an_output_is_refused_before_it_begins(parts, tmp_path):
    LightningDiTPipeline.from_artifacts(parts / "plain", parts / "tokenizer").save_pretrained(tmp_path / "pipeline")
    with pytest.raises(InputError, match="auxiliary output"):
        search.run(tune_config(tmp_path / "pipeline", tmp_path / "report"))
    assert not (tmp_path / "report" / "settings.csv").exists()


def test_the_shipped_recipes_have_the_published_settings():
    train, sample = (
        load_config(f"imagenet/{name}") for name in ("transformer_xl_internal_guidance", "samples_internal_guidance")
    )
    assert sample.transformer == train.output
    assert (train.model.preset, train.model.auxiliary_block) == ("LightningDiT-XL/1", 8)
    images = train.training.steps * train.training.global_batch_size
    assert round(images / 1_281_167) == 680
    assert str(sample.sampling) == (
        "heun2, 124 steps, guidance 1.45 on t in [0.19, 1], internal guidance 1.4, shift 0.3"
    )
