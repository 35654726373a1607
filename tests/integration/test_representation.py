"""Features beside latents, and training with them: the same in all layouts, resumable, refused where wrong."""

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from alight.artifacts import read_artifact
from alight.config import ExtractLatentsConfig, TrainTransformerConfig
from alight.data.image_dataset import ImageDataset
from alight.data.latent_features import LatentFeatures
from alight.data.loading import open_source
from alight.doctor.recipe_needs import needs
from alight.models.foundation import FoundationModel
from alight.runtime.errors import InputError
from alight.runtime.pixels import unit_range
from alight.stages import extract_latents, train_transformer
from helpers.extraction import contents, interrupt, write_tokenizer
from helpers.models import tiny_vit
from helpers.runs import log_of, losses, stopping_after, train_in_processes
from helpers.written import WEIGHTS, largest_difference, same_weights

MODEL = {"preset": None, "hidden_size": 32, "num_layers": 3, "num_heads": 2, "patch_size": 1}
ALIGNED = {"weight": 0.5, "block": 2, "hidden_size": 24}
IREPA = {"weight": 1.0, "block": 2, "projector": "conv", "spatial_norm": 0.6}
STEPS = 6


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """A tokenizer and a foundation model of random weights, and another foundation model."""
    folder = tmp_path_factory.mktemp("parts")
    write_tokenizer(folder / "tokenizer")
    for name, seed in (("vit", 0), ("other_vit", 1)):
        tiny_vit(seed).save_pretrained(folder / name)
    return folder


@pytest.fixture(scope="module")
def extraction(parts):
    """The configuration of a short extraction: 1,500 digits in 3 shards."""

    def configured(output, images=None, features=None, **values):
        features = {"foundation": str(parts / "vit")} if features is None else features
        values = {"device": "cpu", "shard_size": 600, "batch_size": 50, "statistics": "data", **values}
        values |= {"tokenizer": parts / "tokenizer", "images": {"size": 16} | (images or {}), "features": features}
        return ExtractLatentsConfig.model_validate(values | {"output": output})

    return configured


@pytest.fixture(scope="module")
def latents(extraction, tmp_path_factory):
    """Latents with features."""
    return extract_latents.run(extraction(tmp_path_factory.mktemp("latents") / "latents"))


@pytest.fixture(scope="module")
def plain_latents(extraction, tmp_path_factory):
    """The same without features."""
    return extract_latents.run(extraction(tmp_path_factory.mktemp("plain") / "latents", features={}))


def training(latents, output, representation=None, training=None, **values):
    options = {"steps": STEPS, "global_batch_size": 8, "log_every": 1, "ema_decay": 0.9, "checkpoint_every": 2}
    values = {"latents": latents.path, "output": output, "device": "cpu", "model": MODEL, "sample_images": 0, **values}
    representation = ALIGNED if representation is None else representation
    values |= {"representation": representation, "training": options | (training or {})}
    return TrainTransformerConfig.model_validate(values)


def copy_of(latents, folder):
    shutil.copytree(latents.path, folder)
    return read_artifact(folder, "latents")


# --- extraction ---------------------------------------------------------------------------------------------------


def test_stored_features_are_those_of_the_model(latents, extraction, parts):
    config = extraction(latents.path)
    dataset = ImageDataset(open_source(config.images, "train"), config.images.size)
    foundation, features = FoundationModel.from_pretrained(str(parts / "vit")), LatentFeatures(latents)
    order, flips = [3, 599, 600, 1499], np.array([True, False, True, False])
    images = unit_range(torch.stack([dataset[number].image for number in order]))
    images = torch.where(torch.from_numpy(flips).view(-1, 1, 1, 1), images.flip(-1), images)
    live, cached = foundation(images, (4, 4)), features.gather(order, flips)
    assert cached.dtype == torch.bfloat16
    torch.testing.assert_close(cached.float(), live, rtol=2**-8, atol=1e-5)
    assert features.shape == (foundation.feature_dim, 4, 4)


