"""The store in which the processes of a job meet: they find it at MASTER_ADDR and MASTER_PORT, as torchrun set them.

Under torchrun it lives in the torchrun of the first node, else in the process of rank 0. The first failure that is
posted there is the job's failure; every later one is a consequence of it.
"""

import functools
import json
import os
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import TypeVar

import torch.distributed as dist

from alight.runtime.errors import InputError

DEFAULT_PATIENCE = 900.0  # seconds
PATIENCE_VARIABLE = "ALIGHT_PROCESS_TIMEOUT"
_CONNECTING = 45.0  # seconds in which the store must answer
_ANSWER = timedelta(seconds=30)  # in which it must answer later on
_FAILURE = "failure"

Result = TypeVar("Result")


@dataclass(frozen=True)
class Failure:
    """The end of a job, as the process that ended first has posted it.

    Attributes:
        rank: of the process that posted it.
        machine: on which that process ran.
        exit_code: with which all processes leave.
        message: one paragraph.
    """

    rank: int
    machine: str
    exit_code: int
    message: str


def patience() -> float:
    """Seconds for which a process waits for another one that does not come.

    Raises:
        InputError: the environment variable is not a positive number.
    """
    text = os.environ.get(PATIENCE_VARIABLE, str(DEFAULT_PATIENCE))
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < 1e8:
        raise InputError(f"{PATIENCE_VARIABLE} is '{text}', not a number of seconds above 0. Correct or unset it.")
    return seconds


def own_store(name: str) -> dist.Store:
    """A connection to the store of this job, for one thread's use.

    Args:
        name: of the part of the store to use.

    Raises:
        InputError: the address is missing, unknown or taken, or nobody answers there.
    """
    host, port = _address()
    if hosts_store():
        _host_store(port)
    _wait_for_answer(host, port, min(_CONNECTING, patience()))
    store = dist.TCPStore(host, port, None, False, timeout=_ANSWER, wait_for_workers=False)
    job = [os.environ.get(key, "") for key in ("TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT")]
    return dist.PrefixStore("/".join(["alight", *job, name]), store)


def hosts_store() -> bool:
    """True in the process without which the store would be gone."""
    return os.environ.get("RANK") == "0" and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"


def post_failure(store: dist.Store, failure: Failure) -> Failure:
    """Post a failure and give the job's failure, which is another one where somebody posted before."""
    return Failure(**json.loads(store.compare_set(_FAILURE, "", json.dumps(asdict(failure)))))


def read_failure(store: dist.Store) -> Failure | None:
    """The job's failure, if there is one."""
    return Failure(**json.loads(store.get(_FAILURE))) if store.check([_FAILURE]) else None


def within(seconds: float, action: Callable[[], Result]) -> Result | None:
    """The result of an action that may block or fail; None where it does."""
    results: list[Result] = []

    def act() -> None:
        try:
            results.append(action())
        except (InputError, RuntimeError, ValueError, OSError):
            return

    thread = threading.Thread(target=act, daemon=True)
    thread.start()
    thread.join(seconds)
    return results[0] if results else None


def _address() -> tuple[str, int]:
    missing = [name for name in ("MASTER_ADDR", "MASTER_PORT", "RANK") if not os.environ.get(name)]
    if missing:
        raise InputError(
            f"WORLD_SIZE is {os.environ.get('WORLD_SIZE')}, but {', '.join(missing)} is not set. Start the job with "
            "torchrun, which sets all of them, or unset WORLD_SIZE for a job of one process."
        )
    port = os.environ["MASTER_PORT"]
    if not (port.isdecimal() and 0 < int(port) < 2**16):
        raise InputError(f"MASTER_PORT is '{port}', not a port between 1 and 65535. Set it to a free one.")
    return os.environ["MASTER_ADDR"], int(port)


@functools.cache  # held until the process ends, because the others need it for as long
def _host_store(port: int) -> dist.Store:
    """The store itself, in the process in which it lives."""
    try:
        return dist.TCPStore("localhost", port, None, True, timeout=_ANSWER, wait_for_workers=False)
    except dist.DistNetworkError as error:
        if "EADDRINUSE" not in str(error):
            raise
        raise InputError(
            f"MASTER_PORT {port} is in use on {socket.gethostname()}. Another job, or an earlier one that still runs, "
            "may hold it; set MASTER_PORT to a free port, or stop that job."
        ) from error


def _wait_for_answer(host: str, port: int, seconds: float) -> None:
    """Wait until the store can be reached: the process that holds it may begin later than this one."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            socket.create_connection((host, port), timeout=min(5.0, seconds)).close()
            return
        except OSError as error:
            if time.monotonic() > deadline:
                if isinstance(error, socket.gaierror):
                    raise InputError(_unknown(host, error)) from error
                raise InputError(
                    f"Nobody answers at MASTER_ADDR {host}, port {port}, where the processes of the job meet: "
                    f"{error.strerror or error}. Check the address, a firewall between the machines, and the messages "
                    "of rank 0, which may not have started."
                ) from error
        time.sleep(0.2)


def _unknown(host: str, error: socket.gaierror) -> str:
    return (
        f"MASTER_ADDR '{host}' is not the name of a machine that {socket.gethostname()} knows: {error.strerror}. Set "
        "it to the address of the machine of rank 0."
    )
