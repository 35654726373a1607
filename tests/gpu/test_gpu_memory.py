"""Memory on CUDA: what was counted on the meta device is what the allocator says, and a shortage is explained."""

import re

import pytest
import torch

from alight.plan.measure import _measure
from alight.plan.untrained import LatentShape
from alight.plan.workload import TransformerWorkload
from alight.runtime.errors import InputError
from helpers.live_memory import use_fused_attention
from helpers.stage_steps import CLASSES, TransformerTraining, transformer_config
from helpers.step_memory import activations

CUDA = torch.device("cuda", 0)
ROOM = 256 * 2**20  # bytes that a process is left with


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_plan_measures_what_is_counted_without_a_gpu(precision, monkeypatch):
    """Of a model large enough that the workspaces of kernels, some tens of megabytes, hardly count."""
    size = {"hidden_size": 512, "num_layers": 4, "num_heads": 8}
    plain, config = (wider(transformer_config(precision=each), size) for each in ("fp32", precision))
    latents = LatentShape((4, 16, 16), CLASSES)
    measured = _measure(TransformerWorkload(config, latents, CUDA, num_layers=4), 64).activations
    use_fused_attention(monkeypatch)
    # the allocator rounds, and the backward pass of attention sums in float32
    assert measured == pytest.approx(activations(plain, latents, 64, precision), rel=0.25)


def wider(config, size):
    """The configuration with a larger model."""
    return config.model_copy(update={"model": config.model.model_copy(update=size)})


@pytest.fixture
def little_memory():
    """Leave this process little more than it has; given a function, so that networks can be built before."""

    def limit():
        torch.cuda.empty_cache()
        total = torch.cuda.get_device_properties(CUDA).total_memory
        torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved(CUDA) + ROOM) / total, CUDA)

    yield limit
    torch.cuda.set_per_process_memory_fraction(1.0, CUDA)
    torch.cuda.empty_cache()


def test_a_real_shortage_names_a_micro_batch_that_fits(little_memory):
    training = TransformerTraining.build(CUDA, global_batch_size=4096)
    batch = training.batch.to(CUDA)
    training.backward(batch.first(4))  # chooses kernels and allocates their workspaces
    training.update()
    little_memory()
    with pytest.raises(InputError, match="does not fit into the memory of cuda:0") as caught:
        training.backward(batch)
    fitting = int(re.search(r"micro_batch_size to (\d+), which fits", str(caught.value)).group(1))
    assert 1 <= fitting < 4096
    training.networks.optimizer.zero_grad()
    training.backward(batch.first(fitting))
    training.update()
