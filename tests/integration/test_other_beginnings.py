"""Transformers that start from other transformers, and samples from checkpoints of unfinished ones."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError
from safetensors.torch import load_file, save_file

from alight import VAVAE, LightningDiT
from alight.artifacts import Artifact, read_artifact, write_manifest
from alight.config import SampleConfig, TrainTransformerConfig
from alight.interop.reference import export_transformer, published_state_dict
from alight.interop.transformer_sources import OpenTransformer, adopt_weights
from alight.outputs import writing_folder
from alight.runtime.errors import InputError
from alight.stages import generate_samples, train_transformer
from alight.training.checkpoint import list_checkpoints, load_latest_checkpoint, save_checkpoint
from alight.training.snapshot import open_snapshot
from helpers.models import randomise, tiny_tokenizer
from helpers.runs import stopping_after
from helpers.written import TOKENIZER_HASH, WEIGHTS, write_latents, write_model

MODEL = {"preset": None, "hidden_size": 16, "num_layers": 1, "num_heads": 2, "patch_size": 1}


@pytest.fixture
def train(tmp_path):
    latents = write_latents(tmp_path / "latents")

    def run(output, steps=4, **options):
        training = {"steps": steps, "global_batch_size": 4, "checkpoint_every": 2, "ema_decay": 0.5}
        values = {"latents": latents, "output": tmp_path / output, "device": "cpu", "training": training}
        values |= {"model": MODEL, "optimizer": {"lr": 0.01}} | options
        return train_transformer.run(TrainTransformerConfig.model_validate(values))

    return run


def weights_of(folder):
    return load_file(folder / WEIGHTS)


def still(**options):
    """A single step that changes nothing that matters, so that the beginning can be seen."""
    return {"steps": 1, "optimizer": {"lr": 1e-12}} | options


# --- init_from ----------------------------------------------------------------------------------------------------


def test_training_starts_from_the_averaged_weights_of_another_transformer(train):
    first = train("first")
    tuned = train("tuned", init_from=str(first.path), **still())
    before, after = weights_of(first.path), weights_of(tuned.path)
    for name in before:
        torch.testing.assert_close(before[name], after[name], rtol=0, atol=1e-6, msg=name)
    assert tuned.inputs["init_from"] == first.hash
    assert tuned.facts["init_from"] == str(first.path)
    assert tuned.hash != first.hash


def test_the_architecture_comes_with_the_weights_and_another_one_is_refused(train):
    first = train("first")
    unsaid = train("unsaid", init_from=str(first.path), model={}, **still())
    assert LightningDiT.from_pretrained(unsaid.path).config.hidden_size == 16
    for model, said in (
        (MODEL | {"hidden_size": 32}, "hidden_size 16 -> 32"),
        (MODEL | {"qk_norm": True}, "qk_norm False -> True"),
        ({"preset": "LightningDiT-S/1"}, "num_layers 1 -> 12"),
    ):
        with pytest.raises(InputError, match=f"the architecture of the section .*{said}"):
            train("other", init_from=str(first.path), model=model)
    assert train("said", init_from=str(first.path), model=MODEL | {"class_dropout_prob": 0.3}, **still()).facts


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_training_starts_from_a_published_checkpoint(train, tmp_path, suffix):
    model = LightningDiT.from_pretrained(train("first").path)
    file = tmp_path / f"published{suffix}"
    if suffix == ".pt":
        export_transformer(model, file)
    else:
        save_file({name: value.contiguous() for name, value in published_state_dict(model).items()}, file)
    tuned = train("tuned", init_from=str(file), model={}, **still())
    after = LightningDiT.from_pretrained(tuned.path)
    for (name, one), two in zip(model.state_dict().items(), after.state_dict().values(), strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=1e-6, msg=name)
    assert len(tuned.inputs["init_from"]) == 64


def test_training_starts_from_a_plain_folder_of_diffusers_and_from_a_pipeline(train, tmp_path):
    model = LightningDiT.from_pretrained(train("first").path)
    model.save_pretrained(tmp_path / "plain")
    model.save_pretrained(tmp_path / "pipeline" / "transformer")
    hashes = {train(f"from {name}", init_from=str(tmp_path / name), **still()).hash for name in ("plain", "pipeline")}
    assert len(hashes) == 1


def test_another_number_of_classes_begins_with_new_class_embeddings_and_says_so(train, tmp_path, log_text):
    first = train("first")
    more = write_latents(tmp_path / "more", class_names=tuple("abcde"))
    tuned = train("tuned", init_from=str(first.path), latents=more, **still())
    fresh = train("fresh", latents=more, **still())
    old, new, unlearned = (weights_of(artifact.path) for artifact in (first, tuned, fresh))
    rows = "class_embed.weight"
    torch.testing.assert_close(new[rows][:5], unlearned[rows][:5], rtol=0, atol=1e-6)
    torch.testing.assert_close(new[rows][5], old[rows][3], rtol=0, atol=1e-6)  # of the null class
    for name in set(old) - {rows}:
        torch.testing.assert_close(new[name], old[name], rtol=0, atol=1e-6, msg=name)
    assert "has 3 classes and the latents have 5, so the class embeddings begin with new values" in log_text.text


@pytest.mark.parametrize("shape", [(8, 2, 2), (4, 3, 3)])
def test_latents_of_another_shape_are_a_sentence(train, tmp_path, shape):
    first = train("first")
    with pytest.raises(InputError, match=r"was trained on latents of 4 x 2 x 2, but these latents are"):
        train("tuned", init_from=str(first.path), latents=write_latents(tmp_path / "other", shape=shape))
    assert not (tmp_path / "tuned" / "training").exists()


def test_nothing_to_start_from_is_a_sentence(train, tmp_path):
    (tmp_path / "text.pt").write_text("no weights")
    for source in (tmp_path / "nowhere", tmp_path / "text.pt", tmp_path / "latents"):
        with pytest.raises(InputError, match=source.name):
            train("tuned", init_from=str(source))


def test_an_output_with_a_variance_gives_the_part_of_the_velocity():
    arguments = {"sample_size": 4, "in_channels": 3, "num_classes": 2} | MODEL | {"patch_size": 2}
    del arguments["preset"]
    torch.manual_seed(0)
    wide, narrow = randomise(LightningDiT(learn_sigma=True, **arguments)), LightningDiT(**arguments)
    origin = OpenTransformer(wide.eval(), Artifact(Path("wide"), "transformer", {}, "0"))
    adopt_weights(narrow, origin)
    x, t, labels = torch.randn(2, 3, 4, 4), torch.rand(2), torch.tensor([0, 2])
    torch.testing.assert_close(narrow.eval()(x, t, labels), wide(x, t, labels))


def test_another_flow_than_that_of_the_weights_is_said(train, log_text):
    first = train("first")
    train("tuned", init_from=str(first.path), flow={"prediction": "noise"}, **still())
    assert "was trained with the prediction 'velocity', now 'noise'" in log_text.text


def test_a_run_from_other_weights_resumes_and_refuses_changed_ones(train, monkeypatch):
    first = train("first")
    whole = train("whole", 6, init_from=str(first.path))
    with stopping_after(monkeypatch, 3):
        train("parts", 6, init_from=str(first.path))
    parts = train("parts", 6, init_from=str(first.path))
    assert parts.hash == whole.hash
    with stopping_after(monkeypatch, 3):
        train("changed", 6, init_from=str(first.path))
    train("first", 5)
    with pytest.raises(InputError, match="begun with other inputs.*the weights of init_from"):
        train("changed", 6, init_from=str(first.path))


# --- samples of an unfinished run ---------------------------------------------------------------------------------


@pytest.fixture
def sample(tmp_path):
    tokenizer = write_model(tmp_path / "tokenizer", "tokenizer", tiny_tokenizer(), TOKENIZER_HASH)

    def run(output, transformer, **options):
        values = {
            **{"output": tmp_path / output, "transformer": tmp_path / transformer, "tokenizer": tokenizer},
            **{"device": "cpu", "samples_per_class": 1, "sampling": {"num_inference_steps": 2}},
        }
        return generate_samples.run(SampleConfig.model_validate(values | options))

    return run


def pixels_of(artifact):
    return np.stack([np.asarray(Image.open(path)) for path in sorted((artifact.path / "images").glob("*.png"))])


def test_samples_of_an_unfinished_run_are_those_of_its_averaged_weights(train, sample, monkeypatch):
    with stopping_after(monkeypatch, 5):
        train("unfinished", 8)
    finished = train("finished", 4)  # which ends where the newest checkpoint of the other one is
    samples = sample("early", "unfinished", checkpoint="latest")
    np.testing.assert_array_equal(pixels_of(samples), pixels_of(sample("late", "finished")))
    snapshot = open_snapshot(finished.path)
    assert snapshot.facts["steps"] == 4
    assert snapshot.facts["class_names"] == finished.facts["class_names"]
    assert snapshot.inputs == finished.inputs
    for name, value in weights_of(finished.path).items():
        assert torch.equal(value, snapshot.weights[name]), name
    assert samples.inputs["transformer"] != finished.hash
    train("unfinished", 8)  # sampling has left everything as it was


def test_a_step_can_be_named_and_a_missing_one_is_a_sentence(train, sample):
    train("run", 6)
    one, two = (sample(f"at {step}", "run", checkpoint=step) for step in (4, "6"))
    assert (pixels_of(one) != pixels_of(two)).any()
    with pytest.raises(InputError, match=r"no whole checkpoint of step 5 in .*steps that are there: 4, 6"):
        sample("at 5", "run", checkpoint=5)
    with pytest.raises(ValidationError, match="pattern"):
        sample("odd", "run", checkpoint="newest")


def test_an_unfinished_run_names_the_option_that_samples_from_it(train, sample, monkeypatch):
    with stopping_after(monkeypatch, 3):
        train("run", 8)
    with pytest.raises(InputError, match=r"is not finished, but .* step 2. Sample from it with --checkpoint latest"):
        sample("samples", "run")


def test_a_damaged_checkpoint_is_passed_over_and_said(train, sample, tmp_path, log_text):
    train("run", 6)
    path = list_checkpoints(tmp_path / "run" / "training")[-1][1]
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert open_snapshot(tmp_path / "run").facts["steps"] == 4
    assert "is damaged and was passed over" in log_text.text


@pytest.mark.parametrize(
    "change",
    [
        {"artifact": {}},
        {"artifact": {"model": {"hidden_size": "wide"}, "inputs": {}, "facts": {}}},
        {"artifact": {"model": {"unknown": 1}, "inputs": {}, "facts": {}}},
        {"state": {"model": "none"}},
        {"state": {}},
        {"state": {"ema": {"weight": torch.zeros(2)}}},
    ],
    ids=range(6),
)
def test_a_checkpoint_that_describes_no_transformer_is_a_sentence(train, sample, tmp_path, change):
    train("run", 4)
    content, _ = load_latest_checkpoint(tmp_path / "run" / "training")
    changed = content | change
    save_checkpoint(tmp_path / "run" / "training", changed.pop("step"), changed, keep=1)
    with pytest.raises(InputError, match=r"\w"):
        sample("samples", "run", checkpoint="latest")
    assert not (tmp_path / "samples" / "images").exists()


def test_samples_of_another_tokenizer_than_that_of_the_run_are_refused(train, sample, tmp_path):
    train("run", 4)
    with writing_folder(tmp_path / "other") as staging:
        VAVAE.from_pretrained(tmp_path / "tokenizer").save_pretrained(staging)
        write_manifest(staging, "tokenizer", {}, "o" * 64)
    with pytest.raises(InputError, match="another tokenizer"):
        sample("samples", "run", checkpoint="latest", tokenizer=tmp_path / "other")
    assert read_artifact(tmp_path / "run", "transformer").facts["steps"] == 4
