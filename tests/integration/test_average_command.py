"""Averages chosen after training: snapshots that outlive a kill, and `alight average` from real runs to images."""

import io
import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from alight import LightningDiT
from alight.artifacts import read_artifact
from alight.config import AverageConfig, SampleConfig, TrainTransformerConfig
from alight.doctor.run_check import average_findings
from alight.evaluation.generated import sampling_conditions
from alight.runtime.errors import InputError
from alight.sharing.model_card import _recipe as recipe_on_a_card
from alight.stages import average, generate_samples, train_transformer
from alight.training.average_snapshots import write_snapshot
from alight.training.checkpoint import checksum_path, list_checkpoints
from alight.training.ema import PowerAverage
from helpers import warm
from helpers.models import tiny_tokenizer
from helpers.runs import before_each_step, losses, stopping_after, train_in_processes
from helpers.written import TOKENIZER_HASH, WEIGHTS, same_weights, write_latents, write_model

TINY_MODEL = {"preset": None, "hidden_size": 32, "num_layers": 2, "num_heads": 2, "patch_size": 1}
STEPS = 32
KEPT = {"power_averages": [0.05, 0.1], "snapshot_every": 2}


@pytest.fixture(scope="module")
def latents(tmp_path_factory):
    return write_latents(tmp_path_factory.mktemp("latents"), count=40)


def configure(latents, output, **training):
    options = {"steps": STEPS, "global_batch_size": 8, "log_every": 1, "ema_decay": 0.9, "checkpoint_every": 8}
    values = {"latents": latents, "output": output, "device": "cpu", "model": TINY_MODEL, "sample_images": 0}
    values |= {"training": options | training, "optimizer": {"lr": 1e-2}}
    return TrainTransformerConfig.model_validate(values)


def choose(run, output, width=0.08, **options):
    return average.run(AverageConfig.model_validate({"run": run, "output": output, "width": width} | options))


def snapshots_of(run):
    return sorted((run / "training" / "averages").iterdir())


@pytest.fixture(scope="module")
def run(latents, tmp_path_factory):
    """A finished run that keeps two averages."""
    folder = tmp_path_factory.mktemp("run") / "transformer"
    train_transformer.run(configure(latents, folder, **KEPT))
    return folder


@pytest.fixture
def copied(run, tmp_path):
    return shutil.copytree(run, tmp_path / "transformer")


# --- while training -----------------------------------------------------------------------------------------------


def test_averages_change_nothing_else(latents, run, tmp_path):
    train_transformer.run(configure(latents, tmp_path))
    assert same_weights(run, tmp_path)
    assert losses(run) == losses(tmp_path)
    assert not (tmp_path / "training" / "averages").exists()
    checkpoint = torch.load(list_checkpoints(tmp_path / "training")[-1][1], weights_only=True)
    assert set(checkpoint["state"]) == {"model", "optimizer", "ema"}


def test_snapshots_are_the_tracked_averages(latents, run, tmp_path, monkeypatch):
    """Against averages of the same run that are computed here, in double precision, from its weights at every step."""
    seen = []
    take = PowerAverage.update

    def update(self, model, step=0):
        if self.width == 0.05:
            seen.append({name: value.detach().double().clone() for name, value in model.named_parameters()})
        take(self, model, step)

    monkeypatch.setattr(PowerAverage, "update", update)
    train_transformer.run(configure(latents, tmp_path, **KEPT))
    assert len(seen) == STEPS
    for path in snapshots_of(run)[::2]:
        with safe_open(path, framework="pt") as file:
            record = json.loads(file.metadata()["snapshot"])
            assert f"step-{record['step']:08d}-width-{record['width']:g}.safetensors" == path.name
            ends = (torch.arange(record["step"] + 1).double() / record["step"]) ** (record["exponent"] + 1)
            for name in seen[0]:
                expected = sum(share * weights[name] for share, weights in zip(ends.diff(), seen, strict=False))
                torch.testing.assert_close(file.get_tensor(name).double(), expected, rtol=1e-4, atol=2e-6)


@pytest.mark.parametrize("stop", [3, 17, 29])
def test_a_stopped_run_leaves_the_snapshots_of_an_undisturbed_one(latents, run, tmp_path, monkeypatch, stop):
    config = configure(latents, tmp_path, **KEPT)
    with stopping_after(monkeypatch, stop):
        train_transformer.run(config)
    train_transformer.run(config)
    assert [path.name for path in snapshots_of(tmp_path)] == [path.name for path in snapshots_of(run)]
    for one, other in zip(snapshots_of(tmp_path), snapshots_of(run), strict=True):
        assert one.read_bytes() == other.read_bytes(), one.name
    assert same_weights(run, tmp_path)


