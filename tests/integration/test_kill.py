"""Killed at random moments and started again, training ends with the weights of a run that nobody disturbed."""

import random
import signal
import time

import pytest

from alight.runtime.run_log import read_log
from alight.training.checkpoint import list_checkpoints, load_latest_checkpoint
from helpers import warm
from helpers.written import same_weights, write_published_shards

STEPS = 200


@pytest.fixture(scope="module")
def latents(tmp_path_factory):
    return write_published_shards(tmp_path_factory.mktemp("latents"), shards=1, count=50)


def start(latents, output, processes=1, **training):
    """Start training a small transformer, with a checkpoint after every step unless told otherwise."""
    options = {"steps": STEPS, "global_batch_size": 8, "checkpoint_every": 1, "log_every": 10, "ema_decay": 0.9}
    words = [
        *("transformer", "train", "--latents", str(latents), "--output", str(output), "--device", "cpu"),
        *("--model.preset", "None", "--model.hidden-size", "64", "--model.num-layers", "3", "--model.num-heads", "2"),
        *("--model.patch-size", "1", "--optimizer.lr", "1e-3"),
        *(
            part
            for key, value in (options | training).items()
            for part in (f"--training.{key.replace('_', '-')}", *str(value).split())
        ),
    ]
    return warm.start_together(words, processes) if processes > 1 else [warm.AlightProcess(words)]


def finish(job):
    for process in job:
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors


def newest_step(output):
    steps = [step for step, _ in list_checkpoints(output / "training")]
    return steps[-1] if steps else 0


def kill_after_progress(job, output, delay):
    """Kill the whole job at some moment after it has saved something; gives false where it was done before."""
    before, deadline = newest_step(output), time.monotonic() + 120
    while newest_step(output) == before and None in [process.poll() for process in job]:
        assert time.monotonic() < deadline
        time.sleep(0.002)
    time.sleep(delay)
    ended = None not in [process.poll() for process in job]  # by themselves
    for process in job:
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
    for process in job:
        process.communicate(timeout=60)
    return not ended


@pytest.fixture(scope="module")
def undisturbed(latents, tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    finish(start(latents, folder, checkpoint_every=STEPS))
    return folder


@pytest.mark.parametrize("times", [3, pytest.param(10, marks=pytest.mark.exhaustive)])
def test_killed_at_random_moments(latents, undisturbed, tmp_path, times):
    moments, kills = random.Random(times), 0
    for _ in range(times):
        job = start(latents, tmp_path)
        kills += kill_after_progress(job, tmp_path, moments.uniform(0, 0.75 / times))
        state, damaged = load_latest_checkpoint(tmp_path / "training")
        assert state is not None
        assert not damaged  # what has its final name is whole
    assert kills == times, "the run was too short to be killed so often"
    finish(start(latents, tmp_path))
    assert same_weights(tmp_path, undisturbed)
    assert [line["step"] for line in read_log(tmp_path / "training")] == list(range(10, STEPS + 1, 10))


@pytest.mark.parametrize("sharding", ["replicate", pytest.param("shard", marks=pytest.mark.exhaustive)])
def test_two_processes_killed_at_random_moments(latents, tmp_path, sharding):
    options = {"processes": 2, "sharding": sharding, "steps": 60}
    finish(start(latents, tmp_path / "whole", **options))
    moments = random.Random(1)
    for _ in range(2):
        job = start(latents, tmp_path / "parts", **options)
        assert kill_after_progress(job, tmp_path / "parts", moments.uniform(0, 0.15))
    finish(start(latents, tmp_path / "parts", **options))
    assert same_weights(tmp_path / "parts", tmp_path / "whole")


def test_snapshots_of_averages_are_those_of_an_undisturbed_run(latents, tmp_path):
    options = {"steps": 60, "power_averages": "0.05 0.1", "snapshot_every": 1}
    finish(start(latents, tmp_path / "whole", **options))
    moments = random.Random(2)
    for _ in range(3):
        kill_after_progress(start(latents, tmp_path / "parts", **options), tmp_path / "parts", moments.uniform(0, 0.1))
    finish(start(latents, tmp_path / "parts", **options))
    whole, parts = (sorted((tmp_path / name / "training" / "averages").glob("*.*")) for name in ("whole", "parts"))
    assert [path.name for path in parts] == [path.name for path in whole]
    assert len(whole) == 2 * 2 * 60  # of each average, with checksums
    assert all(one.read_bytes() == other.read_bytes() for one, other in zip(whole, parts, strict=True))


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_the_step_saves_and_leaves_with_the_conventional_code(latents, tmp_path, number, code):
    (process,) = start(latents, tmp_path, checkpoint_every=5, keep_checkpoints=STEPS)
    while newest_step(tmp_path) == 0:
        time.sleep(0.01)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == code
    assert "Traceback" not in errors
    stopped = newest_step(tmp_path)
    assert f"Stopped after step {stopped} of {STEPS}" in errors
    state, _ = load_latest_checkpoint(tmp_path / "training")
    assert state["step"] == stopped
