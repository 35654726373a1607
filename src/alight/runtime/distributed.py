"""Several processes of one job: who am I, how many are we, and wait for the others.

`torchrun` starts the processes and tells each its place through the environment; without it there is one process, and
the same code runs with nothing to wait for.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist

PATIENCE = timedelta(hours=6)  # how long one process may work alone while the others wait; torchrun ends dead jobs


@dataclass(frozen=True)
class Processes:
    """This process among those of the job.

    Attributes:
        rank: which one this is, from 0.
        world_size: how many there are.
        device: where this one computes.
    """

    rank: int
    world_size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """Whether this is the one that writes what there is only one of."""
        return self.rank == 0

    def barrier(self) -> None:
        """Wait until every process has come here."""
        if self.world_size > 1:
            dist.barrier(device_ids=[self.device.index] if self.device.type == "cuda" else None)


@contextmanager
def process_group(device: torch.device) -> Iterator[Processes]:
    """Join the other processes that torchrun started, for the length of the block.

    They talk through NCCL on CUDA devices, each on the one of its local rank, and through gloo elsewhere.

    Args:
        device: of the job; `cuda` without a number is spread over the processes of a machine.
    """
    rank, world_size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    if world_size == 1:
        yield Processes(0, 1, device)
        return
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]) if device.index is None else device.index)
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=PATIENCE)
    try:
        yield Processes(rank, world_size, device)
    finally:
        dist.destroy_process_group()
