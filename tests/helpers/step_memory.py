"""The activations of a transformer's step, counted on the meta device."""

from contextlib import nullcontext

import torch

from alight.config import TrainTransformerConfig
from alight.plan.untrained import LatentShape
from alight.runtime.distributed import Processes
from alight.training.transformer_networks import build_networks
from alight.training.transformer_step import TransformerBatch, transformer_backward
from helpers.live_memory import CUDAAutocast, LiveMemory
from helpers.meta_device import META, optimizers_on_meta


def activations(config: TrainTransformerConfig, latents: LatentShape, images: int, precision: str) -> int:
    """The memory that a micro-batch needs for a while, beside weights, gradients, optimizer and average."""
    plain = config.training.model_copy(update={"compile": False})
    config = config.model_copy(update={"training": plain})
    with optimizers_on_meta(), LiveMemory() as memory:
        networks = build_networks(config, latents, Processes(0, 1, META))
        x, t, labels = (
            torch.empty(images, *latents.shape, device=META),
            torch.empty(images, device=META),
            torch.empty(images, dtype=torch.int64, device=META),
        )
        batch = TransformerBatch(x, labels, t, torch.empty_like(x), labels)
        work = lambda: transformer_backward(networks.forward, batch, config.flow)  # noqa: E731
        work()  # so that there are gradients
        before = memory.now
        memory.reset_peak()
        with CUDAAutocast() if precision == "bf16" else nullcontext():
            work()
        return memory.peak - before