def test_averages_cannot_be_switched_on_within_a_run(latents, tmp_path, monkeypatch):
    with stopping_after(monkeypatch, 9):
        train_transformer.run(configure(latents, tmp_path))
    with pytest.raises(InputError, match=r"training\.power_averages: None -> "):
        train_transformer.run(configure(latents, tmp_path, **KEPT))


def test_without_the_plain_average_the_raw_weights_are_the_transformer(latents, run, tmp_path):
    train_transformer.run(configure(latents, tmp_path / "raw", ema_decay=None, **KEPT))
    assert not same_weights(run, tmp_path / "raw")
    choose(run, tmp_path / "one")
    choose(tmp_path / "raw", tmp_path / "two")
    assert same_weights(tmp_path / "one", tmp_path / "two")


def test_a_longer_run_keeps_its_snapshots(latents, copied, tmp_path):
    train_transformer.run(configure(latents, copied, **KEPT | {"steps": STEPS + 8}))
    train_transformer.run(configure(latents, tmp_path / "whole", **KEPT | {"steps": STEPS + 8}))
    choose(copied, tmp_path / "one")
    assert choose(tmp_path / "whole", tmp_path / "two").facts["average"]["step"] == STEPS + 8
    assert same_weights(tmp_path / "one", tmp_path / "two")


@pytest.mark.parametrize("sharding", [pytest.param("replicate", marks=pytest.mark.exhaustive), "shard"])
def test_two_processes_keep_the_averages_of_one(latents, run, tmp_path, sharding):
    train_in_processes(configure(latents, tmp_path / "two", sharding=sharding, **KEPT))
    assert [path.name for path in snapshots_of(tmp_path / "two")] == [path.name for path in snapshots_of(run)]
    for one, other in zip(snapshots_of(tmp_path / "two"), snapshots_of(run), strict=True):
        if one.suffix == ".safetensors":
            first, second = load_file(one), load_file(other)
            for name in second:  # gradients were added in another order, and Adam's first steps amplify that
                torch.testing.assert_close(first[name], second[name], rtol=0, atol=5e-4, msg=name)


# --- afterwards ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("width", "tolerance"), [(0.05, 1e-7), (0.08, 5e-4), (0.15, 5e-4)])
def test_the_average_is_the_one_that_a_run_would_have_tracked(latents, run, tmp_path, width, tolerance):
    train_transformer.run(configure(latents, tmp_path / "tracked", power_averages=[width], snapshot_every=STEPS))
    (path, *_) = (path for path in snapshots_of(tmp_path / "tracked") if path.suffix == ".safetensors")
    artifact = choose(run, tmp_path / "chosen", width)
    assert artifact.facts["average"]["profile_error"] < 0.01
    found, directly = load_file(tmp_path / "chosen" / WEIGHTS), load_file(path)
    ends = load_file(run / WEIGHTS)
    assert found.keys() == directly.keys()
    error = max(float((found[name] - directly[name]).abs().max()) for name in found)
    moved = max(float((ends[name] - directly[name]).abs().max()) for name in found)
    assert error < tolerance < moved / 5


def test_the_average_is_a_transformer_with_the_records_of_its_run(run, tmp_path):
    artifact = choose(run, tmp_path / "chosen", 0.1, step=24)
    source = read_artifact(run, "transformer")
    for name in ("class_names", "latents_mean", "latents_std", "path", "prediction", "parameters"):
        assert artifact.facts[name] == source.facts[name]
    assert artifact.facts["steps"] == 24
    assert artifact.facts["average"] == {
        **{"width": 0.1, "exponent": pytest.approx(6.937, abs=1e-3), "step": 24, "snapshots": 24},
        **{"snapshot_widths": [0.05, 0.1], "profile_error": pytest.approx(0.0, abs=1e-6)},
    }
    assert artifact.inputs == source.inputs | {"transformer": source.hash}
    assert artifact.config["latents"] == source.config["latents"]
    snapshot = load_file(run / "training" / "averages" / "step-00000024-width-0.1.safetensors")
    weights = load_file(tmp_path / "chosen" / WEIGHTS)
    assert all(torch.allclose(weights[name], snapshot[name], atol=1e-7) for name in snapshot)
    assert sorted(path.name for path in (tmp_path / "chosen").iterdir()) == sorted(
        path.name for path in run.iterdir() if path.is_file()
    )
    card = recipe_on_a_card(artifact)
    assert "width of the average" in card
    assert "EMA decay" not in card
    assert not list(average_findings(artifact.config))
    assert choose(run, tmp_path / "chosen", 0.1, step=24) == artifact  # nothing is done twice
    with pytest.raises(InputError, match=r"average\.width: 0\.1 -> 0\.05"):
        choose(run, tmp_path / "chosen", 0.05, step=24)


