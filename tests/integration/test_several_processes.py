"""Training in several processes: replicated and sharded, against one process with the same global batch."""

import json

import pytest
from safetensors.torch import load_file

from helpers import warm
from helpers.runs import losses
from helpers.written import WEIGHTS, write_published_shards


@pytest.fixture(scope="module")
def latents(tmp_path_factory):
    return write_published_shards(tmp_path_factory.mktemp("latents"), shards=2, count=20)


def start(processes, *arguments):
    """Run a command of alight in so many processes."""
    words = [str(argument) for argument in arguments]
    return warm.run_together(words, processes) if processes > 1 else warm.run(words)


def train_transformer(latents, output, processes=1, **training):
    options = {"steps": 6, "global_batch_size": 8, "log_every": 1, "ema_decay": 0.9, "checkpoint_every": 3} | training
    result = start(
        processes,
        *("transformer", "train", "--latents", latents, "--output", output, "--device", "cpu"),
        *("--model.preset", "None", "--model.hidden-size", "32", "--model.num-layers", "2", "--model.num-heads", "2"),
        *("--model.patch-size", "1", "--optimizer.lr", "1e-2"),
        *(part for key, value in options.items() for part in (f"--training.{key.replace('_', '-')}", value)),
    )
    assert result.returncode == 0, result.stderr
    return result


def largest_difference(one, two):
    one, two = load_file(one / WEIGHTS), load_file(two / WEIGHTS)
    assert one.keys() == two.keys()
    return max(float((one[name] - two[name]).abs().max()) for name in one)


@pytest.fixture(scope="module")
def alone(latents, tmp_path_factory):
    folder = tmp_path_factory.mktemp("alone")
    train_transformer(latents, folder)
    return folder


@pytest.mark.parametrize(
    "training", [{}, {"sharding": "shard"}, {"sharding": "shard", "micro_batch_size": 2}], ids=str
)
def test_two_processes_train_like_one(latents, alone, tmp_path, training):
    train_transformer(latents, tmp_path, processes=2, **training)
    assert losses(tmp_path) == pytest.approx(losses(alone), rel=1e-5)
    # the same sums in another order; six steps of Adam at 1e-2 move weights by up to 6e-2
    assert largest_difference(alone, tmp_path) < 2e-5


@pytest.mark.parametrize("before", [1, 2])
@pytest.mark.parametrize("sharding", ["replicate", "shard"])
def test_a_run_goes_on_with_another_number_of_processes(latents, alone, tmp_path, before, sharding):
    train_transformer(latents, tmp_path, before, sharding=sharding)
    for leftover in (*tmp_path.glob("*.json"), tmp_path / WEIGHTS, tmp_path / "training" / "step-00000006.pt"):
        leftover.unlink()  # as if it had been stopped after the third step
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
