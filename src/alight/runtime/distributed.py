"""Several processes of one job: who am I, how many are we, and wait for the others.

`torchrun` starts the processes and tells each its place through the environment; without it there is one process, and
the same code runs with nothing to wait for.
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
        rank: which one this is, from 0.
        world_size: how many there are.
        device: where this one computes.
    """

    rank: int
    world_size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """True for the process that writes the files of which there is one."""
        return self.rank == 0

    def barrier(self) -> None:
        """Wait until every process has come here."""
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
        """The largest of the processes' numbers; it travels between the hosts, so no accelerator waits for it."""
        if self.world_size == 1:
            return value
        number = torch.tensor(value)
        dist.all_reduce(number, op=dist.ReduceOp.MAX)
        return int(number)

    def gather(self, value: Any) -> list[Any]:
        """The values of all processes, in the order of their ranks; tensors in them lie on the CPU."""
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
        pieces = flat.split([gradient.numel() for gradient in gradients])
        torch._foreach_copy_(
            gradients, [piece.view_as(gradient) for piece, gradient in zip(pieces, gradients, strict=True)]
        )


@contextmanager
def process_group(device: torch.device) -> Iterator[Processes]:
    """Join the other processes that torchrun started, for the length of the block.

    They talk through NCCL about what lies on CUDA devices, each on the one of its local rank, else through gloo.

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
    dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo", timeout=COLLECTIVE_TIMEOUT)
    try:
        yield Processes(rank, world_size, device)
    finally:
        dist.destroy_process_group()
