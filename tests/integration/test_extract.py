"""`alight latents extract`: no finished work is ever lost, and whatever happens on the way, the bytes end the same."""

import errno
import json
import os
import random
import signal
import time

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from alight import VAVAE
from alight.artifacts import read_artifact
from alight.config import ExtractLatentsConfig, TrainTransformerConfig
from alight.config.recipes import validate
from alight.data import latent_folder
from alight.data.image_dataset import ImageDataset
from alight.data.latents import LatentDataset
from alight.data.loading import open_source
from alight.runtime.errors import InputError
from alight.runtime.seeding import derive_seed, noise_of_seeds
from alight.stages import extract_latents, train_transformer
from alight.stages.extract_latents import run
from helpers import warm
from helpers.models import normalised, tiny_tokenizer
from helpers.written import write_model

CHANNELS = 4


def write_tokenizer(folder, seed=0):
    vae = normalised(tiny_tokenizer(seed, block_out_channels=(8, 8, 8)))
    return write_model(folder, "tokenizer", vae)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return write_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def configure(tokenizer):
    """The configuration of a short run on the CPU: 1,500 digits in 8 shards."""

    def configured(output, **values):
        values = {"tokenizer": tokenizer, "device": "cpu", "shard_size": 200, "batch_size": 50} | values
        values["images"] = {"size": 16} | values.get("images", {})
        return validate(ExtractLatentsConfig, values | {"output": output, "statistics": "data"}, "test")

    return configured


@pytest.fixture(scope="module")
def options(tokenizer):
    """The same on the command line."""
    values = {"tokenizer": tokenizer, "device": "cpu", "shard-size": 200, "batch-size": 50, "images.size": 16}
    values["statistics"] = "data"
    return [str(part) for name, value in values.items() for part in (f"--{name}", value)]


@pytest.fixture(scope="module")
def whole(configure, tmp_path_factory):
    """The latents of an uninterrupted run."""
    return run(configure(tmp_path_factory.mktemp("whole") / "latents"))


def contents(folder):
    """The bytes of shards and index, by name; an unfinished folder has no index."""
    return {path.name: path.read_bytes() for path in [*folder.glob("*.safetensors"), *folder.glob("index.json")]}


def interrupt(configure, folder, monkeypatch, after=3):
    """A run that dies after some shards, as a killed one does: nothing is cleaned up."""
    write, written = latent_folder.LatentFolder.write, []

    def dying_write(self, number, tensors):
        if len(written) == after:
            raise KeyboardInterrupt
        written.append(number)
        write(self, number, tensors)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):  # noqa: PT012
        patch.setattr(latent_folder.LatentFolder, "write", dying_write)
        run(configure(folder))


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


def test_the_encoder_in_bf16(configure, tmp_path):
    """Eight bits of precision per operation, over about ten layers."""
    low, full = (
        LatentDataset(run(configure(tmp_path / precision, posterior="mode", precision=precision)).path)
        for precision in ("bf16", "fp32")
    )
    raw = [each.gather(range(0, 1500, 7)).latents * each.std + each.mean for each in (low, full)]
    error = (raw[0] - raw[1]).square().mean().sqrt() / raw[1].std()
    assert 1e-4 < error < 0.03


# --- interruptions ------------------------------------------------------------------------------------------------


def test_a_resumed_run_makes_only_what_is_missing(whole, configure, tmp_path, monkeypatch):
    folder = tmp_path / "run"
    interrupt(configure, folder, monkeypatch)
    before = {path.name: path.stat().st_mtime_ns for path in folder.glob("*.safetensors")}
    assert len(before) == 3
    assert not (folder / "alight.json").exists()
    (folder / ".latents_00003.safetensors.writing").write_bytes(b"half")
    (folder / "latents_00004.safetensors").write_bytes(b"named, but not recorded")
    resumed = run(configure(folder, images={"workers": 1}))  # how images are read may change
    assert contents(folder) == contents(whole.path)
    assert resumed.hash == whole.hash
    assert {path.name for path in folder.iterdir()} == {path.name for path in whole.path.iterdir()}
    for name, time_ns in before.items():
        assert (folder / name).stat().st_mtime_ns == time_ns


