"""Training in several processes: replicated and sharded, against one process with the same global batch."""

import json
import re

import pytest
import torch
from safetensors.torch import load_file

from alight.training.checkpoint import list_checkpoints, remove_checkpoint
from alight.training.snapshot import open_snapshot
from helpers import warm
from helpers.runs import losses
from helpers.written import WEIGHTS, largest_difference, write_published_shards


@pytest.fixture(scope="module")
def latents(tmp_path_factory):
    return write_published_shards(tmp_path_factory.mktemp("latents"), shards=2, count=20)


def start(processes, *arguments):
    """Run a command of alight in so many processes."""
    words = [str(argument) for argument in arguments]
    return warm.run_together(words, processes) if processes > 1 else warm.run(words)


def transformer_words(latents, output, **training):
    options = {"steps": 6, "global_batch_size": 8, "log_every": 1, "ema_decay": 0.9, "checkpoint_every": 3} | training
    return [
        *("transformer", "train", "--latents", latents, "--output", output, "--device", "cpu"),
        *("--model.preset", "None", "--model.hidden-size", "32", "--model.num-layers", "2", "--model.num-heads", "2"),
        *("--model.patch-size", "1", "--optimizer.lr", "1e-2"),
        *(part for key, value in options.items() for part in (f"--training.{key.replace('_', '-')}", value)),
    ]


def train_transformer(latents, output, processes=1, **training):
    result = start(processes, *transformer_words(latents, output, **training))
    assert result.returncode == 0, result.stderr
    assert not re.search(r"\w+Warning:", result.stderr), result.stderr  # of a library, about how it is called
    return result


@pytest.fixture(scope="module")
def alone(latents, tmp_path_factory):
    folder = tmp_path_factory.mktemp("alone")
    train_transformer(latents, folder)
    return folder


@pytest.mark.parametrize(
    "training",
    [
        {},
        pytest.param({"sharding": "shard"}, marks=pytest.mark.exhaustive),
        {"sharding": "shard", "micro_batch_size": 2},
    ],
    ids=str,
)
def test_two_processes_train_like_one(latents, alone, tmp_path, training):
    train_transformer(latents, tmp_path, processes=2, **training)
    assert losses(tmp_path) == pytest.approx(losses(alone), rel=1e-5)
    # the same sums in another order; six steps of Adam at 1e-2 move weights by up to 6e-2
    assert largest_difference(alone, tmp_path) < 2e-5


@pytest.mark.parametrize(
    ("before", "sharding"),
    [
        (1, "shard"),
        (2, "replicate"),
        pytest.param(1, "replicate", marks=pytest.mark.exhaustive),
        pytest.param(2, "shard", marks=pytest.mark.exhaustive),
    ],
)
def test_a_run_goes_on_with_another_number_of_processes(latents, alone, tmp_path, before, sharding):
    train_transformer(latents, tmp_path, before, sharding=sharding)
    for leftover in (*tmp_path.glob("*.json"), tmp_path / WEIGHTS):
        leftover.unlink()  # as if it had been stopped after the third step
    remove_checkpoint(list_checkpoints(tmp_path / "training")[-1][1])
    resumed = train_transformer(latents, tmp_path, 3 - before, sharding=sharding)
    assert "going on from step 3 of 6" in resumed.stderr
    assert losses(tmp_path) == pytest.approx(losses(alone), rel=1e-5)
    assert largest_difference(alone, tmp_path) < 2e-5


def test_two_processes_resume_exactly(latents, tmp_path):
    train_transformer(latents, tmp_path / "whole", 2)
    train_transformer(latents, tmp_path / "parts", 2)
    for leftover in (tmp_path / "parts").glob("*.*"):
        leftover.unlink()
    (tmp_path / "parts" / "training" / "step-00000006.pt").unlink()
    train_transformer(latents, tmp_path / "parts", 2)
    assert largest_difference(tmp_path / "whole", tmp_path / "parts") == 0


def test_a_run_changes_between_replicated_and_sharded(latents, tmp_path):
    """And between numbers of processes; every part of it goes on from the checkpoint of the one before."""
    train_transformer(latents, tmp_path / "alone", steps=10, power_averages=0.1)
    for steps, processes, sharding in ((2, 2, "shard"), (4, 2, "replicate"), (6, 2, "shard"), (8, 1, "replicate")):
        train_transformer(latents, tmp_path / "parts", processes, sharding=sharding, steps=steps, power_averages=0.1)
    last = train_transformer(latents, tmp_path / "parts", 2, sharding="shard", steps=10, power_averages=0.1)
    assert "going on from step 8 of 10" in last.stderr
    assert losses(tmp_path / "parts") == pytest.approx(losses(tmp_path / "alone"), rel=1e-4)
    assert largest_difference(tmp_path / "alone", tmp_path / "parts") < 1e-4


@pytest.mark.parametrize("sharding", ["replicate", pytest.param("shard", marks=pytest.mark.exhaustive)])
def test_a_second_machine_without_the_checkpoint_goes_on_from_the_same_step(latents, tmp_path, sharding):
    """Each process has a folder of its own under the same name; only that of the first holds the run."""
    options = {"sharding": sharding}
    train_transformer(latents, tmp_path / "whole", 2, **options)
    first, second = (tmp_path / name for name in ("first", "second"))
    second.mkdir()
    train_transformer(latents, first / "run", 2, **options)
    for leftover in (first / "run").glob("*.*"):
        leftover.unlink()
    remove_checkpoint(list_checkpoints(first / "run" / "training")[-1][1])
    words = transformer_words(latents, "run", **options)
    results = warm.run_apart(words, [first, second])
    assert results[0].returncode == 0, results[0].stderr
    assert "going on from step 3 of 6" in results[0].stderr
    assert "run is not a finished transformer" in results[1].stderr  # which is why nodes need a shared file system
    assert largest_difference(tmp_path / "whole", first / "run") == 0


