"""The transformer, its average and its optimizer, built from a configuration and laid out over the processes."""

from typing import NamedTuple, Protocol

import torch
from torch import nn

from alight.config import TrainTransformerConfig
from alight.flow import average_velocity_target
from alight.interop.transformer_sources import OpenTransformer, adopt_weights
from alight.models.lightning_dit import LightningDiT
from alight.runtime.device import compile_blocks
from alight.runtime.distributed import Processes
from alight.runtime.errors import InputError
from alight.runtime.seeding import seeded_initialisation
from alight.training.ema import EMA, PowerAverage
from alight.training.flops import known_flops
from alight.training.optimizer import make_optimizer
from alight.training.parallel import replicate, shard


class LatentFormat(Protocol):
    """The properties of latents that a transformer is built for."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(C, h, w) of one."""

    @property
    def num_classes(self) -> int:
        """Number of classes."""


class TransformerNetworks(NamedTuple):
    """A transformer in training.

    Attributes:
        model: the transformer; each process holds all of its parameters or, sharded, a part.
        ema: its average; None = off.
        optimizer: of the model.
        forward: the module to call, so that gradients are averaged over the processes.
        power_averages: further averages, from which others can be put together after training.
    """

    model: LightningDiT
    ema: EMA[LightningDiT] | None
    optimizer: torch.optim.Optimizer
    forward: nn.Module
    power_averages: tuple[PowerAverage[LightningDiT], ...] = ()


def build_networks(
    config: TrainTransformerConfig,
    latents: LatentFormat,
    processes: Processes,
    origin: OpenTransformer | None = None,
) -> TransformerNetworks:
    """Build the model from the seed or from existing weights, and its averages and optimizer."""
    training = config.training
    with seeded_initialisation(config.seed, "transformer"):
        model = build_model(config, latents)
    if origin is not None:
        adopt_weights(model, origin)
    if config.flow.objective == "average_velocity":
        require_average_velocities(model)
    model.to(processes.device)
    if training.activation_checkpointing:
        model.enable_gradient_checkpointing()
    ema = EMA(model, training.ema_decay, training.ema_warmup) if training.ema_decay else None
    power_averages = tuple(PowerAverage(model, width) for width in training.power_averages or ())
    if training.compile:
        compile_blocks(model.blocks)
    if training.sharding == "shard" and processes.world_size > 1:
        averages = (*((ema,) if ema is not None else ()), *power_averages)
        for each in (model, *(average.model for average in averages)):
            shard(each, each.blocks)
    optimizer = make_optimizer(model.named_parameters(), config.optimizer)
    return TransformerNetworks(model, ema, optimizer, replicate(model, processes), power_averages)


def build_model(config: TrainTransformerConfig, latents: LatentFormat) -> LightningDiT:
    """Build LightningDiT of the configured size for these latents."""
    channels, height, width = latents.shape
    fitted = {"sample_size": (height, width), "in_channels": channels, "num_classes": latents.num_classes}
    options = config.model.model_dump(exclude={"preset"}, exclude_none=True)
    if config.model.preset:
        return LightningDiT.from_preset(config.model.preset, **fitted, **options)
    return LightningDiT(**fitted, **options)


def require_average_velocities(model: LightningDiT) -> None:
    """Refuse models that cannot learn average velocities.

    Raises:
        InputError: there is no interval embedding, or there is an auxiliary output, which would learn nothing.
    """
    if not model.has_interval_embedding:
        raise InputError(
            "flow.objective average_velocity needs a transformer with an interval embedding. Add one to that of "
            "init_from: --model.interval-embedding True."
        )
    if model.has_auxiliary_output:
        raise InputError(
            "flow.objective average_velocity has no loss for the auxiliary output of this transformer. Start from one "
            "without (auxiliary_block is null)."
        )


def image_flops(config: TrainTransformerConfig, latents: LatentFormat) -> int | None:
    """Floating-point operations to learn from one image; None where they cannot be counted."""
    with torch.device("meta"):
        model, x, t = build_model(config, latents), torch.empty(1, *latents.shape), torch.empty(1)
        labels = torch.empty(1, dtype=torch.int64)
    if model.has_auxiliary_output:
        return known_flops(lambda: sum(model(x, t, labels, auxiliary=True)).sum().backward())
    flops = known_flops(lambda: model(x, t, labels).sum().backward())
    if config.flow.objective == "velocity" or flops is None:
        return flops
    averages = config.flow.average_velocity
    forward = known_flops(lambda: model(x, t, labels)) or 0
    derivative = known_flops(lambda: average_velocity_target(model, x, t, t, labels, x)) or 0
    guided = forward if averages.guidance_scale != 1 else 0
    return flops + guided + round((1 - averages.equal_times) * derivative)
