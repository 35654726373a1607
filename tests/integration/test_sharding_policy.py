"""The division and replication of models: devices, types of weights and gradients, and messages."""

import torch
from torch.nn.parallel import DistributedDataParallel

from alight.runtime.device import autocast
from alight.training import parallel
from alight.training.parallel import fits_gathered, release_weights, replicate, shard, synchronised
from helpers.many_processes import call_together
from helpers.models import tiny_transformer


def options_of_shards(processes, precision):
    """Gives the options with which each module is divided."""
    given = []
    divide = parallel.fully_shard

    def recorded(module, **options):
        policy, mesh = options["mp_policy"], options["mesh"]
        types = [str(each) for each in (policy.param_dtype, policy.reduce_dtype, policy.output_dtype)]
        given.append((mesh.device_type, mesh.size(), *types, policy.cast_forward_inputs))
        return divide(module, **options)

    parallel.fully_shard = recorded
    model = tiny_transformer(num_layers=2)
    shard(model, model.blocks, processes, precision)
    return given


def test_a_model_is_divided_on_its_own_device_and_only_blocks_are_narrow():
    """Without a mesh, torch divides on the accelerator of the machine, whatever device was asked for."""
    narrow = ("cpu", 2, "torch.bfloat16", "torch.float32", "None", False)
    wide = ("cpu", 2, "None", "None", "None", False)
    assert call_together(options_of_shards, 2, "bf16") == [[narrow, narrow, wide]] * 2
    assert call_together(options_of_shards, 2, "fp32") == [[wide, wide, wide]] * 2


def accumulate(processes):
    """Gives the types of outputs and gradients, and what is gathered after a pass without gradient."""
    model = tiny_transformer(num_layers=2)
    shard(model, model.blocks, processes, "bf16")
    x, t, labels = torch.randn(4, 4, 4, 4), torch.rand(4), torch.zeros(4, dtype=torch.int64)
    for last in (False, True):
        with synchronised(model, last), autocast(processes.device, "bf16"):
            output = model(x, t, labels)
        output.square().mean().backward()
    types = {parameter.grad.dtype for parameter in model.parameters()} | {output.dtype}
    types |= {parameter.dtype for parameter in model.parameters()}
    with torch.no_grad(), autocast(processes.device, "bf16"):
        model(x, t, labels)
    release_weights(model)
    return types, all(isinstance(parameter.data, parallel.DTensor) for parameter in model.parameters())


def test_weights_gradients_and_outputs_stay_wide():
    assert call_together(accumulate, 2) == [({torch.float32}, True)] * 2


def replicated(processes):
    """Gives the settings of a replica, and the decision on gathered weights."""
    model = tiny_transformer(num_layers=2)
    replica = replicate(model, processes)
    assert isinstance(replica, DistributedDataParallel)
    settings = replica.gradient_as_bucket_view, replica.broadcast_buffers
    return *settings, fits_gathered(model.blocks, processes, "fp32")


def test_replicas_send_gradients_alone_and_without_copies():
    assert call_together(replicated, 2) == [(True, False, False)] * 2
