"""The parts of a job of several processes that need none: signals, devices, agreement, failures, the store."""

import json
import os
import signal
import time
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist

from alight.runtime import interrupt
from alight.runtime.agreement import require_same_job
from alight.runtime.device import resolve_device
from alight.runtime.distributed import own_device, process_group
from alight.runtime.errors import InputError, exit_code
from alight.runtime.interrupt import Interrupted, deferred_interrupt, termination_as_exception
from alight.runtime.meeting import Failure, post_failure, read_failure, within


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=str)
def test_a_signal_that_comes_again_at_once_is_ignored(number):
    with deferred_interrupt() as came:
        for _ in range(3):
            os.kill(os.getpid(), number)
        assert came() == number


def test_a_later_signal_acts_at_once(monkeypatch):
    monkeypatch.setattr(interrupt, "REPEATED_WITHIN", 0.05)
    with deferred_interrupt() as came:
        os.kill(os.getpid(), signal.SIGTERM)
        assert came() == signal.SIGTERM
        time.sleep(0.1)
        with pytest.raises(Interrupted) as raised:
            os.kill(os.getpid(), signal.SIGINT)
    assert raised.value.exit_code == 130
    assert not raised.value.agreed


def test_termination_unwinds_and_the_handler_before_comes_back():
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Interrupted) as raised, termination_as_exception():
        os.kill(os.getpid(), signal.SIGTERM)
    assert exit_code(raised.value) == 143
    assert signal.getsignal(signal.SIGTERM) == before


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (InputError("no"), 2),
        (OSError("full"), 2),
        (MemoryError(), 2),
        (torch.OutOfMemoryError("full"), 2),
        (KeyboardInterrupt(), 130),
        (Interrupted(signal.SIGTERM), 143),
        (ZeroDivisionError(), 1),
        (RuntimeError("bug"), 1),
    ],
    ids=repr,
)
def test_exit_codes(error, code):
    assert exit_code(error) == code


@pytest.fixture
def two_devices(monkeypatch):
    """A machine with two CUDA devices, as far as their number goes."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")


def test_each_process_has_its_own_device(two_devices, monkeypatch):
    for local in (0, 1):
        monkeypatch.setenv("LOCAL_RANK", str(local))
        assert own_device("cuda") == torch.device("cuda", local)
    assert own_device("cpu") == torch.device("cpu")


def test_more_processes_than_devices(two_devices, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(InputError, match=r"has 2 CUDA devices, but at least 3 processes.*--nproc-per-node 2"):
        own_device("cuda")


def test_one_device_for_several_processes(two_devices, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "0")
    with pytest.raises(InputError, match=r"cuda:1 gives the same device to all 3 processes.*use --device cuda"):
        own_device("cuda:1")


def test_a_device_beyond_their_number(two_devices):
    with pytest.raises(
        InputError, match=r"finds 2 CUDA devices; use --device auto, or choose one of cuda:0 to cuda:1"
    ):
        resolve_device("cuda:2")


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_the_chosen_device_is_the_current_one():
    with process_group("cuda:1", {}) as processes:
        assert torch.cuda.current_device() == processes.device.index == 1
    assert torch.cuda.current_device() == 0


def other_ranks(**descriptions):
    store = dist.HashStore()
    for rank, description in descriptions.items():
        store.set(f"job/{rank.removeprefix('rank')}", json.dumps(description))
    return store


def description(job):
    store = dist.HashStore()
    require_same_job(store, 1, 2, job)
    return json.loads(store.get("job/1"))


JOB = {"seed": 0, "device": "cuda:0", "training": {"steps": 5, "password": "secret"}, "sections": {}}


def test_equal_jobs_agree_whatever_their_devices():
    store = other_ranks(rank1=description(JOB), rank2=description(JOB | {"device": "cuda:1"}))
    require_same_job(store, 0, 3, JOB)
    assert "secret" not in store.get("job/1").decode()


def test_differing_jobs_are_named_with_their_keys():
    other = description(JOB | {"seed": 1, "training": {"steps": 6, "password": "secret"}})
    store = other_ranks(rank1=other, rank2=description(JOB), rank3=other)
    with pytest.raises(InputError, match=r"ranks 1, 3 in seed, training\.steps\. Start the same"):
        require_same_job(store, 0, 4, JOB)


def test_another_version_is_named():
    store = other_ranks(rank1=description(JOB) | {"alight's version": "0.0.1"})
    with pytest.raises(InputError, match=r"rank 1 in alight's version \(0\.0\.1 against \d"):
        require_same_job(store, 0, 2, JOB)


def test_the_first_failure_counts():
    store = dist.TCPStore("127.0.0.1", 0, None, True, timedelta(seconds=5), False)
    first, second = Failure(1, "here", 2, "The disk is full."), Failure(0, "there", 1, "A connection was lost.")
    assert read_failure(store) is None
    assert post_failure(store, first) == first
    assert post_failure(store, second) == first
    assert read_failure(store) == first


def test_actions_that_block_or_fail_give_nothing():
    assert within(5, lambda: 3) == 3
    assert within(0.05, lambda: time.sleep(1)) is None
    assert within(5, lambda: int("x")) is None
