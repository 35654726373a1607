"""`alight latents extract`: no finished work is ever lost, and whatever happens on the way, the bytes end the same."""

import json
import threading
import time
from functools import partial

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.utils.data import DataLoader

from alight import VAVAE
from alight.artifacts import read_artifact
from alight.config import TrainTransformerConfig
from alight.config.recipes import validate
from alight.data.image_dataset import ImageDataset
from alight.data.latent_folder import LatentFolder
from alight.data.latents import LatentDataset
from alight.data.loading import open_source
from alight.runtime.device import compile_blocks
from alight.runtime.seeding import derive_seed, noise_of_seeds
from alight.stages import extract_latents, train_transformer
from alight.stages.extract_latents import run
from helpers.extraction import contents

CHANNELS = 4


# --- what is written ----------------------------------------------------------------------------------------------


def test_an_uninterrupted_run(whole, tokenizer):
    assert sorted(path.name for path in whole.path.iterdir()) == sorted(
        [*(f"latents_{number:05d}.safetensors" for number in range(8)), "alight.json", "index.json"]
    )
    dataset = LatentDataset(whole.path)
    assert (len(dataset), dataset.shape, dataset.has_flips, dataset.has_moments) == (
        1500,
        (CHANNELS, 4, 4),
        True,
        False,
    )
    assert whole.inputs == {"tokenizer": read_artifact(tokenizer, "tokenizer").hash}
    assert whole.facts["count"] == 1500
    normalised = dataset.gather(range(1500)).latents
    assert normalised.mean((0, 2, 3)).abs().max() < 1e-4
    assert (normalised.std((0, 2, 3)) - 1).abs().max() < 1e-3


def test_a_latent_is_mean_plus_std_times_the_noise_of_its_image(whole, configure, tokenizer):
    config = configure(whole.path)
    dataset = ImageDataset(open_source(config.images, "train"), config.images.size)
    vae = VAVAE.from_pretrained(tokenizer)
    shard, row, number = load_file(whole.path / "latents_00002.safetensors"), 71, 471
    pixels = dataset[number].image[None]
    for key, images in (("latents", pixels), ("latents_flip", pixels.flip(-1))):
        with torch.no_grad():
            posterior = vae.posterior(images / 127.5 - 1)
        noise = noise_of_seeds([derive_seed(0, "posterior", key, number)], (CHANNELS, 4, 4))
        expected = posterior.mean + posterior.std * noise
        torch.testing.assert_close(
            shard[key][row], expected[0], rtol=1e-4, atol=1e-5
        )  # another batch rounds otherwise
    assert shard["labels"][row] == dataset[number].label


@pytest.mark.parametrize("batch_size", [1, 7, 1000])
def test_the_batch_size_changes_rounding_alone(whole, configure, tmp_path, batch_size):
    """Large batches are equal bit for bit here; for small ones the processor's library adds in another order."""
    artifact = run(configure(tmp_path / "run", batch_size=batch_size))
    for path in whole.path.glob("*.safetensors"):
        ours, other = load_file(path), load_file(artifact.path / path.name)
        for key in ours:
            torch.testing.assert_close(other[key], ours[key], rtol=0, atol=2e-6)
    if batch_size == 1000:
        assert contents(artifact.path) == contents(whole.path)


def test_worker_processes_change_nothing(whole, configure, tmp_path):
    assert contents(run(configure(tmp_path / "run", images={"workers": 1})).path) == contents(whole.path)


def test_shards_cut_the_same_sequence(whole, configure, tmp_path):
    other = LatentDataset(run(configure(tmp_path / "run", shard_size=70)).path)
    dataset = LatentDataset(whole.path)
    torch.testing.assert_close(other.mean, dataset.mean, rtol=1e-6, atol=1e-6)
    order, flips = np.arange(0, 1500, 11), np.arange(137) % 2 == 0
    raw = [each.gather(order, flips).latents * each.std + each.mean for each in (other, dataset)]
    torch.testing.assert_close(*raw, rtol=1e-5, atol=1e-5)