def test_latents_are_the_same_with_features_and_without(latents, plain_latents):
    assert latents.hash == plain_latents.hash
    shards = [{name: data for name, data in contents(each.path).items() if name != "index.json"} for each in
              (latents, plain_latents)]  # fmt: skip
    assert shards[0] == shards[1]
    assert not (plain_latents.path / "features").exists()
    assert "features" not in json.loads((plain_latents.path / "index.json").read_text())
    assert set(latents.inputs) == {"tokenizer", "foundation"}


def test_an_interrupted_extraction_goes_on(latents, extraction, tmp_path, monkeypatch):
    interrupt(extraction, tmp_path / "run", monkeypatch, after=2)
    (tmp_path / "run" / "features" / "features_00000.safetensors").write_bytes(b"damaged")
    resumed = extract_latents.run(extraction(tmp_path / "run"))
    for name in (".", "features"):
        assert contents(resumed.path / name) == contents(latents.path / name)


def test_other_features_are_not_mixed_in(extraction, parts, tmp_path, monkeypatch, latents):
    interrupt(extraction, tmp_path / "run", monkeypatch, after=1)
    with pytest.raises(InputError, match="another configuration"):
        extract_latents.run(extraction(tmp_path / "run", features={"foundation": str(parts / "other_vit")}))
    with pytest.raises(InputError, match=r"features\.foundation"):
        extract_latents.run(extraction(latents.path, features={"foundation": str(parts / "other_vit")}))


def test_the_size_on_disk_is_stated_beforehand(alight, parts, tmp_path):
    options = ("--tokenizer", parts / "tokenizer", "--images.size", 16, "--statistics", "data", "--flips", "False")
    features = ("--features.foundation", parts / "vit", "--features.dtype", "fp32", "--shard-size", 2000)
    result = alight("latents", "extract", *options, *features, "--output", tmp_path / "latents", "--device", "cpu")
    assert result.returncode == 0, result.stderr
    written = (tmp_path / "latents" / "features" / "features_00000.safetensors").stat().st_size
    assert written == pytest.approx(1500 * 16 * 16 * 4, rel=1e-3)
    assert "take 1.5 MiB on disk, beside 375.0 KiB of latents" in " ".join(result.stderr.split())