def test_a_run_that_was_killed_at_its_very_end_is_finished(configure, tmp_path):
    """The manifest is there, but the records are, too; and of the finished latents a file is cut off later."""
    folder = tmp_path / "run"
    artifact = run(configure(folder))
    (folder / "unfinished").mkdir()
    assert run(configure(folder)) == artifact
    assert not (folder / "unfinished").exists()
    truncate(folder / "latents_00003.safetensors", 500)
    with pytest.raises(InputError, match="is not what was written"):
        run(configure(folder))


def test_damaged_shards_and_records_are_made_again(whole, configure, tmp_path, monkeypatch, caplog):
    folder = tmp_path / "run"
    interrupt(configure, folder, monkeypatch, after=5)
    flip_bit(folder / "latents_00000.safetensors", 5_001)
    truncate(folder / "latents_00001.safetensors", 1_000)
    flip_bit(folder / "unfinished" / "latents_00002.json", 300)
    (folder / "latents_00003.safetensors").unlink()
    untouched = (folder / "latents_00004.safetensors").stat().st_mtime_ns
    run(configure(folder))
    assert contents(folder) == contents(whole.path)
    assert (folder / "latents_00004.safetensors").stat().st_mtime_ns == untouched
    assert caplog.text.count("is damaged and will be extracted again") == 4


def test_another_run_in_the_same_folder_is_refused(configure, tokenizer, tmp_path, monkeypatch):
    folder = tmp_path / "run"
    interrupt(configure, folder, monkeypatch)
    before = contents(folder)
    write_tokenizer(tmp_path / "other", seed=1)
    for values, message in (
        ({"seed": 1}, "seed: 0 -> 1"),
        ({"posterior": "mode"}, "posterior: sample -> mode"),
        ({"images": {"size": 8}}, r"images\.size: 16 -> 8"),
        ({"batch_size": 25}, "batch_size: 50 -> 25"),
        ({"tokenizer": tmp_path / "other"}, r"inputs\.tokenizer: "),
    ):
        with pytest.raises(InputError, match=message):
            run(configure(folder, **values))
    assert contents(folder) == before
    with pytest.raises(InputError, match="holds unfinished latents"):
        LatentDataset(folder)
    (folder / "unfinished" / "run.json").unlink()
    with pytest.raises(InputError, match="not of an unfinished 'alight latents extract'"):
        run(configure(folder))
    assert contents(folder) == before


def test_before_the_first_shard_there_is_nothing_to_refuse(whole, configure, tmp_path, monkeypatch):
    folder = tmp_path / "run"
    interrupt(lambda output: configure(output, batch_size=1000, seed=3), folder, monkeypatch, after=0)
    assert (folder / "unfinished" / "run.json").exists()
    run(configure(folder))
    assert contents(folder) == contents(whole.path)


def test_changed_images_are_noticed(configure, image_folder, tmp_path, monkeypatch):
    images = tmp_path / "images"
    for path in image_folder.rglob("*.*"):
        (images / path.parent.name).mkdir(parents=True, exist_ok=True)
        (images / path.parent.name / path.name).write_bytes(path.read_bytes())

    def of_folder(output):
        return configure(output, shard_size=5, images={"source": str(images)})

    folder = tmp_path / "run"
    interrupt(of_folder, folder, monkeypatch)
    changed = next(images.rglob("*.png"))
    with Image.open(changed) as image:
        Image.fromarray(np.zeros((image.height, image.width, 3), np.uint8)).save(changed)  # of the same size in pixels
    with pytest.raises(InputError, match=r"inputs\.images: "):
        run(of_folder(folder))


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES])
def test_the_disk_refuses_and_finished_shards_stay(whole, configure, tmp_path, monkeypatch, number):
    folder = tmp_path / "run"

    def refuse(source, target):
        if str(target).endswith("latents_00004.safetensors"):
            raise OSError(number, os.strerror(number))
        return replace(source, target)

    replace = os.replace
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", refuse)
        with pytest.raises(InputError, match="What was finished before is unchanged"):
            run(configure(folder))
    assert len(contents(folder)) == 4
    assert not list(folder.glob(".latents*"))
    run(configure(folder))
    assert contents(folder) == contents(whole.path)