def test_moments(whole, configure, tmp_path):
    """Drawn with the noise of the stored samples, the moments give the stored samples."""
    moments = LatentDataset(run(configure(tmp_path / "moments", posterior="moments")).path)
    mode = LatentDataset(run(configure(tmp_path / "mode", posterior="mode")).path)
    samples = LatentDataset(whole.path)
    order, flips = np.array([3, 700, 1499]), np.array([True, False, True])
    seeds = [
        derive_seed(0, "posterior", "latents_flip" if f else "latents", int(i))
        for i, f in zip(order, flips, strict=True)
    ]
    noise = noise_of_seeds(seeds, samples.shape)

    def raw(dataset, **options):
        return dataset.gather(order, flips, **options).latents * dataset.std + dataset.mean

    assert (moments.has_moments, mode.has_moments) == (True, False)
    torch.testing.assert_close(raw(moments, noise=noise), raw(samples), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(raw(moments), raw(mode), rtol=1e-4, atol=1e-5)
    assert (raw(moments) - raw(samples)).abs().max() > 0.1
    # the statistics are those of samples: 24,000 values per channel, whose mean is good to std / sqrt(24,000)
    torch.testing.assert_close(moments.mean, samples.mean, rtol=0, atol=0.03)
    torch.testing.assert_close(moments.std, samples.std, rtol=0.02, atol=0)


def test_training_draws_from_moments(configure, tmp_path):
    """With the same statistics, only the noise of the posterior tells moments from modes."""
    losses = []
    for posterior in ("moments", "mode"):
        config = configure(tmp_path / posterior, posterior=posterior).model_copy(update={"statistics": "tokenizer"})
        run(config)
        sizes = {"preset": None, "hidden_size": 32, "num_layers": 1, "num_heads": 2, "patch_size": 1}
        training = {"steps": 2, "global_batch_size": 8, "log_every": 1}
        values = {"latents": config.output, "output": tmp_path / f"{posterior}-transformer", "device": "cpu"}
        values |= {"model": sizes, "training": training}
        train_transformer.run(validate(TrainTransformerConfig, values, "test"))
        lines = (values["output"] / "training" / "log.jsonl").read_text().splitlines()
        losses.append([json.loads(line)["loss"] for line in lines])
    assert abs(losses[0][0] - losses[1][0]) > 1e-3


@pytest.mark.parametrize(("dtype", "bits"), [("bf16", 8), ("fp16", 11)])
def test_half_precision(whole, configure, tmp_path, dtype, bits):
    small, full = LatentDataset(run(configure(tmp_path, dtype=dtype)).path), LatentDataset(whole.path)
    raw = [each.gather(range(0, 1500, 7)).latents * each.std + each.mean for each in (small, full)]
    torch.testing.assert_close(*raw, rtol=2**-bits, atol=1e-5)
    assert (tmp_path / "latents_00000.safetensors").stat().st_size < 0.6 * (
        whole.path / "latents_00000.safetensors"
    ).stat().st_size


@pytest.mark.parametrize("narrow", [{"precision": "bf16"}, {"tokenizer_weights": "bf16"}], ids=["autocast", "weights"])
def test_the_encoder_in_bf16(configure, tmp_path, narrow):
    """Eight bits of precision per operation, over about ten layers."""
    low, full = (
        LatentDataset(run(configure(tmp_path / str(number), posterior="mode", **values)).path)
        for number, values in enumerate((narrow, {}))
    )
    raw = [each.gather(range(0, 1500, 7)).latents * each.std + each.mean for each in (low, full)]
    error = (raw[0] - raw[1]).square().mean().sqrt() / raw[1].std()
    assert 1e-4 < error < 0.03


def test_workers_start_once_and_shards_are_written_beside_the_encoding(whole, configure, tmp_path, monkeypatch):
    """Workers were started again for every shard, and nothing was encoded while a shard was written."""
    loaders, threads, running = [], [], []
    iterate, write, encode = DataLoader.__iter__, LatentFolder.write, extract_latents.encode

    def slow_write(folder, number, tensors):
        threads.append(threading.current_thread())
        begun = len(running)
        deadline = time.monotonic() + 10
        while number < 7 and len(running) == begun and time.monotonic() < deadline:
            time.sleep(0.001)  # until the next shard is begun
        write(folder, number, tensors)

    monkeypatch.setattr(DataLoader, "__iter__", lambda loader: (loaders.append(loader), iterate(loader))[1])
    monkeypatch.setattr(LatentFolder, "write", slow_write)
    monkeypatch.setattr(extract_latents, "encode", lambda *a: (running.append(a), encode(*a))[1])
    started = time.monotonic()
    extract_latents.run(configure(tmp_path / "run", images={"workers": 1}))
    assert time.monotonic() - started < 60  # no shard waited in vain
    assert len(loaders) == 1
    assert len(set(threads)) == 1
    assert threading.main_thread() not in threads
    assert contents(tmp_path / "run") == contents(whole.path)


def test_a_compiled_encoder_gives_the_same_latents(whole, configure, tmp_path, monkeypatch):
    """The backend that generates no code, which would take minutes; shards end with a batch of another size."""
    monkeypatch.setattr(extract_latents, "compile_blocks", partial(compile_blocks, backend="aot_eager"))
    compiled = run(configure(tmp_path / "latents", compile=True, batch_size=64))
    assert (compiled.config["compile"], whole.config["compile"]) == (True, False)
    one, other = (LatentDataset(each.path).gather(range(0, 1500, 7)).latents for each in (compiled, whole))
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
