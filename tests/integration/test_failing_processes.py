"""A job of several processes ends soon, with its reason, whatever happens to one of them, and goes on exactly."""

import os
import signal
import subprocess
import sys
import time

import pytest

from alight.training.checkpoint import list_checkpoints
from helpers import warm
from helpers.command_line import ENVIRONMENT
from helpers.jobs import STEPS, begun, finish, paragraphs, training
from helpers.written import same_weights, write_published_shards


@pytest.fixture(scope="module")
def latents(tmp_path_factory):
    return write_published_shards(tmp_path_factory.mktemp("latents"), shards=1, count=50)


def uninterrupted(latents, folder, processes):
    codes, messages = finish(warm.start_together(training(latents, folder), processes))
    assert codes == [0] * processes, messages
    assert not paragraphs(messages)
    return folder


@pytest.fixture(scope="module")
def undisturbed(latents, tmp_path_factory):
    return uninterrupted(latents, tmp_path_factory.mktemp("undisturbed"), 2)


@pytest.fixture(scope="module")
def undisturbed_four(latents, tmp_path_factory):
    return uninterrupted(latents, tmp_path_factory.mktemp("undisturbed"), 4)


def require_exact_continuation(latents, output, undisturbed, processes=2):
    codes, messages = finish(warm.start_together(training(latents, output), processes))
    assert codes == [0] * processes, messages
    assert "going on from step" in messages[0]
    assert same_weights(output, undisturbed)


FATES = pytest.mark.parametrize(
    ("number", "fate"), [(signal.SIGKILL, "ended"), (signal.SIGSTOP, "gave no sign of life for 3.0 s")], ids=str
)


@FATES
def test_a_killed_or_stopped_first_process_ends_the_job(latents, undisturbed, tmp_path, number, fate):
    """The one that holds what the processes meet by."""
    require_named_and_resumed(latents, undisturbed, tmp_path, number, fate, processes=2, victim=0)


@FATES
def test_a_killed_or_stopped_process_of_four_ends_the_job(latents, undisturbed_four, tmp_path, number, fate):
    require_named_and_resumed(latents, undisturbed_four, tmp_path, number, fate, processes=4, victim=2)


def require_named_and_resumed(latents, undisturbed, output, number, fate, processes, victim):
    """One of those that are left names the one that is not, and the same command goes on exactly."""
    job = begun(warm.start_together(training(latents, output), processes, ALIGHT_PROCESS_TIMEOUT="3"), output)
    job[victim].send_signal(number)
    codes, messages = finish([process for rank, process in enumerate(job) if rank != victim])
    if number == signal.SIGSTOP:
        job[victim].send_signal(signal.SIGKILL)
    job[victim].communicate()
    assert codes == [1] * (processes - 1)
    (line,) = paragraphs(messages)
    assert f": rank {victim} (process {job[victim].pid})" in line
    assert fate in line
    assert "Traceback" not in "".join(messages)
    require_exact_continuation(latents, output, undisturbed, processes)


def test_a_full_disk_in_rank_0_ends_the_job(latents, undisturbed, tmp_path):
    words, shared = training(latents, tmp_path), warm.rendezvous(2)
    job = [
        warm.AlightProcess(words, None, limit, **shared, RANK=str(rank), LOCAL_RANK=str(rank))
        for rank, limit in enumerate((100_000, None))
    ]
    codes, messages = finish(job)
    assert codes == [2, 2]
    (line,) = paragraphs(messages)
    assert "rank 0: Cannot write to" in line
    assert "Traceback" not in "".join(messages)
    assert not list_checkpoints(tmp_path / "training")
    codes, messages = finish(warm.start_together(words, 2))
    assert codes == [0, 0], messages
    assert same_weights(tmp_path, undisturbed)


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.exhaustive)], ids=str
)
def test_a_signal_that_comes_twice_saves_and_stops_once(latents, undisturbed, tmp_path, number):
    """A scheduler signals torchrun and its processes, and torchrun passes its own signal on to them."""
    job = begun(warm.start_together(training(latents, tmp_path), 2), tmp_path)
    for _ in range(2):
        for process in job:
            process.send_signal(number)
        time.sleep(0.01)
    codes, messages = finish(job)
    assert codes == [128 + number] * 2
    stopped = list_checkpoints(tmp_path / "training")[-1][0]
    assert f"Stopped after step {stopped} of {STEPS}" in messages[0]
    assert "Traceback" not in "".join(messages)
    assert not paragraphs(messages)
    require_exact_continuation(latents, tmp_path, undisturbed)


def test_a_job_that_is_suspended_as_a_whole_goes_on(latents, undisturbed, tmp_path):
    job = begun(warm.start_together(training(latents, tmp_path), 2, ALIGHT_PROCESS_TIMEOUT="2"), tmp_path)
    # longer than a process may be silent, and shorter than a message may take, which is counted while they are stopped
    for number, seconds in ((signal.SIGSTOP, 3), (signal.SIGCONT, 0)):
        for process in job:
            process.send_signal(number)
        time.sleep(seconds)
    codes, messages = finish(job)
    assert codes == [0, 0], messages
    assert same_weights(tmp_path, undisturbed)


ALONE = """
import time
import torch
from alight.runtime.distributed import process_group

with process_group("cpu", {}) as processes:
    for operation in OPERATIONS:
        if processes.rank == 1:
            time.sleep(SECONDS)
        eval(f"processes.{operation}")
        print(f"rank {processes.rank} is through with {operation}")
"""


def run_alone(tmp_path, seconds, operations):
    """Two processes of which one works alone before each operation of both; gives exit codes and messages."""
    script = tmp_path / "job.py"
    script.write_text(ALONE.replace("SECONDS", str(seconds)).replace("OPERATIONS", str(operations)))
    shared = os.environ | ENVIRONMENT | warm.rendezvous(2) | {"ALIGHT_PROCESS_TIMEOUT": "2"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    job = [subprocess.Popen([sys.executable, script], env=shared | {"RANK": str(rank)}, **pipes) for rank in (0, 1)]
    outputs = [process.communicate(timeout=60) for process in job]
    return [process.returncode for process in job], outputs


def test_a_process_that_stays_away_is_named(tmp_path):
    codes, outputs = run_alone(tmp_path, 30, ["average(torch.ones(1))"])
    assert codes == [1, 1]
    lines = paragraphs([errors for _, errors in outputs])
    assert len(lines) == 1, lines
    (line,) = lines
    assert "rank 0: Rank 1 did not come to an operation that all processes share, though still running" in line


def test_a_process_may_work_alone_for_longer_than_the_timeout(tmp_path):
    operations = ["barrier()", "gather(1)", "largest(1)"]
    codes, outputs = run_alone(tmp_path, 3, operations)
    assert codes == [0, 0], outputs
    for rank, (output, _) in enumerate(outputs):
        assert output.splitlines() == [f"rank {rank} is through with {operation}" for operation in operations]
