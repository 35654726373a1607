"""The processes of a distributed job: ranks, barriers and collectives.

`torchrun` starts the processes and sets their ranks in the environment; without it there is one process, which runs
the same code.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

COLLECTIVE_TIMEOUT = timedelta(hours=6)  # of one process working alone while others wait; torchrun ends dead jobs


@dataclass(frozen=True)
class Processes:
    """This process among those of the job.

    Attributes:
        rank: of this process, from 0.
        world_size: number of processes.
        device: of this process.
    """

    rank: int
    world_size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """True for the process that writes the shared files."""
        return self.rank == 0

    def barrier(self) -> None:
        """Wait until every process has reached this point."""
        if self.world_size > 1:
            dist.barrier(device_ids=[self.device.index] if self.device.type == "cuda" else None)

    def share(self, count: int) -> slice:
        """This process's equal and contiguous part of `count` things, which the number of processes divides."""
        part = count // self.world_size
        return slice(self.rank * part, (self.rank + 1) * part)

    def average(self, value: Tensor) -> Tensor:
        """The mean of a tensor over the processes."""
        if self.world_size == 1:
            return value
        total = value.clone()
        dist.all_reduce(total)
        return total / self.world_size

    def largest(self, value: int) -> int:
        """The largest of the processes' numbers; exchanged on the CPU, so no accelerator waits for it."""
        if self.world_size == 1:
            return value
        number = torch.tensor(value)
        dist.all_reduce(number, op=dist.ReduceOp.MAX)
        return int(number)

    def gather(self, value: Any) -> list[Any]:
        """The values of all processes, in the order of their ranks; tensors in them must be on the CPU."""
        if self.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value)
        return values

    @torch.no_grad()
    def average_gradients(self, optimizer: torch.optim.Optimizer) -> None:
        """Replace the gradients that an optimizer will apply by their mean over the processes, in one message."""
        if self.world_size == 1:
            return
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        flat = self.average(torch.cat([gradient.flatten() for gradient in gradients]))
        averages = flat.split([gradient.numel() for gradient in gradients])
        torch._foreach_copy_(
            gradients, [average.view_as(gradient) for average, gradient in zip(averages, gradients, strict=True)]
        )


@contextmanager
def process_group(device: torch.device) -> Iterator[Processes]:
    """Join the processes that torchrun started, for the length of the block.

    CUDA tensors are exchanged through NCCL, each process using the device of its local rank, others through gloo.

    Args:
        device: of the job; `cuda` without an index gives each process on a machine its own device.
    """
    rank, world_size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    if world_size == 1:
        yield Processes(0, 1, device)
        return
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]) if device.index is None else device.index)
        torch.cuda.set_device(device)
    dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo", timeout=COLLECTIVE_TIMEOUT)
    try:
        yield Processes(rank, world_size, device)
    finally:
        dist.destroy_process_group()
