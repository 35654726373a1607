"""The processes of a distributed job: ranks, barriers and collectives.

`torchrun` starts the processes and sets their ranks in the environment; without it there is one process, which runs
the same code.
"""

import atexit
import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from alight.runtime.agreement import require_same_job
from alight.runtime.device import resolve_device
from alight.runtime.errors import InputError, exit_code
from alight.runtime.interrupt import termination_as_exception
from alight.runtime.meeting import own_store
from alight.runtime.watch import Watch, leave_at_once

LATER = 15.0  # seconds after the watch does a collective operation give up, so that the watch can name the rank
ALONE = timedelta(days=1)  # in which one process may work while the others wait; the watch finds out if it ends
_TOGETHER = "LOCAL_WORLD_SIZE", "1"


@dataclass(frozen=True)
class Processes:
    """This process among those of the job.

    Attributes:
        rank: of this process, from 0.
        world_size: number of processes.
        device: of this process.
        patient: all processes again, over gloo, in waits for one that may work alone for long.
    """

    rank: int
    world_size: int
    device: torch.device
    patient: dist.ProcessGroup | None = None

    @property
    def is_main(self) -> bool:
        """True for the process that writes the shared files."""
        return self.rank == 0

    def barrier(self) -> None:
        """Wait until every process has reached this point."""
        if self.world_size > 1:
            dist.barrier(self.patient)

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
        dist.all_reduce(number, op=dist.ReduceOp.MAX, group=self.patient)
        return int(number)

    def gather(self, value: Any) -> list[Any]:
        """The values of all processes, in the order of their ranks; tensors in them must be on the CPU."""
        if self.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value, group=self.patient)
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
def process_group(device: str, job: Mapping[str, Any]) -> Iterator[Processes]:
    """Join the processes that torchrun started, for the length of the block.

    CUDA tensors are exchanged through NCCL, each process using the device of its local rank, others through gloo. An
    exception in one process ends them all: it leaves without taking the group apart, which would wait for the others.

    Args:
        device: of the job, as `resolve_device` takes it; `cuda` without an index gives each process on a machine its
            own device.
        job: the resolved configuration, as plain data, which must be the same everywhere.

    Raises:
        InputError: the processes cannot meet, differ in their configuration or version, or have no device.
    """
    rank, world_size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    if world_size == 1:
        with used_device(resolve_device(device)) as chosen:
            yield Processes(0, 1, chosen)
        return
    with watched(job) as watch, used_device(own_device(device)) as chosen:
        yield Processes(rank, world_size, chosen, _join(watch, chosen, rank, world_size))
        dist.destroy_process_group()


@contextmanager
def watched(job: Mapping[str, Any]) -> Iterator[Watch]:
    """Meet the processes that torchrun started, without collective operations, for the length of the block.

    An exception in one process ends them all.

    Args:
        job: as for `process_group`.

    Raises:
        InputError: the processes cannot meet, or differ in their configuration or version.
    """
    rank, world_size = int(os.environ.get("RANK", "0")), int(os.environ["WORLD_SIZE"])
    watch = Watch(rank, world_size)
    try:
        with termination_as_exception():
            require_same_job(watch.store, rank, world_size, job)
            yield watch
    except BaseException as error:
        watch.failed(error)
        atexit.register(leave_at_once, exit_code(error))  # the interpreter would take the group apart, too
        raise
    watch.leave()


def _join(watch: Watch, device: torch.device, rank: int, world_size: int) -> dist.ProcessGroup:
    """Join the default group for collective operations, and make the patient one."""
    limit = timedelta(seconds=watch.patience + min(watch.patience, LATER))
    store = own_store(watch.name + "/collectives")
    store.set_timeout(limit)
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=world_size, timeout=limit)
    return dist.new_group(backend="gloo", timeout=ALONE)


@contextmanager
def used_device(device: torch.device) -> Iterator[torch.device]:
    """Make a CUDA device the current one within the block, so that streams, events and random states are its own."""
    if device.type != "cuda":
        yield device
        return
    with torch.cuda.device(device):
        yield device


def own_device(name: str) -> torch.device:
    """The device of this process among those of its machine.

    Raises:
        InputError: there is none, or several processes would share one.
    """
    device = resolve_device(name)
    local, together = (int(os.environ.get(key, default)) for key, default in (("LOCAL_RANK", "0"), _TOGETHER))
    if device.type != "cuda":
        return device
    if device.index is not None and together > 1:
        raise InputError(
            f"--device {name} gives the same device to all {together} processes of {socket.gethostname()}, and each "
            "needs its own: use --device cuda."
        )
    index, count = local if device.index is None else device.index, torch.cuda.device_count()
    if index >= count:
        raise InputError(
            f"{socket.gethostname()} has {count} CUDA device{'s' if count > 1 else ''}, but at least {index + 1} "
            f"processes, and each needs its own. Start torchrun with --nproc-per-node {count}, or use --device cpu."
        )
    return torch.device("cuda", index)
