"""Worker processes that take calls, each on a device of its own; one that is killed takes no other with it."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from multiprocessing import connection
from queue import SimpleQueue
from typing import Self, TypeVar

import torch

Result = TypeVar("Result")

_OF_A_JOB = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_device: list[str] = []  # of this process, if it is a worker


class Workers:
    """As many processes as devices, which are started when they are needed and end with the block.

    Args:
        devices: one per worker.
        threads: of each.
    """

    def __init__(self, devices: Sequence[str], threads: int) -> None:
        self._threads, self._level = threads, logging.getLogger("alight").level
        self._free: SimpleQueue[tuple[str, ProcessPoolExecutor | None]] = SimpleQueue()
        self._started: dict[ProcessPoolExecutor, int] = {}  # and its process
        for device in devices:
            self._free.put((device, None))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        while not self._free.empty():
            _, process = self._free.get()
            if process is not None:
                process.shutdown()

    def call(self, function: Callable[..., Result], *arguments: object) -> Result:
        """Call a function in a free worker, and wait for its result; may be called from several threads.

        Raises:
            BrokenProcessPool: the worker was killed; the next call gets a new one.
        """
        device, process = self._free.get()
        try:
            process = process or self._start(device)
            return process.submit(function, *arguments).result()
        except BrokenProcessPool:
            if process is not None:
                self._started.pop(process, None)  # another process may get its number
                process.shutdown()  # its thread closes the queues, which the end of this process must not do meanwhile
            process = None
            raise
        finally:
            self._free.put((device, process))

    def _start(self, device: str) -> ProcessPoolExecutor:
        context = multiprocessing.get_context("spawn")  # CUDA does not survive a fork
        process = ProcessPoolExecutor(1, context, initializer=_begin, initargs=(device, self._threads, self._level))
        self._started[process] = process.submit(os.getpid).result()
        return process

    def terminate(self) -> None:
        """Send all workers SIGTERM: a training in one of them finishes its step and saves, anything else ends."""
        for process in self._started.values():
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGTERM)


def own_device() -> str | None:
    """The device of this process, if it is a worker."""
    return _device[0] if _device else None


def _begin(device: str, threads: int, level: int) -> None:
    """Set up a worker: its device, its threads, warnings alone in the log, and an end with its parent's.

    It is no process of a job that torchrun started, even if its parent is one: its stages work alone.
    """
    for name in _OF_A_JOB:
        os.environ.pop(name, None)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _device.append(device)
    torch.set_num_threads(threads)
    logging.getLogger("alight").setLevel(max(level, logging.WARNING))


def _end_with_parent() -> None:
    """End this process as soon as its parent has ended, however: what it holds is free for the next command."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    connection.wait([parent.sentinel])
    os._exit(1)