def test_the_plan_states_size_and_time(alight, extraction, parts, tmp_path):
    recipe = tmp_path / "recipe.json"
    config = extraction(tmp_path / "latents").model_dump(mode="json")
    recipe.write_text(json.dumps({"job": "latents extract", **config}))
    result = alight("plan", "--recipe", recipe, "--seconds", 2, "--json", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    plan = json.loads(result.stdout)
    assert "features of the foundation model" in [part["name"] for part in plan["stages"][0]["parts"]]
    # 3,000 images of 16 positions, 16 channels in bf16 and 4 in fp32
    assert f"The features of {parts / 'vit'} take 1.5 MiB on disk, beside 750.0 KiB of latents." in plan["notes"]


def test_inspection_checks_features_too(alight, refused, latents, tmp_path):
    result = alight("latents", "inspect", "--latents", latents.path)
    assert "16 x 4 x 4 of" in result.stdout
    damaged = copy_of(latents, tmp_path / "damaged")
    shard = damaged.path / "features" / "features_00002.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1] + b"!")
    assert "features_00002.safetensors is damaged" in refused("latents", "inspect", "--latents", damaged.path)


def test_the_foundation_model_is_among_the_needs_of_a_recipe(extraction, tmp_path):
    recipe = tmp_path / "recipe.json"
    config = extraction(tmp_path / "latents", features={"foundation": str(tmp_path)}).model_dump(mode="json")
    recipe.write_text(json.dumps({"job": "latents extract", **config}))
    found = [finding for finding in needs(str(recipe)) if finding.subject == "foundation"]
    assert [finding.verdict for finding in found] == ["problem"]


# --- training -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def plain(latents, tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained") / "plain"
    train_transformer.run(training(latents, folder, {}))
    return folder


@pytest.fixture(scope="module")
def aligned(latents, tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained") / "aligned"
    train_transformer.run(training(latents, folder))
    return folder


def test_off_no_features_are_read(latents, plain_latents, plain, tmp_path):
    """Neither their bytes nor their headers: training is that of latents without any."""
    without = copy_of(latents, tmp_path / "latents")
    shutil.rmtree(without.path / "features")
    train_transformer.run(training(without, tmp_path / "without", {}))
    train_transformer.run(training(plain_latents, tmp_path / "never", {}))
    for folder in ("without", "never"):
        assert same_weights(plain, tmp_path / folder)
        assert losses(plain) == losses(tmp_path / folder)


def test_the_transformer_is_an_ordinary_one(aligned, plain):
    lines = log_of(aligned)
    assert all(-1 <= line["representation"] <= 1 for line in lines)
    assert "representation" not in log_of(plain)[0]
    first = lines[0]["mse"] + lines[0]["cosine"] + 0.5 * lines[0]["representation"]
    assert lines[0]["loss"] == pytest.approx(first, rel=1e-5)
    assert lines[0]["mse"] == log_of(plain)[0]["mse"]  # the same weights, noise and times
    assert not same_weights(aligned, plain)
    one, other = load_file(aligned / WEIGHTS), load_file(plain / WEIGHTS)
    assert {name: value.shape for name, value in one.items()} == {name: value.shape for name, value in other.items()}
    assert (aligned / "config.json").read_text() == (plain / "config.json").read_text()


@pytest.mark.parametrize(("representation", "optimizer"), [(ALIGNED, "adamw"), (IREPA, "muon")])
def test_a_run_that_was_stopped_goes_on_to_the_bit(latents, tmp_path, monkeypatch, representation, optimizer):
    """Also past the step from which tokens are not aligned any more."""
    values = {"optimizer": {"name": optimizer, "muon": {"matrices": "all"}}}
    for stop_step, stopped in ((None, 3), (2, 5)):
        settings = representation | {"stop_step": stop_step}
        whole = training(latents, tmp_path / f"whole-{stop_step}", settings, **values)
        parts = training(latents, tmp_path / f"parts-{stop_step}", settings, **values)
        train_transformer.run(whole)
        with stopping_after(monkeypatch, stopped):
            train_transformer.run(parts)
        train_transformer.run(parts)
        assert same_weights(whole.output, parts.output)
        assert losses(whole.output) == losses(parts.output)
        seen = ["representation" in line for line in log_of(whole.output)]
        assert seen == [stop_step is None or step < stop_step for step in range(STEPS)]


@pytest.mark.parametrize(
    ("representation", "sharding"),
    [
        pytest.param(ALIGNED, "shard", id="mlp, shard"),
        pytest.param(IREPA, "replicate", id="conv, replicate"),
        pytest.param(ALIGNED, "replicate", id="mlp, replicate", marks=pytest.mark.exhaustive),
        pytest.param(IREPA, "shard", id="conv, shard", marks=pytest.mark.exhaustive),
    ],
)
def test_two_processes_train_like_one(latents, tmp_path, sharding, representation):
    options = {"micro_batch_size": 2, "sharding": sharding}
    settings = representation | {"stop_step": 4}
    train_transformer.run(training(latents, tmp_path / "alone", settings))
    train_in_processes(training(latents, tmp_path / "together", settings, options))
    assert losses(tmp_path / "together") == pytest.approx(losses(tmp_path / "alone"), rel=1e-4)
    assert largest_difference(tmp_path / "alone", tmp_path / "together") < 1e-4


def test_a_run_goes_on_sharded(latents, tmp_path):
    config = training(latents, tmp_path, None, {"sharding": "shard"})
    train_transformer.run(config)  # one process holds all
    expected = losses(tmp_path)
    for leftover in (*tmp_path.glob("*.json"), tmp_path / WEIGHTS, *tmp_path.glob("training/step-00000006.pt")):
        leftover.unlink()  # as if it had been stopped
    assert "going on from step 4 of 6" in train_in_processes(config).stderr
    assert losses(tmp_path) == pytest.approx(expected, rel=1e-4)


def test_its_cost_is_planned(alight, latents, tmp_path):
    def plan(name, representation):
        recipe = tmp_path / f"{name}.json"
        config = training(latents, tmp_path / name, representation).model_dump(mode="json")
        recipe.write_text(json.dumps({"job": "transformer train", **config}))
        result = alight("plan", "--recipe", recipe, "--seconds", 2, "--json", cwd=tmp_path)
        assert result.returncode == 0, result.stderr
        return json.loads(result.stdout)

    plain, aligned = plan("plain", {}), plan("aligned", ALIGNED)
    projector = 32 * 24 + 24 + 24 * 24 + 24 + 24 * 16 + 16
    assert aligned["parameters"] - plain["parameters"] == projector
    assert aligned["memory"]["optimizer"] - plain["memory"]["optimizer"] == 2 * 4 * projector
    assert aligned["operations_per_image"] > plain["operations_per_image"]


# --- refusals -----------------------------------------------------------------------------------------------------


@pytest.fixture
def refusal(refused, tmp_path):
    """The message with which a training is refused by the command line."""

    def run(latents, **representation):
        recipe = tmp_path / "recipe.json"
        config = training(latents, tmp_path / "output").model_dump(mode="json")
        config["representation"] |= representation
        recipe.write_text(json.dumps({"job": "transformer train", **config}))
        return refused("transformer", "train", "--config", recipe)

    return run


def test_latents_without_features_are_refused(refusal, plain_latents):
    assert "hold no features of a foundation model" in refusal(plain_latents)


def test_a_block_that_does_not_exist_is_refused(refusal, latents):
    assert "representation.block 4 does not exist in a model of 3" in refusal(latents, block=4)


def test_features_of_another_foundation_model_are_refused(refusal, latents, parts):
    assert "hold features of the foundation model" in refusal(latents, foundation=str(parts / "other_vit"))
    assert "not of dinov2-base" in refusal(latents, foundation="dinov2-base")


def test_the_foundation_model_may_be_named(latents, parts, tmp_path):
    shutil.copytree(parts / "vit", tmp_path / "elsewhere")  # known by its weights, not by its place
    config = training(latents, tmp_path / "run", ALIGNED | {"foundation": str(tmp_path / "elsewhere")}, {"steps": 1})
    train_transformer.run(config)


@pytest.mark.parametrize("other", ["crops", "model"])
def test_shards_of_other_latents_are_refused(refusal, extraction, latents, parts, tmp_path, other):
    changed = {"images": {"background": "black"}} if other == "crops" else {}
    changed |= {"features": {"foundation": str(parts / "other_vit")}} if other == "model" else {}
    foreign = extract_latents.run(extraction(tmp_path / "foreign", **changed))
    mixed = copy_of(latents, tmp_path / "mixed")
    shutil.rmtree(mixed.path / "features")
    shutil.copytree(foreign.path / "features", mixed.path / "features")
    assert "features from other crops or by another foundation model" in refusal(mixed)


def test_damaged_and_missing_shards_are_refused(refusal, latents, tmp_path):
    damaged = copy_of(latents, tmp_path / "damaged")
    shard = damaged.path / "features" / "features_00001.safetensors"
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    assert "is damaged" in refusal(damaged)
    shard.unlink()
    assert "features_00001.safetensors is not a complete shard" in refusal(damaged)


def test_a_run_does_not_go_on_with_other_features(latents, extraction, tmp_path, monkeypatch):
    mine = copy_of(latents, tmp_path / "latents")
    with stopping_after(monkeypatch, 3):
        train_transformer.run(training(mine, tmp_path / "run"))
    shutil.rmtree(mine.path)
    extract_latents.run(extraction(mine.path, features={"foundation": extraction(mine.path).features.foundation,
                                                        "dtype": "fp32"}))  # fmt: skip
    with pytest.raises(InputError, match="features"):
        train_transformer.run(training(mine, tmp_path / "run"))
