"""`alight sample`: every image from its own seed, however the work is cut, interrupted or shared."""

import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from alight.artifacts import read_artifact
from alight.config import SampleConfig
from alight.config.recipes import validate
from alight.data.sample_folder import SampleFolder
from alight.pipelines import compilation
from alight.runtime.device import compile_blocks
from alight.runtime.errors import InputError
from alight.runtime.files import explained_disk_errors
from alight.stages.generate_samples import label_protocol, run
from helpers import warm
from helpers.models import tiny_tokenizer, tiny_transformer
from helpers.written import write_model

CHANNELS, SIDE, CLASSES = 4, 4, 3


def write_transformer(folder, tokenizer, seed=0, mean=0.0, **options):
    """A transformer of random weights, in the form in which training leaves one."""
    sizes = {"sample_size": SIDE, "in_channels": CHANNELS, "hidden_size": 32, "num_layers": 2, "num_heads": 2}
    model = tiny_transformer(seed, std=0.1, **sizes | {"num_classes": CLASSES} | options)
    facts = {"latents_mean": [mean] * CHANNELS, "latents_std": [1.0] * CHANNELS, "parameters": 1, "steps": 1}
    facts |= {"class_names": ["cats", "dogs", "mice"]} if model.config.num_classes == CLASSES else {}
    return write_model(folder, "transformer", model, inputs={"tokenizer": tokenizer.hash}, facts=facts)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A tokenizer, a transformer on its latents, and weaker and odd ones beside it."""
    root = tmp_path_factory.mktemp("models")
    tokenizer = read_artifact(write_model(root / "tokenizer", "tokenizer", tiny_tokenizer()), "tokenizer")
    write_transformer(root / "transformer", tokenizer)
    write_transformer(root / "weak", tokenizer, seed=1, num_layers=1)
    write_transformer(root / "other_latents", tokenizer, seed=1, mean=0.5)
    write_transformer(root / "without_null_class", tokenizer, class_dropout_prob=0.0)
    write_transformer(root / "imagenet", tokenizer, num_classes=1000)
    return root


@pytest.fixture(scope="module")
def configure(models):
    """The configuration of a short run on the CPU."""

    def configured(output, **values):
        folders = {name: models / name for name in ("transformer", "tokenizer")}
        values = {"device": "cpu", "samples_per_class": 4, "sampling": {"num_inference_steps": 3}} | folders | values
        return validate(SampleConfig, values | {"output": output}, "test")

    return configured


def files(folder):
    """The contents of all images, by name."""
    return {path.name: path.read_bytes() for path in sorted((folder / "images").iterdir())}


def pixels(folder):
    """All images in order, (N, H, W, 3)."""
    return np.stack([np.asarray(Image.open(path)) for path in sorted((folder / "images").iterdir())])


def settings_of(folder):
    return json.loads((folder / "samples.json").read_text())


def test_everything_that_a_run_leaves(configure, tmp_path):
    sampling = {"num_inference_steps": 10, "guidance_scale": 2.0, "guidance_interval": [0.25, 1.0]}
    artifact = run(configure(tmp_path / "run", sampling=sampling, npz=True))
    settings, images = settings_of(artifact.path), pixels(artifact.path)
    assert images.shape == (12, 8, 8, 3)
    assert settings["label_protocol"] == "balanced, 4 per class"
    assert settings["labels"] == [0] * 4 + [1] * 4 + [2] * 4
    assert settings["nfe"] == 10 + 7  # t = 0.3, ..., 0.9 lie in the interval
    assert settings["sampling"] | sampling == settings["sampling"]
    assert settings["sampling"]["solver"] == "euler"
    assert "diffusion_form" not in settings["sampling"]
    assert len(set(settings["seeds"])) == 12
    assert settings["class_names"] == ["cats", "dogs", "mice"]
    assert artifact.seconds > 0

    stored = np.load(artifact.path / "samples.npz")["arr_0"]
    assert (stored.dtype, stored.shape) == (np.uint8, images.shape)
    order = [next(i for i in range(12) if np.array_equal(image, images[i])) for image in stored]
    assert sorted(order) == list(range(12))
    assert order != list(range(12))

    grid = np.asarray(Image.open(artifact.path / "grid.png"))
    assert grid.shape == (3 * 10 - 2, 4 * 10 - 2, 4)
    assert np.array_equal(grid[10:18, 20:28, :3], images[6])  # the third of the second class
    strip = np.asarray(Image.open(artifact.path / "trajectory.png"))
    assert strip.shape == (4 * 10 - 2, 8 * 10 - 2, 4)
    # the last column is the image; it was decoded in a smaller batch, which may round otherwise
    assert np.abs(strip[10:18, 70:78, :3].astype(int) - images[1]).max() <= 1
    assert np.abs(strip[10:18, :8, :3].astype(int) - images[1]).max() > 1
    assert {path.name for path in artifact.path.iterdir()} == {
        *("images", "samples.json", "samples.npz", "grid.png", "trajectory.png", "alight.json")
    }


def test_an_image_depends_on_its_seed_and_hardly_on_its_batch(configure, tmp_path):
    """Batches of 2 to 5 are equal bit for bit here. A batch of 1 makes a matrix product with one row, for which the
    CPU's library sums in another order: latents differ by 1e-6 and images by 1e-5, which moves a pixel that stands at
    the edge of two 8-bit values, a few in ten thousand, by 1.
    """
    whole = pixels(run(configure(tmp_path / "8", batch_size=8)).path)
    for size in (1, 3, 5):
        images = pixels(run(configure(tmp_path / str(size), batch_size=size)).path)
        difference = np.abs(images.astype(int) - whole)
        assert difference.max() <= 1
        assert (difference > 0).mean() < 2e-3
    reseeded = pixels(run(configure(tmp_path / "seed", seed=1)).path)
    assert np.abs(reseeded.astype(int) - whole).max() > 1


def test_a_killed_run_goes_on_and_ends_the_same(configure, tmp_path, monkeypatch):
    """Some images are there, one is damaged, one is half written: the rest is made, bit for bit as in one go."""
    whole = run(configure(tmp_path / "whole", batch_size=2))
    config = configure(tmp_path / "killed", batch_size=2)
    run(config)
    images, made = config.output / "images", set()
    for name in ("samples.json", "grid.png", "alight.json"):
        (config.output / name).unlink()
    unfinished = {"config": config.model_dump(mode="json"), "inputs": whole.inputs, "seconds": 100.0}
    (config.output / "unfinished.json").write_text(json.dumps(unfinished))
    for number in (5, 10, 11):
        (images / f"{number:06d}.png").unlink()
    (images / "000000.png").write_bytes((images / "000000.png").read_bytes()[:-30])
    (images / ".000010.png.writing").write_bytes(b"half")
    before = {path.name: path.stat().st_mtime_ns for path in images.glob("*.png")}
    resumed = run(config)
    made = {path.name for path in images.iterdir() if path.stat().st_mtime_ns != before.get(path.name)}
    assert made == {f"{number:06d}.png" for number in (0, 1, 4, 5, 10, 11)}  # whole batches, for the same rounding
    assert files(resumed.path) == files(whole.path)
    assert resumed.hash == whole.hash
    assert resumed.seconds > 100
    assert not (config.output / "unfinished.json").exists()


def test_unfinished_samples_of_another_kind_are_refused(configure, tmp_path):
    folder = tmp_path / "run"
    run(configure(folder))
    finished = json.loads((folder / "alight.json").read_text())
    (folder / "alight.json").unlink()
    with pytest.raises(InputError, match="no 'alight' run has left there"):
        run(configure(folder))
    state = {"config": finished["config"], "inputs": finished["inputs"], "seconds": 0.0}
    (folder / "unfinished.json").write_text(json.dumps(state))
    with pytest.raises(InputError, match="seed: 0 -> 1"):
        run(configure(folder, seed=1))
    (folder / "unfinished.json").write_text(json.dumps(state | {"inputs": state["inputs"] | {"transformer": "other"}}))
    with pytest.raises(InputError, match="transformer: other -> "):
        run(configure(folder))
    (folder / "unfinished.json").write_text("{")
    with pytest.raises(InputError, match="cannot be read"):
        run(configure(folder))


def test_labels_as_people_ask_for_them(configure, tmp_path):
    by_count = settings_of(run(configure(tmp_path / "counts", class_counts={"Mice": 2, "0": 1})).path)
    assert (by_count["labels"], by_count["label_protocol"]) == ([2, 2, 0], "given counts per class")
    some = settings_of(run(configure(tmp_path / "some", classes=["dogs", 2], samples_per_class=1)).path)
    assert (some["labels"], some["label_protocol"]) == ([1, 2], "balanced, 1 per class of 2 chosen classes")

    config = configure(tmp_path / "random", labels="random", num_samples=60, sampling={"num_inference_steps": 1})
    labels = settings_of(run(config).path)["labels"]
    assert label_protocol(config) == "random, drawn uniformly"
    counts = np.bincount(labels, minlength=3)
    assert counts.sum() == 60
    assert counts.min() > 8  # 20 each are expected, with a standard deviation of 3.7
    assert len(set(counts.tolist())) > 1  # and not dealt out evenly
    assert labels != sorted(labels)
    assert settings_of(run(config.model_copy(update={"output": tmp_path / "again"})).path)["labels"] == labels


def test_names_of_imagenet_for_a_transformer_without_names(configure, models, tmp_path):
    config = configure(tmp_path / "run", transformer=models / "imagenet", class_counts={"goldfish": 1, "963": 1})
    settings = settings_of(run(config).path)
    assert [settings["class_names"][label].split(",")[0] for label in settings["labels"]] == ["goldfish", "pizza"]


def test_autoguidance(configure, models, tmp_path):
    guided = {"sampling": {"num_inference_steps": 3, "guidance_scale": 2.0}}
    artifact = run(configure(tmp_path / "guided", guide=models / "weak", **guided))
    assert settings_of(artifact.path)["guide"] == read_artifact(models / "weak", "transformer").hash
    assert settings_of(artifact.path)["nfe"] == 6
    assert run(configure(tmp_path / "guided", guide=models / "weak", **guided)).hash == artifact.hash  # kept
    assert not np.array_equal(pixels(artifact.path), pixels(run(configure(tmp_path / "classes", **guided)).path))
    with pytest.raises(InputError, match="another latents_mean"):
        run(configure(tmp_path / "x", guide=models / "other_latents", **guided))
    with pytest.raises(InputError, match="does nothing at guidance_scale 1"):
        configure(tmp_path / "x", guide=models / "weak")
    for strategy, guide in (("autoguidance", None), ("classifier_free", models / "weak")):
        sampling = {"guidance_scale": 2.0, "guidance": strategy}
        with pytest.raises(InputError, match="needs a guide|takes no guide"):
            configure(tmp_path / "x", guide=guide, sampling=sampling)
    assert not (tmp_path / "x").exists()


def test_stochastic_and_adaptive_solvers(configure, tmp_path):
    shifted = {"solver": "sde_heun", "num_inference_steps": 4, "timestep_shift": 0.4, "last_step_size": 0.01}
    stochastic = configure(tmp_path / "sde", sampling=shifted)
    settings = settings_of(run(stochastic).path)
    assert (settings["nfe"], settings["sampling"]["last_step"]) == (3 * 2 + 1, "mean")
    adaptive = configure(tmp_path / "ode", batch_size=5, sampling={"solver": "dopri5", "num_inference_steps": 4})
    assert settings_of(run(adaptive).path)["nfe"] > 6


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"classes": [3]}, "out of range"),
        ({"classes": ["micee"]}, "Did you mean 'mice'"),
        ({"sampling": {"guidance_scale": 2.0, "guidance_channels": 5}}, "only 4 channels"),
        ({"transformer": "without_null_class", "sampling": {"guidance_scale": 2.0}}, "no null class"),
        ({"labels": "random"}, "needs num_samples"),
        ({"num_samples": 5}, "give samples_per_class"),
        ({"class_counts": {"cats": 2}, "classes": ["cats"]}, "leave out classes"),
        ({"sampling": {"solver": "sde_euler", "num_inference_steps": 1}}, "at least 2"),
        ({"sampling": {"solver": "sde_euler", "time_warp": (1.17, 0.8, 1.1)}}, "no timestep_shift and no sde_ solver"),
        ({"sampling": {"timestep_shift": 0.3, "time_warp": (1.17, 0.8, 1.1)}}, "no timestep_shift and no sde_ solver"),
        ({"sampling": {"kappa": 0.3}}, "belongs to the solver ucgm"),
        ({"sampling": {"solver": "ucgm", "kappa": 1.5}}, "less than or equal to 1"),
    ],
)
def test_what_cannot_be_sampled_is_refused_before_any_work(configure, models, tmp_path, values, message):
    values = values | ({"transformer": models / values["transformer"]} if "transformer" in values else {})
    with pytest.raises(InputError, match=message):
        run(configure(tmp_path / "run", **values))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--sampling.num-inference-steps", 0], "greater than or equal to 1"),
        (["--sampling.guidance-interval", 0.8, 0.2], "low < high"),
        (["--sampling.timestep-shift", 0], "greater than or equal to 0.001"),
        (["--sampling.solver", "eulr"], "Did you mean 'euler'"),
        (["--labels", "random"], "needs num_samples"),
        (["--classes", 3], "out of range"),
    ],
)
def test_mistakes_on_the_command_line(refused, models, tmp_path, options, message):
    folders = ["--transformer", models / "transformer", "--tokenizer", models / "tokenizer"]
    assert message in refused("sample", *folders, *options, "--output", tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.fixture(scope="module")
def torchrun():
    """Run `alight ...` in two processes, none of which outlives the test."""

    def start(*arguments):
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
        process = subprocess.Popen(
            [*command, "-m", "alight", *map(str, arguments)],
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            output, errors = process.communicate(timeout=200)
        finally:
            process.terminate()  # torchrun ends its workers with it
        return subprocess.CompletedProcess(command, process.returncode, output, errors)

    return start


def test_two_processes_make_the_same_files_as_one(torchrun, configure, models, tmp_path):
    one = run(configure(tmp_path / "one", batch_size=2, npz=True))
    options = ["--transformer", models / "transformer", "--tokenizer", models / "tokenizer", "--device", "cpu"]
    options += ["--samples-per-class", 4, "--batch-size", 2, "--npz", True, "--sampling.num-inference-steps", 3]
    result = torchrun("sample", *options, "--output", tmp_path / "two")
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == f"Samples: {tmp_path / 'two'}/images"
    assert read_artifact(tmp_path / "two", "samples").hash == one.hash
    assert files(tmp_path / "two") == files(tmp_path / "one")
    for name in ("samples.json", "grid.png", "trajectory.png"):
        assert (tmp_path / "two" / name).read_bytes() == (one.path / name).read_bytes()
    stored = [np.load(folder / "samples.npz")["arr_0"] for folder in (tmp_path / "two", one.path)]
    assert np.array_equal(*stored)


def test_other_commands_say_that_they_run_in_one_process(refused):
    message = refused("latents", "inspect", RANK="0", WORLD_SIZE="2")
    assert "'alight latents inspect' runs in one process" in message


def test_killing_the_process_loses_no_image(alight, configure, models, tmp_path):
    """SIGKILL in the middle, which nothing can clean up after; the same command then finishes the work."""
    output = Path(tmp_path / "run")
    options = ["--transformer", models / "transformer", "--tokenizer", models / "tokenizer", "--device", "cpu"]
    options += ["--samples-per-class", 4, "--batch-size", 1, "--sampling.num-inference-steps", 150, "--output", output]
    process = warm.AlightProcess(["sample", *map(str, options)])
    deadline = time.monotonic() + 120
    while len(list(output.glob("images/0*.png"))) < 3 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (output / "alight.json").exists()
    kept = files(output)
    assert 3 <= len(kept) < 12
    result = alight("sample", *options)
    assert result.returncode == 0, result.stderr
    assert "are there already" in result.stderr
    sampling = {"num_inference_steps": 150}
    whole = run(configure(tmp_path / "whole", batch_size=1, sampling=sampling))
    assert files(output) == files(whole.path)


def test_images_are_stored_beside_the_generation_and_count_only_then(configure, tmp_path, monkeypatch):
    threads, counted = set(), []
    write, record = SampleFolder.write, SampleFolder.record_time

    def slow_write(folder, *arguments):
        time.sleep(0.02)
        threads.add(threading.current_thread())
        write(folder, *arguments)

    def count(folder, seconds):
        counted.append(len(list((folder.path / "images").glob("*.png"))))
        record(folder, seconds)

    monkeypatch.setattr(SampleFolder, "write", slow_write)
    monkeypatch.setattr(SampleFolder, "record_time", count)
    artifact = run(configure(tmp_path / "run", batch_size=4))
    assert threading.main_thread() not in threads
    assert all(there >= expected for there, expected in zip(counted, (0, 4, 8, 12), strict=True))
    monkeypatch.undo()
    assert files(artifact.path) == files(run(configure(tmp_path / "again", batch_size=4)).path)


def test_a_disk_that_is_full_while_images_are_stored_ends_the_run(configure, tmp_path, monkeypatch):
    write = SampleFolder.write

    def refuse(folder, number, *arguments):
        if number == 5:
            with explained_disk_errors(folder.path):
                raise OSError(errno.ENOSPC, "No space left on device")
        write(folder, number, *arguments)

    monkeypatch.setattr(SampleFolder, "write", refuse)
    config = configure(tmp_path / "run", batch_size=2)
    with pytest.raises(InputError, match="the disk is full"):
        run(config)
    assert not (config.output / "alight.json").exists()
    monkeypatch.undo()
    assert run(config).hash == run(configure(tmp_path / "whole", batch_size=2)).hash


def test_a_tokenizer_with_weights_in_bf16_decodes_nearly_the_same(configure, tmp_path):
    """By at most a few of 255 steps; and the record says so, as a resumed run must know."""
    run(configure(tmp_path / "full"))
    run(configure(tmp_path / "narrow", tokenizer_weights="bf16"))
    difference = np.abs(pixels(tmp_path / "full").astype(int) - pixels(tmp_path / "narrow"))
    assert 0 < difference.mean() < 1
    assert difference.max() <= 8
    assert json.loads((tmp_path / "narrow" / "samples.json").read_text())["tokenizer_weights"] == "bf16"
    assert "tokenizer_weights" not in json.loads((tmp_path / "full" / "samples.json").read_text())
    with pytest.raises(InputError, match="tokenizer_weights: bf16 -> fp32"):
        run(configure(tmp_path / "narrow"))


def test_compiled_networks_make_the_same_images(configure, tmp_path, monkeypatch):
    """The backend that generates no code, which would take minutes; a last batch of another size."""
    monkeypatch.setattr(compilation, "compile_blocks", partial(compile_blocks, backend="aot_eager"))
    run(configure(tmp_path / "plain", batch_size=5))
    run(configure(tmp_path / "compiled", batch_size=5, compile=True))
    assert read_artifact(tmp_path / "plain", "samples").config["compile"] is False
    assert read_artifact(tmp_path / "compiled", "samples").config["compile"] is True
    assert np.abs(pixels(tmp_path / "plain").astype(int) - pixels(tmp_path / "compiled")).max() <= 1
    run(configure(tmp_path / "compiled", batch_size=5))  # the same samples, finished already
