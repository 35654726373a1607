"""The transformer, its average and its optimizer, built from a configuration and laid out over the processes."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
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
from alight.training.parallel import ModelState, OptimizerState, replicate, shard, synchronised
from alight.training.run import Stateful
from alight.training.token_alignment import TappedForward, TokenAlignment, build_token_alignment


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
        alignment: of its tokens with features, with a projector that the optimizer has too; None = off.
    """

    model: LightningDiT
    ema: EMA[LightningDiT] | None
    optimizer: torch.optim.Optimizer
    forward: nn.Module
    power_averages: tuple[PowerAverage[LightningDiT], ...] = ()
    alignment: TokenAlignment | None = None

    @property
    def trained(self) -> nn.Module:
        """The module with all parameters of the optimizer, by whose names its memory is stored."""
        return trained_together(self.model, self.alignment)

    def states(self) -> dict[str, Stateful]:
        """Everything of it that a checkpoint holds, by name, but the power-function averages."""
        states: dict[str, Stateful] = {
            "model": ModelState(self.model),
            "optimizer": OptimizerState(self.trained, self.optimizer),
        }
        if self.ema is not None:
            states["ema"] = ModelState(self.ema.model)
        if self.alignment is not None:
            states["projector"] = ModelState(self.alignment.projector)
        return states

    @contextmanager
    def synchronised(self, last: bool) -> Iterator[None]:
        """Around forward and backward of one micro-batch: gradients travel with the last one alone."""
        with ExitStack() as stack:
            for module in (self.forward, *((self.alignment.forward,) if self.alignment is not None else ())):
                stack.enter_context(synchronised(module, last))
            yield


def build_networks(
    config: TrainTransformerConfig,
    latents: LatentFormat,
    processes: Processes,
    origin: OpenTransformer | None = None,
    feature_dim: int | None = None,
) -> TransformerNetworks:
    """Build the model from the seed or from existing weights, and its averages, projector and optimizer.

    Args:
        config: of the training.
        latents: that the model is built for.
        processes: that share the work.
        origin: weights to start from; None = fresh ones.
        feature_dim: width of the features that tokens are aligned with; without it they are not.

    Raises:
        InputError: sizes do not fit each other, or the block to be aligned does not exist.
    """
    training = config.training
    with seeded_initialisation(config.seed, "transformer"):
        model = build_model(config, latents)
    if origin is not None:
        adopt_weights(model, origin)
    if config.flow.objective == "average_velocity":
        require_average_velocities(model)
    alignment = None
    if config.representation.enabled and feature_dim is not None:
        alignment = build_token_alignment(config.representation, model, feature_dim, config.seed)
        alignment.projector.to(processes.device)
    model.to(processes.device)
    if training.activation_checkpointing:
        model.enable_gradient_checkpointing()
    ema = EMA(model, training.ema_decay, training.ema_warmup) if training.ema_decay else None
    power_averages = tuple(PowerAverage(model, width) for width in training.power_averages or ())
    if training.compile:
        compile_blocks(model.all_blocks)
    sharded = training.sharding == "shard" and processes.world_size > 1
    if sharded:
        averages = (*((ema,) if ema is not None else ()), *power_averages)
        shard(model, model.all_blocks, processes, training.precision, keep_gathered=True)
        for average in averages:  # which are for samples alone
            shard(average.model, average.model.all_blocks, processes, training.precision)
    if alignment is not None:
        alignment.distribute(processes, sharded)
    optimizer = make_optimizer(trained_together(model, alignment).named_parameters(), config.optimizer)
    return TransformerNetworks(model, ema, optimizer, replicate(model, processes), power_averages, alignment)


def trained_together(model: LightningDiT, alignment: TokenAlignment | None) -> nn.Module:
    """The model itself, or a container with its projector beside it."""
    if alignment is None:
        return model
    return nn.ModuleDict({"transformer": model, "projector": alignment.projector})


def build_model(config: TrainTransformerConfig, latents: LatentFormat) -> LightningDiT:
    """Build LightningDiT of the configured size for these latents."""
    channels, height, width = latents.shape
    fitted = {"sample_size": (height, width), "in_channels": channels, "num_classes": latents.num_classes}
    options = config.model.arguments()
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


def image_flops(config: TrainTransformerConfig, latents: LatentFormat, feature_dim: int | None = None) -> int | None:
    """Floating-point operations to learn from one image; None where they cannot be counted.

    Tokens are aligned where the configuration says so and the width of the features is given.
    """
    with torch.device("meta"):
        model, x, t = build_model(config, latents), torch.empty(1, *latents.shape), torch.empty(1)
        labels = torch.empty(1, dtype=torch.int64)
        alignment = None
        if config.representation.enabled and feature_dim is not None:
            alignment = build_token_alignment(config.representation, model, feature_dim, config.seed)
            features = torch.empty(1, feature_dim, *model.grid)

    def learn() -> None:
        network: nn.Module = model
        predict = partial(network, auxiliary=True) if model.has_auxiliary_output else network
        tapped = TappedForward(predict, alignment.block) if alignment is not None else None
        answer = (tapped or predict)(x, t, labels)
        loss = (sum(answer) if model.has_auxiliary_output else answer).sum()
        if alignment is not None and tapped is not None:
            loss = loss + alignment.loss(tapped.tokens, features)
        loss.backward()

    flops = known_flops(learn)
    if config.flow.objective == "velocity" or flops is None:
        return flops
    averages = config.flow.average_velocity
    forward = known_flops(lambda: model(x, t, labels)) or 0
    derivative = known_flops(lambda: average_velocity_target(model, x, t, t, labels, x)) or 0
    guided = forward if averages.guidance_scale != 1 else 0
    return flops + guided + round((1 - averages.equal_times) * derivative)
