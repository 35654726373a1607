"""Functions of the package called in several processes over gloo, as a training run calls them."""

import os
import socket
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from alight.models.lightning_dit import LightningDiT
from alight.runtime.distributed import Processes, process_group
from alight.training.background_writer import BackgroundWriter
from alight.training.ema import EMA, PowerAverage
from alight.training.muon import Muon
from alight.training.parallel import ModelState, OptimizerState, group_for_checkpoints, shard
from helpers.warm import _context


def start_together(function: Callable[..., Any], count: int, *arguments: Any) -> tuple[list[Any], Any]:
    """Begin `function(processes, *arguments)` in so many processes; gives them, and the queue of their results."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    results: Any = _context.Queue()
    started = [
        _context.Process(target=_call, args=(rank, count, port, results, function, arguments), daemon=True)
        for rank in range(count)
    ]
    for process in started:
        process.start()
    return started, results


def call_together(function: Callable[..., Any], count: int, *arguments: Any) -> list[Any]:
    """The results of `function(processes, *arguments)` in so many processes, by rank; a failure fails the test."""
    started, results = start_together(function, count, *arguments)
    outcomes = dict(results.get(timeout=120) for _ in started)
    for process in started:
        process.join(60)
    failures = [text for ok, text in outcomes.values() if not ok]
    assert not failures, failures[0]
    return [outcomes[rank][1] for rank in range(count)]


def _call(
    rank: int, count: int, port: int, results: Any, function: Callable[..., Any], arguments: tuple[Any, ...]
) -> None:
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(count))
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    try:
        with process_group("cpu", {}) as processes:
            results.put((rank, (True, function(processes, *arguments))))
    except BaseException:  # the test says so
        results.put((rank, (False, traceback.format_exc())))


class Trained:
    """A small transformer with averages and an optimizer that has taken steps.

    Args:
        processes: that share it.
        sharded: divide it among them.
        optimizer: `adamw` or `muon`.
        seed: of weights and gradients; another one for a model that is to be filled from a checkpoint.
    """

    def __init__(self, processes: Processes, sharded: bool, optimizer: str = "adamw", seed: int = 0) -> None:
        torch.manual_seed(seed)
        sizes = {"hidden_size": 24, "num_layers": 2, "num_heads": 2, "sample_size": 4, "patch_size": 1}
        self.model = LightningDiT(in_channels=3, num_classes=5, **sizes)
        self.averages = [EMA(self.model, 0.9), PowerAverage(self.model, 0.1)]
        self.sharded = sharded and processes.world_size > 1
        if self.sharded:
            for each in (self.model, *(average.model for average in self.averages)):
                shard(each, each.blocks, processes)
        parameters = list(self.model.parameters())
        if optimizer == "muon":
            matrices = [parameter for parameter in parameters if parameter.ndim == 2]
            others = [parameter for parameter in parameters if parameter.ndim != 2]
            self.optimizer: torch.optim.Optimizer = Muon(
                [{"params": matrices, "muon": True}, {"params": others}], lr=1e-2
            )
        else:
            self.optimizer = torch.optim.AdamW(parameters, lr=1e-2, fused=True)
        self.group = group_for_checkpoints(self.states().values())

    def states(self) -> dict[str, Any]:
        """Everything for a checkpoint, by name."""
        return {
            "model": ModelState(self.model),
            "optimizer": OptimizerState(self.model, self.optimizer),
            "ema": ModelState(self.averages[0].model),
            "power": ModelState(self.averages[1].model),
        }

    def step(self, count: int = 2) -> None:
        """Take steps on random data, the same in all processes."""
        for number in range(count):
            x, t = torch.randn(2, 3, 4, 4), torch.rand(2)
            (self.model(x, t, torch.tensor([1, 5])) - torch.randn_like(x)).square().mean().backward()
            self.optimizer.step()
            self.optimizer.zero_grad()
            for average in self.averages:
                average.update(self.model, number)

    def save(self, folder: Path, step: int, processes: Processes, keep: int = 9) -> None:
        """Write a checkpoint as a run does."""
        writer = BackgroundWriter(folder, keep, group=self.group)
        state = {name: part.state_dict() for name, part in self.states().items()}
        progress = {"config": {"rank": processes.rank}, "seconds": 1.0, "non_finite": 0}
        if processes.is_main or self.group is not None:
            writer.save(step, {"state": state, **progress})
        writer.wait()
        writer.close()
        processes.barrier()
