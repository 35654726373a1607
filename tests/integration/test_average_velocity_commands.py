"""Few-step generation on the command line: fine-tune, go on, sample; and what is refused."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from alight import LightningDiTPipeline
from alight.config import SampleConfig, TrainTransformerConfig, TuneConfig
from alight.config.recipes import load_config, validate
from alight.interop.transformer_sources import open_transformer
from alight.runtime.errors import InputError
from alight.stages import generate_samples, train_transformer
from alight.training.transformer_networks import image_flops
from helpers.models import tiny_tokenizer, tiny_transformer
from helpers.runs import log_of, losses, stopping_after, train_in_processes
from helpers.written import TOKENIZER_HASH, largest_difference, same_weights, write_latents, write_model

SIZES = {"sample_size": 2, "in_channels": 4, "hidden_size": 32, "num_heads": 2, "num_layers": 2, "num_classes": 3}
FACTS = {"latents_mean": [0.0] * 4, "latents_std": [1.0] * 4, "class_names": ["a", "b", "c"]}


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """Latents, the tokenizer that they name, and a plain transformer of random weights."""
    root = tmp_path_factory.mktemp("parts")
    write_latents(root / "latents", count=40)
    write_model(root / "tokenizer", "tokenizer", tiny_tokenizer(), TOKENIZER_HASH)
    inputs = {"tokenizer": TOKENIZER_HASH}
    write_model(root / "plain", "transformer", tiny_transformer(std=0.1, **SIZES), inputs=inputs, facts=FACTS)
    return root


def train_config(parts, output, **options):
    training = {"steps": 4, "global_batch_size": 8, "log_every": 1, "ema_decay": 0.9, "checkpoint_every": 2}
    averages = {"equal_times": 0.5} | options.pop("average_velocity", {})
    values = {"latents": parts / "latents", "output": output, "device": "cpu", "init_from": str(parts / "plain")}
    values |= {"model": {"interval_embedding": True}, "training": training | options.pop("training", {})}
    values |= {"flow": {"objective": "average_velocity", "average_velocity": averages}}
    return TrainTransformerConfig.model_validate(values | options)


@pytest.fixture(scope="module")
def tuned(parts):
    """A transformer that was fine-tuned with guidance of scale 2 in its velocities."""
    train_transformer.run(train_config(parts, parts / "tuned", average_velocity={"guidance_scale": 2.0}))
    return parts / "tuned"


def sample_config(parts, output, transformer="tuned", **sampling):
    values = {"transformer": parts / transformer, "tokenizer": parts / "tokenizer", "device": "cpu"}
    values |= {"samples_per_class": 1, "output": output, "trajectory_images": 1}
    return validate(SampleConfig, values | {"sampling": {"solver": "mean"} | sampling}, "test")


def pixels(folder):
    return np.stack([np.asarray(Image.open(path)) for path in sorted((folder / "images").iterdir())])


# --- training -----------------------------------------------------------------------------------------------------


def test_a_run_begins_with_the_plain_transformer_and_goes_on_exactly(parts, tmp_path, monkeypatch):
    train_transformer.run(train_config(parts, tmp_path / "whole"))
    assert all({"loss", "mse", "grad_norm"} <= set(line) for line in log_of(tmp_path / "whole"))
    assert "cosine" not in log_of(tmp_path / "whole")[0]
    with stopping_after(monkeypatch, 3):
        train_transformer.run(train_config(parts, tmp_path / "stopped"))
    train_transformer.run(train_config(parts, tmp_path / "stopped"))
    assert same_weights(tmp_path / "whole", tmp_path / "stopped")
    model = open_transformer(tmp_path / "whole").model
    assert model.has_interval_embedding
    assert model.config.hidden_size == 32


def test_the_first_loss_of_equal_times_is_that_of_the_plain_transformer(parts, tmp_path):
    options = {"average_velocity": {"equal_times": 1.0}, "training": {"steps": 1}}
    train_transformer.run(train_config(parts, tmp_path / "averages", **options))
    plain = train_config(parts, tmp_path / "plain", training={"steps": 1}, flow={}, model={})
    train_transformer.run(plain)
    first, other = (log_of(tmp_path / name)[0]["mse"] for name in ("averages", "plain"))
    assert first == pytest.approx(other, rel=1e-5)


def test_two_processes_train_as_one_does(parts, tmp_path):
    config = train_config(parts, tmp_path / "two", average_velocity={"guidance_scale": 2.0})
    train_in_processes(config)
    train_transformer.run(config.model_copy(update={"output": tmp_path / "one"}))
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-4)
    assert largest_difference(tmp_path / "one", tmp_path / "two") < 1e-4


def test_pictures_on_the_way_take_few_steps(parts, tmp_path):
    config = train_config(
        parts, tmp_path / "run", samples_every=2, sample_images=4, samples_tokenizer=parts / "tokenizer"
    )
    train_transformer.run(config)
    assert list((tmp_path / "run" / "training").rglob("*.png"))


def test_the_work_of_a_step_counts_its_derivative(parts):
    model = {"preset": None, "hidden_size": 32, "num_layers": 2, "num_heads": 2, "patch_size": 1}
    latents = train_transformer.LatentDataset(parts / "latents")

    def flops(**average):
        chosen = train_config(parts, parts, average_velocity=average, model=model | {"interval_embedding": True})
        return image_flops(chosen, latents)

    plain = image_flops(train_config(parts, parts, flow={}, model=model | {"interval_embedding": True}), latents)
    assert flops(equal_times=1.0) == plain
    assert flops(equal_times=1.0, guidance_scale=2.0) == pytest.approx(plain * 4 / 3, rel=0.05)
    assert flops(equal_times=0.0) > 1.5 * plain


# --- sampling -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_each_step_costs_one_evaluation(parts, tuned, tmp_path, steps):
    artifact = generate_samples.run(sample_config(parts, tmp_path / "run", num_inference_steps=steps))
    record = json.loads((artifact.path / "samples.json").read_text())
    assert (record["nfe"], record["sampling"]["solver"]) == (steps, "mean")
    assert len(pixels(artifact.path)) == 3


def test_a_pipeline_keeps_what_it_may_do(parts, tuned, tmp_path):
    LightningDiTPipeline.from_artifacts(tuned, parts / "tokenizer").save_pretrained(tmp_path / "pipeline")
    pipeline = LightningDiTPipeline.from_pretrained(tmp_path / "pipeline")
    noise, labels = torch.randn(2, 4, 2, 2), torch.tensor([0, 2])
    found = pipeline(["a", "c"], 1, solver="mean", latents=noise, output_type="latent")
    with torch.no_grad():
        expected = noise + pipeline.transformer(noise, torch.zeros(2), labels, until=torch.ones(2))
    torch.testing.assert_close(found.images, expected)
    assert found.nfe == 1
    assert pipeline(["a"], 3, seeds=[0], output_type="latent").nfe == 3  # its velocity, by any other solver
    with pytest.raises(InputError, match="count twice"):
        pipeline(["a"], 3, seeds=[0], guidance_scale=2.0)
    for scales in ({"guidance_scale": 2.0}, {"internal_scale": 2.0}):
        with pytest.raises(InputError, match="takes no guidance"):
            pipeline(["a"], 1, solver="mean", seeds=[0], **scales)
    plain = LightningDiTPipeline.from_artifacts(parts / "plain", parts / "tokenizer")
    assert plain(["a"], 3, seeds=[0], guidance_scale=2.0, output_type="latent").nfe == 6
    with pytest.raises(InputError, match="interval embedding"):
        plain(["a"], 1, solver="mean", seeds=[0])
    assert "trained_guidance_scale" not in plain.config


# --- refusals -----------------------------------------------------------------------------------------------------


def test_training_without_a_beginning_or_the_option_is_refused(refused, parts, tmp_path):
    words = ["transformer", "train", "--latents", parts / "latents", "--output", tmp_path / "run", "--device", "cpu"]
    words += ["--flow.objective", "average_velocity"]
    assert "--init-from FOLDER" in refused(*words)
    words += ["--init-from", parts / "plain"]
    assert "--model.interval-embedding True" in refused(*words)
    words += ["--model.interval-embedding", True]
    assert "greater than or equal to 0" in refused(*words, "--flow.average-velocity.guidance-scale", -1)
    assert not list(tmp_path.glob("run/*.json"))


def test_sampling_that_a_transformer_cannot_do_is_refused(refused, parts, tuned, tmp_path):
    words = ["sample", "--tokenizer", parts / "tokenizer", "--output", tmp_path / "run", "--sampling.solver", "mean"]
    assert "interval embedding" in refused(*words, "--transformer", parts / "plain")
    words += ["--transformer", tuned]
    assert "greater than or equal to 1" in refused(*words, "--sampling.num-inference-steps", 0)
    assert "part of their training" in refused(*words, "--sampling.guidance-scale", 2)
    euler = [*words, "--sampling.solver", "euler", "--sampling.guidance-scale", 2]
    assert "count twice" in refused(*euler)
    assert not (tmp_path / "run").exists()


def test_a_search_by_few_steps_has_no_guidance():
    with pytest.raises(ValueError, match="takes no guidance"):
        TuneConfig(solvers=("mean",))
    chosen = {"guidance_scales": [1.0], "internal_scales": [1.0], "steps": [1, 2, 4]}
    assert TuneConfig.model_validate({"solvers": ["mean"], **chosen}).solvers == ("mean",)


def test_the_shipped_recipe_fine_tunes_the_quickstart():
    config = load_config("digits/transformer_few_steps")
    assert config.init_from == "runs/quickstart/transformer"
    assert config.flow.objective == "average_velocity"
    assert config.flow.average_velocity.equal_times == 0.75
    assert config.flow.logit_normal_mean == 0.4  # -0.4 in noise time