def test_a_sharded_run_that_was_stopped_resumes_exactly(latents, tmp_path):
    for name in ("whole", "parts"):
        train_transformer(latents, tmp_path / name, 2, sharding="shard", precision="bf16")
    for leftover in (tmp_path / "parts").glob("*.*"):
        leftover.unlink()
    remove_checkpoint(list_checkpoints(tmp_path / "parts" / "training")[-1][1])
    train_transformer(latents, tmp_path / "parts", 2, sharding="shard", precision="bf16")
    assert largest_difference(tmp_path / "whole", tmp_path / "parts") == 0


def test_bf16_is_as_exact_sharded_as_replicated(latents, alone, tmp_path):
    """Blocks that travel in bf16 round the scales of their norms; everything else is rounded by autocast as well."""
    for sharding in ("replicate", "shard"):
        train_transformer(latents, tmp_path / sharding, 2, sharding=sharding, precision="bf16")
    exact = losses(alone)
    rounded, sharded = (
        max(abs(a - b) for a, b in zip(exact, losses(tmp_path / name), strict=True)) for name in ("replicate", "shard")
    )
    assert 0 < rounded < 0.02
    assert 0 < sharded < 2 * rounded
    stored = load_file(tmp_path / "shard" / WEIGHTS)
    assert {tensor.dtype for tensor in stored.values()} == {torch.float32}
    assert largest_difference(tmp_path / "replicate", tmp_path / "shard") < 0.06  # six steps of Adam at 1e-2


def test_the_commands_understand_a_sharded_checkpoint(latents, tmp_path):
    run = tmp_path / "run"
    train_transformer(latents, run, 2, sharding="shard")
    newest = run / "training" / "step-00000006"
    for folder, words in ((run, "step-00000006"), (newest, "a checkpoint of a sharded training run of alight")):
        told = start(1, "info", folder)
        assert told.returncode == 0, told.stderr
        assert words in told.stdout
    assert "2 are intact, the newest of step 6" in start(1, "doctor", "--run", run).stdout
    finished = open_snapshot(run).model().state_dict()
    stored = load_file(run / WEIGHTS)
    assert all(torch.equal(finished[name], stored[name]) for name in stored)
    assert open_snapshot(run, "3").facts["steps"] == 3
    part = newest / "__1_0.distcp"
    part.write_bytes(part.read_bytes()[:-1])
    assert "1 of 2 are damaged (of step 6 by its __1_0.distcp)" in start(1, "doctor", "--run", run).stdout
    assert open_snapshot(run).facts["steps"] == 3


def train_tokenizer(output, foundation, processes=1, **options):
    options = {
        "images.source": "digits",
        "images.size": 32,
        "model.latent-channels": 4,
        "model.norm-num-groups": 4,
        "model.layers-per-block": 1,
        "model.level-attention": False,
        "model.mid-block-attention": False,
        "alignment.foundation": foundation,
        "reconstruction.adversarial-weight": 0,
        "optimizer.lr": 1e-3,
        "training.steps": 5,
        "training.global-batch-size": 8,
        "training.log-every": 1,
        "preview-images": 0,
        "device": "cpu",
    } | options
    parts = [part for key, value in options.items() for part in (f"--{key}", value)]
    result = start(processes, "tokenizer", "train", "--output", output, "--model.block-out-channels", 8, 8, 16, *parts)
    assert result.returncode == 0, result.stderr


@pytest.fixture(scope="module")
def foundation(tmp_path_factory):
    folder = tmp_path_factory.mktemp("foundation")
    result = start(
        1,
        *("foundation", "train", "--output", folder, "--images.source", "digits", "--images.size", 32),
        *("--model.hidden-size", 16, "--model.num-layers", 1, "--model.num-heads", 2, "--model.patch-size", 8),
        *("--training.steps", 2, "--training.global-batch-size", 8, "--device", "cpu"),
    )
    assert result.returncode == 0, result.stderr
    return folder


def test_two_processes_train_a_tokenizer_like_one(foundation, tmp_path):
    """Gradients are averaged before their norms are compared, so the adaptive weights agree, too."""
    for processes in (1, 2):
        train_tokenizer(tmp_path / str(processes), foundation, processes)
    one, two = (
        [json.loads(line) for line in (tmp_path / name / "training" / "log.jsonl").read_text().splitlines()]
        for name in ("1", "2")
    )
    for name in ("loss", "l1", "kl", "mcos", "mdms", "alignment_adaptive_weight"):
        assert [line[name] for line in two] == pytest.approx([line[name] for line in one], rel=1e-4), name
    assert largest_difference(tmp_path / "1", tmp_path / "2") < 1e-4


def test_a_tokenizer_resumes_exactly_in_two_processes(foundation, tmp_path):
    options = {"reconstruction.adversarial-weight": 0}
    options |= {"training.checkpoint-every": 3, "training.keep-checkpoints": 9}
    for name in ("whole", "parts"):
        train_tokenizer(tmp_path / name, foundation, 2, **options)
    for leftover in (tmp_path / "parts").glob("*.*"):
        leftover.unlink()
    remove_checkpoint(list_checkpoints(tmp_path / "parts" / "training")[-1][1])
    train_tokenizer(tmp_path / "parts", foundation, 2, **options)
    assert largest_difference(tmp_path / "whole", tmp_path / "parts") == 0