def test_an_unfinished_run_has_averages(latents, run, tmp_path, monkeypatch):
    config = configure(latents, tmp_path / "transformer", **KEPT)
    with stopping_after(monkeypatch, 21):
        train_transformer.run(config)
    artifact = choose(tmp_path / "transformer", tmp_path / "early", 0.1)
    assert artifact.facts["average"]["step"] == 20
    choose(run, tmp_path / "later", 0.1, step=20)
    assert same_weights(tmp_path / "early", tmp_path / "later")


def test_the_command_line_leads_from_a_run_to_images(run, tmp_path):
    tokenizer = write_model(tmp_path / "tokenizer", "tokenizer", tiny_tokenizer(), TOKENIZER_HASH)
    chosen, samples = tmp_path / "chosen", tmp_path / "samples"
    result = warm.run(["average", str(run), "--width", "0.08", "--output", str(chosen), "--json"])
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["facts"]["average"]["width"] == 0.08
    LightningDiT.from_pretrained(chosen)
    words = ["sample", "--transformer", chosen, "--tokenizer", tokenizer, "--output", samples, "--device", "cpu"]
    words += ["--samples-per-class", "1", "--sampling.num-inference-steps", "2"]
    result = warm.run([str(word) for word in words])
    assert result.returncode == 0, result.stderr
    assert len(list((samples / "images").glob("*.png"))) == 3
    assert (
        json.loads((samples / "alight.json").read_text())["inputs"]["transformer"]
        == read_artifact(chosen, "transformer").hash
    )


def sample_from(run, output, tokenizer, **options):
    values = {"transformer": run, "tokenizer": tokenizer, "output": output, "device": "cpu", "samples_per_class": 1}
    values |= {"sampling": {"num_inference_steps": 2}}
    return generate_samples.run(SampleConfig.model_validate(values | options))


@pytest.mark.parametrize("step", [None, 24])
def test_sampling_with_an_average_needs_no_folder_of_it(run, tmp_path, step):
    tokenizer = write_model(tmp_path / "tokenizer", "tokenizer", tiny_tokenizer(), TOKENIZER_HASH)
    chosen = choose(run, tmp_path / "chosen", step=step).path
    sample_from(chosen, tmp_path / "one", tokenizer)
    direct = sample_from(run, tmp_path / "two", tokenizer, average=0.08, checkpoint=step)
    plain = sample_from(run, tmp_path / "three", tokenizer, checkpoint=step)
    one, two, three = (
        [path.read_bytes() for path in sorted((tmp_path / name / "images").glob("*.png"))]
        for name in ("one", "two", "three")
    )
    pixels = [[np.asarray(Image.open(io.BytesIO(image))) for image in images] for images in (one, two, three)]
    assert all(np.array_equal(first, second) for first, second in zip(*pixels[:2], strict=True))
    assert not all(np.array_equal(first, second) for first, second in zip(*pixels[1:], strict=True))
    records = [json.loads((samples.path / "samples.json").read_text()) for samples in (direct, plain)]
    assert sampling_conditions(records[0])["average"] == 0.08
    assert "average" not in sampling_conditions(records[1])


# --- bad input ----------------------------------------------------------------------------------------------------


def refused(run, output, width=0.08, **options):
    with pytest.raises(InputError) as caught:
        choose(run, output, width, **options)
    assert "\n" not in str(caught.value)
    assert not output.exists()
    return str(caught.value)


def test_averages_outside_of_the_snapshots_are_refused(run, tmp_path):
    output = tmp_path / "chosen"
    message = refused(run, output, 0.01)
    assert "cannot give an average of width 0.01 at step 32" in message
    assert "Widths within reach: 0.0" in message
    assert "is no such step. The last of 16 such steps are 18, 20" in refused(run, output, step=3)
    assert "Say how long the average is to be" in refused(run, output, None)
    for width in (0, -1, 0.3, float("nan")):
        with pytest.raises(ValueError, match="width"):
            AverageConfig(run=run, output=output, width=width)
    with pytest.raises(InputError, match="lies above"):
        choose(run, run.parent)
    assert "inside" in refused(run, run / "averaged")


def test_runs_without_snapshots_are_refused(run, copied, tmp_path):
    shutil.rmtree(copied / "training" / "averages")
    assert "holds no snapshots of averages" in refused(copied, tmp_path / "chosen")
    assert "There is no transformer folder" in refused(tmp_path / "nowhere", tmp_path / "chosen")
    (tmp_path / "empty").mkdir()
    assert "is not a finished transformer" in refused(tmp_path / "empty", tmp_path / "chosen")
    result = warm.run(["average", str(copied), "--width", "0.08", "--output", str(tmp_path / "chosen")])
    assert result.returncode == 2
    assert "Traceback" not in result.stderr


