"""The number of threads that one process computes with, where others wait for it."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from threadpoolctl import threadpool_limits

from alight.runtime.distributed import Processes
from alight.runtime.hardware import available_cores


@contextmanager
def all_cores(processes: Processes) -> Iterator[None]:
    """Compute with all cores of this machine while the other processes wait, in torch, NumPy and SciPy.

    `torchrun` gives each process a single thread, since all of them work at the same time. One process alone keeps the
    number that it has.
    """
    if processes.world_size == 1:
        yield
        return
    before, cores = torch.get_num_threads(), available_cores()
    with threadpool_limits(limits=cores):
        torch.set_num_threads(cores)
        try:
            yield
        finally:
            torch.set_num_threads(before)
