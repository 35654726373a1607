"""Mistakes at the start of a job of several processes: one paragraph from one of them, exit code 2, and soon."""

import os
import socket
import subprocess
import sys
import time

import pytest
import torch

from helpers import warm
from helpers.command_line import ENVIRONMENT
from helpers.jobs import SOON, finish, paragraphs, training
from helpers.written import write_published_shards


@pytest.fixture(scope="module")
def latents(tmp_path_factory):
    return write_published_shards(tmp_path_factory.mktemp("latents"), shards=1, count=50)


def start(ranks, shared):
    """Begin a job whose ranks have words of their own."""
    return [
        warm.AlightProcess(words, **shared, RANK=str(rank), LOCAL_RANK=str(rank)) for rank, words in enumerate(ranks)
    ]


def refusal(job):
    """The one paragraph of a job that is refused in all its processes."""
    codes, messages = finish(job)
    assert codes == [2] * len(job), messages
    assert "Traceback" not in "".join(messages)
    (line,) = paragraphs(messages)
    return line


def test_another_configuration_in_one_process(latents, tmp_path):
    ranks = [training(latents, tmp_path)] * 2 + [training(latents, tmp_path, ema_decay=0.5, steps=41)]
    line = refusal(start(ranks, warm.rendezvous(3)))
    assert "rank 0: The processes of the job differ from rank 0: rank 2 in training.ema_decay, training.steps" in line


def test_a_mistake_in_all_processes_is_printed_once(latents, tmp_path):
    line = refusal(start([training(latents, tmp_path, global_batch_size=7)] * 2, warm.rendezvous(2)))
    assert "7" in line


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA devices")
def test_cuda_where_there_is_none(latents, tmp_path):
    words = [*training(latents, tmp_path), "--device", "cuda"]
    assert "PyTorch finds 0 CUDA devices" in refusal(start([words] * 2, warm.rendezvous(2)))


def test_an_unknown_address(latents, tmp_path):
    address = {"MASTER_ADDR": "no-such-machine.invalid", "ALIGHT_PROCESS_TIMEOUT": "2"}
    codes, messages = finish(start([training(latents, tmp_path)] * 2, warm.rendezvous(2) | address))
    assert codes == [2, 2], messages
    for line in paragraphs(messages):
        assert "MASTER_ADDR 'no-such-machine.invalid' is not the name of a machine" in line


def test_a_rank_0_that_never_starts(latents, tmp_path):
    shared = warm.rendezvous(2) | {"ALIGHT_PROCESS_TIMEOUT": "2"}
    job = [warm.AlightProcess(training(latents, tmp_path), **shared, RANK="1", LOCAL_RANK="1")]
    assert f"Nobody answers at MASTER_ADDR 127.0.0.1, port {shared['MASTER_PORT']}" in refusal(job)


def test_a_rank_1_that_never_starts(latents, tmp_path):
    shared = warm.rendezvous(3) | {"ALIGHT_PROCESS_TIMEOUT": "3"}
    ranks = [training(latents, tmp_path)] * 3
    assert "Ranks 1, 2 of 3 did not come within 3.0 s" in refusal(start(ranks[:1], shared))


def test_a_port_that_is_taken(latents, tmp_path):
    shared = warm.rendezvous(2)
    with socket.create_server(("", int(shared["MASTER_PORT"]))):
        job = [warm.AlightProcess(training(latents, tmp_path), **shared, RANK="0", LOCAL_RANK="0")]
        assert f"MASTER_PORT {shared['MASTER_PORT']} is in use" in refusal(job)


def test_two_jobs_at_one_address(latents, tmp_path):
    """The second job is refused, and the first one does not notice."""
    shared = warm.rendezvous(2)
    first = start([training(latents, tmp_path / "first", steps=150)] * 2, shared)
    while not (tmp_path / "first" / "training" / "log.jsonl").exists():
        time.sleep(0.02)
    codes, messages = finish(start([training(latents, tmp_path / "second")] * 2, shared))
    assert codes == [2, 2]
    assert all("Set MASTER_PORT to a free" in line or "set MASTER_PORT to a free" in line for line in messages)
    codes, messages = finish(first)
    assert codes == [0, 0], messages


def test_two_jobs_on_one_output_folder(latents, tmp_path):
    first = start([training(latents, tmp_path, steps=150)] * 2, warm.rendezvous(2))
    while not (tmp_path / "training" / "log.jsonl").exists():
        time.sleep(0.02)
    line = refusal(start([training(latents, tmp_path, steps=150)] * 2, warm.rendezvous(2)))
    assert f"rank 0: {tmp_path} is in use by another run" in line
    codes, messages = finish(first)
    assert codes == [0, 0], messages


@pytest.mark.parametrize(
    ("variable", "value", "complaint"),
    [
        ("MASTER_PORT", "http", "MASTER_PORT is 'http', not a port"),
        ("MASTER_ADDR", "", "MASTER_ADDR is not set"),
        ("ALIGHT_PROCESS_TIMEOUT", "soon", "ALIGHT_PROCESS_TIMEOUT is 'soon', not a number"),
    ],
)
def test_an_environment_that_cannot_be_used(latents, tmp_path, variable, value, complaint):
    shared = warm.rendezvous(1) | {"WORLD_SIZE": "2", variable: value}
    assert complaint in refusal(start([training(latents, tmp_path)], shared))


# --- under torchrun -----------------------------------------------------------------------------------------------

BROKEN = """
import sys
import alight.cli
import alight.stages.train_transformer as stage
from alight.runtime.errors import InputError

def train(config, resolved, latents, processes):
    if processes.rank == 1:
        raise {error}
    processes.barrier()

stage.train = train
alight.cli.main(sys.argv[1:])
"""


@pytest.mark.parametrize(
    ("nodes", "error", "traceback"),
    [
        pytest.param(1, "InputError('The disk of rank 1 is gone.')", False, id="a mistake, one node"),
        pytest.param(2, "ZeroDivisionError('bug')", True, id="a bug, two nodes", marks=pytest.mark.exhaustive),
    ],
)
def test_an_exception_in_one_process_ends_the_others(latents, tmp_path, nodes, error, traceback):
    script, port = tmp_path / "job.py", warm.rendezvous(2)["MASTER_PORT"]
    script.write_text(BROKEN.format(error=error))
    meeting = ["--rdzv-backend", "c10d", "--rdzv-id", "job", "--rdzv-endpoint", f"127.0.0.1:{port}"]
    words = [sys.executable, "-m", "torch.distributed.run", *meeting, "--nnodes", str(nodes)]
    words += ["--nproc-per-node", str(2 // nodes), str(script), *training(latents, tmp_path / "run")]
    environment = os.environ | ENVIRONMENT
    job = [subprocess.Popen(words, stderr=subprocess.PIPE, text=True, env=environment) for _ in range(nodes)]
    messages = [process.communicate(timeout=2 * SOON)[1] for process in job]  # torchrun takes long to start
    assert all(process.returncode for process in job)
    (line,) = paragraphs(messages)
    assert "alight: rank 1: " in line
    assert ("ZeroDivisionError" if traceback else "The disk of rank 1 is gone.") in line
    assert (f'File "{script}", line' in "".join(messages).partition("alight: rank 1:")[0]) == traceback