def test_sampling_with_an_average_that_is_not_there_is_refused(run, copied, tmp_path):
    tokenizer = write_model(tmp_path / "tokenizer", "tokenizer", tiny_tokenizer(), TOKENIZER_HASH)
    for path in copied.glob("training/averages/step-00000024-*"):
        path.unlink()
    with pytest.raises(InputError, match="step 24 is no such step"):
        sample_from(copied, tmp_path / "samples", tokenizer, average=0.08, checkpoint=24)
    with pytest.raises(InputError, match="cannot give an average of width 0.01"):
        sample_from(run, tmp_path / "samples", tokenizer, average=0.01)
    shutil.rmtree(copied / "training" / "averages")
    with pytest.raises(InputError, match="holds no snapshots of averages"):
        sample_from(copied, tmp_path / "samples", tokenizer, average=0.08)


def test_snapshots_of_another_run_are_refused(latents, run, copied, tmp_path):
    config = configure(latents, tmp_path / "other", **KEPT).model_copy(update={"seed": 1})
    train_transformer.run(config)
    name = "step-00000016-width-0.05.safetensors"
    for path in (name, checksum_path(copied / name).name):
        shutil.copy(tmp_path / "other" / "training" / "averages" / path, copied / "training" / "averages")
    assert "is a snapshot of another run than the transformer in" in refused(copied, tmp_path / "chosen")
    assert "seed: 1 -> 0" in refused(copied, tmp_path / "chosen")
    snapshot = run / "training" / "averages" / name
    with safe_open(snapshot, framework="pt") as file:
        record = json.loads(file.metadata()["snapshot"])
    record["inputs"]["latents"] = "0" * 64
    write_snapshot(copied / "training" / "averages" / name, load_file(snapshot), record)
    assert "the latents (000000000000 -> " in refused(copied, tmp_path / "chosen")


def test_damaged_snapshots_are_refused(copied, tmp_path):
    path = copied / "training" / "averages" / "step-00000016-width-0.05.safetensors"
    whole = path.read_bytes()
    weights = {name: value.clone() for name, value in load_file(path).items()}  # from the mapped file
    for damaged, reason in (
        (whole[:-1] + bytes([whole[-1] ^ 1]), "its SHA-256 is not the one"),
        (whole[:-100], "its header is not that of a snapshot"),
        (b"", "its header is not that of a snapshot"),
        (b"\xff" * 100, "its header is not that of a snapshot"),
    ):
        path.write_bytes(damaged)
        message = refused(copied, tmp_path / "chosen")
        assert str(path) in message
        assert reason in message
    for record in (None, {"snapshot": "{}"}, {"snapshot": '{"step": 0}'}):
        save_file(weights, path, record)
        assert "its header is not that of a snapshot" in refused(copied, tmp_path / "chosen")
    path.write_bytes(whole)
    checksum_path(path).unlink()
    assert "its SHA-256" in refused(copied, tmp_path / "chosen")
    path.unlink()
    choose(copied, tmp_path / "chosen")  # one of many can be spared


def test_a_snapshot_of_other_weights_is_refused(run, copied, tmp_path):
    path = copied / "training" / "averages" / "step-00000016-width-0.05.safetensors"
    with safe_open(path, framework="pt") as file:
        record = json.loads(file.metadata()["snapshot"])
    weights = load_file(path)
    name = next(iter(weights))
    write_snapshot(path, weights | {name: weights[name][..., :-1]}, record)
    assert "is damaged" in refused(copied, tmp_path / "chosen")
    write_snapshot(path, {key: value for key, value in weights.items() if key != name}, record)
    assert "is damaged" in refused(copied, tmp_path / "chosen")


def test_a_full_disk_ends_training_with_one_sentence(latents, tmp_path):
    config = configure(latents, tmp_path / "run", **KEPT | {"checkpoint_every": STEPS})
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(json.dumps({"job": "transformer train", **config.model_dump(mode="json")}))
    process = warm.AlightProcess(["transformer", "train", "--config", str(recipe)], None, 30_000)
    _, errors = process.communicate()
    assert process.returncode == 2, errors
    assert "Traceback" not in errors


def test_a_snapshot_is_there_before_the_checkpoint_of_its_step(latents, tmp_path, monkeypatch):
    """So that no run that goes on lacks one."""
    missing = []

    def look(_):
        for step, _path in list_checkpoints(tmp_path / "training"):
            if not (tmp_path / "training" / "averages" / f"step-{step:08d}-width-0.05.safetensors").is_file():
                missing.append(step)

    with before_each_step(monkeypatch, look):
        train_transformer.run(configure(latents, tmp_path, **KEPT | {"checkpoint_every": 2, "keep_checkpoints": 50}))
    assert not missing
