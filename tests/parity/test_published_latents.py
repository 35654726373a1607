"""Folders of latents that the published code wrote, read as they are, against recordings of its own reader."""

import shutil

import numpy as np
import pytest
import torch

from alight.data.latents import LatentDataset
from alight.interop.reference import load_latents_statistics
from helpers.models import tiny_tokenizer

TOLERANCE = 1e-6  # of the recordings, relative to the largest magnitude


def assert_close(actual, expected, name):
    assert actual.shape == expected.shape, name
    error, bound = (actual - expected).abs().max(), TOLERANCE * expected.abs().max().clamp(min=1)
    assert error <= bound, f"{name}: {error:.1e} > {bound:.1e}"  # fails for NaN too


@pytest.fixture
def shards(parity_dir):
    return parity_dir / "latents" / "shards"


def test_features_and_labels(read_case, shards):
    tensors, case = read_case("latents/expected")
    dataset = LatentDataset(shards)
    assert case["runs"]
    for name, run in case["runs"].items():
        draws = np.array(run["uniform_draws"])
        flips = draws <= 0.5
        assert [("latents", "latents_flip")[int(flip)] for flip in flips] == run["uses"]
        batch = dataset.gather(run["indices"], flips)
        latents = batch.latents if run["latent_norm"] else batch.latents * dataset.std + dataset.mean
        features = latents * run.get("latent_multiplier", 1.0)  # 1 wherever latents are normalised per channel
        assert_close(features, tensors[f"{name}.features"], name)
        assert torch.equal(batch.labels, tensors[f"{name}.labels"])
        assert len(dataset) == run["len"]
        assert str(batch.labels.dtype) == run["label_dtype"]


def test_given_statistics(read_case, shards):
    tensors, _ = read_case("latents/expected")
    for source in (shards, shards / "latents_stats.pt"):
        mean, std = load_latents_statistics(source)
        assert torch.equal(mean, tensors["given.mean"].flatten())
        assert torch.equal(std, tensors["given.std"].flatten())
    assert torch.equal(LatentDataset(shards).mean, tensors["given.mean"][0])


def test_computed_statistics(read_case, shards, tmp_path):
    tensors, _ = read_case("latents/expected")
    for path in shards.glob("*.safetensors"):
        shutil.copyfile(path, tmp_path / path.name)
    dataset = LatentDataset(tmp_path)
    assert_close(dataset.mean, tensors["computed.mean"][0], "mean")
    assert_close(dataset.std, tensors["computed.std"][0], "std")
    assert not torch.allclose(tensors["computed.std"], tensors["given.std"], rtol=1e-3)  # else this shows nothing


def test_denormalisation(read_case, shards):
    tensors, _ = read_case("latents/expected")
    latents = tensors["denorm.z"]
    vae = tiny_tokenizer(latent_channels=latents.shape[1], block_out_channels=(8,))
    mean, std = load_latents_statistics(shards)
    multipliers = [name.removeprefix("denorm.mult") for name in tensors if name.startswith("denorm.mult")]
    assert multipliers
    for multiplier in multipliers:
        vae.set_latents_statistics(mean, std / float(multiplier))
        assert_close(vae.denormalize(latents), tensors[f"denorm.mult{multiplier}"], multiplier)
