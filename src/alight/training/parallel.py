"""One model in several processes: replicated (DDP) or sharded (FSDP2), with one form of checkpoint for both.

Replicas each hold the whole model and average their gradients; shards hold a part of weights, gradients and optimizer
each, and gather a block's weights when it runs. What a checkpoint holds is whole either way, so that a run may go on
with another number of processes, or sharded where it was replicated.
"""

import warnings
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from alight.runtime.distributed import Processes

_WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)


def shard(model: nn.Module, blocks: Iterable[nn.Module]) -> None:
    """Divide a model among the processes in place, block by block; call it before the optimizer is made."""
    # it warns that outputs must not be changed in place, which nobody does
    warnings.filterwarnings("ignore", message=r"FSDP2-wrapped module \(.*\) returned a view tensor")
    for block in blocks:
        fully_shard(block)
    fully_shard(model)


def replicate(model: nn.Module, processes: Processes) -> nn.Module:
    """The module to call instead of the model, so that gradients are averaged over the processes."""
    if processes.world_size == 1 or isinstance(model, FSDPModule):
        return model
    return DistributedDataParallel(model, device_ids=[processes.device] if processes.device.type == "cuda" else None)


def release_weights(model: nn.Module) -> None:
    """Let go of what a sharded model has gathered for a forward pass that no backward pass follows."""
    if isinstance(model, FSDPModule):
        model.reshard()


def synchronised(model: nn.Module, last: bool) -> AbstractContextManager[object]:
    """Around forward and backward of one micro-batch: gradients travel with the last one alone."""
    if isinstance(model, FSDPModule):
        model.set_requires_gradient_sync(last)
        return nullcontext()
    if isinstance(model, DistributedDataParallel) and not last:
        return model.no_sync()
    return nullcontext()


def local(tensors: Iterable[Tensor]) -> list[Tensor]:
    """The parts of tensors that lie in this process: all of them, unless they are sharded."""
    return [tensor.to_local() if isinstance(tensor, DTensor) else tensor for tensor in tensors]


def whole(tensor: Tensor) -> Tensor:
    """The whole of a tensor, gathered where it is sharded; every process must ask for it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def divided_like(reference: Tensor, tensor: Tensor) -> Tensor:
    """A tensor that all processes hold, laid out as another one: this process's part of it where that is sharded."""
    if not isinstance(reference, DTensor):
        return tensor
    return distribute_tensor(tensor, reference.device_mesh, reference.placements, src_data_rank=None)


class ModelState:
    """A model as a checkpoint holds it: whole, whether sharded or not. Every process must ask for it."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def state_dict(self) -> dict[str, Any]:
        """All weights, on the host; empty in all processes but the first where the model is sharded."""
        return get_model_state_dict(self.model, options=_WHOLE)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore them."""
        set_model_state_dict(self.model, state, options=_WHOLE)


class OptimizerState:
    """The optimizer of a model as a checkpoint holds it: by the names of the weights, whole."""

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self.model, self.optimizer = model, optimizer

    def state_dict(self) -> dict[str, Any]:
        """Its memory, on the host; empty in all processes but the first where the model is sharded."""
        return get_optimizer_state_dict(self.model, self.optimizer, options=_WHOLE)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore it."""
        set_optimizer_state_dict(self.model, self.optimizer, state, options=_WHOLE)
