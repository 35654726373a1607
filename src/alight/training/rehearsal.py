"""A pass before the first step of every start, by which replicas settle the order of their messages.

DDP divides gradients into other messages after its first backward pass. More than two processes sum the parts of a
message in an order that depends on their place in it, so the first step after a start would differ in its last digits
from the same step of a run that was never interrupted.
"""

import torch
from torch.nn.parallel import DistributedDataParallel

from alight.config import TrainTransformerConfig
from alight.runtime.distributed import Processes
from alight.training.transformer_networks import LatentFormat, TransformerNetworks
from alight.training.transformer_step import (
    TransformerBatch,
    draw_steps,
    draw_times,
    transformer_backward,
    with_resolved_shift,
)


def rehearse(
    networks: TransformerNetworks,
    config: TrainTransformerConfig,
    latents: LatentFormat,
    processes: Processes,
    feature_dim: int | None = None,
) -> None:
    """Take the gradient of a micro-batch of noise, and drop it; nothing is done where no messages are sent.

    Args:
        networks: of the training.
        config: likewise.
        latents: their shape and number of classes.
        processes: that share the work.
        feature_dim: width of the features that tokens are aligned with; None = they are not.
    """
    if not isinstance(networks.forward, DistributedDataParallel):
        return
    training, generator = config.training, torch.Generator().manual_seed(0)
    images = training.global_batch_size // processes.world_size // training.micro_batches(processes.world_size)
    x_1, x_0 = (torch.randn(images, *latents.shape, generator=generator) for _ in range(2))
    labels = torch.zeros(images, dtype=torch.int64)
    flow = with_resolved_shift(config.flow, latents.shape)
    t, until = draw_times(flow, 0, images, generator), None
    if flow.objective == "average_velocity":
        t, until = draw_steps(flow, 0, t, generator)
    features = None
    if networks.alignment is not None and feature_dim is not None:
        features = torch.randn(images, feature_dim, *latents.shape[1:], generator=generator)
    batch = TransformerBatch(x_1, labels, t, x_0, labels, features, until).to(processes.device)
    transformer_backward(networks.forward, batch, config.flow, training.precision, alignment=networks.alignment)
    networks.optimizer.zero_grad(set_to_none=True)
