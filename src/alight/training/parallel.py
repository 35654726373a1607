"""One model in several processes: replicated (DDP) or sharded (FSDP2).

Replicas each hold the whole model and average their gradients; shards hold a part of weights, gradients and optimizer
each, and gather a block's weights when it runs. A checkpoint holds the same tensors by the same names either way, so
that a run may go on with another number of processes, or sharded where it was replicated.
"""

import warnings
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from inspect import signature
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from alight.options import Precision
from alight.runtime.distributed import Processes

KEPT_SHARE = 0.05  # of a device's memory, that gathered blocks may take from their forward to their backward pass


def shard(
    model: nn.Module,
    blocks: Iterable[nn.Module],
    processes: Processes,
    precision: Precision = "fp32",
    keep_gathered: bool = False,
) -> None:
    """Divide a model among the processes in place, block by block; call it before the optimizer is made.

    With bf16, blocks travel and run in bf16, while the parts of every weight, sums of gradients and everything outside
    of blocks stay in fp32: embeddings and output layer are small, and their sums are sensitive.

    Args:
        model: on the device of the processes.
        blocks: of the model.
        processes: that share it.
        precision: of the forward pass, which autocast has as well.
        keep_gathered: leave the weights of a block gathered until its backward pass, where the memory of the devices
            permits (see `fits_gathered`): fewer messages.
    """
    # it warns that outputs must not be changed in place, which nobody does
    warnings.filterwarnings("ignore", message=r"FSDP2-wrapped module \(.*\) returned a view tensor")
    blocks = list(blocks)
    mesh = init_device_mesh(processes.device.type, (processes.world_size,))
    reshard = not (keep_gathered and fits_gathered(blocks, processes, precision))
    narrow = MixedPrecisionPolicy(torch.bfloat16, torch.float32, cast_forward_inputs=False)
    wide = MixedPrecisionPolicy(cast_forward_inputs=False)
    for block in blocks:
        policy = narrow if precision == "bf16" else wide
        fully_shard(block, mesh=mesh, reshard_after_forward=reshard, mp_policy=policy)
    fully_shard(model, mesh=mesh, mp_policy=wide)


def fits_gathered(blocks: Iterable[nn.Module], processes: Processes, precision: Precision) -> bool:
    """Tell if the weights of all blocks together take at most a twentieth of the memory of every process's device.

    False on a CPU, where gathering again costs a copy.
    """
    size = sum(parameter.numel() for block in blocks for parameter in block.parameters())
    size *= 2 if precision == "bf16" else 4
    short = processes.device.type != "cuda" or (
        size > KEPT_SHARE * torch.cuda.get_device_properties(processes.device).total_memory
    )
    return not processes.largest(int(short))  # all gather together, or none does


def replicate(model: nn.Module, processes: Processes) -> nn.Module:
    """The module to call instead of the model, so that gradients are averaged over the processes."""
    if processes.world_size == 1 or isinstance(model, FSDPModule):
        return model
    return data_parallel(model, processes.device)


def data_parallel(model: nn.Module, device: torch.device) -> DistributedDataParallel:
    """A model whose gradients are averaged over the processes of the default group, as training has it."""
    known = signature(DistributedDataParallel).parameters  # torch 2.13 has given the switch another name
    sending = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
    buffers: dict[str, Any] = {sending: False}  # they are fixed
    return DistributedDataParallel(
        model,
        device_ids=[device] if device.type == "cuda" else None,
        **buffers,
        gradient_as_bucket_view=True,  # gradients are not copied into messages and back
    )


def release_weights(model: nn.Module) -> None:
    """Let go of what a sharded model has gathered for a forward pass that no backward pass follows."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


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


def is_divided(tensor: Tensor) -> bool:
    """Tell if this process holds a part of a tensor."""
    return isinstance(tensor, DTensor)


def divided_like(reference: Tensor, tensor: Tensor) -> Tensor:
    """A tensor that all processes hold, laid out as another one: this process's part of it where that is sharded."""
    if not isinstance(reference, DTensor):
        return tensor
    return distribute_tensor(tensor, reference.device_mesh, reference.placements, src_data_rank=None)


def group_for_checkpoints(states: Iterable[object]) -> dist.ProcessGroup | None:
    """A group of all processes for writing checkpoints beside training, where a model is sharded; else None.

    Every process must ask for it. It works over gloo: NCCL's messages would wait for those of training.
    """
    sharded = any(isinstance(state, ModelState) and state.is_sharded for state in states)
    return dist.new_group(backend="gloo") if sharded else None


def whole_weights(model: nn.Module) -> dict[str, Any]:
    """All weights of a model on the host, for a file of its own; every process must ask for it.

    Of a sharded model they are gathered, and empty in all processes but the first.
    """
    return get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))


class ModelState:
    """A model as a checkpoint holds it: this process's part of every weight where it is sharded."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    @property
    def is_sharded(self) -> bool:
        """True if every process holds a part."""
        return isinstance(self.model, FSDPModule)

    def state_dict(self) -> dict[str, Any]:
        """The weights themselves, not copies."""
        return get_model_state_dict(self.model)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore weights that are laid out like those of the model."""
        set_model_state_dict(self.model, state)


class OptimizerState:
    """The optimizer of a model as a checkpoint holds it: by the names of the weights, and divided as they are.

    Every process must ask for it.
    """

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self.model, self.optimizer = model, optimizer

    def state_dict(self) -> dict[str, Any]:
        """Its memory itself, not a copy."""
        return get_optimizer_state_dict(self.model, self.optimizer)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a memory that is laid out like its own."""
        set_optimizer_state_dict(self.model, self.optimizer, state)