def test_latents_that_do_not_fit_the_type_are_refused(configure, tmp_path, monkeypatch):
    encode = extract_latents.encode
    monkeypatch.setattr(extract_latents, "encode", lambda *a: {key: 1e5 * v for key, v in encode(*a).items()})
    with pytest.raises(InputError, match="not finite in float16"):
        run(configure(tmp_path / "run", dtype="fp16"))
    assert not contents(tmp_path / "run")


def test_statistics_of_another_tokenizer_are_refused_before_any_work(configure, tmp_path):
    write_tokenizer(tmp_path / "tokenizer")
    vae = VAVAE.from_pretrained(tmp_path / "tokenizer")
    vae.set_latents_statistics(torch.full((CHANNELS,), 50.0), torch.ones(CHANNELS))
    write_model(tmp_path / "tokenizer", "tokenizer", vae)
    config = configure(tmp_path / "run", tokenizer=tmp_path / "tokenizer")
    with pytest.raises(InputError, match="do not fit"):
        run(config.model_copy(update={"statistics": "tokenizer"}))
    assert not (tmp_path / "run").exists()


# --- damage of any kind -------------------------------------------------------------------------------------------


def flip_bit(path, bit):
    data = bytearray(path.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)


def truncate(path, size):
    path.write_bytes(path.read_bytes()[:size])


def damage(path, rng):
    size = path.stat().st_size
    if rng.random() < 0.5:
        truncate(path, rng.randrange(size))
    else:
        flip_bit(path, rng.randrange(8 * min(size, rng.choice([80, 800, size]))))  # headers are small and matter


def test_any_damage_to_an_unfinished_run_is_mended_or_refused(whole, configure, tmp_path, monkeypatch):
    folder, rng = tmp_path / "run", random.Random(0)
    interrupt(configure, folder, monkeypatch, after=7)
    files = sorted(path for path in folder.rglob("*.*") if path.is_file())
    assert len(files) == 7 + 7 + 1 + 1  # shards, their records, that of the run, and the mark of the folder
    kept = {path: path.read_bytes() for path in files}
    outcomes = set()
    for _ in range(12):
        damage(rng.choice(files), rng)
        try:
            run(configure(folder))
        except InputError:
            outcomes.add("refused")
        else:
            outcomes.add("mended")
            assert contents(folder) == contents(whole.path)
        for leftover in [path for path in folder.rglob("*.*") if path.is_file()]:
            leftover.unlink()
        (folder / "unfinished").mkdir(exist_ok=True)
        for path, data in kept.items():
            path.write_bytes(data)
    damage(folder / "unfinished" / "run.json", rng)
    with pytest.raises(InputError):
        run(configure(folder))
    assert "mended" in outcomes


# --- real processes -----------------------------------------------------------------------------------------------


def test_two_processes_write_the_same_bytes_as_one(whole, configure, options, tmp_path, monkeypatch):
    """They also share what a run left that one process had begun."""
    interrupt(configure, tmp_path / "run", monkeypatch)
    result = warm.run_together(["latents", "extract", *options, "--output", str(tmp_path / "run")], 2)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == f"Latents: {tmp_path / 'run'}"
    assert contents(tmp_path / "run") == contents(whole.path)
    assert read_artifact(tmp_path / "run", "latents").hash == whole.hash


def test_killing_the_process_loses_no_shard(whole, options, tmp_path):
    """SIGKILL at random moments, which nothing can clean up after; the same command then goes on."""
    folder, rng = tmp_path / "run", random.Random(0)
    command = ["latents", "extract", "--quiet", *options, "--output", str(folder)]
    kept: dict[str, bytes] = {}
    for shards in (1, 4, None):
        process = warm.AlightProcess(command)
        deadline = time.monotonic() + 120
        while shards and len(list(folder.glob("unfinished/latents_*.json"))) < shards and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.002)
        if shards:
            time.sleep(rng.random() * 0.1)
            process.send_signal(signal.SIGKILL)
        errors = process.communicate(timeout=120)[1]
        assert process.returncode == (-signal.SIGKILL if shards else 0), errors
        assert (folder / "alight.json").exists() == (shards is None)
        found = contents(folder)
        assert kept.items() <= found.items()
        kept = {
            path.with_suffix(".safetensors").name: found[path.with_suffix(".safetensors").name]
            for path in folder.glob("unfinished/latents_*.json")
        }
    assert contents(folder) == contents(whole.path)
